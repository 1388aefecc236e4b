//! A transformer at work: its input becomes a residual stream, a stack of blocks, an output head; and for models that
//! translate, a second stack reads the source.

use super::{Block, BlockCache, TransformerSpec};
use crate::{
    gpu::{Buffer, Recorder},
    layers::{CacheSize, KvCache, Norm, OutputHead, Pass, PatchEmbedding, TokenEmbedding, Workspace},
    ops::{CachePrecision, Matrix, Precision},
};

/// A transformer on the GPU.
pub(crate) struct Transformer {
    pub spec: TransformerSpec,
    pub precision: Precision,
    pub cache_precision: CachePrecision,
    layers: Layers,
}

/// A transformer's layers.
pub(crate) struct Layers<M = Matrix, B = Buffer> {
    pub(super) input: Input<M, B>,
    pub(super) encoder: Option<Stack<M, B>>,
    pub(super) stack: Stack<M, B>,
    pub(super) head: OutputHead<M, B>,
}

pub(super) enum Input<M, B> {
    Tokens(TokenEmbedding<M, B>),
    Patches(PatchEmbedding<M, B>),
}

pub(super) struct Stack<M = Matrix, B = Buffer> {
    pub blocks: Vec<Block<M, B>>,
    pub final_norm: Norm<B>,
}

impl Transformer {
    /// Of the layers that [`TransformerSpec::layers`] has made, in this precision and that of the cache.
    pub fn new(
        spec: TransformerSpec,
        layers: Layers,
        (precision, cache_precision): (Precision, CachePrecision),
    ) -> Self {
        Self { spec, precision, cache_precision, layers }
    }

    /// Records one step: `ids` to logits of the rows in `workspace.logit_rows`, or to their normed states. `memory` holds
    /// what the stack attends to besides itself.
    pub fn record<'a>(
        &'a self,
        mut pass: Pass<'a, '_>,
        cache: &'a KvCache,
        memory: Option<&'a KvCache>,
        ids: &Buffer,
    ) {
        self.start(pass.recorder, pass.workspace, ids, pass.step.tokens);
        self.layers.stack.record(&mut pass, cache, memory);
        let Pass { recorder, workspace, step, .. } = pass;
        if step.logit_rows > 0 {
            self.layers.stack.final_norm.record_last(recorder, workspace, step.logit_rows);
            if !step.hidden {
                self.layers.head.record(recorder, workspace, step.logit_rows);
            }
        }
    }

    /// Records the reading of sources: the encoder, and the keys and values of its output for each layer that attends
    /// to it, into `memory`.
    pub fn record_encoder<'a>(
        &'a self,
        mut pass: Pass<'a, '_>,
        cache: &'a KvCache,
        memory: &KvCache,
        ids: &Buffer,
    ) {
        let Some(encoder) = &self.layers.encoder else { return };
        let (workspace, step) = (pass.workspace, pass.step);
        self.start(pass.recorder, workspace, ids, step.tokens);
        pass.layer.encoder = true;
        encoder.record(&mut pass, cache, None);
        let recorder = pass.recorder;
        encoder.final_norm.record_before(recorder, workspace, step.tokens);
        let output = encoder.final_norm.input(workspace);
        for (block, cache) in self.layers.stack.blocks.iter().zip(&memory.layers) {
            block.remember(recorder, workspace, output, cache, step.tokens);
        }
    }

    fn start(&self, recorder: &mut Recorder, workspace: &Workspace, ids: &Buffer, tokens: u32) {
        match &self.layers.input {
            Input::Tokens(embedding) => embedding.record(recorder, workspace, ids, tokens),
            Input::Patches(embedding) => embedding.record(recorder, workspace, tokens),
        }
    }

    /// The size of a cache that holds its numbers as this model's do.
    pub fn cache_size(&self, sequences: u32, capacity: u32) -> CacheSize {
        CacheSize { sequences, capacity, most: capacity, precision: self.cache_precision }
    }
}

impl Stack {
    fn record<'a>(&'a self, pass: &mut Pass<'a, '_>, cache: &'a KvCache, memory: Option<&'a KvCache>) {
        for (index, (block, own)) in self.blocks.iter().zip(&cache.layers).enumerate() {
            pass.layer.layer = index as u32;
            let memory = memory.and_then(|memory| memory.layers.get(index));
            block.record(pass, BlockCache { own, memory });
        }
    }
}
