//! Llama's layout, which many families share: its config's names, grouped and rotated attention, a gated MLP, and what the
//! tensors are called.

use serde_json::json;

use super::{AttentionNames, Decoder, DecoderNames, MlpNames, Prefix, Rope, activations::SILU};
use crate::{
    Result,
    layers::{ExpertMlpSpec, HeadMixtureSpec, MlpActivation, NormSpec, PositionEncoding},
    ops::NormKind,
    weights::Fields,
};

/// A dense model in Llama's layout. A mixture says what it does otherwise.
#[derive(Clone, Debug)]
pub(crate) struct LlamaLayout {
    pub decoder: Decoder,
    pub attention: HeadMixtureSpec,
    /// Of a hidden width that is not 0.
    pub mlp: Option<ExpertMlpSpec>,
}

impl LlamaLayout {
    /// # Errors
    /// When the config is incomplete, contradicts itself or wants something headwise does not run.
    pub fn read(fields: &Fields<'_>) -> Result<Self> {
        fields.only_text(&["hidden_act"], &SILU, "Llama's MLP is SiLU-gated")?;
        fields.only(&["attention_bias"], &json!(false), "Llama's projections have no bias")?;
        fields.only(&["mlp_bias"], &json!(false), "Llama's projections have no bias")?;
        let width = fields.wide(&["hidden_size"])?;
        let heads = fields.grouped_heads(width)?;
        let norm = NormSpec::before(NormKind::Rms, width, fields.epsilon(&["rms_norm_eps"])?);
        let theta = f64::from(Rope::whole(fields)?.unwrap_or(1e4));
        let position = PositionEncoding::Rope { theta, channels: heads.dim };
        let hidden = fields.optional_hidden(&["intermediate_size"])?;
        let hidden = hidden.ok_or_else(|| fields.missing(&["intermediate_size"]))?;
        let names = DecoderNames {
            embedding: "model.embed_tokens.weight",
            final_norm: Prefix::new("model").weight("norm"),
            head: "lm_head.weight",
        };
        Ok(Self {
            decoder: Decoder::read(fields, norm, names)?,
            attention: HeadMixtureSpec::dense(norm, heads, position),
            mlp: (hidden > 0).then(|| ExpertMlpSpec::dense(norm, hidden, MlpActivation::SwiGlu)),
        })
    }
}

impl Prefix {
    /// Of a block in Llama's layout.
    pub fn llama(index: u32) -> Self {
        Self::new(format!("model.layers.{index}"))
    }
}

impl AttentionNames {
    /// Of a block in Llama's layout.
    pub fn llama(block: &Prefix) -> Self {
        Self {
            norm: block.weight("input_layernorm"),
            query: block.weight("self_attn.q_proj"),
            kv: block.weights(["self_attn.k_proj", "self_attn.v_proj"]),
            output: block.weight("self_attn.o_proj"),
            ..Self::default()
        }
    }
}

impl MlpNames {
    /// Of a block in Llama's layout.
    pub fn llama(block: &Prefix) -> Self {
        Self {
            norm: block.weight("post_attention_layernorm"),
            up: block.weights(["mlp.gate_proj", "mlp.up_proj"]),
            down: block.weight("mlp.down_proj"),
            ..Self::default()
        }
    }
}
