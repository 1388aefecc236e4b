//! UoE's selective multi-head attention (Yang et al. 2025, arXiv 2503.02495): every head attends among its
//! own part of the sequence, as if the other tokens were not there.
//!
//! ```text
//! p = softmax(Wg·x_t + bg)                       [H]
//! u = p where among the token's k best heads, else 0
//! v = u / (Σ_{sequences} u + ε) · ⌊capacity·B⌋   each head and place by itself
//! L = max over heads and sequences of #{t : v > 0}, at most ⌊limit·T⌋
//! T_h = the L places of highest v for head h, in order of place
//! y[T_h] += head_h(x[T_h])
//! ```
//!
//! The scores choose and never weigh. L, and through v the order, depend on the whole sequence and on the
//! rest of the batch, so there is no next-token form.

use super::{
    head_mixture::{HeadMixture, Input},
    router::{Select, affine},
    softmax,
};

/// A layer.
#[derive(Clone, Debug)]
pub struct SelectiveHeads {
    /// Width of the input and the output, D.
    pub width: usize,
    /// Wg `[H, D]`.
    pub gate: Vec<f64>,
    /// bg `[H]`.
    pub gate_bias: Vec<f64>,
    /// Heads that score a token above 0, k; H/2 in the original.
    pub top_k: usize,
    /// 1 in the original.
    pub capacity: f64,
    /// ε; 1e-8 in the original.
    pub epsilon: f64,
    /// Largest part of a sequence that a head takes; absent (third version of the code) or 0.6 (second).
    pub limit: Option<f64>,
    /// Each a layer of one head, always on, with its own output bias, which the tokens it takes receive.
    /// Rotary positions count the tokens of the part.
    pub heads: Vec<HeadMixture>,
}

/// What a layer returns.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[B, T, D]`.
    pub y: Vec<f64>,
    /// T_h for each sequence and in it each head, `[B, H, L]`.
    pub places: Vec<Vec<usize>>,
    /// v `[B, T, H]`.
    pub scores: Vec<f64>,
}

impl SelectiveHeads {
    /// y for `batch` sequences x `[batch, T, D]`.
    pub fn forward(&self, batch: usize, x: &[f64]) -> Output {
        let tokens = x.len() / self.width / batch;
        let scores = self.scores(batch, x);
        let places = self.cut(batch, &scores);

        let mut y = vec![0.0; x.len()];
        for (part, places) in places.iter().enumerate() {
            let (sequence, head) = (part / self.heads.len(), part % self.heads.len());
            let row = |&place: &usize| (sequence * tokens + place) * self.width;
            let own: Vec<f64> =
                places.iter().flat_map(|place| &x[row(place)..][..self.width]).copied().collect();
            let out = self.heads[head].forward(&Input { batch: 1, x: &own, ..Input::default() }).y;
            for (place, out) in places.iter().zip(out.chunks_exact(self.width)) {
                y[row(place)..][..self.width].iter_mut().zip(out).for_each(|(y, out)| *y += out);
            }
        }
        Output { y, places, scores }
    }

    /// v `[B, T, H]`.
    fn scores(&self, batch: usize, x: &[f64]) -> Vec<f64> {
        let mut u = Vec::new();
        for x in x.chunks_exact(self.width) {
            let z = affine(&self.gate, Some(&self.gate_bias), x);
            let (p, (kept, _)) = (softmax(&z), Select::TopK(self.top_k).of(&z));
            u.extend((0..p.len()).map(|head| if kept.contains(&head) { p[head] } else { 0.0 }));
        }
        let capacity = (self.capacity * batch as f64).floor();
        let each = u.len() / batch;
        let sums: Vec<f64> = (0..each).map(|place| u.iter().skip(place).step_by(each).sum()).collect();
        u.iter().enumerate().map(|(i, u)| u / (sums[i % each] + self.epsilon) * capacity).collect()
    }

    /// T_h for each sequence and head; equal scores: the earlier place first.
    fn cut(&self, batch: usize, scores: &[f64]) -> Vec<Vec<usize>> {
        let heads = self.heads.len();
        let tokens = scores.len() / heads / batch;
        let of_head = |part: usize| -> Vec<f64> {
            let (sequence, head) = (part / heads, part % heads);
            (0..tokens).map(|token| scores[(sequence * tokens + token) * heads + head]).collect()
        };
        let count = |part: usize| of_head(part).iter().filter(|&&v| v > 0.0).count();
        let longest = (0..batch * heads).map(count).max().expect("a head and a sequence");
        let limit = self.limit.map_or(tokens, |limit| (limit * tokens as f64) as usize);
        let take = |part: usize| {
            let (mut places, _) = Select::TopK(longest.min(limit)).of(&of_head(part));
            places.sort();
            places
        };
        (0..batch * heads).map(take).collect()
    }
}
