//! The layers: parameters and the order of ops. No family names, no direct talk to the GPU.
//!
//! A layer is generic over what holds its numbers, `M` a matrix and `B` rows of f32, so that whoever makes layers can plan
//! them first, of nothing; those that run are of [`Matrix`](crate::ops::Matrix) and [`Buffer`](crate::gpu::Buffer).

mod embedding;
mod expert_mlp;
mod head_mixture;
mod head_mixture_spec;
mod kv_cache;
mod norm;
mod output_head;
mod pass;
mod router;
mod workspace;

pub use embedding::{PatchEmbedding, TokenEmbedding};
pub use expert_mlp::{ExpertMlp, ExpertMlpSpec, ExpertMlpWeights, MlpActivation};
pub use head_mixture::{HeadMixture, HeadMixtureWeights, OutputBias};
pub use head_mixture_spec::{HeadMixtureSpec, Heads, KvProjection, PositionEncoding};
pub use kv_cache::{CacheSize, CacheUse, KvCache, LayerCache};
pub use norm::{Norm, NormPlacement, NormSpec};
pub use output_head::OutputHead;
pub use pass::{AttentionSite, Hook, LayerIndex, Pass, Place, Site, Sublayer};
pub use router::{Router, RouterNet, RouterSpec, RouterWeights, Scope};
pub use workspace::{Dimensions, RouteCursor, Workspace};

use crate::ops::Visible;

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
    /// Whether the normed states of these rows are all that is wanted of them.
    pub hidden: bool,
}
