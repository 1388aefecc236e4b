//! The output head: normed rows to logits.

use std::sync::Arc;

use crate::{
    gpu::Recorder,
    layers::{FEW_TOKENS, Workspace},
    ops::{Matrix, RoutedMatmul, RoutedMatvec},
};

/// `logits = W · x`, `W` `[vocabulary, width]`, often the embedding table itself.
pub struct OutputHead {
    pub matrix: Arc<Matrix>,
}

impl OutputHead {
    /// Logits of the normed rows.
    pub fn record(&self, recorder: &mut Recorder, workspace: &Workspace, rows: u32) {
        let Workspace { last: src, logits: dst, .. } = workspace;
        let matrix = &*self.matrix;
        if rows <= FEW_TOKENS {
            RoutedMatvec {
                src,
                matrix,
                routes: None,
                gated: false,
                bias: None,
                dst,
                residual: false,
                rows,
                slots: 1,
                src_div: 1,
            }
            .record(recorder);
        } else {
            RoutedMatmul { src, matrix, groups: None, bias: None, dst, rows, src_div: 1 }.record(recorder);
        }
    }
}
