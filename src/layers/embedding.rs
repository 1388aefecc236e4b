//! How a residual stream starts: from token ids, or from patches of an image.

use std::sync::Arc;

use crate::{
    gpu::{Buffer, Recorder},
    layers::Workspace,
    ops::{AddPositions, Bias, Embedding, Matrix, RoutedLinear},
};

/// The table of token embeddings, `[vocabulary, width]`, and positions where the model adds them here.
pub struct TokenEmbedding<M = Matrix, B = Buffer> {
    pub table: Arc<M>,
    /// Multiplies the table's rows.
    pub scale: f32,
    /// `[positions, width]` f32
    pub positions: Option<B>,
}

impl TokenEmbedding {
    /// Starts the residual stream from `ids`.
    pub fn record(&self, recorder: &mut Recorder, workspace: &Workspace, ids: &Buffer, tokens: u32) {
        Embedding { ids, table: &self.table, x: &workspace.x, tokens, scale: self.scale }.record(recorder);
        let Some(table) = &self.positions else { return };
        let (spans, x, width) = (&workspace.spans, &workspace.x, self.table.shape.inputs);
        AddPositions { spans, table, class_token: None, x, tokens, width }.record(recorder);
    }
}

/// The projection of an image's patches, `[width, patch values]`, behind a class token at position 0.
pub struct PatchEmbedding<M = Matrix, B = Buffer> {
    pub projection: M,
    /// `[width]`
    pub bias: B,
    /// `[width]`
    pub class_token: B,
    /// `[1 + patches, width]` f32
    pub positions: B,
}

impl PatchEmbedding {
    /// Starts the residual stream from `workspace.patches`, whose row for a class token does not count.
    pub fn record(&self, recorder: &mut Recorder, workspace: &Workspace, tokens: u32) {
        let bias = Bias::OfAll(&self.bias);
        let (src, x) = (&workspace.patches, &workspace.x);
        let dense = RoutedLinear::dense(tokens, src, &self.projection, x);
        RoutedLinear { bias, ..dense }.record(recorder);
        AddPositions {
            spans: &workspace.spans,
            table: &self.positions,
            class_token: Some(&self.class_token),
            x,
            tokens,
            width: self.projection.shape.outputs,
        }
        .record(recorder);
    }
}
