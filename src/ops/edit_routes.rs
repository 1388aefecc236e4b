//! The choice of experts, made again where a plan says so.

use super::{EditPlan, ExpertChoice, Kernel, Routes, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::EDIT_ROUTES, Params::layout);

uniform! {
    struct Params {
        experts: u32,
        top_k: u32,
        first: u32,
        first_score: u32,
    }
}

/// Changes what a router chose, from the scores it kept; the rules stand in `shaders/edit_routes.wgsl`.
pub struct EditRoutes<'a> {
    pub plan: &'a EditPlan,
    /// How often each edit has changed something.
    pub applied: &'a Buffer,
    /// `[tokens]` [`Span`](super::Span)s: where tokens stand
    pub spans: &'a Buffer,
    pub routes: Routes<'a>,
    pub choice: ExpertChoice,
    pub tokens: u32,
}

impl EditRoutes<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Routes { chosen, gates, scores, first, first_score } = self.routes;
        let ExpertChoice { experts, top_k, .. } = self.choice;
        recorder.dispatch(
            &Params { experts, top_k, first, first_score },
            Dispatch {
                constants: &self.choice.constants(),
                ..Dispatch::new(
                    &KERNEL,
                    &[&self.plan.words, self.spans, chosen, gates, scores, self.applied],
                    [1, self.tokens, 1],
                )
            },
        );
    }
}
