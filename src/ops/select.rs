//! Which experts a token uses, and with what weight.

use super::{Kernel, Routes, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::SELECT, Params::layout);

uniform! {
    struct Params {
        quads: u32,
        experts: u32,
        rows: u32,
        top_k: u32,
        first: u32,
        first_score: u32,
    }
}

/// How scores become gates; the formulas stand in `shaders/shared/select.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weighting {
    /// Softmax over the scores of the kept experts; sums to 1.
    SoftmaxTopK,
    /// Softmax over all routed experts, of which the kept ones keep their part.
    SoftmaxAll,
    /// As `SoftmaxAll`, divided by the sum over the kept plus `eps`.
    SoftmaxAllRenormalised {
        /// Added to the divisor.
        eps: f32,
    },
    /// Each score's sigmoid.
    Sigmoid,
    /// 1 for every kept expert.
    Constant,
}

/// The rule that both routing kernels follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertChoice {
    pub experts: u32,
    /// The first experts, which every token uses.
    pub shared: u32,
    /// Equal runs of the other experts, each with a choice of its own.
    pub groups: u32,
    /// Experts chosen from each group; all of them is a soft mixture.
    pub top_k: u32,
    pub weighting: Weighting,
    /// Multiplies the gates of the chosen experts.
    pub scale: f32,
    /// Shared experts weigh `shared · softmax` of scores of their own (MoH's `wg_1`) instead of 1.
    pub shared_softmax: bool,
    /// Two more scores decide between the shared and the chosen experts (MoH's `wg_0`).
    pub two_stage: bool,
}

impl ExpertChoice {
    /// The `top_k` best of `experts`, nothing else.
    pub fn top_k(experts: u32, top_k: u32, weighting: Weighting) -> Self {
        Self {
            experts,
            shared: 0,
            groups: 1,
            top_k,
            weighting,
            scale: 1.0,
            shared_softmax: false,
            two_stage: false,
        }
    }

    /// Experts each token uses.
    pub fn slots(&self) -> u32 {
        self.shared + self.groups * self.top_k
    }

    /// Experts that are not shared.
    pub fn routed(&self) -> u32 {
        self.experts - self.shared
    }

    /// Scores a router gives: of the shared experts where they have some, of the routed experts, of the two stages.
    pub fn score_rows(&self) -> u32 {
        self.experts - self.unscored() + if self.two_stage { 2 } else { 0 }
    }

    fn unscored(&self) -> u32 {
        if self.shared_softmax { 0 } else { self.shared }
    }

    /// The constants of `shaders/shared/select.wgsl`.
    pub(super) fn constants(&self) -> [(&'static str, f64); 8] {
        let (weighting, eps) = match self.weighting {
            Weighting::SoftmaxTopK => (0.0, 0.0),
            Weighting::SoftmaxAll => (1.0, 0.0),
            Weighting::SoftmaxAllRenormalised { eps } => (2.0, eps),
            Weighting::Sigmoid => (3.0, 0.0),
            Weighting::Constant => (4.0, 0.0),
        };
        [
            ("WEIGHTING", weighting),
            ("RENORM_EPS", f64::from(eps)),
            ("SCALE", f64::from(self.scale)),
            ("SHARED", f64::from(self.shared)),
            ("GROUPS", f64::from(self.groups)),
            ("SHARED_SOFTMAX", f64::from(u8::from(self.shared_softmax))),
            ("TWO_STAGE", f64::from(u8::from(self.two_stage))),
            ("UNSCORED", f64::from(self.unscored())),
        ]
    }
}

/// Chooses experts from scores.
pub struct Select<'a> {
    /// `[tokens, score rows]`, rows padded
    pub scores: &'a Buffer,
    pub routes: Routes<'a>,
    pub choice: ExpertChoice,
    pub tokens: u32,
}

impl Select<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Routes { chosen, gates, scores, first, first_score, .. } = self.routes;
        let ExpertChoice { experts, top_k, .. } = self.choice;
        let rows = self.choice.score_rows();
        recorder.dispatch(
            &Params { quads: padded(rows) / 4, experts, rows, top_k, first, first_score },
            Dispatch {
                kernel: &KERNEL,
                constants: &self.choice.constants(),
                buffers: &[self.scores, chosen, gates, scores],
                groups: [1, self.tokens, 1],
                macs: 0,
                weight_bytes: 0,
                cache_bytes: 0,
            },
        );
    }
}
