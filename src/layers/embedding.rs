//! How a residual stream starts: from token ids, or from patches of an image.

use std::sync::Arc;

use crate::{
    gpu::{Buffer, Recorder},
    layers::{Norm, Workspace},
    ops::{AddPositions, Bias, Embedding, Matrix, RoutedLinear},
};

/// The table of token embeddings, `[vocabulary, width]`, and what the model adds to its rows.
pub struct TokenEmbedding<M = Matrix, B = Buffer> {
    pub table: Arc<M>,
    /// Multiplies the table's rows.
    pub scale: f32,
    /// Each `[positions, width]` f32: what is added by position; a table of one row is added everywhere.
    pub added: Vec<B>,
    /// Where the table is narrower than the residual stream.
    pub factor: Option<Factor<M, B>>,
}

/// From a table's width to that of the residual stream: `x = W · norm(e) + b`.
pub struct Factor<M = Matrix, B = Buffer> {
    pub norm: Norm<B>,
    /// `[width, table width]`
    pub projection: M,
    /// `[width]`
    pub bias: Option<B>,
}

impl TokenEmbedding {
    /// Starts the residual stream from `ids`.
    pub fn record(&self, recorder: &mut Recorder, workspace: &Workspace, ids: &Buffer, tokens: u32) {
        let rows = if self.factor.is_some() { &workspace.xn } else { &workspace.x };
        Embedding { ids, table: &self.table, x: rows, tokens, scale: self.scale }.record(recorder);
        let (spans, width) = (&workspace.spans, self.table.shape.inputs);
        for table in &self.added {
            AddPositions { spans, table, class_token: None, x: rows, tokens, width }.record(recorder);
        }
        if let Some(Factor { norm, projection, bias }) = &self.factor {
            norm.record_in_place(recorder, rows, tokens);
            let dense = RoutedLinear::dense(tokens, rows, projection, &workspace.x);
            RoutedLinear { bias: Bias::of_all(bias.as_ref()), normed: true, ..dense }.record(recorder);
        }
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
