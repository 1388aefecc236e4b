//! Softmax attention of single query rows: for few tokens, split by keys.

use super::{
    HeadLayout, Kernel, KeyValues, Queries, Routes, RowTile, attention_merge::merge, head_layout::Params,
    key_values::Binding, shaders, splits::Splits,
};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static PLAIN: Kernel = Kernel::new(&shaders::ROW_ATTENTION_DECODE, Params::layout);

pub static BROADCAST: Kernel = Kernel::new(&shaders::ROW_ATTENTION_DECODE_BROADCAST, Params::layout);

/// Learned vectors by distance, `[heads, 2 · clip + 1, key_dim]`, heads padded; distances beyond `clip` count as `clip`.
#[derive(Clone, Copy)]
pub struct RelativePositions<'a> {
    pub table: &'a Buffer,
    pub clip: u32,
}

/// Softmax attention, split by keys for few tokens and by the cache's sections: one workgroup for each query row, or one subgroup
/// for those that share a key/value head.
pub struct DecodeAttention<'a> {
    pub heads: HeadLayout,
    pub spans: &'a Buffer,
    pub q: &'a Buffer,
    pub cache: &'a KeyValues,
    /// Scratch of [`HeadLayout::split_floats`]; unused where there is one split.
    pub scratch: &'a Buffer,
    /// The experts whose heads these are; unused when queries count by slot.
    pub routes: Option<Routes<'a>>,
    /// `[tokens · slots, heads · value_dim]`
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
        let Self { heads, cache, tokens, keys, .. } = *self;
        let splits = Splits::of(cache, self.split.then_some(self.most_keys));
        let into = if splits.all == 1 { self.out } else { self.scratch };
        let tile = self.tile(recorder);
        let first_route = self.routes.map_or(0, |routes| routes.first);
        let clip = self.relative.map_or(0, |relative| relative.clip);
        for Binding { window, buffer, share } in cache.bindings() {
            let params = Params {
                splits: splits.all,
                split_keys: splits.keys,
                first_route,
                clip,
                ..heads.params(&cache.layout, window, tokens)
            };
            let constants = [heads.span_constant(), cache.layout.precision.constant()];
            let shared = [self.spans, self.q, buffer];
            let work = Dispatch {
                macs: share.of(heads.macs(keys)),
                cache_bytes: share.of(cache.layout.read_bytes(keys)),
                ..Dispatch::new(&PLAIN, &[], [heads.used_heads(), tokens, splits.each])
            };
            match tile {
                Some(tile) => recorder.dispatch(
                    &params,
                    Dispatch {
                        kernel: &BROADCAST,
                        constants: &[&constants[..], &tile.constants()].concat(),
                        buffers: &[&shared[..], &[into]].concat(),
                        groups: [tile.of_token(&heads, window.heads), tokens, splits.each],
                        ..work
                    },
                ),
                None => recorder.dispatch(
                    &params,
                    Dispatch {
                        constants: &[&constants[..], &heads.expert_constants(), &[self.relative_constant()]]
                            .concat(),
                        buffers: &[&shared[..], &self.row_buffers(into)].concat(),
                        ..work
                    },
                ),
            }
        }
        if splits.all > 1 {
            merge(recorder, &heads, tokens, splits.all, [self.scratch, self.out]);
        }
    }

    /// The tile of the subgroup kernel, where the device runs it and it can do this.
    fn tile(&self, recorder: &Recorder) -> Option<RowTile> {
        let heads = &self.heads;
        let plain = heads.queries == Queries::BySlot && !heads.head_spans && self.relative.is_none();
        RowTile::choose(recorder.gpu(), heads, heads.rows_of_kv_head()).filter(|_| plain)
    }

    /// What the kernel of single rows binds behind the cache: chosen experts, the output, learned vectors; something else where
    /// there are none.
    fn row_buffers<'b>(&'b self, into: &'b Buffer) -> [&'b Buffer; 3] {
        let chosen = self.routes.map_or(self.spans, |routes| routes.chosen);
        let table = self.relative.map_or(self.q, |relative| relative.table);
        [chosen, into, table]
    }

    fn relative_constant(&self) -> (&'static str, f64) {
        ("RELATIVE", f64::from(u8::from(self.relative.is_some())))
    }
}
