//! Softmax attention of decoded tokens, fused with their rotary positions and the append to the cache.

use super::{
    HeadLayout, Kernel, KeyValues, Queries, RowTile, attention_merge::merge, head_layout::Params,
    key_values::Binding, padded, shaders, splits::Splits,
};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static PLAIN: Kernel = Kernel::new(&shaders::ROPE_ATTENTION_DECODE, Params::layout);

pub static BROADCAST: Kernel = Kernel::new(&shaders::ROPE_ATTENTION_DECODE_BROADCAST, Params::layout);

/// [`RopeCache`](super::RopeCache) and [`DecodeAttention`](super::DecodeAttention) in one, for tokens each of which is
/// the newest of its sequence and the only one in the step. `q` and the keys stay as they are.
pub struct RopeAttentionDecode<'a> {
    pub heads: HeadLayout,
    /// `[tokens]` [`Span`](super::Span)s, each seeing its own slot last
    pub spans: &'a Buffer,
    /// `[tokens · slots, heads · key_dim]`
    pub q: &'a Buffer,
    /// `[tokens, kv_heads · (key_dim + value_dim)]`: keys, then values
    pub kv: &'a Buffer,
    /// `[positions, rotated / 2]` of (cos, sin), from [`rope_angles`](super::rope_angles)
    pub angles: &'a Buffer,
    pub rotated: u32,
    pub cache: &'a KeyValues,
    /// As in [`DecodeAttention`](super::DecodeAttention).
    pub scratch: &'a Buffer,
    /// `[tokens · slots, heads · value_dim]`
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
    /// Whether the kernels hold an attention of these heads: whole vec4s turn, heads count by slot, and a query fits where its
    /// output goes.
    pub fn fits(heads: &HeadLayout, rotated: u32) -> bool {
        heads.queries == Queries::BySlot
            && !heads.head_spans
            && rotated.is_multiple_of(8)
            && heads.key_dim.is_multiple_of(4)
            && heads.key_stride() <= heads.value_stride()
    }

    pub fn record(&self, recorder: &mut Recorder) {
        let Self { heads, cache, tokens, keys, .. } = *self;
        let splits = Splits::of(cache, self.split.then_some(self.most_keys));
        let into = if splits.all == 1 { self.out } else { self.scratch };
        let tile = RowTile::choose(recorder.gpu(), &heads, heads.rows_of_kv_head());
        let format = [cache.layout.precision.constant()];
        for Binding { window, buffer, share } in cache.bindings() {
            let params = Params {
                splits: splits.all,
                split_keys: splits.keys,
                kv_quads: padded(heads.kv_widths().iter().sum()) / 4,
                half_rotated: self.rotated / 2,
                ..heads.params(&cache.layout, window, tokens)
            };
            let (kernel, constants, groups) = match tile {
                None => (&PLAIN, format.to_vec(), heads.used_heads()),
                Some(tile) => {
                    let constants = [&format[..], &tile.constants()].concat();
                    (&BROADCAST, constants, tile.of_token(&heads, window.heads))
                }
            };
            recorder.dispatch(
                &params,
                Dispatch {
                    kernel,
                    constants: &constants,
                    buffers: &[self.spans, self.q, self.kv, self.angles, buffer, into],
                    groups: [groups, tokens, splits.each],
                    macs: share.of(heads.macs(keys)),
                    weight_bytes: 0,
                    // The own key and value are written, not read.
                    cache_bytes: share.of(cache.layout.read_bytes(keys)),
                },
            );
        }
        if splits.all > 1 {
            merge(recorder, &heads, tokens, splits.all, [self.scratch, self.out]);
        }
    }
}
