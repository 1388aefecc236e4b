//! Rotary positions for queries and keys, fused with the write to the key/value cache.

use super::{
    Kernel,
    attention_shape::{AttentionShape, Queries},
    padded, shaders,
};
use crate::gpu::{Buffer, Dispatch, Gpu, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::ROPE_CACHE, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        slots: u32,
        heads: u32,
        kv_heads: u32,
        half_dim: u32,
        half_rotated: u32,
        q_row: u32,
        key_row: u32,
        value_row: u32,
        value_first: u32,
        cache_eights: u32,
        capacity: u32,
        sequences: u32,
    }
}

/// Rotates `q` in place and appends the rotated keys and the values to the cache.
pub struct RopeCache<'a> {
    pub shape: AttentionShape,
    /// `[tokens]` [`Span`](super::Span)s
    pub spans: &'a Buffer,
    /// `[capacity, rotated / 2]` of (cos, sin), from [`rope_angles`]
    pub angles: &'a Buffer,
    /// Channels of each head that turn, the first ones.
    pub rotated: u32,
    /// `[tokens · slots, heads · head_dim]`
    pub q: &'a Buffer,
    /// `[tokens, kv_heads · head_dim]`, or `[tokens, 2 · kv_heads · head_dim]` where it holds the values, too
    pub keys: &'a Buffer,
    /// `[tokens, kv_heads · head_dim]`, where they are not with the keys
    pub values: Option<&'a Buffer>,
    pub k_cache: &'a Buffer,
    pub v_cache: &'a Buffer,
    pub tokens: u32,
}

impl RopeCache<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let shape = &self.shape;
        let half_dim = shape.head_dim / 2;
        // Dense queries are one row of all experts' heads.
        let (slots, heads) = match shape.queries {
            Queries::Dense { experts } => (1, experts * shape.heads),
            Queries::BySlot | Queries::ByExpert => (shape.slots, shape.heads),
        };
        let width = shape.kv_heads * shape.head_dim;
        let (key_row, values) = match self.values {
            None => (padded(2 * width), (self.keys, padded(2 * width), width)),
            Some(values) => (padded(width), (values, padded(width), 0)),
        };
        let (values, value_row, value_first) = values;
        let params = Params {
            tokens: self.tokens,
            slots,
            heads,
            kv_heads: shape.kv_heads,
            half_dim,
            half_rotated: self.rotated / 2,
            q_row: shape.q_row(),
            key_row,
            value_row,
            value_first,
            cache_eights: shape.cache_row() / 8,
            capacity: shape.capacity,
            sequences: shape.sequences,
        };
        let invocations = slots * heads * half_dim + shape.cache_row() / 8;
        recorder.dispatch(
            &params,
            Dispatch {
                kernel: &KERNEL,
                constants: &[shape.head_spans(), shape.cache_format()],
                buffers: &[self.spans, self.angles, self.q, self.keys, values, self.k_cache, self.v_cache],
                groups: [invocations.div_ceil(64), self.tokens, 1],
                macs: 0,
                weight_bytes: 0,
                cache_bytes: 2 * u64::from(self.tokens) * shape.cache_row_bytes(),
            },
        );
    }
}

/// The table of (cos φ, sin φ), φ = position · theta^(−2i/r), for `positions` positions and `i < r/2`, r channels
/// that turn.
///
/// Computed here because WGSL promises sin and cos only 11 bits, and only near zero.
pub fn rope_angles(gpu: &Gpu, positions: u32, rotated: u32, theta: f64) -> Buffer {
    let frequency = |i: u32| theta.powf(-2.0 * f64::from(i) / f64::from(rotated));
    let table: Vec<[f32; 2]> = (0..positions)
        .flat_map(|position| (0..rotated / 2).map(move |i| f64::from(position) * frequency(i)))
        .map(|angle| [angle.cos() as f32, angle.sin() as f32])
        .collect();
    Buffer::with_data(gpu, "rope.angles", &table)
}
