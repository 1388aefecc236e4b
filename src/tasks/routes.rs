//! The experts that tokens chose, as read back from the GPU.

use serde::Serialize;

use crate::models::DecoderSpec;

/// One chosen expert and its weight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// The expert's index.
    pub expert: u32,
    /// Its gate; the gates of one router sum to 1.
    pub gate: f32,
}

/// The choices of one token in one layer, best first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerRoutes {
    /// Attention (head) experts.
    pub attention: Vec<Choice>,
    /// MLP experts.
    pub mlp: Vec<Choice>,
}

/// The choices of one token in every layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenRoutes {
    /// Layer by layer.
    pub layers: Vec<LayerRoutes>,
}

/// The choices of the tokens of one step.
#[derive(Clone, Debug)]
pub struct Routes {
    tokens: usize,
    /// Experts per token of the attention and the MLP router of each layer.
    active: Vec<(usize, usize)>,
    /// Router after router, `[tokens, k]` each.
    chosen: Vec<u32>,
    gates: Vec<f32>,
}

impl Routes {
    /// From the front of a workspace's `chosen` and `gates`, one after the other.
    pub(super) fn new(spec: &DecoderSpec, tokens: usize, bytes: &[u8]) -> Self {
        let active = spec
            .blocks
            .iter()
            .map(|block| (block.attention.routes_per_token() as usize, block.mlp.routes_per_token() as usize))
            .collect();
        let (chosen, gates) = bytes.split_at(bytes.len() / 2);
        Self {
            tokens,
            active,
            chosen: bytemuck::pod_collect_to_vec(chosen),
            gates: bytemuck::pod_collect_to_vec(gates),
        }
    }

    /// Tokens in it.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The choices of token `index`.
    pub fn token(&self, index: usize) -> TokenRoutes {
        let mut before = 0;
        let mut take = |k: usize| {
            let from = before * self.tokens + index * k;
            before += k;
            (from..from + k).map(|i| Choice { expert: self.chosen[i], gate: self.gates[i] }).collect()
        };
        let layers = self
            .active
            .iter()
            .map(|&(attention, mlp)| LayerRoutes { attention: take(attention), mlp: take(mlp) })
            .collect();
        TokenRoutes { layers }
    }
}
