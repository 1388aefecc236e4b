//! A block of a stack: a head mixture, perhaps one that attends to another stack, and mostly an expert MLP.

use crate::{
    gpu::{Buffer, Recorder},
    layers::{ExpertMlp, HeadMixture, LayerCache, Pass, Workspace},
    ops::Matrix,
};

/// A block, ready to run.
pub(crate) struct Block<M = Matrix, B = Buffer> {
    pub(super) attention: HeadMixture<M, B>,
    pub(super) cross: Option<HeadMixture<M, B>>,
    pub(super) mlp: Option<ExpertMlp<M, B>>,
}

/// Where a block keeps keys and values.
#[derive(Clone, Copy)]
pub(super) struct BlockCache<'a> {
    pub own: &'a LayerCache,
    /// Of the stack that the block attends to.
    pub memory: Option<&'a LayerCache>,
}

impl Block {
    /// Adds the block's output to the residual stream.
    pub fn record<'a>(&'a self, pass: &mut Pass<'a, '_>, cache: BlockCache<'a>) {
        self.attention.record(pass, cache.own);
        if let (Some(cross), Some(memory)) = (&self.cross, cache.memory) {
            cross.record(pass, memory);
        }
        if let Some(mlp) = &self.mlp {
            mlp.record(pass);
        }
    }

    /// Fills the cache of the attention to another stack.
    pub fn remember(
        &self,
        recorder: &mut Recorder,
        workspace: &Workspace,
        memory: &Buffer,
        cache: &LayerCache,
        tokens: u32,
    ) {
        if let Some(cross) = &self.cross {
            cross.remember(recorder, workspace, memory, cache, tokens);
        }
    }
}
