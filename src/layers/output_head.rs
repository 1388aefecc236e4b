//! The output head: normed rows to logits.

use std::sync::Arc;

use crate::{
    gpu::{Buffer, Recorder},
    layers::Workspace,
    ops::{Bias, Matrix, RoutedLinear},
};

/// `logits = W · x (+ b)`, `W` `[vocabulary, width]`, often the embedding table itself.
pub struct OutputHead<M = Matrix, B = Buffer> {
    pub matrix: Arc<M>,
    /// `[vocabulary]`
    pub bias: Option<B>,
}

impl OutputHead {
    /// Logits of the rows in `workspace.last`.
    pub fn record(&self, recorder: &mut Recorder, workspace: &Workspace, rows: u32) {
        let bias = Bias::of_all(self.bias.as_ref());
        let dense = RoutedLinear::dense(rows, &workspace.last, &self.matrix, &workspace.logits);
        RoutedLinear { bias, normed: true, ..dense }.record(recorder);
    }
}
