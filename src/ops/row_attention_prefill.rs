//! Softmax attention of many query rows, in tiles.

use super::{
    HeadLayout, Kernel, KeyValues, RowTile, Variant, Variants, head_layout::Params, key_values::Binding,
    shaders,
};
use crate::gpu::{Buffer, Dispatch, Gpu, Recorder};

pub static PLAIN: Kernel = Kernel::new(&shaders::ROW_ATTENTION_PREFILL, Params::layout);

pub static BROADCAST: Kernel = Kernel::new(&shaders::ROW_ATTENTION_PREFILL_BROADCAST, Params::layout);

/// Query rows in a tile of the prefill kernel.
const PLAIN_ROWS: u32 = 8;

/// Softmax attention for many tokens, in tiles of query rows that count by slot. What later tokens of a sequence see neither
/// starts nor ends before what earlier ones see. The cache has one section.
pub struct PrefillAttention<'a> {
    pub heads: HeadLayout,
    pub spans: &'a Buffer,
    /// `[sequences]` of (first token, tokens)
    pub ranges: &'a Buffer,
    pub q: &'a Buffer,
    pub cache: &'a KeyValues,
    /// `[tokens · slots, heads · value_dim]`
    pub out: &'a Buffer,
    pub tokens: u32,
    /// Tokens of the sequence that has most.
    pub longest: u32,
    /// Sequences in `ranges`.
    pub ranges_len: u32,
    /// Keys that one token sees at the most.
    pub most_keys: u32,
    /// Keys that all tokens together see, for the counters.
    pub keys: u64,
}

/// Workgroups in the widest dimension, at the most, for a sequence of which `rows` query rows read one key/value head.
pub fn most_tiles(gpu: &Gpu, rows: u64) -> u64 {
    let least_rows = match Variants::of(gpu).attention {
        Variant::Broadcast { lanes } => RowTile::most_rows(lanes),
        _ => PLAIN_ROWS,
    };
    rows.div_ceil(u64::from(least_rows))
}

impl PrefillAttention<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Self { heads, cache, .. } = *self;
        let rows = self.longest * heads.rows_of_kv_head();
        let plain = [heads.span_constant(), cache.layout.precision.constant()];
        let (kernel, constants, tile_rows) = match RowTile::choose(recorder.gpu(), &heads, rows) {
            None => (&PLAIN, plain.to_vec(), PLAIN_ROWS),
            Some(tile) => (&BROADCAST, [&plain[..], &tile.constants()].concat(), tile.rows),
        };
        let read = cache.layout.read_bytes(u64::from(self.most_keys) * u64::from(self.ranges_len));
        for Binding { window, buffer, share } in cache.bindings() {
            recorder.dispatch(
                &heads.params(&cache.layout, window, self.tokens),
                Dispatch {
                    kernel,
                    constants: &constants,
                    buffers: &[self.spans, self.q, buffer, self.ranges, self.out],
                    groups: [rows.div_ceil(tile_rows), window.heads, self.ranges_len],
                    macs: share.of(heads.macs(self.keys)),
                    weight_bytes: 0,
                    cache_bytes: share.of(read),
                },
            );
        }
    }
}
