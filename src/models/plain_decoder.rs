//! Decoders of LayerNorm blocks with a dense MLP whose attention is SwitchHead's (arXiv 2312.07987: within each head, value
//! and output experts by two sigmoid routers) or UoE's (arXiv 2503.02495: every head attends among the tokens it takes of
//! a whole sequence). Neither has published checkpoints; the attentions' tensors are named as in the originals.

use super::{
    AttentionNames, BlockNames, BlockSpec, Blueprint, DecoderSpec, Describe, HeadNames, MlpNames,
    RouterNames, Task, TransformerNames, layer_norm_names,
    limits::{MOST_EXPERTS, MOST_HEADS, MOST_LAYERS, MOST_WIDE},
    rope::Rope,
};
use crate::{
    Result,
    layers::{
        ExpertMlpSpec, HeadMixtureSpec, KvProjection, MlpActivation, NormSpec, PositionEncoding, RouterNet,
        RouterSpec, Scope,
    },
    ops::{Activation, AttentionKernel, ExpertChoice, NormKind, Weighting},
    weights::{Checkpoint, Fields, Order, Piece},
};

/// Which attention.
#[derive(Clone, Copy)]
enum Attention {
    /// Experts of a head, those kept, and the part of a head that is rotated.
    SwitchHead { experts: u32, top_k: u32, rotated: f32 },
    /// Heads that a token keeps.
    Uoe { heads_per_token: u32 },
}

/// A `config.json` of either.
struct Config {
    file: String,
    attention: Attention,
    vocab: u32,
    width: u32,
    layers: u32,
    heads: u32,
    head_dim: u32,
    hidden: u32,
    activation: Activation,
    context: u32,
    eps: f32,
    theta: f32,
    tied: bool,
}

/// Reads a SwitchHead config.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run; then, when the tensors contradict it.
pub(crate) fn read_switch_head(fields: &Fields<'_>) -> Result<Describe> {
    let size = |name| fields.size(&[name], MOST_EXPERTS).map(|n| n as u32);
    let (theta, rotated) = Rope::stated(fields)?;
    read(
        fields,
        theta,
        Attention::SwitchHead { experts: size("num_experts")?, top_k: size("num_experts_per_tok")?, rotated },
    )
}

/// Reads a UoE config.
///
/// # Errors
/// As [`read_switch_head`].
pub(crate) fn read_uoe(fields: &Fields<'_>) -> Result<Describe> {
    let heads = fields.size(&["num_attention_heads"], MOST_HEADS)?;
    let kept = fields.optional_size(&["heads_per_token"], heads)?.unwrap_or((heads / 2).max(1));
    let theta = Rope::whole(fields)?.ok_or_else(|| fields.missing(&["rope_theta"]))?;
    read(fields, theta, Attention::Uoe { heads_per_token: kept as u32 })
}

fn read(fields: &Fields<'_>, theta: f32, attention: Attention) -> Result<Describe> {
    let size = |name, most| fields.size(&[name], most).map(|n| n as u32);
    let activation = fields.one_of("hidden_act", [("relu", Activation::Relu), ("gelu", Activation::Gelu)])?;
    let config = Config {
        file: fields.file().to_owned(),
        attention,
        vocab: size("vocab_size", MOST_WIDE)?,
        width: size("hidden_size", MOST_WIDE)?,
        layers: size("num_hidden_layers", MOST_LAYERS)?,
        heads: size("num_attention_heads", MOST_HEADS)?,
        head_dim: size("head_dim", MOST_WIDE)?,
        hidden: size("intermediate_size", MOST_WIDE)?,
        activation,
        context: size("max_position_embeddings", MOST_WIDE)?,
        eps: fields.number(&["layer_norm_eps"], 1e-12..=0.1)?,
        theta,
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
    };
    Ok(Box::new(move |checkpoint| blueprint(&config, checkpoint)))
}

fn blueprint(config: &Config, checkpoint: &Checkpoint) -> Result<Blueprint> {
    let norm = NormSpec::before(NormKind::Layer, config.width, config.eps);
    let block = BlockSpec {
        attention: attention_spec(config, norm),
        cross: None,
        mlp: ExpertMlpSpec {
            norm,
            router: RouterSpec::none(),
            hidden: config.hidden,
            activation: MlpActivation::Plain(config.activation),
        },
    };
    let spec = DecoderSpec {
        vocab: config.vocab,
        context: config.context,
        layers: config.layers,
        block,
        final_norm: norm,
    };
    let blocks = (0..config.layers).map(|index| block_names(config, index)).collect();
    let head = HeadNames::new("lm_head.weight", config.tied);
    let names = TransformerNames::decoder("embed_tokens.weight", blocks, layer_norm_names("norm"), head);
    let family = match config.attention {
        Attention::SwitchHead { .. } => "switchhead",
        Attention::Uoe { .. } => "uoe",
    };
    Blueprint::checked((family, Task::Generate), spec.into(), names, checkpoint, &config.file)
}

fn attention_spec(config: &Config, norm: NormSpec) -> HeadMixtureSpec {
    let theta = f64::from(config.theta);
    let dense = HeadMixtureSpec {
        norm,
        router: RouterSpec::none(),
        query_share: 1,
        heads_per_expert: 1,
        kv_heads: config.heads,
        group: 1,
        head_dim: config.head_dim,
        kv: KvProjection::Projected,
        position: PositionEncoding::Rope { theta, channels: config.head_dim },
        kernel: AttentionKernel::Softmax,
    };
    match config.attention {
        Attention::SwitchHead { experts, top_k, rotated } => {
            let choice = ExpertChoice {
                groups: config.heads,
                ..ExpertChoice::top_k(config.heads.saturating_mul(experts), top_k, Weighting::Sigmoid)
            };
            let router = RouterSpec::new(RouterNet::Linear, choice);
            let channels = (rotated * config.head_dim as f32).round() as u32;
            HeadMixtureSpec {
                router,
                query_share: experts,
                kv: KvProjection::MixedValues(router),
                position: match channels {
                    0 => PositionEncoding::None,
                    _ => PositionEncoding::Rope { theta, channels },
                },
                ..dense
            }
        }
        Attention::Uoe { heads_per_token } => {
            let choice = ExpertChoice::top_k(config.heads, heads_per_token, Weighting::Constant);
            let scope = Scope::Sequence { causal: true };
            HeadMixtureSpec { router: RouterSpec { net: RouterNet::Linear, choice, scope }, ..dense }
        }
    }
}

fn block_names(config: &Config, index: u32) -> BlockNames {
    let name = |name: &str| format!("layers.{index}.{name}");
    BlockNames {
        attention: match config.attention {
            Attention::SwitchHead { .. } => switch_head_names(&name),
            Attention::Uoe { .. } => uoe_names(&name),
        },
        cross: None,
        mlp: MlpNames {
            norm: layer_norm_names(&name("norm2")),
            up: vec![name("ffn.fc1.weight").into()],
            up_bias: Some(name("ffn.fc1.bias")),
            down: name("ffn.fc2.weight"),
            down_bias: Some(name("ffn.fc2.bias")),
            ..MlpNames::default()
        },
    }
}

fn switch_head_names(name: &impl Fn(&str) -> String) -> AttentionNames {
    AttentionNames {
        norm: layer_norm_names(&name("norm1")),
        router: RouterNames::linear(name("attention.sel_o")),
        query: vec![name("attention.q.weight").into()],
        kv: vec![name("attention.k.weight").into()],
        values: Some((name("attention.v"), RouterNames::linear(name("attention.sel_v")))),
        output: name("attention.o"),
        value_order: Order::InputMajor,
        output_order: Order::InputMajor,
        ..AttentionNames::default()
    }
}

fn uoe_names(name: &impl Fn(&str) -> String) -> AttentionNames {
    let pieces = |parts: &[&str], end: &str| -> Vec<Piece> {
        parts.iter().map(|part| name(&format!("attention.{part}.{end}")).into()).collect()
    };
    let kv = ["k_proj", "v_proj"];
    AttentionNames {
        norm: layer_norm_names(&name("norm1")),
        router: RouterNames::Linear {
            weight: pieces(&["gate"], "weight"),
            transposed: false,
            bias: Some(name("attention.gate.bias")),
        },
        query: pieces(&["q_proj"], "weight"),
        query_bias: pieces(&["q_proj"], "bias"),
        kv: pieces(&kv, "weight"),
        kv_bias: pieces(&kv, "bias"),
        output: name("attention.o_proj.weight"),
        output_bias: Some(name("attention.o_proj.bias")),
        output_bias_of_expert: true,
        output_order: Order::Columns,
        ..AttentionNames::default()
    }
}
