//! Normalisation.

use crate::{
    gpu::{Buffer, Recorder},
    layers::Workspace,
    ops::RmsNorm,
};

/// RMSNorm: `x · rsqrt(mean(x²) + eps) · weight`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    pub width: u32,
    pub eps: f32,
}

/// A norm with its weight.
pub struct Norm {
    pub spec: NormSpec,
    /// `[width]` f32
    pub weight: Buffer,
}

impl Norm {
    /// Norms the rows of the residual stream that want logits.
    pub fn record_last(&self, recorder: &mut Recorder, workspace: &Workspace, rows: u32) {
        RmsNorm {
            x: &workspace.x,
            weight: &self.weight,
            rows: &workspace.logit_rows,
            y: &workspace.last,
            count: rows,
            width: self.spec.width,
            eps: self.spec.eps,
        }
        .record(recorder);
    }
}
