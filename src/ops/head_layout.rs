//! How the heads of one attention lie in rows of queries and outputs.

use super::{CacheLayout, cache_layout::CacheWindow, padded};

/// Keys that one workgroup of the decode kernel reads.
pub const DECODE_SPLIT_KEYS: u32 = 256;

/// Channels of a head the softmax kernels have room for.
pub const MAX_HEAD_DIM: u32 = 128;

/// Channels of a head the stick-breaking kernel has room for.
pub const MAX_STICK_HEAD_DIM: u32 = 1024;

uniform! {
    struct Params {
        cache: CacheWindow,
        tokens: u32,
        slots: u32,
        heads: u32,
        kv_heads: u32,
        group: u32,
        key_quads: u32,
        value_quads: u32,
        q_quads: u32,
        out_quads: u32,
        sequences: u32,
        splits: u32,
        split_keys: u32,
        first_route: u32,
        scale: f32,
        clip: u32,
        kv_quads: u32,
        half_rotated: u32,
    }
}

/// How query heads are counted and where their queries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    /// Head `j` of slot `s` is head `s · heads + j`: experts do not matter to the key/value head.
    BySlot,
    /// Head `j` of expert `e` is head `e · heads + j`.
    ByExpert,
    /// As `ByExpert`, and queries hold the heads of all experts, `[tokens, experts · heads · key_dim]`.
    Dense {
        /// Experts there are.
        experts: u32,
    },
}

/// The heads of one attention: query head `h` of a token reads key/value head `(h / group) mod kv_heads`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadLayout {
    pub queries: Queries,
    /// Query rows a token has (its chosen experts).
    pub slots: u32,
    /// Heads in a query row.
    pub heads: u32,
    pub kv_heads: u32,
    /// Consecutive query heads that share a key/value head.
    pub group: u32,
    /// Channels of a query and of a key.
    pub key_dim: u32,
    /// Channels of a value and of a head's output.
    pub value_dim: u32,
    /// What scores are multiplied by, `1 / √key_dim` where nothing else is said.
    pub scale: f32,
    /// Every key/value head has spans of its own, `[tokens, kv_heads]`.
    pub head_spans: bool,
}

impl HeadLayout {
    /// The usual scale of scores, `1 / √key_dim`.
    pub fn usual_scale(key_dim: u32) -> f32 {
        (1.0 / f64::from(key_dim).sqrt()) as f32
    }

    /// Floats a query or key takes in a row: its channels, padded to whole vec4s.
    pub fn key_stride(&self) -> u32 {
        head_stride(self.key_dim)
    }

    /// Floats a value or an output takes in a row.
    pub fn value_stride(&self) -> u32 {
        head_stride(self.value_dim)
    }

    /// Floats in a row of queries.
    pub fn q_row(&self) -> u32 {
        let heads = match self.queries {
            Queries::Dense { experts } => experts * self.heads,
            Queries::BySlot | Queries::ByExpert => self.heads,
        };
        padded(heads * self.key_stride())
    }

    /// Floats in a row of attention output, one for each slot.
    pub fn out_row(&self) -> u32 {
        padded(self.heads * self.value_stride())
    }

    /// Floats of a token's keys, then its values, not padded.
    pub fn kv_widths(&self) -> [u32; 2] {
        [self.key_stride(), self.value_stride()].map(|stride| self.kv_heads * stride)
    }

    /// Query heads of a token that it uses.
    pub(super) fn used_heads(&self) -> u32 {
        self.slots * self.heads
    }

    /// Query rows of a token that read the same key/value head.
    pub fn rows_of_kv_head(&self) -> u32 {
        self.used_heads() / self.kv_heads
    }

    /// Splits of the decode kernel for rows that see at most `keys` keys.
    pub fn splits(keys: u32) -> u32 {
        keys.div_ceil(DECODE_SPLIT_KEYS).max(1)
    }

    /// Floats of scratch for `splits` splits of `value_stride` floats, those of all query heads, as
    /// `shaders/shared/splits.wgsl` lays them out.
    pub fn split_floats(splits: u64, value_stride: u32) -> u64 {
        splits * u64::from(value_stride + 4)
    }

    /// Parameters for a window of a cache of `layout`, whose keys are not split.
    pub(super) fn params(&self, layout: &CacheLayout, cache: CacheWindow, tokens: u32) -> Params {
        Params {
            cache,
            tokens,
            slots: self.slots,
            heads: self.heads,
            kv_heads: self.kv_heads,
            group: self.group,
            key_quads: self.key_stride() / 4,
            value_quads: self.value_stride() / 4,
            q_quads: self.q_row() / 4,
            out_quads: self.out_row() / 4,
            sequences: layout.sequences,
            splits: 1,
            split_keys: layout.capacity,
            first_route: 0,
            scale: self.scale,
            clip: 0,
            kv_quads: 0,
            half_rotated: 0,
        }
    }

    /// The constant of `shaders/shared/spans.wgsl`.
    pub(super) fn span_constant(&self) -> (&'static str, f64) {
        ("HEAD_SPANS", f64::from(u8::from(self.head_spans)))
    }

    /// The constants of `shaders/shared/expert_heads.wgsl`.
    pub(super) fn expert_constants(&self) -> [(&'static str, f64); 2] {
        let (by_expert, dense) = match self.queries {
            Queries::BySlot => (0.0, 0.0),
            Queries::ByExpert => (1.0, 0.0),
            Queries::Dense { .. } => (1.0, 1.0),
        };
        [("EXPERT_HEADS", by_expert), ("DENSE_QUERY", dense)]
    }

    /// Multiply-accumulates for query rows that together see `keys` keys.
    pub(super) fn macs(&self, keys: u64) -> u64 {
        keys * u64::from(self.used_heads()) * u64::from(self.key_dim + self.value_dim)
    }
}

/// Floats that a head of `channels` channels takes in a row.
pub fn head_stride(channels: u32) -> u32 {
    channels.next_multiple_of(4)
}
