//! What heads put out, what MLP experts have inside, queries, keys, values and the residual stream, changed where a plan says so.

use super::{EditPlan, HeadRows, Kernel, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::EDIT_HEADS, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        slots: u32,
        heads: u32,
        quads: u32,
        row_quads: u32,
        first_quad: u32,
        first: u32,
    }
}

/// Scales, mixes and adds, by the edits of the heads that stand in rows, as `shaders/edit_heads.wgsl` says.
pub struct EditHeads<'a> {
    pub plan: &'a EditPlan,
    /// How often each edit has changed something.
    pub applied: &'a Buffer,
    /// `[tokens]` [`Span`](super::Span)s: where tokens stand
    pub spans: &'a Buffer,
    pub rows: HeadRows<'a>,
    pub tokens: u32,
}

impl EditHeads<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Self { plan, applied, spans, rows, tokens } = *self;
        let HeadRows { rows, row, first, slots, heads, stride, routes } = rows;
        let params = Params {
            tokens,
            slots,
            heads,
            quads: stride / 4,
            row_quads: row / 4,
            first_quad: first / 4,
            first: routes.map_or(0, |routes| routes.first),
        };
        let chosen = routes.map_or(spans, |routes| routes.chosen);
        recorder.dispatch(
            &params,
            Dispatch {
                constants: &[("ROUTED", f64::from(u8::from(routes.is_some())))],
                ..Dispatch::new(
                    &KERNEL,
                    &[&plan.words, spans, chosen, rows, &plan.vectors, applied],
                    [(heads * stride / 4).div_ceil(64), tokens, slots],
                )
            },
        );
    }
}
