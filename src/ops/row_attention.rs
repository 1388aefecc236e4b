//! Row attention, the second of the two nouns: query rows, each over the keys that it may see.
//!
//! ```text
//! out[r] = Σ_i weight(r, i) · v[i],   i over the keys of r's span,   weights by softmax or stick-breaking of q[r] · k[i] / √d
//! ```
//!
//! Here, and nowhere else, it is decided how a step's keys and values reach the cache and which kernel attends: one that
//! does both for tokens that are alone in their sequences' step, one for single rows, one for tiles of them.

use super::{
    AttentionShape, CacheAppend, DecodeAttention, FEW_TOKENS, PrefillAttention, Queries, RelativePositions,
    RopeAttentionDecode, RopeCache, Routes, Span, StickBreaking,
};
use crate::gpu::{Buffer, Recorder};

/// How scores become attention weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKernel {
    /// Softmax of `q·k / √d`.
    Softmax,
    /// Stick-breaking of `q·k / √d`, from the last key back.
    StickBreaking,
}

/// Keys that tokens see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visible {
    /// One token at the most.
    pub most: u32,
    /// All tokens together.
    pub total: u64,
}

impl Visible {
    /// Over the rows of a step.
    pub fn of(spans: &[Span]) -> Self {
        Self {
            most: spans.iter().map(|span| span.keys).max().unwrap_or(0),
            total: spans.iter().map(|span| u64::from(span.keys)).sum(),
        }
    }
}

/// The query rows of a step, and where they stand.
#[derive(Clone, Copy)]
pub struct QueryRows<'a> {
    /// `[tokens · slots, heads · head_dim]`
    pub q: &'a Buffer,
    /// `[tokens]` [`Span`]s, or `[tokens, kv_heads]` of them where heads have their own
    pub spans: &'a Buffer,
    /// `[sequences]` of (first token, tokens)
    pub ranges: &'a Buffer,
    /// The experts whose heads these are.
    pub routes: Option<Routes<'a>>,
    pub tokens: u32,
    /// Sequences in `ranges`.
    pub sequences: u32,
    /// Tokens of the sequence that has most.
    pub longest: u32,
    pub visible: Visible,
}

/// What a step adds to the cache.
#[derive(Clone, Copy)]
pub enum NewKeys<'a> {
    /// Nothing: another stack's output is there.
    None,
    /// `[tokens, 2 · kv_heads · head_dim]`: keys, then values
    Projected(&'a Buffer),
    /// Keys and values from different places, each `[tokens, kv_heads · head_dim]`
    Apart { keys: &'a Buffer, values: &'a Buffer },
    /// `[tokens, kv_heads · head_dim]`: keys that are values, too
    Same(&'a Buffer),
}

/// How positions enter the attention.
#[derive(Clone, Copy)]
pub enum Positions<'a> {
    None,
    /// Queries and keys turn; `angles` are [`rope_angles`](super::rope_angles).
    Rope {
        angles: &'a Buffer,
        /// Channels of each head that turn, the first ones.
        rotated: u32,
    },
    Relative(RelativePositions<'a>),
}

/// Scratch of attention that is split by keys.
#[derive(Clone, Copy)]
pub struct SplitScratch<'a> {
    /// `[tokens, slots · heads, splits, head_dim]`
    pub partial: &'a Buffer,
    /// `[tokens, slots · heads, splits, 2]`
    pub stats: &'a Buffer,
}

/// Attention of query rows over a cache that takes their keys and values first.
pub struct RowAttention<'a> {
    pub shape: AttentionShape,
    pub kernel: AttentionKernel,
    pub rows: QueryRows<'a>,
    pub new: NewKeys<'a>,
    pub positions: Positions<'a>,
    pub k_cache: &'a Buffer,
    pub v_cache: &'a Buffer,
    pub scratch: SplitScratch<'a>,
    /// `[tokens · slots, heads · head_dim]`
    pub out: &'a Buffer,
}

/// Tokens up to which the keys of a row are split over workgroups; more rows keep a GPU busy by themselves.
const MOST_SPLIT_TOKENS: u32 = 32;

/// Tokens whose rows may be split by keys, in steps of at most `tokens` tokens of at most `sequences` sequences.
pub fn split_tokens(tokens: u32, sequences: u32) -> u32 {
    tokens.min(FEW_TOKENS.max(sequences.min(MOST_SPLIT_TOKENS)))
}

impl RowAttention<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        if let (NewKeys::Projected(kv), Some((angles, rotated))) = (self.new, self.in_one()) {
            self.record_in_one(recorder, kv, angles, rotated);
            return;
        }
        self.append(recorder);
        self.attend(recorder);
    }

    /// Whether each row attends on its own: few tokens, or sequences that have one each.
    fn single(&self) -> bool {
        self.rows.tokens <= FEW_TOKENS || self.rows.longest == 1
    }

    /// Whether the keys of a row are split over workgroups.
    fn splits(&self) -> bool {
        self.single() && self.rows.tokens <= MOST_SPLIT_TOKENS && !self.shape.head_spans
    }

    /// The angles and rotated channels for the kernel that rotates, appends and attends at once: each token must be the
    /// newest of its sequence and alone in the step.
    fn in_one(&self) -> Option<(&Buffer, u32)> {
        let Positions::Rope { angles, rotated } = self.positions else { return None };
        let plain = self.kernel == AttentionKernel::Softmax && matches!(self.new, NewKeys::Projected(_));
        let fits = self.rows.longest == 1 && RopeAttentionDecode::fits(&self.shape, rotated);
        (plain && fits).then_some((angles, rotated))
    }

    fn record_in_one(&self, recorder: &mut Recorder, kv: &Buffer, angles: &Buffer, rotated: u32) {
        let QueryRows { q, spans, tokens, visible, .. } = self.rows;
        RopeAttentionDecode {
            shape: self.shape,
            spans,
            q,
            kv,
            angles,
            rotated,
            k_cache: self.k_cache,
            v_cache: self.v_cache,
            partial: self.scratch.partial,
            stats: self.scratch.stats,
            out: self.out,
            tokens,
            most_keys: visible.most,
            split: self.splits(),
            keys: visible.total,
        }
        .record(recorder);
    }

    /// Positions, and the step's keys and values into the cache.
    fn append(&self, recorder: &mut Recorder) {
        let (shape, QueryRows { q, spans, tokens, .. }) = (self.shape, self.rows);
        let (k_cache, v_cache) = (self.k_cache, self.v_cache);
        if let Positions::Rope { angles, rotated } = self.positions {
            let (keys, values) = match self.new {
                NewKeys::None => return,
                NewKeys::Projected(keys) | NewKeys::Same(keys) => (keys, None),
                NewKeys::Apart { keys, values } => (keys, Some(values)),
            };
            RopeCache { shape, spans, angles, rotated, q, keys, values, k_cache, v_cache, tokens }
                .record(recorder);
            return;
        }
        let width = shape.kv_heads * shape.head_stride();
        let append =
            |src, cache| CacheAppend { shape, spans, src, src_width: width, first: 0, cache, tokens };
        match self.new {
            NewKeys::None => {}
            NewKeys::Projected(kv) => remember(recorder, shape, spans, kv, [k_cache, v_cache], tokens),
            NewKeys::Apart { keys, values } => {
                append(keys, k_cache).record(recorder);
                append(values, v_cache).record(recorder);
            }
            NewKeys::Same(keys) => append(keys, k_cache).record(recorder),
        }
    }

    fn attend(&self, recorder: &mut Recorder) {
        let (shape, k_cache, v_cache, out) = (self.shape, self.k_cache, self.v_cache, self.out);
        let QueryRows { q, spans, ranges, routes, tokens, sequences, longest, visible } = self.rows;
        let Visible { most: most_keys, total: keys } = visible;
        let relative = match self.positions {
            Positions::Relative(relative) => Some(relative),
            Positions::None | Positions::Rope { .. } => None,
        };
        let tiles = shape.queries == Queries::BySlot && !shape.head_spans && relative.is_none();
        if self.kernel == AttentionKernel::StickBreaking {
            StickBreaking { shape, spans, q, k_cache, v_cache, routes, out, tokens, keys }.record(recorder);
        } else if self.single() || !tiles {
            DecodeAttention {
                shape,
                spans,
                q,
                k_cache,
                v_cache,
                partial: self.scratch.partial,
                stats: self.scratch.stats,
                routes,
                out,
                tokens,
                most_keys,
                relative,
                split: self.splits(),
                keys,
            }
            .record(recorder);
        } else {
            PrefillAttention {
                shape,
                spans,
                ranges,
                q,
                k_cache,
                v_cache,
                out,
                tokens,
                longest,
                ranges_len: sequences,
                most_keys,
                keys,
            }
            .record(recorder);
        }
    }
}

/// Appends projected keys and values, `[tokens, 2 · kv_heads · head_dim]`, as they are.
pub fn remember(
    recorder: &mut Recorder,
    shape: AttentionShape,
    spans: &Buffer,
    kv: &Buffer,
    caches: [&Buffer; 2],
    tokens: u32,
) {
    let width = shape.kv_heads * shape.head_stride();
    for (first, cache) in [0, width].into_iter().zip(caches) {
        CacheAppend { shape, spans, src: kv, src_width: 2 * width, first, cache, tokens }.record(recorder);
    }
}
