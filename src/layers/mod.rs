//! The layers: parameters and the order of ops. No family names, no direct talk to the GPU.

mod embedding;
mod expert_mlp;
mod head_mixture;
mod head_mixture_spec;
mod kv_cache;
mod linear;
mod norm;
mod output_head;
mod router;
mod workspace;

pub use embedding::{PatchEmbedding, TokenEmbedding};
pub use expert_mlp::{ExpertMlp, ExpertMlpSpec, ExpertMlpWeights, MlpActivation};
pub use head_mixture::{HeadMixture, HeadMixtureWeights, OutputBias};
pub use head_mixture_spec::{AttentionKernel, HeadMixtureSpec, KvProjection, PositionEncoding};
pub use kv_cache::{CacheSize, CacheUse, KvCache, LayerCache};
pub use norm::{Norm, NormPlacement, NormSpec};
pub use output_head::OutputHead;
pub use router::{Router, RouterNet, RouterSpec, RouterWeights, Scope};
pub use workspace::{Dimensions, RouteCursor, Workspace};

use crate::ops::Span;

/// What one forward step does, known on the host.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// Tokens of all sequences together.
    pub tokens: u32,
    /// Sequences that have tokens in this step.
    pub ranges: u32,
    /// Tokens of the sequence that has most.
    pub longest: u32,
    /// Keys of their own sequence that tokens see.
    pub own: Visible,
    /// Keys of the memory that tokens see, where there is one.
    pub memory: Visible,
    /// Rows whose logits are wanted.
    pub logit_rows: u32,
}

/// Keys that tokens see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visible {
    /// One token at the most.
    pub most: u32,
    /// All tokens together.
    pub total: u64,
}

impl Visible {
    /// Over the rows of a step.
    pub fn of(spans: &[Span]) -> Self {
        Self {
            most: spans.iter().map(|span| span.keys).max().unwrap_or(0),
            total: spans.iter().map(|span| u64::from(span.keys)).sum(),
        }
    }
}

/// Tokens up to which a step runs matrix-vector kernels, each token on its own; from there on it groups tokens
/// by expert and runs tiles.
pub const FEW_TOKENS: u32 = 4;

impl Step {
    /// Whether this step runs the kernels for few rows.
    pub fn few(&self) -> bool {
        self.tokens <= FEW_TOKENS
    }
}
