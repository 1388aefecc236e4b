//! Row attention: softmax over the keys a query row may see.

use super::{Access, Kernel, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static DECODE: Kernel = Kernel {
    name: "row_attention_decode",
    source: shaders::ROW_ATTENTION_DECODE,
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Write, Access::Write],
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

/// Channels of a head the kernels have room for.
pub const MAX_HEAD_DIM: u32 = 128;

uniform! {
    struct Params {
        tokens: u32,
        slots: u32,
        heads: u32,
        kv_heads: u32,
        group: u32,
        head_quads: u32,
        q_quads: u32,
        cache_quads: u32,
        capacity: u32,
        sequences: u32,
        splits: u32,
        split_keys: u32,
        scale: f32,
    }
}

uniform! {
    struct MergeParams {
        tokens: u32,
        slots: u32,
        heads: u32,
        head_quads: u32,
        q_quads: u32,
        splits: u32,
    }
}

/// The sizes of one attention: query head `h = slot · heads + j` of a token reads key/value head
/// `(h / group) mod kv_heads`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query rows a token has (its chosen experts).
    pub slots: u32,
    /// Heads in a query row.
    pub heads: u32,
    pub kv_heads: u32,
    /// Consecutive query heads that share a key/value head.
    pub group: u32,
    /// Channels of a head: a multiple of 4, at most 128.
    pub head_dim: u32,
    /// Positions the cache has room for, in each sequence.
    pub capacity: u32,
    pub sequences: u32,
}

impl AttentionShape {
    /// Floats in a row of queries or of attention output.
    pub fn q_row(&self) -> u32 {
        padded(self.heads * self.head_dim)
    }

    /// Floats in a row of the key or of the value cache.
    pub fn cache_row(&self) -> u32 {
        padded(self.kv_heads * self.head_dim)
    }

    /// Bytes of the key cache (the value cache has as many).
    pub fn cache_bytes(&self) -> u64 {
        4 * u64::from(self.sequences) * u64::from(self.capacity) * u64::from(self.cache_row())
    }

    /// Splits of the decode kernel for keys up to `last_position`.
    pub fn splits(last_position: u32) -> u32 {
        (last_position + 1).div_ceil(DECODE_SPLIT_KEYS)
    }

    fn params(&self, tokens: u32, splits: u32) -> Params {
        Params {
            tokens,
            slots: self.slots,
            heads: self.heads,
            kv_heads: self.kv_heads,
            group: self.group,
            head_quads: self.head_dim / 4,
            q_quads: self.q_row() / 4,
            cache_quads: self.cache_row() / 4,
            capacity: self.capacity,
            sequences: self.sequences,
            splits,
            split_keys: DECODE_SPLIT_KEYS,
            scale: (1.0 / f64::from(self.head_dim).sqrt()) as f32,
        }
    }

    /// Multiply-accumulates for query rows that together see `keys` keys.
    fn macs(&self, keys: u64) -> u64 {
        2 * keys * u64::from(self.slots * self.heads) * u64::from(self.head_dim)
    }
}

/// Attention for few tokens, split over keys.
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
    /// In the layout of `q`.
    pub out: &'a Buffer,
    pub tokens: u32,
    /// The largest position among the tokens.
    pub last_position: u32,
    /// Keys that all tokens together see, for the counters.
    pub keys: u64,
}

impl DecodeAttention<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let shape = &self.shape;
        let heads = shape.slots * shape.heads;
        let splits = AttentionShape::splits(self.last_position);
        let into = if splits == 1 { self.out } else { self.partial };
        recorder.dispatch(
            &shape.params(self.tokens, splits),
            Dispatch {
                kernel: &DECODE,
                constants: &[],
                buffers: &[self.spans, self.q, self.k_cache, self.v_cache, into, self.stats],
                groups: [heads, self.tokens, splits],
                macs: shape.macs(self.keys),
            },
        );
        if splits == 1 {
            return;
        }
        let params = MergeParams {
            tokens: self.tokens,
            slots: shape.slots,
            heads: shape.heads,
            head_quads: shape.head_dim / 4,
            q_quads: shape.q_row() / 4,
            splits,
        };
        recorder.dispatch(
            &params,
            Dispatch {
                kernel: &MERGE,
                constants: &[],
                buffers: &[self.partial, self.stats, self.out],
                groups: [(heads * shape.head_dim / 4).div_ceil(64), self.tokens, 1],
                macs: 0,
            },
        );
    }
}

/// Attention for many tokens, in tiles of query rows.
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
    /// Keys that all tokens together see, for the counters.
    pub keys: u64,
}

impl PrefillAttention<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let shape = &self.shape;
        let rows = self.longest * (shape.slots * shape.heads / shape.kv_heads);
        recorder.dispatch(
            &shape.params(self.tokens, 1),
            Dispatch {
                kernel: &PREFILL,
                constants: &[],
                buffers: &[self.spans, self.q, self.k_cache, self.v_cache, self.ranges, self.out],
                groups: [rows.div_ceil(PREFILL_ROWS), shape.kv_heads, self.ranges_len],
                macs: shape.macs(self.keys),
            },
        );
    }
}
