//! JetMoE's `config.json`, and the shapes that config and tensors agree on.
//!
//! The tensors decide what they can decide (expert counts, widths); the config adds what no shape shows (active
//! experts, head width, rotary base, epsilon). Where both speak they must say the same. A field that is missing
//! is an error, not a default, wherever a default could load a different model.

use super::activations::SILU;
use super::limits::{MOST_EXPERTS, MOST_HEADS, MOST_LAYERS, MOST_WIDE};
use super::rope::Rope;
use crate::weights::{Checkpoint, Fields, TensorInfo};
use crate::{Error, Result};
use serde_json::json;

/// The epsilon of the norms inside the blocks. The published models are trained with this value there, whatever
/// their config says: the config's epsilon is used by the final norm alone.
pub(crate) const BLOCK_NORM_EPS: f32 = 1e-6;

/// The token embedding, [vocab, width]; also the output matrix where the two are tied.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The gain of the final norm, [width].
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
/// The output matrix, [vocab, width], where it is not tied to the embedding.
pub(crate) const LM_HEAD: &str = "lm_head.weight";

/// The name of a layer's tensor, from one of the names in [`layer`].
pub(crate) fn layer_tensor(index: usize, name: &str) -> String {
    format!("model.layers.{index}.{name}")
}

/// The names of a layer's tensors, after `model.layers.<index>.`
pub(crate) mod layer {
    /// Gain of the norm before attention, [width].
    pub(crate) const ATTENTION_NORM: &str = "input_layernorm.weight";
    /// Router of the attention experts, [experts, width].
    pub(crate) const ATTENTION_ROUTER: &str = "self_attention.experts.router.layer.weight";
    /// Query projections, [experts, kv width, width].
    pub(crate) const QUERY: &str = "self_attention.experts.input_linear.weight";
    /// Keys, then values, shared by all experts, [2 · kv width, width].
    pub(crate) const KEY_VALUE: &str = "self_attention.kv_proj.weight";
    /// Output projections, [experts, width, kv width].
    pub(crate) const ATTENTION_OUT: &str = "self_attention.experts.output_linear.weight";
    /// Added once to the sum over experts, [width].
    pub(crate) const ATTENTION_BIAS: &str = "self_attention.experts.bias";
    /// Gain of the norm before the MLP, [width].
    pub(crate) const MLP_NORM: &str = "post_attention_layernorm.weight";
    /// Router of the MLP experts, [experts, width].
    pub(crate) const MLP_ROUTER: &str = "mlp.router.layer.weight";
    /// Gate rows, then up rows, [experts, 2 · hidden, width].
    pub(crate) const MLP_IN: &str = "mlp.input_linear.weight";
    /// Down projections, [experts, width, hidden].
    pub(crate) const MLP_OUT: &str = "mlp.output_linear.weight";
    /// Added once to the sum over experts, [width].
    pub(crate) const MLP_BIAS: &str = "mlp.bias";
}

/// All published models use this base; the field is younger than some of them.
const DEFAULT_ROPE_THETA: f32 = 10_000.0;

const MOST_HEAD_DIM: usize = 128;

/// A JetMoE `config.json`, checked in itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// The file it came from, for messages.
    pub file: String,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of layers.
    pub layers: usize,
    /// KV heads; also the heads inside one attention expert.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Experts that are active for a token, in attention and in the MLP.
    pub active: usize,
    /// MLP experts, where the config says.
    pub experts: Option<usize>,
    /// Hidden width of an MLP expert, where the config says.
    pub mlp_width: Option<usize>,
    /// The longest sequence that the model was made for.
    pub context: usize,
    /// Epsilon of the final norm; the blocks use [`BLOCK_NORM_EPS`].
    pub final_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
}

/// What config and tensors agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shapes {
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of layers.
    pub layers: usize,
    /// KV heads times head width: the query width of one attention expert.
    pub kv_width: usize,
    /// Attention experts of a layer.
    pub attention_experts: usize,
    /// MLP experts of a layer.
    pub mlp_experts: usize,
    /// Hidden width of an MLP expert.
    pub mlp_width: usize,
}

impl Config {
    /// Reads a config.
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self> {
        check_family(fields)?;
        let active = fields.size(&["moe_top_k", "num_experts_per_tok"], MOST_EXPERTS)?;
        let kv_heads = kv_heads(fields, active)?;
        let config = Config {
            file: fields.file().to_owned(),
            vocab: fields.size(&["vocab_size"], MOST_WIDE)?,
            width: fields.size(&["hidden_size", "n_embd"], MOST_WIDE)?,
            layers: fields.size(&["num_hidden_layers", "num_layers", "n_layer"], MOST_LAYERS)?,
            kv_heads,
            head_dim: fields.size(&["kv_channels", "head_dim"], MOST_HEAD_DIM)?,
            active,
            experts: fields.optional_size(&["moe_num_experts", "num_local_experts"], MOST_EXPERTS)?,
            mlp_width: fields.optional_size(&["ffn_hidden_size", "intermediate_size"], MOST_WIDE)?,
            context: fields.size(&["n_positions", "max_position_embeddings"], MOST_WIDE)?,
            final_norm_eps: fields.number(&["rms_norm_eps", "layer_norm_epsilon"], 1e-12..=0.1)?,
            rope_theta: Rope::whole(fields)?.unwrap_or(DEFAULT_ROPE_THETA),
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(true),
        };
        config.check(fields)?;
        Ok(config)
    }

    /// Rules between fields.
    fn check(&self, fields: &Fields<'_>) -> Result<()> {
        if !self.head_dim.is_multiple_of(4) {
            return Err(fields.bad("kv_channels", self.head_dim, "a multiple of 4"));
        }
        if let Some(experts) = self.experts
            && self.active > experts
        {
            let expected = format!("at most moe_num_experts, which is {experts}");
            return Err(fields.bad("moe_top_k", self.active, expected));
        }
        Ok(())
    }

    /// Compares the config with the tensors between embedding and head: every one present with its exact shape.
    ///
    /// Attention and MLP may differ in their number of experts, of which the config has one field. It counts the
    /// MLP's; the attention's tensors speak for themselves.
    pub(crate) fn shapes(&self, checkpoint: &Checkpoint) -> Result<Shapes> {
        // Within the caps of `read`, so this cannot overflow.
        let (kv_width, width) = (self.kv_heads * self.head_dim, self.width);
        let why = |what: &str| format!("{what} ({})", self.file);
        let like = |name: &str, like: &[Option<usize>], what: &str| {
            checkpoint.require_like(&layer_tensor(0, name), like, &why(what))
        };
        let query = [None, Some(kv_width), Some(width)];
        let query = like(layer::QUERY, &query, "experts, num_key_value_heads · kv_channels, hidden_size")?;
        let down = [self.experts, Some(width), self.mlp_width];
        let down = like(layer::MLP_OUT, &down, "moe_num_experts, hidden_size, ffn_hidden_size")?;
        let shapes = Shapes {
            vocab: self.vocab,
            width,
            layers: self.layers,
            kv_width,
            attention_experts: self.experts_of(checkpoint, query)?,
            mlp_experts: self.experts_of(checkpoint, down)?,
            mlp_width: self.dimension(checkpoint, down, 2, MOST_WIDE)?,
        };

        for (name, shape, what) in shapes.tensors() {
            checkpoint.require(&name, &shape, &why(what))?;
        }
        Ok(shapes)
    }

    fn experts_of(&self, checkpoint: &Checkpoint, tensor: &TensorInfo) -> Result<usize> {
        let experts = self.dimension(checkpoint, tensor, 0, MOST_EXPERTS)?;
        if self.active > experts {
            let expected = format!("at most the {experts} experts of {}", tensor.name);
            return Err(Error::bad_file(&self.file, "moe_top_k", self.active, expected));
        }
        Ok(experts)
    }

    /// One dimension of a tensor, within its cap.
    fn dimension(
        &self,
        checkpoint: &Checkpoint,
        tensor: &TensorInfo,
        at: usize,
        most: usize,
    ) -> Result<usize> {
        match tensor.shape.get(at) {
            Some(&d) if (1..=most).contains(&d) => Ok(d),
            _ => {
                let field = format!("tensor {}, dimension {at}", tensor.name);
                let found = format!("{:?}", tensor.shape);
                Err(Error::bad_file(checkpoint.path(tensor), field, found, format!("1 to {most}")))
            }
        }
    }
}

/// Refuses what is not JetMoE, and variants of it that would need other maths.
fn check_family(fields: &Fields<'_>) -> Result<()> {
    if fields.get(&["model_type"])?.is_none() {
        return Err(fields.missing(&["model_type"]));
    }
    fields.only(&["model_type"], &json!("jetmoe"), "this loader runs the jetmoe family")?;
    fields.only_text(&["hidden_act", "activation_function"], &SILU, "JetMoE's MLP is SiLU-gated")?;
    fields.only(&["glu"], &json!(true), "JetMoE's MLP is SiLU-gated")
}

/// KV heads. The chat model says `n_head` for them; others that have both names may mean all active heads by it.
fn kv_heads(fields: &Fields<'_>, active: usize) -> Result<usize> {
    let stated = fields.optional_size(&["num_key_value_heads"], MOST_HEADS)?;
    let old = fields.optional_size(&["n_head"], MOST_HEADS * MOST_EXPERTS)?;
    let kv_heads = match stated.or(old) {
        Some(n) if n <= MOST_HEADS => n,
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
    match fields.optional_size(&["num_attention_heads"], MOST_HEADS * MOST_EXPERTS)? {
        Some(heads) if heads != all => {
            let expected = format!("{all}, which is num_key_value_heads {kv_heads} · moe_top_k {active}");
            Err(fields.bad("num_attention_heads", heads, expected))
        }
        _ => Ok(kv_heads),
    }
}

impl Shapes {
    /// Every tensor between embedding and head: its name, its shape, and where the shape comes from.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>, &'static str)> {
        let norm = (FINAL_NORM.to_owned(), vec![self.width], "hidden_size");
        std::iter::once(norm).chain((0..self.layers).flat_map(|i| {
            self.layer_tensors().map(move |(name, shape, why)| (layer_tensor(i, name), shape, why))
        }))
    }

    /// The tensors of each layer.
    fn layer_tensors(&self) -> impl Iterator<Item = (&'static str, Vec<usize>, &'static str)> {
        let Shapes { width: d, kv_width: q, mlp_width: f, attention_experts: a, mlp_experts: m, .. } = *self;
        [
            (layer::ATTENTION_NORM, vec![d], "hidden_size"),
            (layer::ATTENTION_ROUTER, vec![a, d], "attention experts of layer 0, hidden_size"),
            (layer::QUERY, vec![a, q, d], "attention experts of layer 0, KV width, hidden_size"),
            (layer::KEY_VALUE, vec![2 * q, d], "2 · num_key_value_heads · kv_channels, hidden_size"),
            (layer::ATTENTION_OUT, vec![a, d, q], "attention experts of layer 0, hidden_size, KV width"),
            (layer::ATTENTION_BIAS, vec![d], "hidden_size"),
            (layer::MLP_NORM, vec![d], "hidden_size"),
            (layer::MLP_ROUTER, vec![m, d], "MLP experts of layer 0, hidden_size"),
            (layer::MLP_IN, vec![m, 2 * f, d], "MLP experts of layer 0, 2 · hidden width, hidden_size"),
            (layer::MLP_OUT, vec![m, d, f], "MLP experts of layer 0, hidden_size, hidden width"),
            (layer::MLP_BIAS, vec![d], "hidden_size"),
        ]
        .into_iter()
    }
}

#[cfg(test)]
mod tests;
