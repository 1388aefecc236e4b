//! JetMoE's `config.json`.
//!
//! The tensors decide what they can decide (expert counts, widths); the config adds what no shape shows (active
//! experts, head width, rotary base, epsilon). Where both speak they must say the same. A field that is missing
//! is an error, not a default, wherever a default could load a different model.

use serde_json::json;

use crate::{
    Error, Result,
    models::{Rope, activations::SILU},
    weights::{
        Checkpoint, Fields, TensorInfo,
        limits::{MOST_EXPERTS, MOST_HEADS, MOST_WIDE},
    },
};

/// All published models use this base; the field is younger than some of them.
const DEFAULT_ROPE_THETA: f32 = 10_000.0;

const MOST_HEAD_DIM: usize = 128;

/// A JetMoE `config.json`, checked in itself.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Config {
    /// The file it came from, for messages.
    pub file: String,
    pub vocab: u32,
    pub width: u32,
    pub layers: u32,
    /// KV heads; also the heads inside one attention expert.
    pub kv_heads: u32,
    pub head_dim: u32,
    /// Experts that are active for a token, in attention and in the MLP.
    pub active: u32,
    /// MLP experts and the hidden width of one, where the config says; a width of 0 says that there is no MLP.
    pub mlp_experts: Option<u32>,
    pub mlp_width: Option<u32>,
    pub context: u32,
    /// Epsilon of the final norm alone.
    pub final_norm_eps: f32,
    pub rope_theta: f32,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
}

/// What the tensors say of a layer's experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Experts {
    pub attention: u32,
    pub mlp: u32,
    /// Hidden width of an MLP expert; 0 where there is no MLP.
    pub hidden: u32,
}

impl Config {
    pub fn read(fields: &Fields<'_>) -> Result<Self> {
        check_family(fields)?;
        let active = fields.experts(&["moe_top_k", "num_experts_per_tok"])?;
        let config = Self {
            file: fields.file().to_owned(),
            vocab: fields.wide(&["vocab_size"])?,
            width: fields.wide(&["hidden_size", "n_embd"])?,
            layers: fields.layers(&["num_hidden_layers", "num_layers", "n_layer"])?,
            kv_heads: kv_heads(fields, active)?,
            head_dim: fields.size(&["kv_channels", "head_dim"], MOST_HEAD_DIM)? as u32,
            active,
            mlp_experts: fields.optional_experts(&["moe_num_experts", "num_local_experts"])?,
            mlp_width: fields.optional_hidden(&["ffn_hidden_size", "intermediate_size"])?,
            context: fields.wide(&["n_positions", "max_position_embeddings"])?,
            final_norm_eps: fields.epsilon(&["rms_norm_eps", "layer_norm_epsilon"])?,
            rope_theta: Rope::whole(fields)?.unwrap_or(DEFAULT_ROPE_THETA),
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(true),
        };
        if !config.head_dim.is_multiple_of(4) {
            return Err(fields.bad("kv_channels", config.head_dim, "a multiple of 4"));
        }
        if let Some(experts) = config.mlp_experts.filter(|&experts| active > experts) {
            let expected = format!("at most moe_num_experts, which is {experts}");
            return Err(fields.bad("moe_top_k", active, expected));
        }
        Ok(config)
    }

    /// Compares the config with the first layer's experts.
    ///
    /// Attention and MLP may differ in their number of experts, of which the config has one field. It counts the
    /// MLP's; the attention's tensors speak for themselves.
    pub fn experts(&self, checkpoint: &Checkpoint) -> Result<Experts> {
        // Within the caps of `read`, so this cannot overflow.
        let kv_width = self.kv_heads * self.head_dim;
        let like = |name: &str, shape: [Option<u32>; 3], what: &str| {
            let (name, why) = (format!("model.layers.0.{name}.weight"), format!("{what} ({})", self.file));
            checkpoint.require_like(&name, &shape.map(|n| n.map(|n| n as usize)), &why)
        };
        let query = like(
            "self_attention.experts.input_linear",
            [None, Some(kv_width), Some(self.width)],
            "experts, num_key_value_heads · kv_channels, hidden_size",
        )?;
        let attention = self.experts_of(checkpoint, query)?;
        if self.mlp_width == Some(0) {
            return Ok(Experts { attention, mlp: 0, hidden: 0 });
        }
        let down = like(
            "mlp.output_linear",
            [self.mlp_experts, Some(self.width), self.mlp_width],
            "moe_num_experts, hidden_size, ffn_hidden_size",
        )?;
        Ok(Experts {
            attention,
            mlp: self.experts_of(checkpoint, down)?,
            hidden: dimension(checkpoint, down, 2, MOST_WIDE)?,
        })
    }

    fn experts_of(&self, checkpoint: &Checkpoint, tensor: &TensorInfo) -> Result<u32> {
        let experts = dimension(checkpoint, tensor, 0, MOST_EXPERTS)?;
        if self.active > experts {
            let expected = format!("at most the {experts} experts of {}", tensor.name);
            return Err(Error::bad_file(&self.file, "moe_top_k", self.active, expected));
        }
        Ok(experts)
    }
}

/// One dimension of a tensor, within its cap.
fn dimension(checkpoint: &Checkpoint, tensor: &TensorInfo, at: usize, most: usize) -> Result<u32> {
    match tensor.shape.get(at) {
        Some(&d) if (1..=most).contains(&d) => Ok(d as u32),
        _ => {
            let field = format!("tensor {}, dimension {at}", tensor.name);
            let found = format!("{:?}", tensor.shape);
            Err(Error::bad_file(checkpoint.path(tensor), field, found, format!("1 to {most}")))
        }
    }
}

/// Refuses variants of JetMoE that would need other maths.
fn check_family(fields: &Fields<'_>) -> Result<()> {
    fields.only_text(&["hidden_act", "activation_function"], &SILU, "JetMoE's MLP is SiLU-gated")?;
    fields.only(&["glu"], &json!(true), "JetMoE's MLP is SiLU-gated")
}

/// KV heads. The chat model says `n_head` for them; others that have both names may mean all active heads by it.
fn kv_heads(fields: &Fields<'_>, active: u32) -> Result<u32> {
    let all_heads = |name| -> Result<Option<u32>> {
        Ok(fields.optional_size(&[name], MOST_HEADS * MOST_EXPERTS)?.map(|n| n as u32))
    };
    let stated = fields.optional_heads(&["num_key_value_heads"])?;
    let old = all_heads("n_head")?;
    let kv_heads = match stated.or(old) {
        Some(n) if n as usize <= MOST_HEADS => n,
        Some(n) => return Err(fields.bad("n_head", n, format!("at most {MOST_HEADS}"))),
        None => return Err(fields.missing(&["num_key_value_heads", "n_head"])),
    };
    let all = kv_heads * active;
    if let Some(old) = old
        && old != kv_heads
        && old != all
    {
        return Err(fields.bad(
            "n_head",
            old,
            format!("num_key_value_heads, {kv_heads}, or {all} active heads"),
        ));
    }
    match all_heads("num_attention_heads")? {
        Some(heads) if heads != all => {
            let expected = format!("{all}, which is num_key_value_heads {kv_heads} · moe_top_k {active}");
            Err(fields.bad("num_attention_heads", heads, expected))
        }
        _ => Ok(kv_heads),
    }
}
