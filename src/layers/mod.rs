//! The layers: parameters and the order of ops. No family names, no direct talk to the GPU.
//!
//! A layer is generic over what holds its numbers, `M` a matrix and `B` rows of f32, so that whoever makes layers can plan
//! them first, of nothing; those that run are of [`Matrix`](crate::ops::Matrix) and [`Buffer`](crate::gpu::Buffer).

mod captures;
mod edits;
mod embedding;
mod expert_mlp;
mod expert_mlp_spec;
mod head_mixture;
mod head_mixture_spec;
mod kv_cache;
mod norm;
mod norm_spec;
mod output_head;
mod parts;
mod pass;
mod router;
mod router_spec;
mod workspace;

pub use captures::{Captured, Captures, query_bytes};
pub use edits::{Edited, SublayerEdits};
pub use embedding::{Factor, PatchEmbedding, TokenEmbedding};
pub use expert_mlp::{ExpertMlp, ExpertMlpWeights};
pub use expert_mlp_spec::{ExpertMlpSpec, MlpActivation};
pub use head_mixture::{HeadMixture, HeadMixtureWeights, OutputBias};
pub use head_mixture_spec::{HeadMixtureSpec, Heads, KvProjection, PositionEncoding};
pub use kv_cache::{CacheSize, CacheUse, KvCache, LayerCache, angle_bytes};
pub use norm::Norm;
pub use norm_spec::{NormPlacement, NormSpec};
pub use output_head::{OutputHead, Transform};
pub use parts::{SitePart, stored};
pub use pass::{AttentionSite, Hook, Inside, LayerIndex, Pass, Place, Site, Sublayer};
pub use router::{Router, RouterWeights};
pub use router_spec::{RouterNet, RouterSpec, Scope};
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
