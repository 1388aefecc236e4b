//! A decoder-only stack: embedding, blocks of head mixture and expert MLP, norm, output head.
//!
//! Families describe it with a [`DecoderSpec`] (sizes) and [`DecoderNames`] (tensors); everything else is here
//! once.

use std::sync::Arc;

use crate::{
    Result,
    gpu::{Buffer, Gpu, Recorder},
    layers::{
        Dimensions, ExpertMlp, ExpertMlpSpec, ExpertMlpWeights, HeadMixture, HeadMixtureSpec,
        HeadMixtureWeights, KvCache, Norm, NormSpec, OutputHead, Step, TokenEmbedding, Workspace,
    },
    ops::{MatrixShape, Precision},
    weights::{Form, Request, Store},
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
    pub final_norm: String,
    /// `None` when the output head is the embedding table.
    pub head: Option<String>,
    pub blocks: Vec<BlockNames>,
}

/// The names of one block's tensors.
#[derive(Clone, Debug)]
pub(crate) struct BlockNames {
    pub attention_norm: String,
    pub attention_router: String,
    pub query: String,
    pub kv: String,
    pub output: String,
    pub output_bias: String,
    pub mlp_norm: String,
    pub mlp_router: String,
    pub up: String,
    pub down: String,
    pub down_bias: String,
}

impl DecoderSpec {
    /// # Errors
    /// When a layer's parameters contradict each other.
    pub fn check(&self) -> Result<()> {
        self.blocks.iter().try_for_each(|block| {
            block.attention.check()?;
            block.mlp.check()
        })
    }

    fn table_shape(&self) -> MatrixShape {
        MatrixShape::dense(self.vocab, self.width)
    }

    /// The tensors this decoder wants.
    pub fn requests(&self, names: &DecoderNames) -> Vec<Request> {
        let request = |name: &String, form| Request { name: name.clone(), form };
        let table = Form::Matrix(self.table_shape());
        let vector = Form::vector(self.width);
        let mut requests = vec![request(&names.embedding, table), request(&names.final_norm, vector)];
        requests.extend(names.head.iter().map(|head| request(head, table)));
        for (BlockSpec { attention, mlp }, names) in self.blocks.iter().zip(&names.blocks) {
            let router = |experts| Form::Rows { rows: experts, width: self.width, finite: true };
            requests.extend([
                request(&names.attention_norm, vector),
                request(&names.attention_router, router(attention.router.experts)),
                request(&names.query, Form::Matrix(attention.query_shape())),
                request(&names.kv, Form::Matrix(attention.kv_shape())),
                request(&names.output, Form::Matrix(attention.output_shape())),
                request(&names.mlp_norm, vector),
                request(&names.mlp_router, router(mlp.router.experts)),
                request(&names.up, Form::Matrix(mlp.up_shape())),
                request(&names.down, Form::Matrix(mlp.down_shape())),
            ]);
            requests.extend(attention.output_bias.then(|| request(&names.output_bias, vector)));
            requests.extend(mlp.output_bias.then(|| request(&names.down_bias, vector)));
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
                let (heads, experts) = (attention.router.active(), mlp.router.active());
                idle(attention.query_shape(), heads)
                    + idle(attention.output_shape(), heads)
                    + idle(mlp.up_shape(), experts)
                    + idle(mlp.down_shape(), experts)
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
        Dimensions {
            tokens,
            sequences,
            capacity,
            logit_rows,
            width: self.width,
            vocab: self.vocab,
            attention_active: attention(|spec| spec.router.active()),
            heads: attention(|spec| spec.heads_per_expert),
            kv_heads: attention(|spec| spec.kv_heads),
            head_dim: attention(|spec| spec.head_dim),
            attention_experts: attention(|spec| spec.router.experts),
            mlp_active: mlp(|spec| spec.router.active()),
            mlp_experts: mlp(|spec| spec.router.experts),
            mlp_hidden: mlp(|spec| spec.hidden),
            routes_per_token: self.routes_per_token(),
        }
    }
}

impl BlockSpec {
    fn routes_per_token(&self) -> u32 {
        self.attention.router.active() + self.mlp.router.active()
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
        let final_norm = Norm { spec: spec.final_norm, weight: store.rows(&names.final_norm)? };
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
            routes_before += block.attention.spec.router.active();
            let routes = workspace.routes(step.tokens, routes_before);
            block.mlp.record(recorder, workspace, step, routes);
            routes_before += block.mlp.spec.router.active();
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
        let mut bias = |wanted: bool, name: &String| wanted.then(|| store.rows(name)).transpose();
        let attention_bias = bias(attention.output_bias, &names.output_bias)?;
        let mlp_bias = bias(mlp.output_bias, &names.down_bias)?;
        Ok(Self {
            attention: HeadMixture {
                spec: *attention,
                weights: HeadMixtureWeights {
                    norm: store.rows(&names.attention_norm)?,
                    router: store.rows(&names.attention_router)?,
                    query: store.matrix(&names.query)?,
                    kv: store.matrix(&names.kv)?,
                    output: store.matrix(&names.output)?,
                    output_bias: attention_bias,
                },
            },
            mlp: ExpertMlp {
                spec: *mlp,
                weights: ExpertMlpWeights {
                    norm: store.rows(&names.mlp_norm)?,
                    router: store.rows(&names.mlp_router)?,
                    up: store.matrix(&names.up)?,
                    down: store.matrix(&names.down)?,
                    output_bias: mlp_bias,
                },
            },
        })
    }
}
