//! A transformer: how its input becomes a residual stream, a stack of blocks, an output head; and for models that
//! translate, a second stack that reads the source.

use std::sync::Arc;

use super::{
    block::{Block, BlockCache, BlockNames, BlockSpec, NormNames, build_norm, norm_request, optional},
    head_names::HeadNames,
};
use crate::{
    Error, Result,
    gpu::{Buffer, Gpu, Recorder},
    layers::{
        CacheSize, CacheUse, Dimensions, HeadMixtureSpec, KvCache, Norm, NormSpec, OutputHead, Pass,
        PatchEmbedding, Scope, Step, TokenEmbedding, Workspace,
    },
    ops::{AttentionKernel, CachePrecision, MatrixShape, Precision, padded, sinusoidal_positions},
    weights::{Form, Piece, Request, Store},
};

/// The sizes of a transformer.
#[derive(Clone, Debug)]
pub(crate) struct TransformerSpec {
    /// Rows of the output head: tokens of the vocabulary, or classes.
    pub outputs: u32,
    pub width: u32,
    /// Positions the model was trained for.
    pub context: u32,
    pub input: InputSpec,
    /// The stack that reads the source of a translation.
    pub encoder: Option<StackSpec>,
    /// The stack whose output becomes logits.
    pub stack: StackSpec,
}

/// How a residual stream starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum InputSpec {
    /// `scale · embedding[id]`, plus the position's vector where there are such.
    Tokens {
        scale: f32,
        /// Sinusoidal positions, counted from this number.
        sinusoidal_from: Option<u32>,
    },
    /// Patches of an image behind a class token, with learned positions.
    Patches {
        /// Values of a patch.
        values: u32,
        /// Patches of an image.
        count: u32,
    },
}

/// The sizes of a stack.
#[derive(Clone, Debug)]
pub(crate) struct StackSpec {
    pub blocks: Vec<BlockSpec>,
    /// Whether a token sees only what comes before it.
    pub causal: bool,
    pub final_norm: NormSpec,
}

/// The names of a transformer's tensors.
#[derive(Clone, Debug)]
pub(crate) struct TransformerNames {
    pub input: InputNames,
    pub encoder: Option<StackNames>,
    pub stack: StackNames,
    pub head: HeadNames,
}

/// The names of what the residual stream starts with.
#[derive(Clone, Debug)]
pub(crate) enum InputNames {
    Tokens(String),
    Patches(Box<PatchNames>),
}

/// The names of what an image starts with.
#[derive(Clone, Debug)]
pub(crate) struct PatchNames {
    pub projection: Piece,
    pub bias: String,
    pub class_token: Piece,
    pub positions: Piece,
}

/// The names of a stack's tensors.
#[derive(Clone, Debug)]
pub(crate) struct StackNames {
    pub blocks: Vec<BlockNames>,
    pub final_norm: NormNames,
}

impl StackSpec {
    /// The attentions to the stack's own tokens.
    pub fn attentions(&self) -> impl Iterator<Item = &HeadMixtureSpec> {
        self.blocks.iter().map(|block| &block.attention)
    }

    /// The attentions to another stack.
    pub fn cross_attentions(&self) -> impl Iterator<Item = &HeadMixtureSpec> {
        self.blocks.iter().filter_map(|block| block.cross.as_ref())
    }

    fn check(&self) -> Result<()> {
        self.blocks.iter().try_for_each(BlockSpec::check)?;
        let sticks = self.attentions().any(|spec| spec.kernel == AttentionKernel::StickBreaking);
        if sticks && !self.causal {
            return Err(Error::argument("attention", "stick-breaking both ways", "softmax, or causal"));
        }
        Ok(())
    }

    fn requests(&self, names: &StackNames) -> Vec<Request> {
        let blocks = self.blocks.iter().zip(&names.blocks);
        let mut requests: Vec<Request> = blocks.flat_map(|(spec, names)| spec.requests(names)).collect();
        requests.extend(norm_request(&self.final_norm, &names.final_norm));
        requests
    }

    fn grow(&self, dimensions: &mut Dimensions) {
        for block in &self.blocks {
            block.attentions().for_each(|spec| dimensions.attention(spec));
            dimensions.mlp(&block.mlp);
        }
    }

    /// Experts a token chooses over all routers.
    pub fn routes_per_token(&self) -> u32 {
        let routers = self.blocks.iter().flat_map(BlockSpec::routers);
        routers.map(|(_, router)| router.routes_per_token()).sum()
    }

    /// Scores they are chosen by.
    pub fn scores_per_token(&self) -> u32 {
        let routers = self.blocks.iter().flat_map(BlockSpec::routers);
        routers.map(|(_, router)| router.scores_per_token()).sum()
    }

    /// How long keys and values are wanted: tokens to come see them only where attention is causal.
    pub fn cache_use(&self) -> CacheUse {
        if self.causal && self.whole_sequences().is_none() { CacheUse::Kept } else { CacheUse::OneStep }
    }

    /// Whether heads choose their tokens from whole sequences, and so from the whole batch.
    pub fn cuts_sequences(&self) -> bool {
        self.attentions().any(|spec| matches!(spec.router.scope, Scope::Sequence { .. }))
    }

    /// Why a sequence has to be in one step, if it has to.
    pub fn whole_sequences(&self) -> Option<&'static str> {
        if self.cuts_sequences() {
            return Some(
                "its heads choose their tokens from whole sequences, so a token's output changes with those \
                 that follow it: there is no next-token form",
            );
        }
        (!self.causal).then_some("its tokens see those that follow them")
    }
}

impl TransformerSpec {
    /// # Errors
    /// When a layer's parameters contradict each other; `config` is the file they come from.
    pub fn check(&self, config: &str) -> Result<()> {
        self.stacks().try_for_each(StackSpec::check).map_err(|error| match error {
            Error::Argument { name, found, expected } => Error::bad_file(config, name, found, expected),
            other => other,
        })
    }

    /// The encoder, if there is one, and the stack that makes logits.
    pub fn stacks(&self) -> impl Iterator<Item = &StackSpec> {
        self.encoder.iter().chain([&self.stack])
    }

    fn table_shape(&self) -> MatrixShape {
        MatrixShape::dense(self.outputs, self.width)
    }

    /// The tensors this transformer wants.
    pub fn requests(&self, names: &TransformerNames) -> Vec<Request> {
        let table = Form::matrix(self.table_shape());
        let mut requests = match (&names.input, self.input) {
            (InputNames::Tokens(name), _) => vec![Request::new(name.clone(), table).unquantized()],
            (InputNames::Patches(names), InputSpec::Patches { values, count }) => {
                let PatchNames { projection, bias, class_token, positions } = &**names;
                let rows = |rows| Form::Rows { rows, width: self.width, transposed: false };
                let shape = MatrixShape::dense(self.width, values);
                vec![
                    Request::new(projection.clone(), Form::matrix(shape)).unquantized(),
                    Request::new(bias.clone(), Form::vector(self.width)),
                    Request::new(class_token.clone(), rows(1)),
                    Request::new(positions.clone(), rows(1 + count)),
                ]
            }
            _ => Vec::new(),
        };
        requests.extend(names.head.own().map(|name| {
            let head = Request::new(name.to_owned(), table);
            // As it is where the same values are not there twice.
            if names.head.tied { head.unquantized() } else { head }
        }));
        let bias = Form::vector(self.outputs);
        requests.extend(names.head.bias.iter().map(|name| Request::new(name.clone(), bias)));
        let stacks = self.stacks().zip(names.encoder.iter().chain([&names.stack]));
        requests.extend(stacks.flat_map(|(spec, names)| spec.requests(names)));
        requests
    }

    /// Parameters that one token's forward pass uses: everything but the experts it did not choose.
    pub fn active_parameters(&self, names: &TransformerNames) -> u64 {
        let total: u64 = self.requests(names).iter().map(|request| request.form.parameters()).sum();
        let blocks = self.stacks().flat_map(|stack| &stack.blocks);
        total - blocks.map(BlockSpec::idle_parameters).sum::<u64>()
    }

    /// Bytes of the table of positions that is computed, not loaded.
    pub fn position_bytes(&self) -> u64 {
        match self.input {
            InputSpec::Tokens { sinusoidal_from: Some(_), .. } => {
                4 * u64::from(self.context) * u64::from(padded(self.width))
            }
            InputSpec::Tokens { .. } | InputSpec::Patches { .. } => 0,
        }
    }

    /// Bytes of key/value cache for each position.
    pub fn cache_bytes_per_token(&self, precision: CachePrecision) -> u64 {
        let size = CacheSize { sequences: 1, capacity: 1, most: 1, precision };
        let own = KvCache::bytes(self.stack.attentions(), size, self.stack.cache_use());
        // What a token of a translation's source takes.
        own + KvCache::bytes(self.stack.cross_attentions(), size, CacheUse::Kept)
    }

    /// The largest sizes over all layers, for a workspace.
    pub fn dimensions(&self, tokens: u32, sequences: u32, keys: u32, logit_rows: u32) -> Dimensions {
        let mut dimensions = Dimensions::new(tokens, sequences, keys, logit_rows);
        (dimensions.width, dimensions.vocab) = (self.width, self.outputs);
        if let InputSpec::Patches { values, .. } = self.input {
            dimensions.patch = values;
        }
        self.stacks().for_each(|stack| stack.grow(&mut dimensions));
        dimensions
    }
}

/// A transformer on the GPU.
pub(crate) struct Transformer {
    pub spec: TransformerSpec,
    pub precision: Precision,
    pub cache_precision: CachePrecision,
    input: Input,
    encoder: Option<Stack>,
    stack: Stack,
    head: OutputHead,
}

enum Input {
    Tokens(TokenEmbedding),
    Patches(PatchEmbedding),
}

struct Stack {
    blocks: Vec<Block>,
    final_norm: Norm,
}

impl Transformer {
    /// Builds the layers from loaded tensors.
    ///
    /// # Errors
    /// When `store` lacks one of [`TransformerSpec::requests`].
    pub fn new(
        gpu: &Gpu,
        spec: TransformerSpec,
        names: &TransformerNames,
        (precision, cache_precision): (Precision, CachePrecision),
        mut store: Store,
    ) -> Result<Self> {
        let (input, table) = input(gpu, &spec, &names.input, &mut store)?;
        let matrix = match (names.head.own(), table) {
            (Some(name), _) => store.shared_matrix(name)?,
            (None, Some(table)) => table,
            (None, None) => {
                return Err(Error::bad_file("model", "output head", "no name", "a tensor's name"));
            }
        };
        let head = OutputHead { matrix, bias: optional(&mut store, &names.head.bias)? };
        let encoder = match (&spec.encoder, &names.encoder) {
            (Some(spec), Some(names)) => Some(Stack::new(spec, names, &mut store)?),
            _ => None,
        };
        let stack = Stack::new(&spec.stack, &names.stack, &mut store)?;
        Ok(Self { spec, precision, cache_precision, input, encoder, stack, head })
    }

    /// Records one step: `ids` to logits of the rows in `workspace.logit_rows`. `memory` holds what the stack attends
    /// to besides itself.
    pub fn record<'a>(
        &'a self,
        mut pass: Pass<'a, '_>,
        cache: &'a KvCache,
        memory: Option<&'a KvCache>,
        ids: &Buffer,
    ) {
        self.start(pass.recorder, pass.workspace, ids, pass.step.tokens);
        self.stack.record(&mut pass, cache, memory);
        let Pass { recorder, workspace, step, .. } = pass;
        if step.logit_rows > 0 {
            self.stack.final_norm.record_last(recorder, workspace, step.logit_rows);
            self.head.record(recorder, workspace, step.logit_rows);
        }
    }

    /// Records the reading of sources: the encoder, and the keys and values of its output for each layer that attends
    /// to it, into `memory`.
    pub fn record_encoder(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        cache: &KvCache,
        memory: &KvCache,
        ids: &Buffer,
        step: &Step,
    ) {
        let Some(encoder) = &self.encoder else { return };
        self.start(recorder, workspace, ids, step.tokens);
        let mut pass = Pass::new(recorder, workspace, step);
        pass.layer.encoder = true;
        encoder.record(&mut pass, cache, None);
        encoder.final_norm.record_before(recorder, workspace, step.tokens);
        let output = encoder.final_norm.input(workspace);
        for (block, cache) in self.stack.blocks.iter().zip(&memory.layers) {
            block.remember(recorder, workspace, output, cache, step.tokens);
        }
    }

    fn start(&self, recorder: &mut Recorder, workspace: &Workspace, ids: &Buffer, tokens: u32) {
        match &self.input {
            Input::Tokens(embedding) => embedding.record(recorder, workspace, ids, tokens),
            Input::Patches(embedding) => embedding.record(recorder, workspace, tokens),
        }
    }

    /// The size of a cache that holds its numbers as this model's do.
    pub fn cache_size(&self, sequences: u32, capacity: u32) -> CacheSize {
        CacheSize { sequences, capacity, most: capacity, precision: self.cache_precision }
    }
}

/// What the residual stream starts with, and the embedding table for an output head that shares it.
fn input(
    gpu: &Gpu,
    spec: &TransformerSpec,
    names: &InputNames,
    store: &mut Store,
) -> Result<(Input, Option<Arc<crate::ops::Matrix>>)> {
    Ok(match names {
        InputNames::Tokens(name) => {
            let table = store.shared_matrix(name)?;
            let InputSpec::Tokens { scale, sinusoidal_from } = spec.input else {
                return Err(Error::bad_file("model", "input", "patches", "tokens"));
            };
            let positions =
                sinusoidal_from.map(|first| sinusoidal_positions(gpu, spec.context, spec.width, first));
            let embedding = TokenEmbedding { table: Arc::clone(&table), scale, positions };
            (Input::Tokens(embedding), Some(table))
        }
        InputNames::Patches(names) => {
            let PatchNames { projection, bias, class_token, positions } = &**names;
            let embedding = PatchEmbedding {
                projection: store.matrix(std::slice::from_ref(projection))?,
                bias: store.rows(&[bias.clone().into()])?,
                class_token: store.rows(std::slice::from_ref(class_token))?,
                positions: store.rows(std::slice::from_ref(positions))?,
            };
            (Input::Patches(embedding), None)
        }
    })
}

impl Stack {
    fn new(spec: &StackSpec, names: &StackNames, store: &mut Store) -> Result<Self> {
        let blocks = spec.blocks.iter().zip(&names.blocks);
        Ok(Self {
            blocks: blocks.map(|(spec, names)| Block::new(spec, names, store)).collect::<Result<_>>()?,
            final_norm: build_norm(spec.final_norm, &names.final_norm, store)?,
        })
    }

    fn record<'a>(&'a self, pass: &mut Pass<'a, '_>, cache: &'a KvCache, memory: Option<&'a KvCache>) {
        for (index, (block, own)) in self.blocks.iter().zip(&cache.layers).enumerate() {
            pass.layer.layer = index as u32;
            let memory = memory.and_then(|memory| memory.layers.get(index));
            block.record(pass, BlockCache { own, memory });
        }
    }
}
