//! The sizes of an attention and of its cache.

use super::padded;

/// Keys that one workgroup of the decode kernel reads.
pub const DECODE_SPLIT_KEYS: u32 = 256;

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
        kv_quads: u32,
        half_rotated: u32,
    }
}

/// How a key/value cache holds its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CachePrecision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats: half the memory, keys and values rounded to 11 bits.
    F16,
}

impl CachePrecision {
    /// Bytes of a number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
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
    /// How the cache holds keys and values.
    pub cache: CachePrecision,
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

    /// Query rows of a token that read the same key/value head.
    pub fn rows_of_kv_head(&self) -> u32 {
        self.slots * self.heads / self.kv_heads
    }

    /// Channels in a row of the key or of the value cache, where heads take whole eights.
    pub fn cache_row(&self) -> u32 {
        self.kv_heads * padded(self.head_dim)
    }

    /// Bytes of a row of the key or of the value cache.
    pub fn cache_row_bytes(&self) -> u64 {
        self.cache.bytes() * u64::from(self.cache_row())
    }

    /// Bytes of `keys` keys and their values.
    pub(super) fn read_bytes(&self, keys: u64) -> u64 {
        2 * keys * self.cache_row_bytes()
    }

    /// Bytes of the key cache (the value cache has as many).
    pub fn cache_bytes(&self) -> u64 {
        u64::from(self.sequences) * u64::from(self.capacity) * self.cache_row_bytes()
    }

    /// Splits of the decode kernel for rows that see at most `keys` keys.
    pub fn splits(keys: u32) -> u32 {
        keys.div_ceil(DECODE_SPLIT_KEYS).max(1)
    }

    /// Splits of the decode kernels, where they `split`, and the keys of each.
    pub(super) fn split(&self, split: bool, most_keys: u32) -> (u32, u32) {
        if split { (Self::splits(most_keys), DECODE_SPLIT_KEYS) } else { (1, self.capacity) }
    }

    pub(super) fn params(&self, tokens: u32, splits: u32, split_keys: u32, first: u32) -> Params {
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
            kv_quads: 0,
            half_rotated: 0,
        }
    }

    /// The constant of `shaders/shared/attention_params.wgsl`.
    pub(super) fn head_spans(&self) -> (&'static str, f64) {
        ("HEAD_SPANS", f64::from(u8::from(self.head_spans)))
    }

    /// The constant of `shaders/shared/cache.wgsl`.
    pub(super) fn cache_format(&self) -> (&'static str, f64) {
        ("CACHE_F16", f64::from(u8::from(self.cache == CachePrecision::F16)))
    }

    /// The constants of `shaders/shared/expert_heads.wgsl`, `attention_params.wgsl` and `cache.wgsl`.
    pub(super) fn constants(&self) -> [(&'static str, f64); 4] {
        let (by_expert, dense) = match self.queries {
            Queries::BySlot => (0.0, 0.0),
            Queries::ByExpert => (1.0, 0.0),
            Queries::Dense { .. } => (1.0, 1.0),
        };
        [("EXPERT_HEADS", by_expert), ("DENSE_QUERY", dense), self.head_spans(), self.cache_format()]
    }

    /// Multiply-accumulates for query rows that together see `keys` keys.
    pub(super) fn macs(&self, keys: u64) -> u64 {
        2 * keys * u64::from(self.slots * self.heads) * u64::from(self.head_dim)
    }
}

/// Floats that a head of `head_dim` channels takes in a row.
pub fn head_stride(head_dim: u32) -> u32 {
    head_dim.next_multiple_of(4)
}
