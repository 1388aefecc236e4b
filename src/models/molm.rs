//! MoLM (ModuleFormer, arXiv 2306.04640): stick-breaking attention without positions, routers of two layers, raw
//! softmax gates, keys and values that may be the normed input itself.

use serde_json::json;

use super::{
    AttentionNames, BlockNames, BlockSpec, Blueprint, DecoderSpec, Describe, HeadNames, MlpNames,
    RouterNames, Task, TransformerNames,
    activations::GELU_TANH,
    layer_norm_names,
    limits::{MOST_EXPERTS, MOST_HEADS, MOST_LAYERS, MOST_WIDE},
};
use crate::{
    Result,
    layers::{
        ExpertMlpSpec, HeadMixtureSpec, KvProjection, MlpActivation, NormSpec, PositionEncoding, RouterNet,
        RouterSpec,
    },
    ops::{Activation, AttentionKernel, ExpertChoice, NormKind, Weighting},
    weights::{Checkpoint, Fields, Order, Piece},
};

/// Nothing in the model limits its context; its authors say that it works best up to about this length.
const CONTEXT: u32 = 2048;

/// A MoLM `config.json`.
struct Config {
    file: String,
    vocab: u32,
    width: u32,
    layers: u32,
    heads: u32,
    attention_width: u32,
    mlp_hidden: u32,
    attention_experts: (u32, u32),
    mlp_experts: (u32, u32),
    router_hidden: u32,
    eps: f32,
    tied: bool,
}

/// Reads a MoLM config.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run; then, when the tensors contradict it.
pub(crate) fn read(fields: &Fields<'_>) -> Result<Describe> {
    fields.only(&["att_func"], &json!("stickbreaking"), "MoLM attends by stick-breaking")?;
    fields.only(&["gate_type"], &json!("mlp"), "MoLM's routers have two layers")?;
    fields.only_text(&["activation_function"], &GELU_TANH, "MoLM's MLPs use the tanh form of GELU")?;
    fields.only(&["pre_norm"], &json!(true), "MoLM norms before each layer")?;
    fields.only(&["universal"], &json!(false), "MoLM's layers do not share weights")?;
    let size = |name, most| fields.size(&[name], most).map(|n| n as u32);
    let config = Config {
        file: fields.file().to_owned(),
        vocab: size("vocab_size", MOST_WIDE)?,
        width: size("n_embd", MOST_WIDE)?,
        layers: size("n_layer", MOST_LAYERS)?,
        heads: size("n_head", MOST_HEADS)?,
        attention_width: size("att_hidden", MOST_WIDE)?,
        mlp_hidden: size("ffd_hidden", MOST_WIDE)?,
        attention_experts: (size("n_att_experts", MOST_EXPERTS)?, size("k_att", MOST_EXPERTS)?),
        mlp_experts: (size("n_mlp_experts", MOST_EXPERTS)?, size("k_mlp", MOST_EXPERTS)?),
        router_hidden: size("gating_size", MOST_WIDE)?,
        eps: fields.number(&["layer_norm_epsilon"], 1e-12..=0.1)?,
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
    };
    if !config.attention_width.is_multiple_of(config.heads) {
        let expected = format!("a multiple of n_head, which is {}", config.heads);
        return Err(fields.bad("att_hidden", config.attention_width, expected));
    }
    Ok(Box::new(move |checkpoint| blueprint(&config, checkpoint)))
}

fn blueprint(config: &Config, checkpoint: &Checkpoint) -> Result<Blueprint> {
    // A checkpoint without key and value projections uses the input for both.
    let identity = checkpoint.tensor("transformer.h.0.attn.k_proj.weight").is_none();
    let norm = NormSpec::before(NormKind::Layer, config.width, config.eps);
    let router = |(experts, top_k)| {
        let choice = ExpertChoice::top_k(experts, top_k, Weighting::SoftmaxAll);
        let net = RouterNet::Mlp { hidden: config.router_hidden, activation: Activation::Gelu };
        RouterSpec::new(net, choice)
    };
    let block = BlockSpec {
        attention: HeadMixtureSpec {
            norm,
            router: router(config.attention_experts),
            query_share: 1,
            heads_per_expert: config.heads,
            kv_heads: config.heads,
            group: 1,
            head_dim: config.attention_width / config.heads,
            kv: if identity { KvProjection::Identity } else { KvProjection::Projected },
            position: PositionEncoding::None,
            kernel: AttentionKernel::StickBreaking,
        },
        cross: None,
        mlp: ExpertMlpSpec {
            norm,
            router: router(config.mlp_experts),
            hidden: config.mlp_hidden,
            activation: MlpActivation::Plain(Activation::GeluTanh),
        },
    };
    let spec =
        DecoderSpec { vocab: config.vocab, context: CONTEXT, layers: config.layers, block, final_norm: norm };
    let blocks = (0..config.layers).map(|index| block_names(index, identity)).collect();
    let head = HeadNames::new("lm_head.weight", config.tied);
    let final_norm = layer_norm_names("transformer.ln_f");
    let names = TransformerNames::decoder("transformer.wte.weight", blocks, final_norm, head);
    let is = ("molm", Task::Generate);
    Blueprint::checked(is, spec.into(), names, checkpoint, &config.file)
}

fn block_names(index: u32, identity: bool) -> BlockNames {
    let name = |name: &str| format!("transformer.h.{index}.{name}");
    let router = |part: &str| RouterNames::Mlp {
        first: name(&format!("{part}.gate.w_gate.0.weight")),
        first_bias: Some(name(&format!("{part}.gate.w_gate.0.bias"))),
        second: name(&format!("{part}.gate.w_gate.3.weight")),
    };
    let kv = |part: &str| -> Vec<Piece> {
        match identity {
            true => Vec::new(),
            false => {
                ["attn.k_proj", "attn.v_proj"].map(|proj| name(&format!("{proj}.{part}")).into()).to_vec()
            }
        }
    };
    BlockNames {
        attention: AttentionNames {
            norm: layer_norm_names(&name("ln_1")),
            router: router("attn.q_proj"),
            query: vec![name("attn.q_proj.experts.weight").into()],
            kv: kv("weight"),
            kv_bias: kv("bias"),
            output: name("attn.q_proj.output_experts.weight"),
            query_order: Order::InputMajor,
            output_order: Order::InputMajor,
            ..AttentionNames::default()
        },
        cross: None,
        mlp: MlpNames {
            norm: layer_norm_names(&name("ln_2")),
            router: router("mlpf"),
            up: vec![name("mlpf.experts.weight").into()],
            up_bias: None,
            down: name("mlpf.output_experts.weight"),
            down_bias: None,
            order: Order::InputMajor,
        },
    }
}
