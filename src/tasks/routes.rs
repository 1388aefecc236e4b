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

/// How tokens used the experts of one router.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouterUse {
    /// Each expert's share of all choices; sums to 1.
    pub load: Vec<f64>,
    /// Each expert's share of all gates; sums to 1.
    pub importance: Vec<f64>,
    /// −Σ load · ln load, in nats: ln E when all experts are used alike, 0 when one does everything.
    pub entropy: f64,
    /// The squared coefficient of variation of the importance (Shazeer et al. 2017, arXiv 1701.06538):
    /// `var / (mean² + 1e-10)` with the unbiased variance; 0 when all experts weigh alike.
    pub importance_cv: f64,
}

/// How tokens used the experts of one layer; `None` where a layer has no router.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerUse {
    /// The attention (head) experts.
    pub attention: Option<RouterUse>,
    /// The MLP experts.
    pub mlp: Option<RouterUse>,
}

impl RouterUse {
    /// From the choices of any number of tokens among `experts`. `None` without choices.
    fn of<'a>(choices: impl Iterator<Item = &'a Choice>, experts: usize) -> Option<Self> {
        let (mut load, mut importance) = (vec![0.0; experts], vec![0.0; experts]);
        for Choice { expert, gate } in choices {
            // An index comes from the GPU; the kernels write none outside.
            let Some(load) = load.get_mut(*expert as usize) else { continue };
            *load += f64::from(u8::from(*gate > 0.0));
            importance[*expert as usize] += f64::from(*gate);
        }
        for values in [&mut load, &mut importance] {
            let sum: f64 = values.iter().sum();
            if sum == 0.0 {
                return None;
            }
            values.iter_mut().for_each(|value| *value /= sum);
        }
        let entropy = load.iter().filter(|share| **share > 0.0).map(|share| -share * share.ln()).sum();
        let mean = 1.0 / experts as f64;
        let squares: f64 = importance.iter().map(|share| (share - mean).powi(2)).sum();
        let variance = if experts > 1 { squares / (experts - 1) as f64 } else { 0.0 };
        Some(Self { load, importance, entropy, importance_cv: variance / (mean * mean + 1e-10) })
    }
}

/// How `tokens` used the experts of every layer of a model with `experts` (attention, MLP) in each.
pub(super) fn layer_use(tokens: &[TokenRoutes], experts: &[(usize, usize)]) -> Vec<LayerUse> {
    let of = |(layer, &(attention, mlp)): (usize, &(usize, usize))| {
        let routes = || tokens.iter().map(move |token| &token.layers[layer]);
        LayerUse {
            attention: RouterUse::of(routes().flat_map(|layer| &layer.attention), attention),
            mlp: RouterUse::of(routes().flat_map(|layer| &layer.mlp), mlp),
        }
    };
    experts.iter().enumerate().map(of).collect()
}
