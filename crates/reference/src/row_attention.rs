//! Causal softmax attention (Vaswani et al. 2017, arXiv 1706.03762) of query rows over a cache.

use super::{dot, softmax};

/// Shapes and places of `row_attention`.
#[derive(Clone, Copy, Debug)]
pub struct RowAttention<'a> {
    /// Query heads of a token. Head h = s·m + j is head j of slot s, where an expert has m heads.
    pub heads: usize,
    /// Key and value heads of the cache.
    pub kv_heads: usize,
    /// Neighbouring query heads that share a KV head: 1 for a mixture of heads, heads / kv_heads for grouped
    /// queries (Ainslie et al. 2023, arXiv 2305.13245).
    pub group: usize,
    /// Channels of a head, d.
    pub head_dim: usize,
    /// Positions the cache holds for each sequence.
    pub capacity: usize,
    /// `[tokens]`: a token sees keys 0..=position.
    pub positions: &'a [u32],
    /// `[tokens]`: in which sequence.
    pub sequences: &'a [u32],
}

/// o\[t,h\] = Σ_{i≤position} softmax_i(d^(−1/2) · q\[t,h\]·K\[i,c\]) · V\[i,c\] with
/// c = (h / group) mod kv_heads.
///
/// q and o are `[tokens, heads, d]`, keys and values `[sequences, capacity, kv_heads, d]`.
pub fn row_attention(op: &RowAttention, q: &[f64], keys: &[f64], values: &[f64]) -> Vec<f64> {
    let d = op.head_dim;
    let scale = 1.0 / (d as f64).sqrt();
    assert_eq!(q.len(), op.positions.len() * op.heads * d, "row_attention: q");

    let mut out = Vec::with_capacity(q.len());
    for (row, q) in q.chunks_exact(d).enumerate() {
        let (token, head) = (row / op.heads, row % op.heads);
        let (position, sequence) = (op.positions[token] as usize, op.sequences[token] as usize);
        assert!(position < op.capacity, "row_attention: position {position} of {}", op.capacity);
        let kv_head = head / op.group % op.kv_heads;
        let place = |i: usize| ((sequence * op.capacity + i) * op.kv_heads + kv_head) * d;

        let scores: Vec<f64> = (0..=position).map(|i| scale * dot(q, &keys[place(i)..][..d])).collect();
        let weights = softmax(&scores);
        out.extend((0..d).map(|c| (0..=position).map(|i| weights[i] * values[place(i) + c]).sum::<f64>()));
    }
    out
}
