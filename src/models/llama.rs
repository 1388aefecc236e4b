//! Llama-layout decoders: dense, and MoH-LLaMA (arXiv 2410.11842, §4.4 of its code), in which some heads are always on
//! and of the others each token keeps those with the longest queries.

use serde_json::json;

use super::{
    BlockNames, BlockSpec, Blueprint, DecoderNames, DecoderSpec, Describe, NormNames, RouterNames,
    limits::{MOST_HEADS, MOST_LAYERS, MOST_WIDE},
};
use crate::{
    Result,
    layers::{
        AttentionKernel, ExpertMlpSpec, HeadMixtureSpec, KvProjection, MlpActivation, NormKind, NormSpec,
        PositionEncoding, RouterNet, RouterSpec,
    },
    ops::{ExpertChoice, Weighting},
    weights::{Checkpoint, Fields, Order, check_shapes},
};

/// Tensors that older tools leave in a checkpoint and that say nothing.
const IGNORABLE: [&str; 1] = ["*.rotary_emb.inv_freq"];

/// A Llama `config.json`.
struct Config {
    file: String,
    vocab: u32,
    width: u32,
    layers: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    hidden: u32,
    context: u32,
    eps: f32,
    theta: f32,
    /// Heads that are always on, and heads that each token keeps of the others.
    mixture: Option<(u32, u32)>,
    tied: bool,
    bos: Option<u32>,
    eos: Vec<u32>,
}

/// Reads a Llama config; with an object `moh` (`shared`, `routed`, `router`) it is a mixture of heads.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run; then, when the tensors contradict it.
pub(crate) fn read(fields: &Fields<'_>) -> Result<Describe> {
    fields.only(&["hidden_act"], &json!("silu"), "Llama's MLP is SiLU-gated")?;
    fields.only(&["attention_bias"], &json!(false), "Llama's projections have no bias")?;
    fields.only(&["mlp_bias"], &json!(false), "Llama's projections have no bias")?;
    if fields.get(&["rope_scaling"])?.is_some() {
        return Err(fields.unsupported("rope_scaling", "rotary frequencies are not scaled yet"));
    }
    if fields.get(&["quantization_config"])?.is_some() {
        let why = "headwise reads checkpoints in F32, F16 or BF16";
        return Err(fields.unsupported("quantization_config", why));
    }
    let size = |name, most| fields.size(&[name], most).map(|n| n as u32);
    let optional = |name, most| fields.optional_size(&[name], most).map(|n| n.map(|n| n as u32));
    let (width, heads) = (size("hidden_size", MOST_WIDE)?, size("num_attention_heads", MOST_HEADS)?);
    let kv_heads = optional("num_key_value_heads", MOST_HEADS)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of num_attention_heads, which is {heads}");
        return Err(fields.bad("num_key_value_heads", kv_heads, expected));
    }
    let head_dim = match optional("head_dim", MOST_WIDE)? {
        Some(head_dim) => head_dim,
        None if width.is_multiple_of(heads) => width / heads,
        None => {
            return Err(fields.bad(
                "hidden_size",
                width,
                format!("a multiple of num_attention_heads, {heads}"),
            ));
        }
    };
    let config = Config {
        file: fields.file().to_owned(),
        vocab: size("vocab_size", MOST_WIDE)?,
        width,
        layers: size("num_hidden_layers", MOST_LAYERS)?,
        heads,
        kv_heads,
        head_dim,
        hidden: size("intermediate_size", MOST_WIDE)?,
        context: size("max_position_embeddings", MOST_WIDE)?,
        eps: fields.number(&["rms_norm_eps"], 1e-12..=0.1)?,
        theta: fields
            .optional_number(&["rope_theta", "rope_parameters.rope_theta"], 1.0..=1e12)?
            .unwrap_or(1e4),
        mixture: mixture(fields, heads)?,
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        bos: fields.tokens("bos_token_id")?.first().copied(),
        eos: fields.tokens("eos_token_id")?,
    };
    Ok(Box::new(move |checkpoint| blueprint(&config, checkpoint)))
}

/// The shared and the routed heads of a mixture of heads.
fn mixture(fields: &Fields<'_>, heads: u32) -> Result<Option<(u32, u32)>> {
    if fields.get(&["moh"])?.is_none() {
        return Ok(None);
    }
    fields.only(&["moh.router"], &json!("query_norm"), "MoH-LLaMA routes by query length")?;
    let shared = fields.size(&["moh.shared"], MOST_HEADS)? as u32;
    let routed = fields.size(&["moh.routed"], MOST_HEADS)? as u32;
    if shared + routed > heads {
        let expected = format!("with moh.shared, {shared}, at most num_attention_heads, {heads}");
        return Err(fields.bad("moh.routed", routed, expected));
    }
    Ok(Some((shared, routed)))
}

fn blueprint(config: &Config, checkpoint: &Checkpoint) -> Result<Blueprint> {
    let norm = NormSpec { kind: NormKind::Rms, width: config.width, eps: config.eps };
    let router = config.mixture.map(|(shared, top_k)| RouterSpec {
        net: RouterNet::QueryNorm,
        choice: ExpertChoice { experts: config.heads, shared, top_k, weighting: Weighting::Binary },
    });
    let block = BlockSpec {
        attention: HeadMixtureSpec {
            norm,
            router,
            // In a mixture a head is an expert; otherwise all heads are one.
            heads_per_expert: if router.is_some() { 1 } else { config.heads },
            kv_heads: config.kv_heads,
            group: config.heads / config.kv_heads,
            head_dim: config.head_dim,
            kv: KvProjection::Projected { bias: false },
            position: PositionEncoding::Rope { theta: f64::from(config.theta) },
            kernel: AttentionKernel::Softmax,
            output_bias: false,
        },
        mlp: ExpertMlpSpec {
            norm,
            router: None,
            hidden: config.hidden,
            activation: MlpActivation::SwiGlu,
            output_bias: false,
        },
    };
    let spec = DecoderSpec {
        vocab: config.vocab,
        width: config.width,
        context: config.context,
        blocks: vec![block; config.layers as usize],
        final_norm: norm,
        bos: config.bos,
        eos: config.eos.clone(),
    };
    let names = DecoderNames {
        embedding: "model.embed_tokens.weight".to_owned(),
        final_norm: NormNames { weight: "model.norm.weight".to_owned(), bias: None },
        head: (!config.tied).then(|| "lm_head.weight".to_owned()),
        blocks: (0..config.layers).map(|index| block_names(index, router.is_some())).collect(),
    };
    spec.check(&config.file)?;
    check_shapes(checkpoint, &spec.requests(&names), &IGNORABLE, &config.file)?;
    Ok(Blueprint { family: if router.is_some() { "moh-llama" } else { "llama" }, spec, names })
}

fn block_names(index: u32, mixture: bool) -> BlockNames {
    let name = |name: &str| format!("model.layers.{index}.{name}.weight");
    let norm = |norm: &str| NormNames { weight: name(norm), bias: None };
    BlockNames {
        attention_norm: norm("input_layernorm"),
        attention_router: RouterNames::None,
        query: name("self_attn.q_proj"),
        kv: vec![name("self_attn.k_proj"), name("self_attn.v_proj")],
        kv_bias: Vec::new(),
        output: name("self_attn.o_proj"),
        output_bias: None,
        mlp_norm: norm("post_attention_layernorm"),
        mlp_router: RouterNames::None,
        up: vec![name("mlp.gate_proj"), name("mlp.up_proj")],
        down: name("mlp.down_proj"),
        down_bias: None,
        query_order: Order::Dense,
        output_order: if mixture { Order::Columns } else { Order::Dense },
        mlp_order: Order::Dense,
    }
}
