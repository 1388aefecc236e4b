//! Rotary positions (Su et al. 2021, arXiv 2104.09864) in the rotate-half order of GPT-NeoX and Llama, and
//! the append to the cache.

/// Shapes and places of `rope_cache`.
#[derive(Clone, Copy, Debug)]
pub struct RopeCache<'a> {
    /// Query heads of a token (experts kept · heads of one expert).
    pub q_heads: usize,
    /// Key heads, and value heads, of a token.
    pub kv_heads: usize,
    /// Channels of a head, d; even.
    pub head_dim: usize,
    /// θ.
    pub theta: f64,
    /// Positions the cache holds for each sequence.
    pub capacity: usize,
    /// `[tokens]`.
    pub positions: &'a [u32],
    /// `[tokens]`.
    pub sequences: &'a [u32],
}

/// Rotates q in place and writes the rotated keys and the values of kv at each token's place in the cache.
///
/// q is `[tokens, q_heads·d]`, kv `[tokens, 2·kv_heads·d]` (keys first), the cached keys and values each
/// `[sequences, capacity, kv_heads·d]`.
pub fn rope_cache(op: &RopeCache, q: &mut [f64], kv: &[f64], keys: &mut [f64], values: &mut [f64]) {
    let kv_width = op.kv_heads * op.head_dim;
    let q_width = op.q_heads * op.head_dim;
    assert_eq!(q.len(), op.positions.len() * q_width, "rope_cache: q");
    assert_eq!(kv.len(), op.positions.len() * 2 * kv_width, "rope_cache: kv");
    for (token, (&position, &sequence)) in op.positions.iter().zip(op.sequences).enumerate() {
        assert!((position as usize) < op.capacity, "rope_cache: position {position} of {}", op.capacity);
        for head in q[token * q_width..][..q_width].chunks_exact_mut(op.head_dim) {
            rope(head, position, op.theta);
        }
        let place = (sequence as usize * op.capacity + position as usize) * kv_width;
        let (k, v) = kv[token * 2 * kv_width..][..2 * kv_width].split_at(kv_width);
        keys[place..][..kv_width].copy_from_slice(k);
        values[place..][..kv_width].copy_from_slice(v);
        for head in keys[place..][..kv_width].chunks_exact_mut(op.head_dim) {
            rope(head, position, op.theta);
        }
    }
}

/// Turns each pair (x\[i\], x\[i + d/2\]), i < d/2, by the angle position · θ^(−2i/d).
pub fn rope(head: &mut [f64], position: u32, theta: f64) {
    let d = head.len();
    let (first, second) = head.split_at_mut(d / 2);
    for (i, (a, b)) in first.iter_mut().zip(second).enumerate() {
        let angle = f64::from(position) * theta.powf(-2.0 * i as f64 / d as f64);
        let (sin, cos) = angle.sin_cos();
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
