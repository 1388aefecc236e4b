//! Softmax attention of single query rows: for few tokens, split by keys.

use super::{
    AttentionShape, Kernel, Queries, Routes, RowTile, attention_merge::merge, attention_shape::Params,
    shaders,
};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static PLAIN: Kernel = Kernel::new(&shaders::ROW_ATTENTION_DECODE, Params::layout);

pub static BROADCAST: Kernel = Kernel::new(&shaders::ROW_ATTENTION_DECODE_BROADCAST, Params::layout);

/// Learned vectors by distance, `[heads, 2 · clip + 1, head_dim]`, heads padded; distances beyond `clip` count as `clip`.
#[derive(Clone, Copy)]
pub struct RelativePositions<'a> {
    pub table: &'a Buffer,
    pub clip: u32,
}

/// Softmax attention, split by keys for few tokens: one workgroup for each query row, or one subgroup for those that
/// share a key/value head.
pub struct DecodeAttention<'a> {
    pub shape: AttentionShape,
    pub spans: &'a Buffer,
    pub q: &'a Buffer,
    pub k_cache: &'a Buffer,
    pub v_cache: &'a Buffer,
    /// `[tokens, slots · heads, splits, head_dim]`, scratch
    pub partial: &'a Buffer,
    /// `[tokens, slots · heads, splits, 2]`, scratch
    pub stats: &'a Buffer,
    /// The experts whose heads these are; unused when queries count by slot.
    pub routes: Option<Routes<'a>>,
    /// `[tokens · slots, heads · head_dim]`
    pub out: &'a Buffer,
    pub tokens: u32,
    /// Keys that one token sees at the most.
    pub most_keys: u32,
    /// Learned vectors for the distance of a key, which are added to it.
    pub relative: Option<RelativePositions<'a>>,
    /// Split the keys of each row over workgroups, for few tokens.
    pub split: bool,
    /// Keys that all tokens together see, for the counters.
    pub keys: u64,
}

impl DecodeAttention<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let shape = &self.shape;
        let (splits, split_keys) = shape.split(self.split, self.most_keys);
        let into = if splits == 1 { self.out } else { self.partial };
        if let Some(tile) = self.tile(recorder) {
            recorder.dispatch(
                &shape.params(self.tokens, splits, split_keys, 0),
                Dispatch {
                    kernel: &BROADCAST,
                    constants: &[
                        tile.lanes(),
                        tile.rows(),
                        tile.columns(),
                        shape.head_spans(),
                        shape.cache_format(),
                    ],
                    buffers: &[self.spans, self.q, self.k_cache, self.v_cache, into, self.stats],
                    groups: [tile.of_token(shape), self.tokens, splits],
                    macs: shape.macs(self.keys),
                    weight_bytes: 0,
                    cache_bytes: shape.read_bytes(self.keys),
                },
            );
        } else {
            self.record_rows(recorder, splits, split_keys, into);
        }
        if splits > 1 {
            merge(recorder, shape, self.tokens, splits, [self.partial, self.stats, self.out]);
        }
    }

    /// The tile of the subgroup kernel, where the device runs it and it can do this.
    fn tile(&self, recorder: &Recorder) -> Option<RowTile> {
        let shape = &self.shape;
        let plain = shape.queries == Queries::BySlot && !shape.head_spans && self.relative.is_none();
        RowTile::choose(recorder.gpu(), shape, shape.rows_of_kv_head()).filter(|_| plain)
    }

    fn record_rows(&self, recorder: &mut Recorder, splits: u32, split_keys: u32, into: &Buffer) {
        let shape = &self.shape;
        let heads = shape.slots * shape.heads;
        let (chosen, first) = self.routes.map_or((self.spans, 0), |routes| (routes.chosen, routes.first));
        let [by_expert, dense, head_spans, cache] = shape.constants();
        let (table, clip) = self.relative.map_or((self.q, 0), |relative| (relative.table, relative.clip));
        recorder.dispatch(
            &Params { clip, ..shape.params(self.tokens, splits, split_keys, first) },
            Dispatch {
                kernel: &PLAIN,
                constants: &[
                    by_expert,
                    dense,
                    head_spans,
                    cache,
                    ("RELATIVE", f64::from(u8::from(self.relative.is_some()))),
                ],
                buffers: &[self.spans, self.q, self.k_cache, self.v_cache, chosen, into, self.stats, table],
                groups: [heads, self.tokens, splits],
                macs: shape.macs(self.keys),
                weight_bytes: 0,
                cache_bytes: shape.read_bytes(self.keys),
            },
        );
    }
}
