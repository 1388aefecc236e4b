//! Softmax attention of many query rows, in tiles.

use super::{AttentionShape, Kernel, RowTile, attention_shape::Params, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static PLAIN: Kernel = Kernel::new(&shaders::ROW_ATTENTION_PREFILL, Params::layout);

pub static BROADCAST: Kernel = Kernel::new(&shaders::ROW_ATTENTION_PREFILL_BROADCAST, Params::layout);

/// Query rows in a tile of the prefill kernel.
const PLAIN_ROWS: u32 = 8;

/// Softmax attention for many tokens, in tiles of query rows that count by slot.
pub struct PrefillAttention<'a> {
    pub shape: AttentionShape,
    pub spans: &'a Buffer,
    /// `[sequences]` of (first token, tokens)
    pub ranges: &'a Buffer,
    pub q: &'a Buffer,
    pub k_cache: &'a Buffer,
    pub v_cache: &'a Buffer,
    /// In the layout of `q`.
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

impl PrefillAttention<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let shape = &self.shape;
        let rows = self.longest * shape.rows_of_kv_head();
        let plain = [shape.head_spans(), shape.cache_format()];
        let (kernel, constants, tile_rows) = match RowTile::choose(recorder.gpu(), shape, rows) {
            None => (&PLAIN, plain.to_vec(), PLAIN_ROWS),
            Some(tile) => {
                let own = [tile.lanes(), tile.rows(), tile.columns()];
                (&BROADCAST, [&plain[..], &own[..]].concat(), tile.rows)
            }
        };
        recorder.dispatch(
            &shape.params(self.tokens, 1, shape.capacity, 0),
            Dispatch {
                kernel,
                constants: &constants,
                buffers: &[self.spans, self.q, self.k_cache, self.v_cache, self.ranges, self.out],
                groups: [rows.div_ceil(tile_rows), shape.kv_heads, self.ranges_len],
                macs: shape.macs(self.keys),
                weight_bytes: 0,
                cache_bytes: shape.read_bytes(u64::from(self.most_keys) * u64::from(self.ranges_len)),
            },
        );
    }
}
