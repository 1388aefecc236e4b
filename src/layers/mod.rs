//! The layers: parameters and the order of ops. No family names, no direct talk to the GPU.

mod embedding;
mod expert_mlp;
mod head_mixture;
mod kv_cache;
mod norm;
mod output_head;
mod workspace;

pub use embedding::TokenEmbedding;
pub use expert_mlp::{Activation, ExpertMlp, ExpertMlpSpec, ExpertMlpWeights};
pub use head_mixture::{
    AttentionKernel, HeadMixture, HeadMixtureSpec, HeadMixtureWeights, KvMap, KvProjection, PositionEncoding,
};
pub use kv_cache::{KvCache, LayerCache};
pub use norm::{Norm, NormSpec};
pub use output_head::OutputHead;
pub use workspace::{Dimensions, Workspace};

use crate::ops::MAX_EXPERTS;
use crate::{Error, Result};

/// How a router scores experts. Inputs are the normed rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterNet {
    /// `z = W x`, no bias.
    Linear,
}

/// Which experts a token uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The `k` highest scores, ties to the lower index.
    TopK(u32),
}

/// How scores become gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighting {
    /// Softmax over the scores of the kept experts; sums to 1.
    SoftmaxTopK,
}

/// A router: how it scores, selects and weighs `experts` experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterSpec {
    pub net: RouterNet,
    pub experts: u32,
    pub selection: Selection,
    pub weighting: Weighting,
}

impl RouterSpec {
    /// Experts each token uses.
    pub fn active(&self) -> u32 {
        let Selection::TopK(k) = self.selection;
        k
    }

    /// # Errors
    /// When the numbers contradict each other or exceed what the kernels hold.
    pub fn check(&self) -> Result<()> {
        if !(1..=MAX_EXPERTS).contains(&self.experts) {
            return Err(Error::argument("experts", self.experts, format!("1 to {MAX_EXPERTS}")));
        }
        if !(1..=self.experts).contains(&self.active()) {
            return Err(Error::argument(
                "experts per token",
                self.active(),
                format!("1 to {} (all experts)", self.experts),
            ));
        }
        Ok(())
    }
}

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
