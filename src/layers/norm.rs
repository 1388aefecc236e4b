//! Normalisation.

use crate::{
    gpu::{Buffer, Recorder},
    layers::Workspace,
    ops::NormRows,
};

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x · rsqrt(mean(x²) + eps) · weight`
    Rms,
    /// `(x − mean) · rsqrt(variance + eps) · weight + bias`
    Layer,
}

/// The sizes of a norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    pub kind: NormKind,
    pub width: u32,
    pub eps: f32,
}

/// A norm with its weights.
pub struct Norm {
    pub spec: NormSpec,
    /// `[width]` f32
    pub weight: Buffer,
    /// `[width]` f32, of a LayerNorm
    pub bias: Option<Buffer>,
}

impl Norm {
    /// Norms the residual stream into `xn`.
    pub fn record(&self, recorder: &mut Recorder, workspace: &Workspace, tokens: u32) {
        self.rows(&workspace.x, None, &workspace.xn, tokens).record(recorder);
    }

    /// Norms the rows of the residual stream that want logits.
    pub fn record_last(&self, recorder: &mut Recorder, workspace: &Workspace, rows: u32) {
        self.rows(&workspace.x, Some(&workspace.logit_rows), &workspace.last, rows).record(recorder);
    }

    fn rows<'a>(
        &'a self,
        x: &'a Buffer,
        rows: Option<&'a Buffer>,
        y: &'a Buffer,
        count: u32,
    ) -> NormRows<'a> {
        NormRows {
            x,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            rows,
            y,
            count,
            width: self.spec.width,
            eps: self.spec.eps,
        }
    }
}
