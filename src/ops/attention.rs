//! Row attention: softmax or stick-breaking over the keys a query row may see.

use super::{Access, Kernel, Routes, padded, shaders};
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

/// Keys that one workgroup of the decode kernel reads.
pub const DECODE_SPLIT_KEYS: u32 = 256;

/// Query rows in a tile of the prefill kernel.
const PREFILL_ROWS: u32 = 8;

/// Channels of a head the softmax kernels have room for.
pub const MAX_HEAD_DIM: u32 = 128;

/// Channels of a head the stick-breaking kernel has room for.
pub const MAX_STICK_HEAD_DIM: u32 = 1024;

uniform! {
    struct Params {
        tokens: u32,
        slots: u32,
        heads: u32,
        kv_heads: u32,
        group: u32,
        head_quads: u32,
        q_quads: u32,
        out_quads: u32,
        cache_quads: u32,
        capacity: u32,
        sequences: u32,
        splits: u32,
        split_keys: u32,
        first: u32,
        scale: f32,
        clip: u32,
    }
}

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

/// How query heads are counted and where their queries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    /// Head `j` of slot `s` is head `s · heads + j`: experts do not matter to the key/value head.
    BySlot,
    /// Head `j` of expert `e` is head `e · heads + j`.
    ByExpert,
    /// As `ByExpert`, and queries hold the heads of all experts, `[tokens, experts · heads · head_dim]`.
    Dense {
        /// Experts there are.
        experts: u32,
    },
}

/// The sizes of one attention: query head `h` of a token reads key/value head `(h / group) mod kv_heads`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    pub queries: Queries,
    /// Query rows a token has (its chosen experts).
    pub slots: u32,
    /// Heads in a query row.
    pub heads: u32,
    pub kv_heads: u32,
    /// Consecutive query heads that share a key/value head.
    pub group: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// Positions the cache has room for, in each sequence.
    pub capacity: u32,
    pub sequences: u32,
    /// Every key/value head has spans of its own, `[tokens, kv_heads]`.
    pub head_spans: bool,
}

impl AttentionShape {
    /// Floats a head takes in a row: its channels, padded to whole vec4s.
    pub fn head_stride(&self) -> u32 {
        head_stride(self.head_dim)
    }

    /// Floats in a row of queries.
    pub fn q_row(&self) -> u32 {
        match self.queries {
            Queries::Dense { experts } => padded(experts * self.heads * self.head_stride()),
            Queries::BySlot | Queries::ByExpert => self.out_row(),
        }
    }

    /// Floats in a row of attention output, one for each slot.
    pub fn out_row(&self) -> u32 {
        padded(self.heads * self.head_stride())
    }

    /// Floats in a row of the key or of the value cache.
    pub fn cache_row(&self) -> u32 {
        padded(self.kv_heads * self.head_stride())
    }

    /// Bytes of one position in the key cache (the value cache has as many).
    pub fn position_bytes(&self) -> u64 {
        4 * u64::from(self.cache_row())
    }

    /// Bytes of the key cache (the value cache has as many).
    pub fn cache_bytes(&self) -> u64 {
        u64::from(self.sequences) * u64::from(self.capacity) * self.position_bytes()
    }

    /// Splits of the decode kernel for rows that see at most `keys` keys.
    pub fn splits(keys: u32) -> u32 {
        keys.div_ceil(DECODE_SPLIT_KEYS).max(1)
    }

    fn params(&self, tokens: u32, splits: u32, split_keys: u32, first: u32) -> Params {
        Params {
            tokens,
            slots: self.slots,
            heads: self.heads,
            kv_heads: self.kv_heads,
            group: self.group,
            head_quads: self.head_stride() / 4,
            q_quads: self.q_row() / 4,
            out_quads: self.out_row() / 4,
            cache_quads: self.cache_row() / 4,
            capacity: self.capacity,
            sequences: self.sequences,
            splits,
            split_keys,
            first,
            scale: (1.0 / f64::from(self.head_dim).sqrt()) as f32,
            clip: 0,
        }
    }

    /// The constant of `shaders/shared/row_attention.wgsl`.
    pub(super) fn head_spans(&self) -> (&'static str, f64) {
        ("HEAD_SPANS", f64::from(u8::from(self.head_spans)))
    }

    /// The constants of `shaders/shared/expert_heads.wgsl`, and that of `row_attention.wgsl`.
    fn constants(&self) -> [(&'static str, f64); 3] {
        let (by_expert, dense) = match self.queries {
            Queries::BySlot => (0.0, 0.0),
            Queries::ByExpert => (1.0, 0.0),
            Queries::Dense { .. } => (1.0, 1.0),
        };
        [("EXPERT_HEADS", by_expert), ("DENSE_QUERY", dense), self.head_spans()]
    }

    /// Bytes of `keys` keys and their values.
    fn read_bytes(&self, keys: u64) -> u64 {
        2 * keys * self.position_bytes()
    }

    /// Multiply-accumulates for query rows that together see `keys` keys.
    fn macs(&self, keys: u64) -> u64 {
        2 * keys * u64::from(self.slots * self.heads) * u64::from(self.head_dim)
    }
}

/// Floats that a head of `head_dim` channels takes in a row.
pub fn head_stride(head_dim: u32) -> u32 {
    head_dim.next_multiple_of(4)
}

/// Learned vectors by distance, `[heads, 2 · clip + 1, head_dim]`, heads padded; distances beyond `clip` count as `clip`.
#[derive(Clone, Copy)]
pub struct RelativePositions<'a> {
    pub table: &'a Buffer,
    pub clip: u32,
}

/// Softmax attention, one workgroup for each query row and split of its keys.
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
        let heads = shape.slots * shape.heads;
        let (splits, split_keys) = match self.split {
            true => (AttentionShape::splits(self.most_keys), DECODE_SPLIT_KEYS),
            false => (1, shape.capacity),
        };
        let (chosen, first) = self.routes.map_or((self.spans, 0), |routes| (routes.chosen, routes.first));
        let into = if splits == 1 { self.out } else { self.partial };
        let [by_expert, dense, head_spans] = shape.constants();
        let (table, clip) = self.relative.map_or((self.q, 0), |relative| (relative.table, relative.clip));
        recorder.dispatch(
            &Params { clip, ..shape.params(self.tokens, splits, split_keys, first) },
            Dispatch {
                kernel: &DECODE,
                constants: &[
                    by_expert,
                    dense,
                    head_spans,
                    ("RELATIVE", f64::from(u8::from(self.relative.is_some()))),
                ],
                buffers: &[self.spans, self.q, self.k_cache, self.v_cache, chosen, into, self.stats, table],
                groups: [heads, self.tokens, splits],
                macs: shape.macs(self.keys),
                weight_bytes: 0,
                cache_bytes: shape.read_bytes(self.keys),
            },
        );
        if splits == 1 {
            return;
        }
        let params = MergeParams {
            tokens: self.tokens,
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
                buffers: &[self.partial, self.stats, self.out],
                groups: [(heads * shape.head_stride() / 4).div_ceil(64), self.tokens, 1],
                macs: 0,
                weight_bytes: 0,
                cache_bytes: 0,
            },
        );
    }
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
        let rows = self.longest * (shape.slots * shape.heads / shape.kv_heads);
        recorder.dispatch(
            &shape.params(self.tokens, 1, shape.capacity, 0),
            Dispatch {
                kernel: &PREFILL,
                constants: &[shape.head_spans()],
                buffers: &[self.spans, self.q, self.k_cache, self.v_cache, self.ranges, self.out],
                groups: [rows.div_ceil(PREFILL_ROWS), shape.kv_heads, self.ranges_len],
                macs: shape.macs(self.keys),
                weight_bytes: 0,
                cache_bytes: shape.read_bytes(u64::from(self.most_keys) * u64::from(self.ranges_len)),
            },
        );
    }
}
