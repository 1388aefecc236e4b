//! The output head: normed rows to logits.

use std::sync::Arc;

use crate::{
    gpu::{Buffer, Recorder},
    layers::{Workspace, linear::dense},
    ops::{Activation, Bias, Matrix},
};

/// `logits = W · x (+ b)`, `W` `[vocabulary, width]`, often the embedding table itself.
pub struct OutputHead {
    pub matrix: Arc<Matrix>,
    /// `[vocabulary]`
    pub bias: Option<Buffer>,
}

impl OutputHead {
    /// Logits of the rows in `workspace.last`.
    pub fn record(&self, recorder: &mut Recorder, workspace: &Workspace, rows: u32) {
        let bias = Bias::of_all(self.bias.as_ref());
        let (src, dst) = (&workspace.last, &workspace.logits);
        dense(recorder, src, &self.matrix, bias, Activation::None, dst, rows);
    }
}
