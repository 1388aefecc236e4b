//! Row attention, the second of the two nouns: query rows, each over the keys that it may see.
//!
//! ```text
//! out[r] = Σ_i weight(r, i) · v[i],   i over the keys of r's span,   weights by softmax or stick-breaking of scale · q[r] · k[i]
//! ```
//!
//! Here, and nowhere else, it is decided how a step's keys and values reach the cache and which kernel attends: one that
//! does both for tokens that are alone in their sequences' step, one for single rows, one for tiles of them. A cache whose
//! windows are cut by slots is read section by section, by the kernels that leave splits behind, so tiles never read one.

use super::{
    CacheAppend, DecodeAttention, FEW_TOKENS, HeadLayout, KeyOrValue, KeyValues, PrefillAttention, Queries,
    RelativePositions, RopeAttentionDecode, RopeCache, Routes, Span, StickBreaking,
};
use crate::gpu::{Buffer, Recorder};

/// How scores become attention weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKernel {
    /// Softmax of the scaled scores.
    Softmax,
    /// Stick-breaking of the scaled scores, from the last key back.
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
            most: spans.iter().map(Span::keys).max().unwrap_or(0),
            total: spans.iter().map(|span| u64::from(span.keys())).sum(),
        }
    }
}

/// The query rows of a step, and where they stand.
#[derive(Clone, Copy)]
pub struct QueryRows<'a> {
    /// `[tokens · slots, heads · key_dim]`
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
    /// `[tokens, kv_heads · (key_dim + value_dim)]`: keys, then values
    Projected(&'a Buffer),
    /// Keys and values from different places, `[tokens, kv_heads · key_dim]` and `[tokens, kv_heads · value_dim]`
    Apart { keys: &'a Buffer, values: &'a Buffer },
    /// `[tokens, kv_heads · key_dim]`: keys that are values, too
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

/// Attention of query rows over a cache that takes their keys and values first.
pub struct RowAttention<'a> {
    pub heads: HeadLayout,
    pub kernel: AttentionKernel,
    pub rows: QueryRows<'a>,
    pub new: NewKeys<'a>,
    pub positions: Positions<'a>,
    pub cache: &'a KeyValues,
    /// [`HeadLayout::split_floats`] for attention that is split, by keys or by sections.
    pub scratch: &'a Buffer,
    /// `[tokens · slots, heads · value_dim]`
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
        self.single() && self.rows.tokens <= MOST_SPLIT_TOKENS && !self.heads.head_spans
    }

    /// The angles and rotated channels for the kernel that rotates, appends and attends at once: each token must be the
    /// newest of its sequence and alone in the step.
    fn in_one(&self) -> Option<(&Buffer, u32)> {
        let Positions::Rope { angles, rotated } = self.positions else { return None };
        let plain = self.kernel == AttentionKernel::Softmax && matches!(self.new, NewKeys::Projected(_));
        let fits = self.rows.longest == 1 && RopeAttentionDecode::fits(&self.heads, rotated);
        (plain && fits).then_some((angles, rotated))
    }

    fn record_in_one(&self, recorder: &mut Recorder, kv: &Buffer, angles: &Buffer, rotated: u32) {
        let QueryRows { q, spans, tokens, visible, .. } = self.rows;
        RopeAttentionDecode {
            heads: self.heads,
            spans,
            q,
            kv,
            angles,
            rotated,
            cache: self.cache,
            scratch: self.scratch,
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
        let Self { heads, cache, rows: QueryRows { q, spans, tokens, .. }, .. } = *self;
        if let Positions::Rope { angles, rotated } = self.positions {
            let (keys, values) = match self.new {
                NewKeys::None => return,
                NewKeys::Projected(keys) | NewKeys::Same(keys) => (keys, None),
                NewKeys::Apart { keys, values } => (keys, Some(values)),
            };
            RopeCache { heads, spans, angles, rotated, q, keys, values, cache, tokens }.record(recorder);
            return;
        }
        let [keys_width, values_width] = heads.kv_widths();
        let append = |half, src, src_width| CacheAppend {
            heads,
            spans,
            src,
            src_width,
            first: 0,
            half,
            cache,
            tokens,
        };
        match self.new {
            NewKeys::None => {}
            NewKeys::Projected(kv) => remember(recorder, heads, spans, kv, cache, tokens),
            NewKeys::Apart { keys, values } => {
                append(KeyOrValue::Key, keys, keys_width).record(recorder);
                append(KeyOrValue::Value, values, values_width).record(recorder);
            }
            NewKeys::Same(keys) => append(KeyOrValue::Key, keys, keys_width).record(recorder),
        }
    }

    fn attend(&self, recorder: &mut Recorder) {
        let Self { heads, cache, scratch, out, .. } = *self;
        let QueryRows { q, spans, ranges, routes, tokens, sequences, longest, visible } = self.rows;
        let Visible { most: most_keys, total: keys } = visible;
        let relative = match self.positions {
            Positions::Relative(relative) => Some(relative),
            Positions::None | Positions::Rope { .. } => None,
        };
        let alike = heads.queries == Queries::BySlot && !heads.head_spans && relative.is_none();
        let tiles = alike && cache.sections() == 1;
        if self.kernel == AttentionKernel::StickBreaking {
            StickBreaking { heads, spans, q, cache, scratch, routes, out, tokens, keys }.record(recorder);
        } else if self.single() || !tiles {
            let split = self.splits();
            DecodeAttention {
                heads,
                spans,
                q,
                cache,
                scratch,
                routes,
                out,
                tokens,
                most_keys,
                relative,
                split,
                keys,
            }
            .record(recorder);
        } else {
            PrefillAttention {
                heads,
                spans,
                ranges,
                q,
                cache,
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

/// Appends projected keys and values, `[tokens, kv_heads · (key_dim + value_dim)]`, as they are.
pub fn remember(
    recorder: &mut Recorder,
    heads: HeadLayout,
    spans: &Buffer,
    kv: &Buffer,
    cache: &KeyValues,
    tokens: u32,
) {
    let [keys_width, values_width] = heads.kv_widths();
    for (half, first) in [(KeyOrValue::Key, 0), (KeyOrValue::Value, keys_width)] {
        let src_width = keys_width + values_width;
        CacheAppend { heads, spans, src: kv, src_width, first, half, cache, tokens }.record(recorder);
    }
}
