//! Row attention: softmax or stick-breaking over the keys a query row may see.

use super::{
    Access, AttentionShape, DECODE_SPLIT_KEYS, Kernel, Queries, Routes, RowTile, attention_shape::Params,
    shaders,
};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static DECODE: Kernel = Kernel {
    name: "row_attention_decode",
    source: shaders::ROW_ATTENTION_DECODE,
    bindings: &[
        Access::Read,
        Access::Read,
        Access::Read,
        Access::Read,
        Access::Read,
        Access::Write,
        Access::Write,
        Access::Read,
    ],
};

pub static DECODE_BROADCAST: Kernel = Kernel {
    name: "row_attention_decode.broadcast",
    source: shaders::ROW_ATTENTION_DECODE_BROADCAST,
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Write, Access::Write],
};

pub static STICK_BREAKING: Kernel = Kernel {
    name: "stick_breaking",
    source: shaders::STICK_BREAKING,
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Read, Access::Write],
};

pub static MERGE: Kernel = Kernel {
    name: "attention_merge",
    source: shaders::ATTENTION_MERGE,
    bindings: &[Access::Read, Access::Read, Access::Write],
};

pub static PREFILL: Kernel = Kernel {
    name: "row_attention_prefill",
    source: shaders::ROW_ATTENTION_PREFILL,
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Read, Access::Write],
};

pub static PREFILL_BROADCAST: Kernel = Kernel {
    name: "row_attention_prefill.broadcast",
    source: shaders::ROW_ATTENTION_PREFILL_BROADCAST,
    bindings: PREFILL.bindings,
};

/// Query rows in a tile of the prefill kernel.
const PREFILL_ROWS: u32 = 8;

uniform! {
    struct MergeParams {
        tokens: u32,
        slots: u32,
        heads: u32,
        head_quads: u32,
        out_quads: u32,
        splits: u32,
    }
}

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
        let (splits, split_keys) = match self.split {
            true => (AttentionShape::splits(self.most_keys), DECODE_SPLIT_KEYS),
            false => (1, shape.capacity),
        };
        let into = if splits == 1 { self.out } else { self.partial };
        if let Some(tile) = self.tile(recorder) {
            recorder.dispatch(
                &shape.params(self.tokens, splits, split_keys, 0),
                Dispatch {
                    kernel: &DECODE_BROADCAST,
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
                kernel: &DECODE,
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

/// Puts the splits of a decoding kernel together: `[partial, stats, out]`.
pub(super) fn merge(
    recorder: &mut Recorder,
    shape: &AttentionShape,
    tokens: u32,
    splits: u32,
    buffers: [&Buffer; 3],
) {
    let heads = shape.slots * shape.heads;
    let params = MergeParams {
        tokens,
        slots: shape.slots,
        heads: shape.heads,
        head_quads: shape.head_stride() / 4,
        out_quads: shape.out_row() / 4,
        splits,
    };
    recorder.dispatch(
        &params,
        Dispatch {
            kernel: &MERGE,
            constants: &[],
            buffers: &buffers,
            groups: [(heads * shape.head_stride() / 4).div_ceil(64), tokens, 1],
            macs: 0,
            weight_bytes: 0,
            cache_bytes: 0,
        },
    );
}

/// Stick-breaking attention, one workgroup for each query row.
pub struct StickBreaking<'a> {
    pub shape: AttentionShape,
    pub spans: &'a Buffer,
    pub q: &'a Buffer,
    pub k_cache: &'a Buffer,
    pub v_cache: &'a Buffer,
    /// As in [`DecodeAttention`].
    pub routes: Option<Routes<'a>>,
    /// `[tokens · slots, heads · head_dim]`
    pub out: &'a Buffer,
    pub tokens: u32,
    /// Keys that all tokens together see, for the counters.
    pub keys: u64,
}

impl StickBreaking<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let shape = &self.shape;
        let (chosen, first) = self.routes.map_or((self.spans, 0), |routes| (routes.chosen, routes.first));
        recorder.dispatch(
            &shape.params(self.tokens, 1, shape.capacity, first),
            Dispatch {
                kernel: &STICK_BREAKING,
                constants: &shape.constants(),
                buffers: &[self.spans, self.q, self.k_cache, self.v_cache, chosen, self.out],
                groups: [shape.slots * shape.heads, self.tokens, 1],
                macs: shape.macs(self.keys),
                weight_bytes: 0,
                cache_bytes: shape.read_bytes(self.keys),
            },
        );
    }
}

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
            None => (&PREFILL, plain.to_vec(), PREFILL_ROWS),
            Some(tile) => {
                let own = [tile.lanes(), tile.rows(), tile.columns()];
                (&PREFILL_BROADCAST, [&plain[..], &own[..]].concat(), tile.rows)
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
