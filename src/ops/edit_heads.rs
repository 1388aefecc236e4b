//! What heads put out, and what MLP experts have inside, scaled where a plan says so.

use super::{EditPlan, Kernel, Routes, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::EDIT_HEADS, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        slots: u32,
        heads: u32,
        quads: u32,
        row_quads: u32,
        first: u32,
    }
}

/// `rows[t][s][j] *= Π scale` over the edits of head `e(t, s) · heads + j`; beyond 1e10 infinite.
pub struct EditHeads<'a> {
    pub plan: &'a EditPlan,
    /// How often each edit has changed something.
    pub applied: &'a Buffer,
    /// `[tokens]` [`Span`](super::Span)s: where tokens stand
    pub spans: &'a Buffer,
    /// The experts in the slots; without, slot `s` is expert `s`.
    pub routes: Option<Routes<'a>>,
    /// `[tokens · slots, heads · stride]`, rows padded
    pub rows: &'a Buffer,
    pub tokens: u32,
    pub slots: u32,
    /// Heads in a row.
    pub heads: u32,
    /// Floats of a head, a multiple of 4.
    pub stride: u32,
}

impl EditHeads<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Self { plan, applied, spans, routes, rows, tokens, slots, heads, stride } = *self;
        let params = Params {
            tokens,
            slots,
            heads,
            quads: stride / 4,
            row_quads: padded(heads * stride) / 4,
            first: routes.map_or(0, |routes| routes.first),
        };
        let chosen = routes.map_or(spans, |routes| routes.chosen);
        recorder.dispatch(
            &params,
            Dispatch {
                constants: &[("ROUTED", f64::from(u8::from(routes.is_some())))],
                ..Dispatch::new(
                    &KERNEL,
                    &[&plan.words, spans, chosen, rows, applied],
                    [(heads * stride / 4).div_ceil(64), tokens, slots],
                )
            },
        );
    }
}
