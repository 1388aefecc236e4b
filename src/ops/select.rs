//! Which experts a token uses, and with what weight.

use super::{Access, Kernel, Routes, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel {
    name: "select",
    source: shaders::SELECT,
    bindings: &[Access::Read, Access::Write, Access::Write],
};

uniform! {
    struct Params {
        quads: u32,
        experts: u32,
        top_k: u32,
        first: u32,
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
    Binary,
}

/// The rule that both routing kernels follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertChoice {
    pub experts: u32,
    /// The first experts, which every token uses with gate 1.
    pub shared: u32,
    /// Experts chosen from the others.
    pub top_k: u32,
    pub weighting: Weighting,
}

impl ExpertChoice {
    /// Experts each token uses.
    pub fn slots(&self) -> u32 {
        self.shared + self.top_k
    }

    /// The constants of `shaders/shared/select.wgsl`.
    pub(super) fn constants(&self) -> [(&'static str, f64); 3] {
        let (weighting, eps) = match self.weighting {
            Weighting::SoftmaxTopK => (0.0, 0.0),
            Weighting::SoftmaxAll => (1.0, 0.0),
            Weighting::SoftmaxAllRenormalised { eps } => (2.0, eps),
            Weighting::Sigmoid => (3.0, 0.0),
            Weighting::Binary => (4.0, 0.0),
        };
        [("WEIGHTING", weighting), ("RENORM_EPS", f64::from(eps)), ("SHARED", f64::from(self.shared))]
    }
}

/// Chooses experts from scores.
pub struct Select<'a> {
    /// `[tokens, experts]`, rows padded
    pub scores: &'a Buffer,
    pub routes: Routes<'a>,
    pub choice: ExpertChoice,
    pub tokens: u32,
}

impl Select<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let ExpertChoice { experts, top_k, .. } = self.choice;
        recorder.dispatch(
            &Params { quads: padded(experts) / 4, experts, top_k, first: self.routes.first },
            Dispatch {
                kernel: &KERNEL,
                constants: &self.choice.constants(),
                buffers: &[self.scores, self.routes.chosen, self.routes.gates],
                groups: [1, self.tokens, 1],
                macs: 0,
            },
        );
    }
}
