//! The weights that heads give their keys, row by row: what no attention kernel keeps.

use super::{
    Asked, AttentionKernel, HeadLayout, Kernel, KeyValues, Positions, Routes, cache_layout::CacheWindow,
    key_values::Binding, shaders,
};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::ATTENTION_ROWS, Params::layout);

uniform! {
    struct Params {
        cache: CacheWindow,
        tokens: u32,
        slots: u32,
        heads: u32,
        kv_heads: u32,
        group: u32,
        key_quads: u32,
        q_quads: u32,
        sequences: u32,
        first_route: u32,
        scale: f32,
        clip: u32,
        half_rotated: u32,
        asked_heads: u32,
        first: u32,
        row: u32,
        columns: u32,
    }
}

/// `rows[i, a, j]` = how head `a` of those asked for weighs slot `j` for token `i` of those asked for, and two numbers of its
/// scores. The cache is not cut by slots.
pub struct AttentionRows<'a> {
    pub heads: HeadLayout,
    pub kernel: AttentionKernel,
    pub positions: Positions<'a>,
    /// `[tokens · slots, heads · key_dim]`, as projected: nothing turned them.
    pub q: &'a Buffer,
    /// As attention reads them.
    pub spans: &'a Buffer,
    /// The experts whose heads these are.
    pub routes: Option<Routes<'a>>,
    /// Whether heads are asked for by expert, not by slot.
    pub by_expert: bool,
    pub cache: &'a KeyValues,
    /// Tokens of the step.
    pub tokens: u32,
    pub asked: &'a Asked,
    /// Which of the asked tokens.
    pub range: std::ops::Range<u32>,
    /// Floats of a row: slots, from the first on.
    pub row: u32,
    /// `[range, asked heads, row]`
    pub rows: &'a Buffer,
    /// `[asked tokens, asked heads, columns]`: the first two are written, [`RowStatistics`](super::RowStatistics) writes the others.
    pub statistics: &'a Buffer,
    pub columns: u32,
}

impl AttentionRows<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Self { heads, cache, spans, asked, .. } = *self;
        // Of the kind of attention that has neither, nothing is read.
        let (positions, half_rotated, clip) = match self.positions {
            Positions::None => (self.q, 0, 0),
            Positions::Rope { angles, rotated } => (angles, rotated / 2, 0),
            Positions::Relative(relative) => (relative.table, 0, relative.clip),
        };
        let (chosen, first_route) =
            self.routes.map_or((&asked.words, 0), |routes| (routes.chosen, routes.first));
        let sticks = self.kernel == AttentionKernel::StickBreaking;
        let constants = [
            heads.span_constant(),
            cache.layout.precision.constant(),
            ("ROUTED", f64::from(u8::from(self.by_expert))),
            ("STICKS", f64::from(u8::from(sticks))),
            lanes(recorder),
            ("RELATIVE", f64::from(u8::from(matches!(self.positions, Positions::Relative(_))))),
        ];
        let tokens = self.range.len() as u32;
        let products = u64::from(tokens) * u64::from(asked.heads()) * u64::from(self.row * heads.key_dim);
        for Binding { window, buffer, share } in cache.bindings() {
            let params = Params {
                cache: window,
                tokens: self.tokens,
                slots: heads.slots,
                heads: heads.heads,
                kv_heads: heads.kv_heads,
                group: heads.group,
                key_quads: heads.key_stride() / 4,
                q_quads: heads.q_row() / 4,
                sequences: cache.layout.sequences,
                first_route,
                scale: heads.scale,
                clip,
                half_rotated,
                asked_heads: asked.heads(),
                first: self.range.start,
                row: self.row,
                columns: self.columns,
            };
            recorder.dispatch(
                &params,
                Dispatch {
                    constants: &[&constants[..], &heads.expert_constants()].concat(),
                    macs: share.of(products),
                    ..Dispatch::new(
                        &KERNEL,
                        &[spans, self.q, buffer, chosen, positions, &asked.words, self.rows, self.statistics],
                        [asked.heads(), tokens, 1],
                    )
                },
            );
        }
    }
}

/// Lanes of a workgroup that goes through a row: on a software adapter those that run at a time.
pub(super) fn lanes(recorder: &Recorder) -> (&'static str, f64) {
    ("LANES", if recorder.gpu().capabilities().software { 8.0 } else { 64.0 })
}
