//! The output head: normed rows to logits.

use std::sync::Arc;

use crate::{
    gpu::{Buffer, Recorder},
    layers::{Norm, Workspace},
    ops::{Activation, Bias, Matrix, RoutedLinear},
};

/// `logits = W · t(x) (+ b)`, `W` `[vocabulary, table width]`, often the embedding table itself.
pub struct OutputHead<M = Matrix, B = Buffer> {
    pub matrix: Arc<M>,
    /// `[vocabulary]`
    pub bias: Option<B>,
    /// `t`, where the head has such a layer.
    pub transform: Option<Transform<M, B>>,
}

/// What stands before an output head's matrix: `t(x) = norm(activation(W · x + b))`.
pub struct Transform<M = Matrix, B = Buffer> {
    /// `[table width, width]`
    pub matrix: M,
    /// `[table width]`
    pub bias: Option<B>,
    pub activation: Activation,
    pub norm: Norm<B>,
}

impl OutputHead {
    /// Logits of the rows in `workspace.last`.
    pub fn record(&self, recorder: &mut Recorder, workspace: &Workspace, rows: u32) {
        let src = match &self.transform {
            None => &workspace.last,
            Some(transform) => {
                transform.record(recorder, workspace, rows);
                &workspace.xn
            }
        };
        let bias = Bias::of_all(self.bias.as_ref());
        let dense = RoutedLinear::dense(rows, src, &self.matrix, &workspace.logits);
        RoutedLinear { bias, normed: true, ..dense }.record(recorder);
    }
}

impl Transform {
    /// From `workspace.last` to `workspace.xn`, which no layer needs any more.
    fn record(&self, recorder: &mut Recorder, workspace: &Workspace, rows: u32) {
        let dense = RoutedLinear::dense(rows, &workspace.last, &self.matrix, &workspace.xn);
        let bias = Bias::of_all(self.bias.as_ref());
        RoutedLinear { bias, normed: true, activation: self.activation, ..dense }.record(recorder);
        self.norm.record_in_place(recorder, &workspace.xn, rows);
    }
}
