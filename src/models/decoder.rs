//! What the families that only write have in common: equal causal blocks between an embedding and a head.

use super::{
    BlockNames, BlockSpec, InputNames, InputSpec, StackNames, StackSpec, TransformerNames, TransformerSpec,
    block::NormNames, head_names::HeadNames,
};
use crate::layers::NormSpec;

/// The sizes of a decoder.
pub(crate) struct DecoderSpec {
    pub vocab: u32,
    pub context: u32,
    pub layers: u32,
    pub block: BlockSpec,
    pub final_norm: NormSpec,
}

impl From<DecoderSpec> for TransformerSpec {
    fn from(decoder: DecoderSpec) -> Self {
        let DecoderSpec { vocab, context, layers, block, final_norm } = decoder;
        Self {
            outputs: vocab,
            width: final_norm.width,
            context,
            input: InputSpec::Tokens { scale: 1.0, sinusoidal_from: None },
            encoder: None,
            stack: StackSpec { blocks: vec![block; layers as usize], causal: true, final_norm },
        }
    }
}

impl TransformerNames {
    /// Of a [`DecoderSpec`].
    pub fn decoder(embedding: &str, blocks: Vec<BlockNames>, final_norm: NormNames, head: HeadNames) -> Self {
        Self {
            input: InputNames::Tokens(embedding.to_owned()),
            encoder: None,
            stack: StackNames { blocks, final_norm },
            head,
        }
    }
}
