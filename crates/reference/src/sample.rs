//! Choosing the next token: argmax, or a draw at a temperature from the top-k (Fan et al. 2018, arXiv
//! 1805.04833) and top-p (Holtzman et al. 2019, arXiv 1904.09751) tokens, with a counter-based generator
//! (Salmon et al., SC 2011).

use super::softmax;

/// The highest logit; of equal ones the lowest index.
pub fn argmax(logits: &[f64]) -> u32 {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// Highest logit − second highest: how far the argmax is from flipping. Infinite for one token.
pub fn argmax_gap(logits: &[f64]) -> f64 {
    let ranked = descending(logits);
    ranked.get(1).map_or(f64::INFINITY, |second| ranked[0] - second)
}

/// How to sample.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Above 0.
    pub temperature: f64,
    /// Absent: every token.
    pub top_k: Option<usize>,
    /// Absent, or 1 and above: every token.
    pub top_p: Option<f64>,
}

/// What a draw draws from.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// `[vocabulary]`: sums to 1; 0 for a token that is not kept.
    pub probabilities: Vec<f64>,
    /// Which tokens are kept.
    pub kept: Vec<bool>,
    /// Lowest logit of the top-k − best logit dropped by it. Infinite if it drops nothing.
    pub top_k_gap: f64,
    /// How much mass, of the top-k's 1, would have to move for top-p to cut elsewhere. Infinite if it is off.
    pub top_p_gap: f64,
}

/// softmax(logits / temperature) over the tokens that both cuts keep:
/// top-k keeps logit ≥ the k-th largest logit, so ties at the cut stay;
/// top-p, after it, keeps logit ≥ t, the largest logit t with mass(logit ≥ t) ≥ p, so ties stay here too.
pub fn distribution(logits: &[f64], sampling: &Sampling) -> Distribution {
    let ranked = descending(logits);
    let k = sampling.top_k.unwrap_or(usize::MAX).clamp(1, ranked.len());
    let top_k_cut = ranked[k - 1];
    let best_dropped = ranked.iter().copied().find(|&logit| logit < top_k_cut);
    let top_k_gap = best_dropped.map_or(f64::INFINITY, |dropped| top_k_cut - dropped);

    let top_k = tempered(logits, sampling.temperature, top_k_cut);
    let (top_p_cut, top_p_gap) = match sampling.top_p {
        Some(p) if p < 1.0 => top_p_cut(logits, &top_k, p),
        _ => (top_k_cut, f64::INFINITY),
    };
    let cut = top_k_cut.max(top_p_cut);
    Distribution {
        probabilities: tempered(logits, sampling.temperature, cut),
        kept: logits.iter().map(|&logit| logit >= cut).collect(),
        top_k_gap,
        top_p_gap,
    }
}

/// softmax(logits / temperature) over the logits ≥ cut; 0 for the others.
fn tempered(logits: &[f64], temperature: f64, cut: f64) -> Vec<f64> {
    assert!(temperature > 0.0, "temperature {temperature}");
    let at_temperature = |&logit: &f64| if logit >= cut { logit / temperature } else { f64::NEG_INFINITY };
    softmax(&logits.iter().map(at_temperature).collect::<Vec<f64>>())
}

/// The largest logit t with mass(logit ≥ t) ≥ p, and how far p is from another cut: the smaller of
/// mass(logit ≥ t) − p and p − mass(logit > t).
fn top_p_cut(logits: &[f64], probabilities: &[f64], p: f64) -> (f64, f64) {
    let mut tokens: Vec<usize> = (0..logits.len()).filter(|&i| probabilities[i] > 0.0).collect();
    tokens.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).expect("logits are numbers"));
    let mut above = 0.0;
    let mut last = (f64::NEG_INFINITY, 0.0);
    for level in tokens.chunk_by(|&a, &b| logits[a] == logits[b]) {
        let mass = above + level.iter().map(|&i| probabilities[i]).sum::<f64>();
        let below_gap = if above > 0.0 { p - above } else { f64::INFINITY };
        last = (logits[level[0]], (mass - p).min(below_gap));
        if mass >= p {
            return last;
        }
        above = mass;
    }
    (last.0, 0.0) // only rounding can leave the whole mass below p
}

/// One draw.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The token.
    pub token: u32,
    /// The uniform number that chose it.
    pub u: f64,
    /// Distance from u to the nearer end of the token's interval; the ends 0 and 1 of the whole do not count.
    pub boundary_gap: f64,
    /// What it was drawn from.
    pub distribution: Distribution,
}

impl Sample {
    /// The smallest of the three gaps. Where f32 cannot resolve it, a kernel may rightly choose otherwise.
    pub fn gap(&self) -> f64 {
        self.boundary_gap.min(self.distribution.top_k_gap).min(self.distribution.top_p_gap)
    }
}

/// A draw at u = `uniform(seed, position, sequence)`.
pub fn sample(logits: &[f64], sampling: &Sampling, seed: u64, position: u32, sequence: u32) -> Sample {
    let distribution = distribution(logits, sampling);
    let u = uniform(seed, position, sequence);
    let (token, boundary_gap) = inverse_cdf(&distribution.probabilities, u);
    Sample { token, u, boundary_gap, distribution }
}

/// The first token i with Σ_{j≤i} probability\[j\] > u, and how far u is from choosing a neighbour.
pub fn inverse_cdf(probabilities: &[f64], u: f64) -> (u32, f64) {
    let first = probabilities.iter().position(|&p| p > 0.0).expect("some token is kept");
    let last = probabilities.iter().rposition(|&p| p > 0.0).expect("some token is kept");
    let mut below = 0.0;
    let mut token = first;
    while token < last && below + probabilities[token] <= u {
        below += probabilities[token];
        token += 1;
    }
    let to_lower = if token == first { f64::INFINITY } else { u - below };
    let to_upper = if token == last { f64::INFINITY } else { below + probabilities[token] - u };
    (token as u32, to_lower.min(to_upper).max(0.0))
}

/// u = (r >> 8) · 2⁻²⁴ in [0, 1), r the first word of Philox4x32-10 with key (seed low, seed high) and
/// counter (position, sequence, 0, 0).
pub fn uniform(seed: u64, position: u32, sequence: u32) -> f64 {
    let r = philox4x32_10([position, sequence, 0, 0], [seed as u32, (seed >> 32) as u32])[0];
    f64::from(r >> 8) / f64::from(1 << 24)
}

/// Philox4x32-10: ten rounds (c₀,c₁,c₂,c₃) → (hi(M₁c₂)⊕c₁⊕k₀, lo(M₁c₂), hi(M₀c₀)⊕c₃⊕k₁, lo(M₀c₀)), the key
/// growing by (W₀, W₁) between rounds.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const M0: u64 = 0xD251_1F53;
    const M1: u64 = 0xCD9E_8D57;
    const W0: u64 = 0x9E37_79B9;
    const W1: u64 = 0xBB67_AE85;
    const LOW: u64 = 0xFFFF_FFFF;
    let mut c = counter.map(u64::from);
    for round in 0..10 {
        let k0 = (u64::from(key[0]) + round * W0) & LOW;
        let k1 = (u64::from(key[1]) + round * W1) & LOW;
        let (p0, p1) = (M0 * c[0], M1 * c[2]);
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & LOW, (p0 >> 32) ^ c[3] ^ k1, p0 & LOW];
    }
    c.map(|word| word as u32)
}

/// Highest first.
fn descending(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.partial_cmp(a).expect("logits are numbers"));
    sorted
}
