//! The auxiliary losses that keep routers balanced, and the statistics read from captured routes.
//!
//! Throughout, z are router scores `[tokens, E]`, p = softmax(z) `[tokens, E]`, and with n1(v) = v / Σ v:
//!
//! ```text
//! P_e = Σ_t p(t,e)        f_e = #tokens whose gate for e is above 0        G_e = Σ_t gate(t,e)
//! ```

use super::{norm_router::Routes, softmax};

/// p = softmax(z), each token by itself; 0 for padded tokens, as MoA's code has it.
pub fn probabilities(scores: &[f64], experts: usize, padding: Option<&[bool]>) -> Vec<f64> {
    let mut p: Vec<f64> = scores.chunks_exact(experts).flat_map(softmax).collect();
    for (token, p) in p.chunks_exact_mut(experts).enumerate() {
        if padding.is_some_and(|padding| padding[token]) {
            p.fill(0.0);
        }
    }
    p
}

/// P `[E]`.
pub fn probability_mass(p: &[f64], experts: usize) -> Vec<f64> {
    (0..experts).map(|e| p.iter().skip(e).step_by(experts).sum()).collect()
}

/// f `[E]`.
pub fn load(routes: &Routes, experts: usize) -> Vec<f64> {
    by_expert(routes, experts, |gate| if gate > 0.0 { 1.0 } else { 0.0 })
}

/// G `[E]`.
pub fn importance(routes: &Routes, experts: usize) -> Vec<f64> {
    by_expert(routes, experts, |gate| gate)
}

/// var n1(G) / ((mean n1(G))² + 1e-10), the unbiased variance; 0 for one expert (Shazeer et al. 2017, arXiv
/// 1701.06538, as in MoA's code).
pub fn importance_cv(importance: &[f64]) -> f64 {
    let experts = importance.len() as f64;
    if importance.len() == 1 {
        return 0.0;
    }
    let share = shares(importance);
    let mean = share.iter().sum::<f64>() / experts;
    let variance = share.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / (experts - 1.0);
    variance / (mean * mean + 1e-10)
}

/// E · Σ_e n1(P)_e · n1(f)_e, 1 when both are uniform (Fedus et al. 2021, arXiv 2101.03961, as in MoA's
/// code).
pub fn switch_balance(probability_mass: &[f64], load: &[f64]) -> f64 {
    let product = |(p, f): (f64, f64)| p * f;
    let sum: f64 = shares(probability_mass).into_iter().zip(shares(load)).map(product).sum();
    load.len() as f64 * sum
}

/// mean_t (ln Σ_e e^z(t,e))² (Zoph et al. 2022, arXiv 2202.08906).
pub fn router_z(scores: &[f64], experts: usize) -> f64 {
    let square = |z: &[f64]| {
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln()).powi(2)
    };
    mean(scores.chunks_exact(experts).map(square))
}

/// H(e|x) − H(e), the mutual information of token and expert with its sign changed: −(mean_t Σ_e p ln p + H(mean_t p)),
/// with ln(· + 1e-8) for ln (ModuleFormer, arXiv 2306.04640).
pub fn mutual_information(p: &[f64], experts: usize) -> f64 {
    let entropy = |p: &[f64]| -p.iter().map(|p| p * (p + 1e-8).ln()).sum::<f64>();
    let tokens = (p.len() / experts) as f64;
    let marginal: Vec<f64> = probability_mass(p, experts).iter().map(|mass| mass / tokens).collect();
    mean(p.chunks_exact(experts).map(entropy)) - entropy(&marginal)
}

/// R · Σ_e mean_t p(t,e) · mean_t \[e kept\] over the R = E − hs routed heads, 1·k when both are uniform
/// (MoH, arXiv 2410.11842). p is over the routed heads alone; routes name the shared ones first.
pub fn moh_balance(p: &[f64], routes: &Routes, shared: usize, experts: usize) -> f64 {
    let routed = experts - shared;
    let tokens = routes.margins.len() as f64;
    let kept = by_expert(routes, experts, |_| 1.0);
    let product = |(p, kept): (&f64, &f64)| p / tokens * (kept / tokens);
    let sum: f64 = probability_mass(p, routed).iter().zip(&kept[shared..]).map(product).sum();
    routed as f64 * sum
}

/// −Σ n1(v) ln n1(v), in nats: of a load, ln E when every expert does the same share of the work, 0 when one
/// does all.
pub fn entropy(values: &[f64]) -> f64 {
    let term = |share: &f64| if *share > 0.0 { -share * share.ln() } else { 0.0 };
    shares(values).iter().map(term).sum()
}

/// How undecided a router is at each token, mean_t entropy(p(t,·)).
pub fn token_entropy(p: &[f64], experts: usize) -> f64 {
    mean(p.chunks_exact(experts).map(entropy))
}

/// Lowest kept score − best dropped score: (smallest, mean) over the tokens that drop any; both infinite if
/// none does.
pub fn drop_margin(routes: &Routes) -> (f64, f64) {
    let finite = routes.margins.iter().copied().filter(|margin| margin.is_finite());
    if finite.clone().count() == 0 {
        return (f64::INFINITY, f64::INFINITY);
    }
    (finite.clone().fold(f64::INFINITY, f64::min), mean(finite))
}

/// n1(v) = v / Σ v.
pub fn shares(values: &[f64]) -> Vec<f64> {
    let sum: f64 = values.iter().sum();
    values.iter().map(|value| value / sum).collect()
}

/// Σ over the assignments of each expert of f(gate).
fn by_expert(routes: &Routes, experts: usize, f: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut sums = vec![0.0; experts];
    for (&expert, &gate) in routes.experts.iter().zip(&routes.gates) {
        sums[expert as usize] += f(gate);
    }
    sums
}

fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    values.clone().sum::<f64>() / values.count() as f64
}
