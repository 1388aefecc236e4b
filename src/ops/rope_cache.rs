//! Rotary positions for queries and keys, fused with the write to the key/value cache.

use super::{
    HeadLayout, Kernel, KeyValues, Queries, cache_layout::CacheWindow, key_values::Binding, padded, shaders,
};
use crate::gpu::{Buffer, Dispatch, Gpu, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::ROPE_CACHE, Params::layout);

uniform! {
    struct Params {
        cache: CacheWindow,
        tokens: u32,
        slots: u32,
        heads: u32,
        kv_heads: u32,
        sequences: u32,
        turning_heads: u32,
        half_dim: u32,
        half_rotated: u32,
        q_row: u32,
        key_row: u32,
        value_row: u32,
        value_first: u32,
        value_dim: u32,
    }
}

/// Rotates `q` in place and appends the rotated keys and the values to the cache.
pub struct RopeCache<'a> {
    pub heads: HeadLayout,
    /// `[tokens]` [`Span`](super::Span)s
    pub spans: &'a Buffer,
    /// `[positions, rotated / 2]` of (cos, sin), from [`rope_angles`]
    pub angles: &'a Buffer,
    /// Channels of each head that turn, the first ones.
    pub rotated: u32,
    /// `[tokens · slots, heads · key_dim]`
    pub q: &'a Buffer,
    /// `[tokens, kv_heads · key_dim]`, or `[tokens, kv_heads · (key_dim + value_dim)]` where it holds the values, too
    pub keys: &'a Buffer,
    /// `[tokens, kv_heads · value_dim]`, where they are not with the keys
    pub values: Option<&'a Buffer>,
    pub cache: &'a KeyValues,
    pub tokens: u32,
}

impl RopeCache<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Self { heads, cache, tokens, .. } = *self;
        let half_dim = heads.key_dim / 2;
        // Dense queries are one row of all experts' heads.
        let (slots, of_slot) = match heads.queries {
            Queries::Dense { experts } => (1, experts * heads.heads),
            Queries::BySlot | Queries::ByExpert => (heads.slots, heads.heads),
        };
        let [keys_width, values_width] = heads.kv_widths();
        let both = padded(keys_width + values_width);
        let (key_row, values, value_row, value_first) = match self.values {
            None => (both, self.keys, both, keys_width),
            Some(values) => (padded(keys_width), values, padded(values_width), 0),
        };
        for Binding { window, buffer, share } in cache.bindings() {
            let turning_heads = if share.is_first() { slots * of_slot } else { 0 };
            let params = Params {
                cache: window,
                tokens,
                slots,
                heads: of_slot,
                kv_heads: heads.kv_heads,
                sequences: cache.layout.sequences,
                turning_heads,
                half_dim,
                half_rotated: self.rotated / 2,
                q_row: heads.q_row(),
                key_row,
                value_row,
                value_first,
                value_dim: heads.value_stride(),
            };
            let eights = window.heads * window.key_eights.max(window.value_eights);
            let written = cache.layout.read_bytes(u64::from(tokens));
            recorder.dispatch(
                &params,
                Dispatch {
                    constants: &[heads.span_constant(), cache.layout.precision.constant()],
                    cache_bytes: share.of(written),
                    ..Dispatch::new(
                        &KERNEL,
                        &[self.spans, self.angles, self.q, self.keys, values, buffer],
                        [(turning_heads * half_dim + eights).div_ceil(64), tokens, 1],
                    )
                },
            );
        }
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
