//! Rotary positions for queries and keys, fused with the write to the key/value cache.

use super::{
    Access, Kernel,
    attention::{AttentionShape, Queries},
    padded, shaders,
};
use crate::gpu::{Buffer, Dispatch, Gpu, Recorder};

pub static KERNEL: Kernel = Kernel {
    name: "rope_cache",
    source: shaders::ROPE_CACHE,
    bindings: &[Access::Read, Access::Read, Access::Write, Access::Read, Access::Write, Access::Write],
};

uniform! {
    struct Params {
        tokens: u32,
        slots: u32,
        heads: u32,
        kv_heads: u32,
        half_dim: u32,
        q_row: u32,
        kv_row: u32,
        cache_row: u32,
        capacity: u32,
        sequences: u32,
    }
}

/// Rotates `q` in place and appends the rotated keys and the values of `kv` to the cache.
pub struct RopeCache<'a> {
    pub shape: AttentionShape,
    /// `[tokens]` of (position, sequence)
    pub spans: &'a Buffer,
    /// `[capacity, head_dim / 2]` of (cos, sin), from [`rope_angles`]
    pub angles: &'a Buffer,
    /// `[tokens · slots, heads · head_dim]`
    pub q: &'a Buffer,
    /// `[tokens, 2 · kv_heads · head_dim]`
    pub kv: &'a Buffer,
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
        let params = Params {
            tokens: self.tokens,
            slots,
            heads,
            kv_heads: shape.kv_heads,
            half_dim,
            q_row: shape.q_row(),
            kv_row: padded(2 * shape.kv_heads * shape.head_dim),
            cache_row: shape.cache_row(),
            capacity: shape.capacity,
            sequences: shape.sequences,
        };
        let pairs = (slots * heads + shape.kv_heads) * half_dim;
        recorder.dispatch(
            &params,
            Dispatch {
                kernel: &KERNEL,
                constants: &[],
                buffers: &[self.spans, self.angles, self.q, self.kv, self.k_cache, self.v_cache],
                groups: [pairs.div_ceil(64), self.tokens, 1],
                macs: 0,
            },
        );
    }
}

/// The table of (cos φ, sin φ), φ = position · theta^(−2i/d), for `positions` positions and `i < d/2`.
///
/// Computed here because WGSL promises sin and cos only 11 bits, and only near zero.
pub fn rope_angles(gpu: &Gpu, positions: u32, head_dim: u32, theta: f64) -> Buffer {
    let frequency = |i: u32| theta.powf(-2.0 * f64::from(i) / f64::from(head_dim));
    let table: Vec<[f32; 2]> = (0..positions)
        .flat_map(|position| (0..head_dim / 2).map(move |i| f64::from(position) * frequency(i)))
        .map(|angle| [angle.cos() as f32, angle.sin() as f32])
        .collect();
    Buffer::with_data(gpu, "rope.angles", &table)
}
