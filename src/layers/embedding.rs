//! Token embedding.

use std::sync::Arc;

use crate::{
    gpu::{Buffer, Recorder},
    layers::Workspace,
    ops::{Embedding, Matrix},
};

/// The table of token embeddings, `[vocabulary, width]`.
pub struct TokenEmbedding {
    pub table: Arc<Matrix>,
}

impl TokenEmbedding {
    /// Starts the residual stream from `ids`.
    pub fn record(&self, recorder: &mut Recorder, workspace: &Workspace, ids: &Buffer, tokens: u32) {
        Embedding { ids, table: &self.table, x: &workspace.x, tokens }.record(recorder);
    }
}
