//! The layout of small decoders that are trained to try an attention out: LayerNorms, a dense MLP, and a config with
//! transformers' names. A family adds the attention.

use super::{Decoder, DecoderNames, MlpNames, Prefix};
use crate::{
    Result,
    layers::{ExpertMlpSpec, Heads, MlpActivation, NormSpec},
    ops::{Activation, NormKind},
    weights::Fields,
};

/// All of such a decoder but its attention.
#[derive(Clone, Debug)]
pub(crate) struct PlainLayout {
    pub decoder: Decoder,
    /// A key/value head for each query head.
    pub heads: Heads,
    pub norm: NormSpec,
    pub mlp: ExpertMlpSpec,
}

impl PlainLayout {
    /// # Errors
    /// When the config is incomplete or wants something headwise does not run.
    pub fn read(fields: &Fields<'_>) -> Result<Self> {
        let heads = fields.heads(&["num_attention_heads"])?;
        let heads = Heads { query: heads, kv: heads, dim: fields.wide(&["head_dim"])? };
        let eps = fields.epsilon(&["layer_norm_eps"])?;
        let norm = NormSpec::before(NormKind::Layer, fields.wide(&["hidden_size"])?, eps);
        let activation =
            fields.one_of("hidden_act", [("relu", Activation::Relu), ("gelu", Activation::Gelu)])?;
        let hidden = fields.wide(&["intermediate_size"])?;
        let names = DecoderNames {
            embedding: "embed_tokens.weight",
            final_norm: Prefix::default().layer_norm("norm"),
            head: "lm_head.weight",
        };
        Ok(Self {
            decoder: Decoder::read(fields, norm, names)?,
            heads,
            norm,
            mlp: ExpertMlpSpec::dense(norm, hidden, MlpActivation::Plain(activation)),
        })
    }
}

impl Prefix {
    /// Of a block in this layout, whose attention has the norm `norm1`.
    pub fn plain(index: u32) -> Self {
        Self::new(format!("layers.{index}"))
    }
}

impl MlpNames {
    /// Of a block in this layout.
    pub fn plain(block: &Prefix) -> Self {
        Self {
            norm: block.layer_norm("norm2"),
            up: block.weight("ffn.fc1"),
            up_bias: block.bias("ffn.fc1"),
            down: block.weight("ffn.fc2"),
            down_bias: block.bias("ffn.fc2"),
            ..Self::default()
        }
    }
}
