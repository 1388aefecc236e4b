//! The ops: one file per kernel family, with its parameters, bindings, dispatch arithmetic and choice of
//! variant.
//!
//! Two rules hold for every activation buffer: a row is padded to a multiple of 8 floats ([`padded`]), and the
//! padding is zero. Every kernel that writes a row keeps both.

mod add_positions;
mod adjust_logits;
mod asked;
mod attention_merge;
mod attention_rows;
mod blend_heads;
mod cache_append;
mod cache_layout;
mod cache_reorder;
mod chooser;
mod combine;
mod copy;
mod cosine_router;
mod driver;
mod edit_heads;
mod edit_plan;
mod edit_routes;
mod embedding;
mod gather_heads;
mod group;
mod head_layout;
mod interleave;
mod key_values;
mod matrix;
mod norm;
mod norm_router;
mod query_norm;
mod replay_routes;
mod rope_attention_decode;
mod rope_cache;
mod routed_linear;
mod routed_matmul;
mod routed_matvec;
mod row_attention;
mod row_attention_decode;
mod row_attention_prefill;
mod row_statistics;
mod row_tile;
mod sample;
mod select;
mod sequence_cut;
mod splits;
mod stick_breaking;
mod token_logprob;
mod top_logits;
mod variant;

use row_tile::RowTile;

use crate::gpu::{Buffer, Kernel};

pub use add_positions::{AddPositions, sinusoidal_positions};
pub use adjust_logits::{AdjustLogits, BANNED, FROM_PROMPT, TokenCounts};
pub use asked::Asked;
pub use attention_rows::AttentionRows;
pub use blend_heads::BlendHeads;
pub use cache_append::{CacheAppend, KeyOrValue};
pub use cache_layout::{CacheLayout, CachePrecision, Sections, Window};
pub use cache_reorder::CacheReorder;
pub use chooser::{
    AdapterReport, Candidate, Family, MARGIN, Notes, candidates, choose, choose_kernels, pick,
};
pub use combine::Combine;
pub use copy::Copy;
pub use cosine_router::CosineRouter;
pub use driver::{DriverLoop, DriverProducts, DriverSubgroups};
pub use edit_heads::EditHeads;
pub use edit_plan::{EditKind, EditPlan, EditPositions, PlannedEdit};
pub use edit_routes::EditRoutes;
pub use embedding::Embedding;
pub use gather_heads::{GatherHeads, HeadRows};
pub use group::{Group, GroupBuffers, workgroups};
pub use head_layout::{
    DECODE_SPLIT_KEYS, HeadLayout, MAX_HEAD_DIM, MAX_STICK_HEAD_DIM, Queries, head_stride,
};
pub use key_values::{CachedWindow, KeyValues};
pub use matrix::{Activation, Bias, Matrix, MatrixShape, Part, Precision, QUANTIZED_GROUP};
pub use norm::{NormInput, NormKind, NormRows};
pub use norm_router::{MAX_EXPERTS, NormRouter, RouterInput};
pub use query_norm::QueryNorm;
pub use replay_routes::ReplayRoutes;
pub use rope_attention_decode::RopeAttentionDecode;
pub use rope_cache::{RopeCache, rope_angles};
pub use routed_linear::{Alongside, FEW_TOKENS, Output, RoutedLinear, RowList, Sums};
pub use routed_matmul::{RoutedMatmul, least_tile_rows, tile_rows};
pub use routed_matvec::{Beside, RoutedMatvec};
pub use row_attention::{
    AttentionKernel, NewKeys, Positions, QueryRows, RowAttention, Visible, remember, split_tokens,
};
pub use row_attention_decode::{DecodeAttention, RelativePositions};
pub use row_attention_prefill::{PrefillAttention, most_tiles};
pub use row_statistics::{MassOf, Masses, RowStatistics};
pub use sample::{Argmax, NOT_FINITE, Sample};
pub use select::{ExpertChoice, Select, Weighting};
pub use sequence_cut::SequenceCut;
pub use splits::scratch_splits;
pub use stick_breaking::StickBreaking;
pub use token_logprob::TokenLogprob;
pub use top_logits::{MAX_TOP_LOGITS, TopLogits};
pub use variant::{Measured, Packed, Variant, Variants};

/// The WGSL files with their bindings, as `build.rs` lists them.
mod shaders {
    #![allow(dead_code)]
    use crate::gpu::{Access, Shader};
    include!(concat!(env!("OUT_DIR"), "/shaders/mod.rs"));
}

/// Every kernel, variants included, for the tests that validate all of them.
pub static KERNELS: &[&Kernel] = &[
    &add_positions::KERNEL,
    &adjust_logits::KERNEL,
    &adjust_logits::COUNT,
    &row_attention_decode::PLAIN,
    &row_attention_decode::BROADCAST,
    &attention_merge::KERNEL,
    &attention_rows::KERNEL,
    &row_attention_prefill::PLAIN,
    &row_attention_prefill::BROADCAST,
    &row_statistics::KERNEL,
    &blend_heads::KERNEL,
    &cache_reorder::KERNEL,
    &combine::KERNEL,
    &copy::KERNEL,
    &cosine_router::KERNEL,
    &driver::PLAIN,
    &driver::F16,
    &driver::SUBGROUP,
    &edit_heads::KERNEL,
    &edit_routes::KERNEL,
    &embedding::KERNEL,
    &gather_heads::KERNEL,
    &group::COUNT,
    &group::SCAN,
    &group::SCATTER,
    &norm_router::KERNEL,
    &norm::KERNEL,
    &query_norm::KERNEL,
    &select::KERNEL,
    &cache_append::KERNEL,
    &stick_breaking::KERNEL,
    &rope_attention_decode::PLAIN,
    &rope_attention_decode::BROADCAST,
    &replay_routes::KERNEL,
    &rope_cache::KERNEL,
    &routed_matmul::PLAIN,
    &routed_matmul::BROADCAST,
    &routed_matmul::WORKGROUP,
    &routed_matmul::F16,
    &routed_matmul::PACKED,
    &routed_matvec::PLAIN,
    &routed_matvec::BROADCAST,
    &routed_matvec::WORKGROUP,
    &routed_matvec::PACKED,
    &routed_matvec::SUBGROUP,
    &sample::ARGMAX,
    &sample::SAMPLE,
    &sequence_cut::KERNEL,
    &token_logprob::KERNEL,
    &top_logits::KERNEL,
];

/// A row's width in memory: the next multiple of 8 floats.
pub fn padded(width: u32) -> u32 {
    width.next_multiple_of(8)
}

/// Where a row stands, the twin of `shaders/shared/span.wgsl`. Three things are three things: a position, a slot, and what the
/// row sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The angle it turns by, and what sampling counts by.
    pub position: u32,
    /// Whose cache the row reads and writes.
    pub sequence: u32,
    /// Where that cache keeps the row's own key. Learned distances are counted from here, for no key says its position.
    pub slot: u32,
    /// The first slot it sees.
    pub first: u32,
    /// The slot after the last it sees: its own and one where attention is causal.
    pub end: u32,
}

impl Span {
    /// A token that sees itself and all before it, in the slot of its position.
    pub fn causal(position: u32, sequence: u32) -> Self {
        Self::seeing(position, sequence, position + 1)
    }

    /// A token in the slot of its position that sees the first `end` slots of its sequence.
    pub fn seeing(position: u32, sequence: u32, end: u32) -> Self {
        Self { position, sequence, slot: position, first: 0, end }
    }

    /// How many keys it sees.
    pub fn keys(&self) -> u32 {
        self.end.saturating_sub(self.first)
    }

    /// Words of a span in a buffer.
    pub const WORDS: u32 = 5;

    /// As spans lie in a buffer.
    pub fn words(spans: &[Self]) -> Vec<[u32; Self::WORDS as usize]> {
        let words = |span: &Self| [span.position, span.sequence, span.slot, span.first, span.end];
        spans.iter().map(words).collect()
    }
}

/// The experts each token chose and their weights, as `norm_router` writes them.
#[derive(Clone, Copy)]
pub struct Routes<'a> {
    /// `[.., tokens, k]` u32
    pub chosen: &'a Buffer,
    /// `[.., tokens, k]` f32
    pub gates: &'a Buffer,
    /// Index of the first assignment in both.
    pub first: u32,
    /// `[.., tokens, routed experts]` f32: the scores they were chosen by
    pub scores: &'a Buffer,
    /// Index of the first score.
    pub first_score: u32,
}
