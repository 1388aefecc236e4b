//! A block of a stack: a head mixture, perhaps one that attends to another stack, and an expert MLP.
//!
//! Families describe blocks with a [`BlockSpec`] (sizes) and [`BlockNames`] (tensors); how they are loaded and built
//! stands here once.

use crate::{
    Error, Result,
    gpu::Recorder,
    layers::{
        ExpertMlp, ExpertMlpSpec, ExpertMlpWeights, HeadMixture, HeadMixtureSpec, HeadMixtureWeights,
        KvProjection, LayerCache, Norm, NormSpec, OutputBias, Pass, PositionEncoding, Router, RouterNet,
        RouterSpec, RouterWeights, Workspace,
    },
    ops::{MatrixShape, head_stride},
    weights::{Form, Layout, Order, Piece, Request, Store},
};

/// The sizes of one block.
#[derive(Clone, Debug)]
pub(crate) struct BlockSpec {
    pub attention: HeadMixtureSpec,
    /// Attention to another stack's output.
    pub cross: Option<HeadMixtureSpec>,
    pub mlp: ExpertMlpSpec,
}

/// What a router of a block chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouterPlace {
    /// Heads that attend to the stack's own tokens.
    Attention,
    /// Value experts of these heads.
    Values,
    /// Heads that attend to another stack.
    Cross,
    /// MLP experts.
    Mlp,
}

/// The names of a norm's tensors: weight, and bias of a LayerNorm; none where the layer has no norm of its own.
pub(crate) type NormNames = Vec<Piece>;

/// `prefix.weight`
pub(crate) fn rms_norm_names(prefix: &str) -> NormNames {
    vec![format!("{prefix}.weight").into()]
}

/// `prefix.weight` and `prefix.bias`
pub(crate) fn layer_norm_names(prefix: &str) -> NormNames {
    ["weight", "bias"].map(|part| format!("{prefix}.{part}").into()).to_vec()
}

/// The names of a router's tensors.
#[derive(Clone, Debug, Default)]
pub(crate) enum RouterNames {
    Linear {
        /// Stacked, where shared experts and stages have tensors of their own.
        weight: Vec<Piece>,
        /// `[width, experts]` in the file.
        transposed: bool,
        bias: Option<String>,
    },
    Mlp {
        first: String,
        first_bias: Option<String>,
        second: String,
    },
    /// Nothing to load: no router, or one that looks at the queries.
    #[default]
    None,
}

impl RouterNames {
    /// One matrix `[experts, width]` without a bias.
    pub fn linear(weight: String) -> Self {
        Self::Linear { weight: vec![weight.into()], transposed: false, bias: None }
    }
}

/// The names of an attention's tensors. Several names are stacked along their first dimension.
#[derive(Clone, Debug, Default)]
pub(crate) struct AttentionNames {
    pub norm: NormNames,
    pub router: RouterNames,
    pub query: Vec<Piece>,
    pub query_bias: Vec<Piece>,
    /// Keys over values; keys alone with value experts; empty where there is no projection.
    pub kv: Vec<Piece>,
    pub kv_bias: Vec<Piece>,
    /// The value experts and their router.
    pub values: Option<(String, RouterNames)>,
    pub output: String,
    pub output_bias: Option<String>,
    /// The output bias has a row for each expert.
    pub output_bias_of_expert: bool,
    /// How the files order the query, value and output projections.
    pub query_order: Order,
    pub value_order: Order,
    pub output_order: Order,
}

/// The names of an MLP's tensors.
#[derive(Clone, Debug, Default)]
pub(crate) struct MlpNames {
    pub norm: NormNames,
    pub router: RouterNames,
    /// With SwiGLU the gate over the up projection.
    pub up: Vec<Piece>,
    pub up_bias: Option<String>,
    pub down: String,
    pub down_bias: Option<String>,
    pub order: Order,
}

/// The names of one block's tensors.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockNames {
    pub attention: AttentionNames,
    pub cross: Option<AttentionNames>,
    pub mlp: MlpNames,
}

impl BlockSpec {
    /// # Errors
    /// When a layer's parameters contradict each other.
    pub fn check(&self) -> Result<()> {
        self.attentions().try_for_each(HeadMixtureSpec::check)?;
        self.mlp.check()
    }

    /// The attentions in the order in which they run.
    pub fn attentions(&self) -> impl Iterator<Item = &HeadMixtureSpec> {
        std::iter::once(&self.attention).chain(&self.cross)
    }

    /// The routers in the order in which they write down their choices.
    pub fn routers(&self) -> impl Iterator<Item = (RouterPlace, &RouterSpec)> {
        let attention = self.attention.routers().zip([RouterPlace::Attention, RouterPlace::Values]);
        let cross = self.cross.iter().map(|spec| (&spec.router, RouterPlace::Cross));
        let mlp = std::iter::once((&self.mlp.router, RouterPlace::Mlp));
        attention.chain(cross).chain(mlp).map(|(router, place)| (place, router))
    }

    /// The tensors this block wants.
    pub fn requests(&self, names: &BlockNames) -> Vec<Request> {
        let mut requests = attention_requests(&self.attention, &names.attention);
        if let (Some(cross), Some(names)) = (&self.cross, &names.cross) {
            requests.extend(attention_requests(cross, names));
        }
        requests.extend(mlp_requests(&self.mlp, &names.mlp));
        requests
    }

    /// Parameters of experts that a token does not use.
    pub fn idle_parameters(&self) -> u64 {
        // As the files count them: heads without their padding.
        let idle = |shape: MatrixShape, layout: Layout, router: &RouterSpec| {
            let each = Form::Matrix(shape, layout).parameters() / u64::from(shape.experts);
            u64::from(shape.experts - router.active().min(shape.experts)) * each
        };
        let attentions: u64 = self
            .attentions()
            .map(|spec| {
                let heads = Some(spec.head_dim);
                let outputs = Layout { output_heads: heads, ..Layout::default() };
                let inputs = Layout { input_heads: heads, ..Layout::default() };
                // A dense matrix of all heads' queries is used whole.
                let queries = spec.query_shape();
                let queries = if queries.experts == 1 { 0 } else { idle(queries, outputs, &spec.router) };
                let values = spec.value_shape().zip(spec.value_router());
                queries
                    + idle(spec.output_shape(), inputs, &spec.router)
                    + values.map_or(0, |(shape, router)| idle(shape, outputs, router))
            })
            .sum();
        attentions
            + idle(self.mlp.up_shape(), Layout::default(), &self.mlp.router)
            + idle(self.mlp.down_shape(), Layout::default(), &self.mlp.router)
    }
}

fn attention_requests(spec: &HeadMixtureSpec, names: &AttentionNames) -> Vec<Request> {
    let (width, dim) = (spec.norm.width, spec.head_dim);
    let heads = Some(dim);
    let mut requests = Vec::new();
    requests.extend(norm_request(&spec.norm, &names.norm));
    requests.extend(router_requests(&names.router, &spec.router, width));
    let query = Layout { order: names.query_order, output_heads: heads, input_heads: None };
    let shape = spec.query_shape();
    requests.push(Request::stacked(&names.query, Form::Matrix(shape, query)));
    if !names.query_bias.is_empty() {
        let per_expert = shape.outputs / head_stride(dim);
        let form = Form::ExpertHeads { experts: shape.experts, heads: per_expert, head_dim: dim };
        requests.push(Request::stacked(&names.query_bias, form));
    }
    if let Some(shape) = spec.kv_shape() {
        let layout = Layout { output_heads: heads, ..Layout::default() };
        let kv = Request::stacked(&names.kv, Form::Matrix(shape, layout));
        // Decoding projects routed queries, keys and values at once.
        let with_queries =
            names.kv_bias.is_empty() && !spec.dense_queries() && spec.kv == KvProjection::Projected;
        requests.push(match names.query.first().filter(|_| with_queries) {
            Some(query) => kv.behind(query.key()),
            None => kv,
        });
        if !names.kv_bias.is_empty() {
            let form = Form::Heads { width: shape.outputs, head_dim: dim };
            requests.push(Request::stacked(&names.kv_bias, form));
        }
    }
    if let (Some((values, router)), Some(shape), Some(value_router)) =
        (&names.values, spec.value_shape(), spec.value_router())
    {
        let layout = Layout { order: names.value_order, output_heads: heads, input_heads: None };
        requests.push(Request::new(values.clone(), Form::Matrix(shape, layout)));
        requests.extend(router_requests(router, value_router, width));
    }
    let output = Layout { order: names.output_order, output_heads: None, input_heads: heads };
    requests.push(Request::new(names.output.clone(), Form::Matrix(spec.output_shape(), output)));
    requests.extend(names.output_bias.iter().map(|name| {
        let form = match names.output_bias_of_expert {
            true => Form::Rows { rows: spec.experts(), width, transposed: false },
            false => Form::vector(width),
        };
        Request::new(name.clone(), form)
    }));
    requests
}

fn mlp_requests(spec: &ExpertMlpSpec, names: &MlpNames) -> Vec<Request> {
    let width = spec.norm.width;
    let mut requests = Vec::new();
    requests.extend(norm_request(&spec.norm, &names.norm));
    requests.extend(router_requests(&names.router, &spec.router, width));
    let layout = Layout { order: names.order, ..Layout::default() };
    requests.push(Request::stacked(&names.up, Form::Matrix(spec.up_shape(), layout)));
    let up_bias = match spec.router.routes() {
        true => Form::Rows { rows: spec.experts(), width: spec.hidden, transposed: false },
        false => Form::vector(spec.hidden),
    };
    requests.extend(names.up_bias.iter().map(|name| Request::new(name.clone(), up_bias)));
    requests.push(Request::new(names.down.clone(), Form::Matrix(spec.down_shape(), layout)));
    requests.extend(names.down_bias.iter().map(|name| Request::new(name.clone(), Form::vector(width))));
    requests
}

/// The one buffer of a norm, if the layer has one.
pub(super) fn norm_request(spec: &NormSpec, names: &NormNames) -> Option<Request> {
    let form = Form::Vectors { rows: spec.rows(), width: spec.width };
    (!names.is_empty()).then(|| Request::stacked(names, form))
}

fn router_requests(names: &RouterNames, spec: &RouterSpec, width: u32) -> Vec<Request> {
    let rows = spec.choice.score_rows();
    match (names, spec.net) {
        (RouterNames::Linear { weight, transposed, bias }, RouterNet::Linear) => {
            let form = Form::Rows { rows, width, transposed: *transposed };
            let bias = bias.iter().map(|name| Request::new(name.clone(), Form::vector(rows)));
            std::iter::once(Request::stacked(weight, form)).chain(bias).collect()
        }
        (RouterNames::Mlp { first, first_bias, second }, RouterNet::Mlp { hidden, .. }) => {
            let first = Request::new(first.clone(), Form::matrix(MatrixShape::dense(hidden, width)));
            let second = Request::new(second.clone(), Form::matrix(MatrixShape::dense(rows, hidden)));
            let bias = first_bias.iter().map(|name| Request::new(name.clone(), Form::vector(hidden)));
            [first, second].map(Request::unquantized).into_iter().chain(bias).collect()
        }
        _ => Vec::new(),
    }
}

/// A block on the GPU.
pub(super) struct Block {
    attention: HeadMixture,
    cross: Option<HeadMixture>,
    mlp: ExpertMlp,
}

/// Where a block keeps keys and values.
#[derive(Clone, Copy)]
pub(super) struct BlockCache<'a> {
    pub own: &'a LayerCache,
    /// Of the stack that the block attends to.
    pub memory: Option<&'a LayerCache>,
}

impl Block {
    pub fn new(spec: &BlockSpec, names: &BlockNames, store: &mut Store) -> Result<Self> {
        let cross = match (&spec.cross, &names.cross) {
            (Some(spec), Some(names)) => Some(attention(spec, names, store)?),
            _ => None,
        };
        let MlpNames { norm, router, up, up_bias, down, down_bias, .. } = &names.mlp;
        let mlp = ExpertMlp {
            spec: spec.mlp,
            norm: build_norm(spec.mlp.norm, norm, store)?,
            router: build_router(spec.mlp.router, router, store)?,
            weights: ExpertMlpWeights {
                up: store.matrix(up)?,
                up_bias: optional(store, up_bias)?,
                down: store.matrix(&[down.clone().into()])?,
                output_bias: optional(store, down_bias)?,
            },
        };
        Ok(Self { attention: attention(&spec.attention, &names.attention, store)?, cross, mlp })
    }

    /// Adds the block's output to the residual stream.
    pub fn record<'a>(&'a self, pass: &mut Pass<'a, '_>, cache: BlockCache<'a>) {
        self.attention.record(pass, cache.own);
        if let (Some(cross), Some(memory)) = (&self.cross, cache.memory) {
            cross.record(pass, memory);
        }
        self.mlp.record(pass);
    }

    /// Fills the cache of the attention to another stack.
    pub fn remember(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        memory: &crate::gpu::Buffer,
        cache: &LayerCache,
        tokens: u32,
    ) {
        if let Some(cross) = &self.cross {
            cross.remember(recorder, workspace, memory, cache, tokens);
        }
    }
}

fn attention(spec: &HeadMixtureSpec, names: &AttentionNames, store: &mut Store) -> Result<HeadMixture> {
    debug_assert!(!matches!(spec.position, PositionEncoding::Relative { .. }), "no family has these yet");
    let kv = match names.kv.is_empty() {
        true => None,
        false => Some((store.matrix(&names.kv)?, store.optional_rows(&names.kv_bias)?)),
    };
    let values = match (&names.values, spec.value_router()) {
        (Some((values, router)), Some(spec)) => {
            let matrix = store.matrix(&[values.clone().into()])?;
            build_router(*spec, router, store)?.map(|router| (matrix, router))
        }
        _ => None,
    };
    let output_bias = match optional(store, &names.output_bias)? {
        None => OutputBias::None,
        Some(bias) if names.output_bias_of_expert => OutputBias::OfExpert(bias),
        Some(bias) => OutputBias::Once(bias),
    };
    Ok(HeadMixture {
        spec: *spec,
        norm: build_norm(spec.norm, &names.norm, store)?,
        router: build_router(spec.router, &names.router, store)?,
        weights: HeadMixtureWeights {
            query: store.matrix(&names.query)?,
            query_bias: store.optional_rows(&names.query_bias)?,
            kv,
            values,
            output: store.matrix(&[names.output.clone().into()])?,
            output_bias,
            relative: None,
        },
    })
}

pub(super) fn build_norm(spec: NormSpec, names: &NormNames, store: &mut Store) -> Result<Norm> {
    Ok(Norm { spec, weights: store.optional_rows(names)? })
}

pub(super) fn optional(store: &mut Store, name: &Option<String>) -> Result<Option<crate::gpu::Buffer>> {
    name.as_ref().map(|name| store.rows(&[name.clone().into()])).transpose()
}

fn build_router(spec: RouterSpec, names: &RouterNames, store: &mut Store) -> Result<Option<Router>> {
    let weights = match names {
        RouterNames::Linear { weight, bias, .. } => {
            RouterWeights::Linear { weight: store.rows(weight)?, bias: optional(store, bias)? }
        }
        RouterNames::Mlp { first, first_bias, second } => RouterWeights::Mlp {
            first: store.matrix(&[first.clone().into()])?,
            first_bias: optional(store, first_bias)?,
            second: store.matrix(&[second.clone().into()])?,
            second_bias: None,
        },
        RouterNames::None if spec.net == RouterNet::QueryNorm => RouterWeights::QueryNorm,
        RouterNames::None if spec.net == RouterNet::None => return Ok(None),
        RouterNames::None => {
            let found = format!("no tensors for {:?}", spec.net);
            return Err(Error::bad_file("model", "router", found, "the family's names for them"));
        }
    };
    Ok(Some(Router { spec, weights }))
}
