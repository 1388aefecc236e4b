//! Softmax attention of decoded tokens, fused with their rotary positions and the append to the cache.

use super::{
    Kernel, RowTile,
    attention_merge::merge,
    attention_shape::{AttentionShape, Params, Queries},
    padded, shaders,
};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static PLAIN: Kernel = Kernel::new(&shaders::ROPE_ATTENTION_DECODE, Params::layout);

pub static BROADCAST: Kernel = Kernel::new(&shaders::ROPE_ATTENTION_DECODE_BROADCAST, Params::layout);

/// [`RopeCache`](super::RopeCache) and [`DecodeAttention`](super::DecodeAttention) in one, for tokens each of which is
/// the newest of its sequence and the only one in the step. `q` and the keys stay as they are.
pub struct RopeAttentionDecode<'a> {
    pub shape: AttentionShape,
    /// `[tokens]` [`Span`](super::Span)s, each seeing its own position last
    pub spans: &'a Buffer,
    /// `[tokens · slots, heads · head_dim]`
    pub q: &'a Buffer,
    /// `[tokens, 2 · kv_heads · head_dim]`: keys, then values
    pub kv: &'a Buffer,
    /// `[capacity, rotated / 2]` of (cos, sin), from [`rope_angles`](super::rope_angles)
    pub angles: &'a Buffer,
    pub rotated: u32,
    pub k_cache: &'a Buffer,
    pub v_cache: &'a Buffer,
    /// Scratch, as in [`DecodeAttention`](super::DecodeAttention).
    pub partial: &'a Buffer,
    pub stats: &'a Buffer,
    /// `[tokens · slots, heads · head_dim]`
    pub out: &'a Buffer,
    pub tokens: u32,
    /// Keys that one token sees at the most.
    pub most_keys: u32,
    /// Split the keys of each row over workgroups.
    pub split: bool,
    /// Keys that all tokens together see, for the counters.
    pub keys: u64,
}

impl RopeAttentionDecode<'_> {
    /// Whether the kernels hold an attention of this shape: whole vec4s turn, and heads count by slot.
    pub fn fits(shape: &AttentionShape, rotated: u32) -> bool {
        shape.queries == Queries::BySlot
            && !shape.head_spans
            && rotated.is_multiple_of(8)
            && shape.head_dim.is_multiple_of(4)
    }

    pub fn record(&self, recorder: &mut Recorder) {
        let shape = &self.shape;
        let (splits, split_keys) = shape.split(self.split, self.most_keys);
        let into = if splits == 1 { self.out } else { self.partial };
        let params = Params {
            kv_quads: padded(2 * shape.kv_heads * shape.head_dim) / 4,
            half_rotated: self.rotated / 2,
            ..shape.params(self.tokens, splits, split_keys, 0)
        };
        let (kernel, constants, groups) =
            match RowTile::choose(recorder.gpu(), shape, shape.rows_of_kv_head()) {
                None => (&PLAIN, vec![shape.cache_format()], shape.slots * shape.heads),
                Some(tile) => {
                    let constants = vec![tile.lanes(), tile.rows(), tile.columns(), shape.cache_format()];
                    (&BROADCAST, constants, tile.of_token(shape))
                }
            };
        recorder.dispatch(
            &params,
            Dispatch {
                kernel,
                constants: &constants,
                buffers: &[
                    self.spans,
                    self.q,
                    self.kv,
                    self.angles,
                    self.k_cache,
                    self.v_cache,
                    into,
                    self.stats,
                ],
                groups: [groups, self.tokens, splits],
                macs: shape.macs(self.keys),
                weight_bytes: 0,
                // The own key and value are written, not read.
                cache_bytes: shape.read_bytes(self.keys),
            },
        );
        if splits > 1 {
            merge(recorder, shape, self.tokens, splits, [self.partial, self.stats, self.out]);
        }
    }
}
