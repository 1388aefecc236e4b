//! What the families that only write have in common: equal causal blocks between an embedding and a head.

use super::{
    BlockNames, BlockSpec, Description, HeadNames, InputNames, InputSpec, StackNames, StackSpec, Task,
    TransformerNames, TransformerSpec,
};
use crate::{
    Result,
    layers::NormSpec,
    weights::{Fields, Pieces},
};

/// A decoder but for its blocks.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    pub vocab: u32,
    pub context: u32,
    pub layers: u32,
    pub final_norm: NormSpec,
    /// Whether the config ties the head to the embeddings.
    pub tied: bool,
    pub names: DecoderNames,
}

/// The names of a decoder's tensors outside of its blocks.
#[derive(Clone, Debug)]
pub(crate) struct DecoderNames {
    pub embedding: &'static str,
    pub final_norm: Pieces,
    pub head: &'static str,
}

impl Decoder {
    /// Reads the sizes by transformers' usual names.
    ///
    /// # Errors
    /// When one is missing or absurd.
    pub fn read(fields: &Fields<'_>, final_norm: NormSpec, names: DecoderNames) -> Result<Self> {
        Ok(Self {
            vocab: fields.wide(&["vocab_size"])?,
            context: fields.wide(&["max_position_embeddings"])?,
            layers: fields.layers(&["num_hidden_layers"])?,
            final_norm,
            tied: fields.tied()?,
            names,
        })
    }

    /// The whole of so many blocks, each with its names.
    pub fn describe(
        self,
        family: &'static str,
        block: BlockSpec,
        block_names: impl Fn(u32) -> BlockNames,
    ) -> Description {
        let Self { vocab, context, layers, final_norm, tied, names } = self;
        let stack = StackSpec::new(vec![block; layers as usize], true, final_norm);
        let input = InputSpec::Tokens { scale: 1.0, sinusoidal_from: None, factor: None };
        let blocks = (0..layers).map(block_names).collect();
        let stack_names = StackNames { blocks, final_norm: names.final_norm };
        let embedding = InputNames::table(names.embedding);
        let head = HeadNames::new(names.head, tied);
        Description {
            family,
            task: Task::Generate,
            spec: TransformerSpec::new(vocab, context, input, stack),
            names: TransformerNames::new(embedding, stack_names, head),
        }
    }
}
