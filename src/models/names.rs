//! The names of a transformer's tensors, layer by layer. [`walk`](super::walk) says which layer wants which.

use std::fmt::Display;

use crate::weights::Pieces;

/// What the names of some tensors begin with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prefix(String);

impl Prefix {
    /// `prefix.`
    pub fn new(prefix: impl Display) -> Self {
        Self(format!("{prefix}."))
    }

    /// `prefix.name`
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }

    /// One tensor of this name.
    pub fn tensor(&self, name: &str) -> Pieces {
        self.name(name).into()
    }

    /// `name.weight`
    pub fn weight(&self, name: &str) -> Pieces {
        self.weights([name])
    }

    /// The `weight` of each, stacked.
    pub fn weights(&self, names: impl IntoIterator<Item = impl Display>) -> Pieces {
        names.into_iter().map(|name| self.name(&format!("{name}.weight"))).collect()
    }

    /// `name.bias`
    pub fn bias(&self, name: &str) -> Pieces {
        self.biases([name])
    }

    /// The `bias` of each, stacked.
    pub fn biases(&self, names: impl IntoIterator<Item = impl Display>) -> Pieces {
        names.into_iter().map(|name| self.name(&format!("{name}.bias"))).collect()
    }

    /// Of a LayerNorm: `name.weight` and `name.bias`. An RMSNorm has a [`weight`](Self::weight) alone.
    pub fn layer_norm(&self, name: &str) -> Pieces {
        ["weight", "bias"].into_iter().map(|part| self.name(&format!("{name}.{part}"))).collect()
    }
}

/// The names of a transformer's tensors.
#[derive(Clone, Debug)]
pub(crate) struct TransformerNames {
    pub input: InputNames,
    pub encoder: Option<StackNames>,
    pub stack: StackNames,
    pub head: HeadNames,
}

impl TransformerNames {
    /// Without an encoder.
    pub fn new(input: InputNames, stack: StackNames, head: HeadNames) -> Self {
        Self { input, encoder: None, stack, head }
    }
}

/// The names of what the residual stream starts with.
#[derive(Clone, Debug)]
pub(crate) enum InputNames {
    Tokens(Box<TokenNames>),
    Patches(Box<PatchNames>),
}

impl InputNames {
    /// A table of token embeddings alone.
    pub fn table(name: &str) -> Self {
        Self::Tokens(Box::new(TokenNames { table: name.to_owned(), ..TokenNames::default() }))
    }
}

/// The names of what tokens start with.
#[derive(Clone, Debug, Default)]
pub(crate) struct TokenNames {
    pub table: String,
    /// Learned positions, and a vector that all tokens get.
    pub positions: Pieces,
    pub everywhere: Pieces,
    /// What brings a narrower table to the width of the residual stream.
    pub norm: Pieces,
    pub projection: Pieces,
    pub bias: Pieces,
}

/// The names of what an image starts with.
#[derive(Clone, Debug)]
pub(crate) struct PatchNames {
    pub projection: Pieces,
    pub bias: Pieces,
    pub class_token: Pieces,
    pub positions: Pieces,
}

/// The names of an output head.
#[derive(Clone, Debug)]
pub(crate) struct HeadNames {
    /// The tensor of a head of its own.
    pub weight: String,
    pub bias: Pieces,
    /// Whether the config ties the head to the embedding table.
    pub tied: bool,
    /// Whether it is that table.
    pub shared: bool,
    pub transform: TransformNames,
}

/// The names of the layer before an output head, if there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct TransformNames {
    pub matrix: Pieces,
    pub bias: Pieces,
    pub norm: Pieces,
}

impl HeadNames {
    /// Without a bias, as the config has it.
    pub fn new(weight: &str, tied: bool) -> Self {
        Self {
            weight: weight.to_owned(),
            bias: Pieces::default(),
            tied,
            shared: tied,
            transform: TransformNames::default(),
        }
    }

    /// The tensor of a head of its own, if it is one.
    pub fn own(&self) -> Option<&str> {
        (!self.shared).then_some(self.weight.as_str())
    }

    /// What a user should know: the files have their way.
    pub fn note(&self, config: &str) -> Option<String> {
        (self.tied && !self.shared).then(|| {
            format!(
                "the output head is {}, as transformers has it, though {config} ties it to the embeddings",
                self.weight
            )
        })
    }
}

/// The names of a stack's tensors.
#[derive(Clone, Debug)]
pub(crate) struct StackNames {
    pub blocks: Vec<BlockNames>,
    pub final_norm: Pieces,
}

/// The names of one block's tensors.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockNames {
    pub attention: AttentionNames,
    pub cross: Option<AttentionNames>,
    pub mlp: MlpNames,
}

/// The names of an attention's tensors.
#[derive(Clone, Debug, Default)]
pub(crate) struct AttentionNames {
    /// None where the norm is another layer's.
    pub norm: Pieces,
    pub router: RouterNames,
    pub query: Pieces,
    pub query_bias: Pieces,
    /// Keys over values; keys alone with value experts.
    pub kv: Pieces,
    pub kv_bias: Pieces,
    /// The value experts and their router.
    pub values: Pieces,
    pub value_router: RouterNames,
    pub output: Pieces,
    pub output_bias: Pieces,
    /// The output bias has a row for each expert.
    pub output_bias_of_expert: bool,
}

/// The names of an MLP's tensors.
#[derive(Clone, Debug, Default)]
pub(crate) struct MlpNames {
    /// None where the norm is another layer's.
    pub norm: Pieces,
    pub router: RouterNames,
    /// With SwiGLU the gate over the up projection.
    pub up: Pieces,
    pub up_bias: Pieces,
    pub down: Pieces,
    pub down_bias: Pieces,
}

/// The names of a router's tensors; none where there is no router, or one that looks at the queries.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouterNames {
    /// Of a router of two layers: the first.
    pub hidden: Pieces,
    pub hidden_bias: Pieces,
    /// What makes the scores. Shared experts and stages may have tensors of their own.
    pub weight: Pieces,
    pub bias: Pieces,
}

impl RouterNames {
    /// One layer without a bias.
    pub fn linear(weight: Pieces) -> Self {
        Self { weight, ..Self::default() }
    }
}
