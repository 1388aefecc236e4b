//! The output head: normed rows to logits.

use std::sync::Arc;

use crate::{
    gpu::Recorder,
    layers::{Workspace, router::dense},
    ops::{Activation, Matrix},
};

/// `logits = W · x`, `W` `[vocabulary, width]`, often the embedding table itself.
pub struct OutputHead {
    pub matrix: Arc<Matrix>,
}

impl OutputHead {
    /// Logits of the normed rows.
    pub fn record(&self, recorder: &mut Recorder, workspace: &Workspace, rows: u32) {
        dense(recorder, &workspace.last, &self.matrix, None, Activation::None, &workspace.logits, rows);
    }
}
