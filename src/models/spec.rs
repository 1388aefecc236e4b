//! What a transformer is: the sizes of its input, of its stacks of blocks and of its output.

use crate::{
    Error, Result,
    layers::{
        CacheSize, CacheUse, Dimensions, ExpertMlpSpec, HeadMixtureSpec, KvCache, NormSpec, RouterSpec, Scope,
    },
    ops::{Activation, AttentionKernel, CachePrecision, MatrixShape, padded},
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
    /// The layer before the output head's matrix, which is as wide as the table.
    pub transform: Option<TransformSpec>,
}

/// The layer before an output head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransformSpec {
    pub activation: Activation,
    /// Behind the activation.
    pub norm: NormSpec,
}

/// How a residual stream starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum InputSpec {
    /// `scale · embedding[id]`, plus vectors by position where there are such.
    Tokens {
        scale: f32,
        /// Sinusoidal positions, counted from this number.
        sinusoidal_from: Option<u32>,
        /// The norm of a table narrower than the residual stream, from which a projection leads there.
        factor: Option<NormSpec>,
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

/// The sizes of one block.
#[derive(Clone, Debug)]
pub(crate) struct BlockSpec {
    pub attention: HeadMixtureSpec,
    /// Attention to another stack's output.
    pub cross: Option<HeadMixtureSpec>,
    /// None in a stack of attention alone.
    pub mlp: Option<ExpertMlpSpec>,
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

impl BlockSpec {
    /// Without attention to another stack.
    pub fn new(attention: HeadMixtureSpec, mlp: impl Into<Option<ExpertMlpSpec>>) -> Self {
        Self { attention, cross: None, mlp: mlp.into() }
    }

    /// # Errors
    /// When a layer's parameters contradict each other.
    pub fn check(&self) -> Result<()> {
        self.attentions().try_for_each(HeadMixtureSpec::check)?;
        self.mlp.iter().try_for_each(ExpertMlpSpec::check)
    }

    /// The attentions in the order in which they run.
    pub fn attentions(&self) -> impl Iterator<Item = &HeadMixtureSpec> + Clone {
        std::iter::once(&self.attention).chain(&self.cross)
    }

    /// The routers in the order in which they write down their choices.
    pub fn routers(&self) -> impl Iterator<Item = (RouterPlace, &RouterSpec)> {
        let attention = self.attention.routers().zip([RouterPlace::Attention, RouterPlace::Values]);
        let cross = self.cross.iter().map(|spec| (&spec.router, RouterPlace::Cross));
        let mlp = self.mlp.iter().map(|spec| (&spec.router, RouterPlace::Mlp));
        attention.chain(cross).chain(mlp).map(|(router, place)| (place, router))
    }
}

impl StackSpec {
    /// Blocks, and whether a token sees only what comes before it.
    pub fn new(blocks: Vec<BlockSpec>, causal: bool, final_norm: NormSpec) -> Self {
        Self { blocks, causal, final_norm }
    }

    /// The attentions to the stack's own tokens.
    pub fn attentions(&self) -> impl Iterator<Item = &HeadMixtureSpec> + Clone {
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

    fn grow(&self, dimensions: &mut Dimensions) {
        for block in &self.blocks {
            block.attentions().for_each(|spec| dimensions.attention(spec));
            block.mlp.iter().for_each(|spec| dimensions.mlp(spec));
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
    /// One stack, as wide as its last norm.
    pub fn new(outputs: u32, context: u32, input: InputSpec, stack: StackSpec) -> Self {
        Self { outputs, width: stack.final_norm.width, context, input, encoder: None, stack, transform: None }
    }

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

    /// Of the embedding table and of the output head.
    pub(super) fn table_shape(&self) -> MatrixShape {
        MatrixShape::dense(self.outputs, self.table_width())
    }

    pub(super) fn table_width(&self) -> u32 {
        match self.input {
            InputSpec::Tokens { factor: Some(norm), .. } => norm.width,
            InputSpec::Tokens { .. } | InputSpec::Patches { .. } => self.width,
        }
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
