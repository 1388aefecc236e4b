//! RMSNorm and top-k router in one step, as JetMoE routes (Shen et al. 2024, arXiv 2404.07413).

use super::{
    matvec,
    rms_norm::rms_norm,
    router::{Select, Weight},
};

/// The experts each token keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    /// k.
    pub top_k: usize,
    /// `[tokens, k]`, highest score first.
    pub experts: Vec<u32>,
    /// `[tokens, k]`, summing to 1 over each token.
    pub gates: Vec<f64>,
    /// `[tokens]`: lowest kept score − best dropped score; infinite when nothing is dropped.
    pub margins: Vec<f64>,
}

/// What `norm_router` returns.
#[derive(Clone, Debug)]
pub struct NormRouter {
    /// xn `[tokens, width]`.
    pub normed: Vec<f64>,
    /// `[tokens, experts]`.
    pub scores: Vec<f64>,
    /// The kept experts and their gates.
    pub routes: Routes,
}

/// xn = RMSNorm(x); scores = W_r·xn; routes = `top_k_softmax(scores)`.
///
/// x is `[tokens, width]`, the norm's weight `[width]`, W_r `[experts, width]`.
pub fn norm_router(x: &[f64], norm_weight: &[f64], epsilon: f64, router: &[f64], top_k: usize) -> NormRouter {
    let width = norm_weight.len();
    let normed = rms_norm(x, norm_weight, epsilon);
    let scores: Vec<f64> = normed.chunks_exact(width).flat_map(|xn| matvec(router, xn)).collect();
    let routes = top_k_softmax(&scores, router.len() / width, top_k);
    NormRouter { normed, scores, routes }
}

/// For each row of scores `[tokens, expert_count]`: the k highest (equal scores: the lower expert first), and
/// gates = softmax over those k scores alone.
pub fn top_k_softmax(scores: &[f64], expert_count: usize, top_k: usize) -> Routes {
    let mut routes = Routes { top_k, ..Routes::default() };
    for scores in scores.chunks_exact(expert_count) {
        let (kept, margin) = Select::TopK(top_k).of(scores);
        routes.gates.extend(Weight::SoftmaxKept.of(scores, &kept));
        routes.experts.extend(kept.iter().map(|&e| e as u32));
        routes.margins.push(margin);
    }
    routes
}

/// How far other routes are from these.
#[derive(Clone, Copy, Debug)]
pub struct RouteMatch {
    /// Tokens left out because their margin is below the threshold.
    pub skipped: usize,
    /// max |Δ gate| of the same expert, over the tokens compared.
    pub gate_error: f64,
}

impl Routes {
    /// Compares each token's experts as a set and its gates expert by expert, leaving out tokens whose margin
    /// is below `min_margin`. `Err` names the first token that chose otherwise.
    pub fn compare(&self, experts: &[u32], gates: &[f64], min_margin: f64) -> Result<RouteMatch, String> {
        if [experts.len(), gates.len()] != [self.experts.len(); 2] {
            return Err(format!("{} experts, {} gates", experts.len(), gates.len()));
        }
        let mut found = RouteMatch { skipped: 0, gate_error: 0.0 };
        for (token, &margin) in self.margins.iter().enumerate() {
            if margin < min_margin {
                found.skipped += 1;
                continue;
            }
            let slots = token * self.top_k..(token + 1) * self.top_k;
            let want = by_expert(&self.experts[slots.clone()], &self.gates[slots.clone()]);
            let got = by_expert(&experts[slots.clone()], &gates[slots]);
            for (want, got) in want.iter().zip(&got) {
                let gate_error = (want.1 - got.1).abs();
                if want.0 != got.0 || gate_error.is_nan() {
                    return Err(format!("token {token}: chose {got:?}, expected {want:?}, margin {margin}"));
                }
                found.gate_error = found.gate_error.max(gate_error);
            }
        }
        Ok(found)
    }
}

/// (expert, gate) pairs in the order of the expert.
fn by_expert(experts: &[u32], gates: &[f64]) -> Vec<(u32, f64)> {
    let mut pairs: Vec<(u32, f64)> = experts.iter().copied().zip(gates.iter().copied()).collect();
    pairs.sort_by_key(|pair| pair.0);
    pairs
}
