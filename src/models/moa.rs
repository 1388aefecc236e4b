//! MoA, the first mixture of attention heads (arXiv 2210.05144; layout of its repository, which is fairseq's): an
//! encoder-decoder that translates, or an encoder that fills masks. Every attention, also that to the source, is a mixture
//! of heads over one key/value head.

use serde_json::json;

use super::{
    AttentionNames, BlockNames, BlockSpec, Blueprint, Describe, HeadNames, InputNames, InputSpec, MlpNames,
    RouterNames, StackNames, StackSpec, Task, TransformerNames, TransformerSpec, layer_norm_names,
    limits::{MOST_EXPERTS, MOST_HEADS, MOST_LAYERS, MOST_WIDE},
};
use crate::{
    Result,
    layers::{
        ExpertMlpSpec, HeadMixtureSpec, KvProjection, MlpActivation, NormPlacement, NormSpec,
        PositionEncoding, RouterNet, RouterSpec,
    },
    ops::{Activation, AttentionKernel, ExpertChoice, NormKind, Weighting},
    weights::{Checkpoint, Fields, Order},
};

/// A MoA `config.json`.
struct Config {
    file: String,
    vocab: u32,
    width: u32,
    /// Layers of the encoder and of the decoder.
    layers: (u32, u32),
    experts: (u32, u32),
    heads_per_expert: u32,
    head_dim: u32,
    hidden: u32,
    activation: Activation,
    eps: f32,
    pre_norm: bool,
    weighting: Weighting,
    context: u32,
    first_position: u32,
    scale: f32,
    task: Task,
}

/// Reads a MoA config.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run; then, when the tensors contradict it.
pub(crate) fn read(fields: &Fields<'_>) -> Result<Describe> {
    fields.only(&["norm"], &json!("layer_norm"), "MoA norms by LayerNorm")?;
    fields.only(&["positions"], &json!("sinusoidal"), "MoA's positions are sinusoidal")?;
    fields.only(
        &["tie_embeddings"],
        &json!(true),
        "MoA shares one table among its embeddings and its head",
    )?;
    let size = |name, most| fields.size(&[name], most).map(|n| n as u32);
    let optional = |name, most| fields.optional_size(&[name], most).map(|n| n.map(|n| n as u32));
    let width = size("d_model", MOST_WIDE)?;
    if !width.is_multiple_of(2) {
        return Err(fields.bad("d_model", width, "an even number, for sines and cosines"));
    }
    let vocab = size("vocab_size", MOST_WIDE)?;
    let task = task(fields, vocab)?;
    let decoder_layers = match task {
        Task::Translate { .. } => size("decoder_layers", MOST_LAYERS)?,
        _ => 0,
    };
    let scaled = fields.flag("scale_embedding")?.unwrap_or(false);
    let config = Config {
        file: fields.file().to_owned(),
        vocab,
        width,
        layers: (size("encoder_layers", MOST_LAYERS)?, decoder_layers),
        experts: (size("num_experts", MOST_EXPERTS)?, size("top_k", MOST_EXPERTS)?),
        heads_per_expert: optional("heads_per_expert", MOST_HEADS)?.unwrap_or(1),
        head_dim: size("head_dim", MOST_WIDE)?,
        hidden: size("ffn_dim", MOST_WIDE)?,
        activation: fields.one_of("activation", [("relu", Activation::Relu), ("gelu", Activation::Gelu)])?,
        eps: fields.number(&["norm_eps"], 1e-12..=0.1)?,
        pre_norm: fields.one_of("norm_position", [("pre", true), ("post", false)])?,
        weighting: weighting(fields)?,
        context: size("max_positions", MOST_WIDE)?,
        first_position: fields.optional_count("position_offset", MOST_WIDE)?.unwrap_or(0) as u32,
        scale: if scaled { (width as f32).sqrt() } else { 1.0 },
        task,
    };
    Ok(Box::new(move |checkpoint| blueprint(&config, checkpoint)))
}

fn weighting(fields: &Fields<'_>) -> Result<Weighting> {
    // The paper's gates, and those of its released code.
    let paper = fields.one_of("gate_weights", [("softmax_renormalized", true), ("softmax", false)])?;
    Ok(match paper {
        true => Weighting::SoftmaxAllRenormalised { eps: fields.number(&["gate_eps"], 0.0..=0.1)? },
        false => Weighting::SoftmaxAll,
    })
}

/// What the model is for, with the tokens that it reads: these must be in the vocabulary.
fn task(fields: &Fields<'_>, vocab: u32) -> Result<Task> {
    let known = |name: &str, id: Option<i64>| match id {
        Some(id) if (0..i64::from(vocab)).contains(&id) => Ok(id as u32),
        Some(id) => Err(fields.bad(name, id, format!("below vocab_size, which is {vocab}"))),
        None => Err(fields.bad(name, "no such field", "a token id")),
    };
    let eos = fields.tokens("eos_token_id")?;
    if eos.len() > 1 {
        return Err(fields.bad("eos_token_id", format!("{} ids", eos.len()), "one"));
    }
    let end = known("eos_token_id", eos.first().copied())?;
    let first = |name| fields.tokens(name).map(|ids| ids.first().copied());
    if fields.one_of("task", [("translation", true), ("fill_mask", false)])? {
        let start = first("decoder_start_token_id")?.or(first("bos_token_id")?);
        return Ok(Task::Translate { start: known("decoder_start_token_id or bos_token_id", start)?, end });
    }
    Ok(Task::FillMask { mask: known("mask_token_id", first("mask_token_id")?)?, end })
}

fn blueprint(config: &Config, checkpoint: &Checkpoint) -> Result<Blueprint> {
    let (encoder_layers, decoder_layers) = config.layers;
    let stack = |side: &'static str, layers: u32| {
        (stack_spec(config, side, layers), stack_names(config, side, layers))
    };
    let (encoder, encoder_names) = stack("encoder", encoder_layers);
    let fills = matches!(config.task, Task::FillMask { .. });
    let (stack, stack_names, encoder, encoder_names) = if fills {
        (encoder, encoder_names, None, None)
    } else {
        let (decoder, decoder_names) = stack("decoder", decoder_layers);
        (decoder, decoder_names, Some(encoder), Some(encoder_names))
    };
    let spec = TransformerSpec {
        outputs: config.vocab,
        width: config.width,
        context: config.context,
        input: InputSpec::Tokens { scale: config.scale, sinusoidal_from: Some(config.first_position) },
        encoder,
        stack,
    };
    let names = TransformerNames {
        input: InputNames::Tokens("embed_tokens.weight".to_owned()),
        encoder: encoder_names,
        stack: stack_names,
        head: HeadNames {
            bias: fills.then(|| "lm_head.bias".to_owned()),
            ..HeadNames::new("lm_head.weight", true)
        },
    };
    Blueprint::checked(("moa", config.task.clone()), spec, names, checkpoint, &config.file)
}

fn stack_spec(config: &Config, side: &str, layers: u32) -> StackSpec {
    let norm = NormSpec::before(NormKind::Layer, config.width, config.eps);
    let placement = if config.pre_norm { NormPlacement::Before } else { NormPlacement::After };
    let placed = NormSpec { placement, ..norm };
    let (experts, top_k) = config.experts;
    let attention = |kv| HeadMixtureSpec {
        norm: placed,
        router: RouterSpec::new(RouterNet::Linear, ExpertChoice::top_k(experts, top_k, config.weighting)),
        query_share: 1,
        heads_per_expert: config.heads_per_expert,
        kv_heads: config.heads_per_expert,
        group: 1,
        head_dim: config.head_dim,
        kv,
        position: PositionEncoding::None,
        kernel: AttentionKernel::Softmax,
    };
    let block = BlockSpec {
        attention: attention(KvProjection::Projected),
        cross: (side == "decoder").then(|| attention(KvProjection::Memory)),
        mlp: ExpertMlpSpec {
            norm: placed,
            router: RouterSpec::none(),
            hidden: config.hidden,
            activation: MlpActivation::Plain(config.activation),
        },
    };
    let mut blocks = vec![block; layers as usize];
    // The norm after the last layer is the stack's own.
    if let (false, Some(last)) = (config.pre_norm, blocks.last_mut()) {
        last.mlp.norm.placement = NormPlacement::None;
    }
    StackSpec { blocks, causal: side == "decoder", final_norm: norm }
}

fn stack_names(config: &Config, side: &str, layers: u32) -> StackNames {
    let last_norm = |index: u32| layer_norm_names(&format!("{side}.layers.{index}.final_layer_norm"));
    let mut blocks: Vec<BlockNames> = (0..layers).map(|index| block_names(side, index)).collect();
    let final_norm = match blocks.last_mut().filter(|_| !config.pre_norm) {
        None => layer_norm_names(&format!("{side}.layer_norm")),
        Some(last) => {
            last.mlp.norm.clear();
            last_norm(layers - 1)
        }
    };
    StackNames { blocks, final_norm }
}

fn block_names(side: &str, index: u32) -> BlockNames {
    let name = |name: &str| format!("{side}.layers.{index}.{name}");
    let attention = |part: &str| AttentionNames {
        norm: layer_norm_names(&name(&format!("{part}_layer_norm"))),
        router: RouterNames::Linear {
            weight: vec![name(&format!("{part}.q_proj.w_gate")).into()],
            transposed: true,
            bias: None,
        },
        query: vec![name(&format!("{part}.q_proj.experts.w")).into()],
        kv: ["k_proj", "v_proj"].map(|proj| name(&format!("{part}.{proj}.weight")).into()).to_vec(),
        output: name(&format!("{part}.q_proj.output_experts.w")),
        query_order: Order::InputMajor,
        output_order: Order::InputMajor,
        ..AttentionNames::default()
    };
    BlockNames {
        attention: attention("self_attn"),
        cross: (side == "decoder").then(|| attention("encoder_attn")),
        mlp: MlpNames {
            norm: layer_norm_names(&name("final_layer_norm")),
            up: vec![name("fc1.weight").into()],
            up_bias: Some(name("fc1.bias")),
            down: name("fc2.weight"),
            down_bias: Some(name("fc2.bias")),
            ..MlpNames::default()
        },
    }
}
