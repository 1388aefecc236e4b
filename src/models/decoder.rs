//! A decoder-only stack: embedding, blocks of head mixture and expert MLP, norm, output head.
//!
//! Families describe it with a [`DecoderSpec`] (sizes) and [`DecoderNames`] (tensors); everything else is here
//! once.

use std::sync::Arc;

use crate::{
    Error, Result,
    gpu::{Buffer, Gpu, Recorder},
    layers::{
        Dimensions, ExpertMlp, ExpertMlpSpec, ExpertMlpWeights, HeadMixture, HeadMixtureSpec,
        HeadMixtureWeights, KvCache, Norm, NormSpec, OutputHead, Router, RouterNet, RouterSpec,
        RouterWeights, Step, TokenEmbedding, Workspace,
    },
    ops::{MatrixShape, Precision},
    weights::{Form, Layout, Order, Request, Store},
};

/// The sizes of a decoder.
#[derive(Clone, Debug)]
pub(crate) struct DecoderSpec {
    pub vocab: u32,
    pub width: u32,
    /// Positions the model was trained for.
    pub context: u32,
    pub blocks: Vec<BlockSpec>,
    pub final_norm: NormSpec,
    pub bos: Option<u32>,
    pub eos: Vec<u32>,
}

/// The sizes of one block.
#[derive(Clone, Debug)]
pub(crate) struct BlockSpec {
    pub attention: HeadMixtureSpec,
    pub mlp: ExpertMlpSpec,
}

/// The names of a decoder's tensors in its files.
#[derive(Clone, Debug)]
pub(crate) struct DecoderNames {
    pub embedding: String,
    pub final_norm: NormNames,
    /// `None` when the output head is the embedding table.
    pub head: Option<String>,
    pub blocks: Vec<BlockNames>,
}

/// The names of a norm's tensors.
#[derive(Clone, Debug)]
pub(crate) struct NormNames {
    pub weight: String,
    /// Of a LayerNorm.
    pub bias: Option<String>,
}

/// The names of a router's tensors.
#[derive(Clone, Debug)]
pub(crate) enum RouterNames {
    Linear(String),
    Mlp {
        first: String,
        bias: String,
        second: String,
    },
    /// Nothing to load: no router, or one that looks at the queries.
    None,
}

/// The names of one block's tensors. Several names are stacked along their first dimension.
#[derive(Clone, Debug)]
pub(crate) struct BlockNames {
    pub attention_norm: NormNames,
    pub attention_router: RouterNames,
    pub query: String,
    /// Keys over values; empty where there is no projection.
    pub kv: Vec<String>,
    pub kv_bias: Vec<String>,
    pub output: String,
    pub output_bias: Option<String>,
    pub mlp_norm: NormNames,
    pub mlp_router: RouterNames,
    /// With SwiGLU the gate over the up projection.
    pub up: Vec<String>,
    pub down: String,
    pub down_bias: Option<String>,
    /// How the files order the query, output and MLP projections.
    pub query_order: Order,
    pub output_order: Order,
    pub mlp_order: Order,
}

impl DecoderSpec {
    /// # Errors
    /// When a layer's parameters contradict each other; `config` is the file they come from.
    pub fn check(&self, config: &str) -> Result<()> {
        let layers = self.blocks.iter().try_for_each(|block| {
            block.attention.check()?;
            block.mlp.check()
        });
        layers.map_err(|error| match error {
            Error::Argument { name, found, expected } => Error::bad_file(config, name, found, expected),
            other => other,
        })
    }

    fn table_shape(&self) -> MatrixShape {
        MatrixShape::dense(self.vocab, self.width)
    }

    /// The tensors this decoder wants.
    pub fn requests(&self, names: &DecoderNames) -> Vec<Request> {
        let table = Form::matrix(self.table_shape());
        let mut requests = vec![Request::new(&names.embedding, table)];
        requests.extend(names.head.iter().map(|head| Request::new(head, table)));
        requests.extend(norm_requests(&names.final_norm, self.width));
        for (spec, names) in self.blocks.iter().zip(&names.blocks) {
            requests.extend(spec.requests(names));
        }
        requests
    }

    /// Parameters that one token's forward pass uses: everything but the experts it did not choose.
    pub fn active_parameters(&self, names: &DecoderNames) -> u64 {
        let total: u64 = self.requests(names).iter().map(|request| request.form.parameters()).sum();
        let idle = |shape: MatrixShape, active: u32| {
            shape.parameters() / u64::from(shape.experts) * u64::from(shape.experts - active)
        };
        let unused: u64 = self
            .blocks
            .iter()
            .map(|BlockSpec { attention, mlp }| {
                // Where the queries decide, all of them are used.
                let queries = attention.query_shape();
                let queries = if queries.experts == 1 { 0 } else { idle(queries, attention.active()) };
                queries
                    + idle(attention.output_shape(), attention.active())
                    + idle(mlp.up_shape(), mlp.active())
                    + idle(mlp.down_shape(), mlp.active())
            })
            .sum();
        total - unused
    }

    /// Bytes of the key/value cache for each position.
    pub fn cache_bytes_per_token(&self) -> u64 {
        KvCache::bytes(self.attentions(), 1, 1)
    }

    pub fn attentions(&self) -> impl Iterator<Item = &HeadMixtureSpec> {
        self.blocks.iter().map(|block| &block.attention)
    }

    /// Experts a token chooses over all routers.
    pub fn routes_per_token(&self) -> u32 {
        self.blocks.iter().map(BlockSpec::routes_per_token).sum()
    }

    /// The largest sizes over all layers, for a workspace.
    pub fn dimensions(&self, tokens: u32, sequences: u32, capacity: u32, logit_rows: u32) -> Dimensions {
        let attention = |size: fn(&HeadMixtureSpec) -> u32| self.attentions().map(size).max().unwrap_or(1);
        let mlp = |size: fn(&ExpertMlpSpec) -> u32| {
            self.blocks.iter().map(|block| size(&block.mlp)).max().unwrap_or(1)
        };
        let routers = self.blocks.iter().flat_map(|block| [block.attention.router, block.mlp.router]);
        let router_hidden = routers.flatten().map(|router| match router.net {
            RouterNet::Mlp { hidden, .. } => hidden,
            RouterNet::Linear | RouterNet::QueryNorm => 0,
        });
        Dimensions {
            tokens,
            sequences,
            capacity,
            logit_rows,
            width: self.width,
            vocab: self.vocab,
            query_floats: attention(|spec| {
                let shape = spec.attention_shape(1, 1);
                if spec.query_shape().experts == 1 { shape.q_row() } else { shape.q_row() * shape.slots }
            }),
            kv_floats: attention(|spec| spec.kv_shape().map_or(0, |shape| shape.outputs)),
            attended_floats: attention(|spec| {
                let shape = spec.attention_shape(1, 1);
                shape.out_row() * shape.slots
            }),
            query_heads: attention(|spec| spec.active() * spec.heads_per_expert),
            head_dim: attention(|spec| spec.head_dim),
            attention_active: attention(HeadMixtureSpec::active),
            attention_experts: attention(HeadMixtureSpec::experts),
            mlp_active: mlp(ExpertMlpSpec::active),
            mlp_experts: mlp(ExpertMlpSpec::experts),
            mlp_hidden: mlp(|spec| spec.hidden),
            router_hidden: router_hidden.max().unwrap_or(0),
            routes_per_token: self.routes_per_token(),
        }
    }
}

impl BlockSpec {
    /// Experts a token chooses in this block. A layer without a router chooses none.
    fn routes_per_token(&self) -> u32 {
        self.attention.routes_per_token() + self.mlp.routes_per_token()
    }

    fn requests(&self, names: &BlockNames) -> Vec<Request> {
        let Self { attention, mlp } = self;
        let width = attention.norm.width;
        let heads = Some(attention.head_dim);
        let mut requests = Vec::new();
        requests.extend(norm_requests(&names.attention_norm, width));
        requests.extend(router_requests(&names.attention_router, attention.router, width));
        let query = Layout { order: names.query_order, output_heads: heads, input_heads: None };
        requests.push(Request::new(&names.query, Form::Matrix(attention.query_shape(), query)));
        if let Some(shape) = attention.kv_shape() {
            let layout = Layout { output_heads: heads, ..Layout::default() };
            requests.push(Request::stacked(&names.kv, Form::Matrix(shape, layout)));
            if !names.kv_bias.is_empty() {
                let form = Form::Heads { width: shape.outputs, head_dim: attention.head_dim };
                requests.push(Request::stacked(&names.kv_bias, form));
            }
        }
        let output = Layout { order: names.output_order, output_heads: None, input_heads: heads };
        requests.push(Request::new(&names.output, Form::Matrix(attention.output_shape(), output)));
        requests.extend(names.output_bias.iter().map(|name| Request::new(name, Form::Vector(width))));

        requests.extend(norm_requests(&names.mlp_norm, width));
        requests.extend(router_requests(&names.mlp_router, mlp.router, width));
        let experts = Layout { order: names.mlp_order, ..Layout::default() };
        requests.push(Request::stacked(&names.up, Form::Matrix(mlp.up_shape(), experts)));
        requests.push(Request::new(&names.down, Form::Matrix(mlp.down_shape(), experts)));
        requests.extend(names.down_bias.iter().map(|name| Request::new(name, Form::Vector(width))));
        requests
    }
}

fn norm_requests(names: &NormNames, width: u32) -> impl Iterator<Item = Request> {
    [Some(&names.weight), names.bias.as_ref()]
        .into_iter()
        .flatten()
        .map(move |name| Request::new(name, Form::Vector(width)))
}

fn router_requests(names: &RouterNames, spec: Option<RouterSpec>, width: u32) -> Vec<Request> {
    let Some(spec) = spec else { return Vec::new() };
    match (names, spec.net) {
        (RouterNames::Linear(name), _) => {
            vec![Request::new(name, Form::Rows { rows: spec.experts(), width, finite: true })]
        }
        (RouterNames::Mlp { first, bias, second }, RouterNet::Mlp { hidden, .. }) => vec![
            Request::new(first, Form::matrix(MatrixShape::dense(hidden, width))),
            Request::new(bias, Form::Vector(hidden)),
            Request::new(second, Form::matrix(MatrixShape::dense(spec.experts(), hidden))),
        ],
        _ => Vec::new(),
    }
}

/// A decoder on the GPU.
pub(crate) struct Decoder {
    pub spec: DecoderSpec,
    pub precision: Precision,
    embedding: TokenEmbedding,
    blocks: Vec<Block>,
    final_norm: Norm,
    head: OutputHead,
}

struct Block {
    attention: HeadMixture,
    mlp: ExpertMlp,
}

impl Decoder {
    /// Builds the layers from loaded tensors.
    ///
    /// # Errors
    /// When `store` lacks one of [`DecoderSpec::requests`].
    pub fn new(
        spec: DecoderSpec,
        names: &DecoderNames,
        precision: Precision,
        mut store: Store,
    ) -> Result<Self> {
        let table = store.shared_matrix(&names.embedding)?;
        let head = match &names.head {
            Some(name) => store.shared_matrix(name)?,
            None => Arc::clone(&table),
        };
        let final_norm = norm(spec.final_norm, &names.final_norm, &mut store)?;
        let blocks = spec
            .blocks
            .iter()
            .zip(&names.blocks)
            .map(|(spec, names)| Block::new(spec, names, &mut store))
            .collect::<Result<_>>()?;
        Ok(Self {
            embedding: TokenEmbedding { table },
            head: OutputHead { matrix: head },
            spec,
            precision,
            blocks,
            final_norm,
        })
    }

    /// Records one step: `ids` to logits of the rows in `workspace.logit_rows`.
    pub fn record(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        cache: &KvCache,
        ids: &Buffer,
        step: &Step,
    ) {
        self.embedding.record(recorder, workspace, ids, step.tokens);
        let mut routes_before = 0;
        for (block, cache) in self.blocks.iter().zip(&cache.layers) {
            let routes = workspace.routes(step.tokens, routes_before);
            block.attention.record(recorder, workspace, cache, step, routes);
            routes_before += block.attention.spec.routes_per_token();
            let routes = workspace.routes(step.tokens, routes_before);
            block.mlp.record(recorder, workspace, step, routes);
            routes_before += block.mlp.spec.routes_per_token();
        }
        if step.logit_rows > 0 {
            self.final_norm.record_last(recorder, workspace, step.logit_rows);
            self.head.record(recorder, workspace, step.logit_rows);
        }
    }

    /// Allocates a key/value cache.
    pub fn cache(&self, gpu: &Gpu, sequences: u32, capacity: u32) -> KvCache {
        KvCache::new(gpu, self.spec.attentions(), sequences, capacity)
    }
}

impl Block {
    fn new(spec: &BlockSpec, names: &BlockNames, store: &mut Store) -> Result<Self> {
        let BlockSpec { attention, mlp } = spec;
        let kv = match names.kv.first() {
            None => None,
            Some(name) => {
                let bias = names.kv_bias.first().map(|name| store.rows(name)).transpose()?;
                Some((store.matrix(name)?, bias))
            }
        };
        let output_bias = names.output_bias.as_ref().map(|name| store.rows(name)).transpose()?;
        let down_bias = names.down_bias.as_ref().map(|name| store.rows(name)).transpose()?;
        Ok(Self {
            attention: HeadMixture {
                spec: *attention,
                norm: norm(attention.norm, &names.attention_norm, store)?,
                router: router(attention.router, &names.attention_router, store)?,
                weights: HeadMixtureWeights {
                    query: store.matrix(&names.query)?,
                    kv,
                    output: store.matrix(&names.output)?,
                    output_bias,
                },
            },
            mlp: ExpertMlp {
                spec: *mlp,
                norm: norm(mlp.norm, &names.mlp_norm, store)?,
                router: router(mlp.router, &names.mlp_router, store)?,
                weights: ExpertMlpWeights {
                    up: store.matrix(&names.up[0])?,
                    down: store.matrix(&names.down)?,
                    output_bias: down_bias,
                },
            },
        })
    }
}

fn norm(spec: NormSpec, names: &NormNames, store: &mut Store) -> Result<Norm> {
    let bias = names.bias.as_ref().map(|name| store.rows(name)).transpose()?;
    Ok(Norm { spec, weight: store.rows(&names.weight)?, bias })
}

fn router(spec: Option<RouterSpec>, names: &RouterNames, store: &mut Store) -> Result<Option<Router>> {
    let Some(spec) = spec else { return Ok(None) };
    let weights = match names {
        RouterNames::Linear(name) => RouterWeights::Linear(store.rows(name)?),
        RouterNames::Mlp { first, bias, second } => RouterWeights::Mlp {
            first: store.matrix(first)?,
            bias: store.rows(bias)?,
            second: store.matrix(second)?,
        },
        RouterNames::None => RouterWeights::QueryNorm,
    };
    Ok(Some(Router { spec, weights }))
}
