//! The layers: parameters and the order of ops. No family names, no direct talk to the GPU.

mod embedding;
mod expert_mlp;
mod head_mixture;
mod head_mixture_spec;
mod kv_cache;
mod norm;
mod output_head;
mod router;
mod workspace;

pub use embedding::TokenEmbedding;
pub use expert_mlp::{ExpertMlp, ExpertMlpSpec, ExpertMlpWeights, MlpActivation};
pub use head_mixture::{HeadMixture, HeadMixtureWeights};
pub use head_mixture_spec::{AttentionKernel, HeadMixtureSpec, KvProjection, PositionEncoding};
pub use kv_cache::{KvCache, LayerCache};
pub use norm::{Norm, NormKind, NormSpec};
pub use output_head::OutputHead;
pub use router::{Router, RouterNet, RouterSpec, RouterWeights};
pub use workspace::{Dimensions, Workspace};

/// What one forward step does, known on the host.
#[derive(Clone, Debug)]
pub struct Step {
    /// Tokens of all sequences together.
    pub tokens: u32,
    /// Sequences that have tokens in this step.
    pub ranges: u32,
    /// Tokens of the sequence that has most.
    pub longest: u32,
    /// The largest position.
    pub last_position: u32,
    /// Keys that all tokens together see.
    pub keys: u64,
    /// Rows whose logits are wanted.
    pub logit_rows: u32,
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
