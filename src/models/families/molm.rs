//! MoLM (ModuleFormer, arXiv 2306.04640): stick-breaking attention without positions, routers of two layers, raw
//! softmax gates, keys and values that may be the normed input itself.

use serde_json::json;

use crate::{
    Result,
    layers::{
        ExpertMlpSpec, HeadMixtureSpec, Heads, KvProjection, MlpActivation, NormSpec, PositionEncoding,
        RouterNet, RouterSpec,
    },
    models::{
        AttentionNames, BlockNames, BlockSpec, Decoder, DecoderNames, Describe, MlpNames, Prefix,
        RouterNames, activations::GELU_TANH,
    },
    ops::{Activation, AttentionKernel, ExpertChoice, NormKind, Weighting},
    weights::{Fields, Order, Pieces},
};

/// Nothing in the model limits its context; its authors say that it works best up to about this length.
const CONTEXT: u32 = 2048;

/// Reads a MoLM config.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run.
pub(super) fn read(fields: &Fields<'_>) -> Result<Describe> {
    fields.only(&["att_func"], &json!("stickbreaking"), "MoLM attends by stick-breaking")?;
    fields.only(&["gate_type"], &json!("mlp"), "MoLM's routers have two layers")?;
    fields.only_text(&["activation_function"], &GELU_TANH, "MoLM's MLPs use the tanh form of GELU")?;
    fields.only(&["pre_norm"], &json!(true), "MoLM norms before each layer")?;
    fields.only(&["universal"], &json!(false), "MoLM's layers do not share weights")?;
    let (heads, attention_width) = (fields.heads(&["n_head"])?, fields.wide(&["att_hidden"])?);
    if !attention_width.is_multiple_of(heads) {
        let expected = format!("a multiple of n_head, which is {heads}");
        return Err(fields.bad("att_hidden", attention_width, expected));
    }
    let eps = fields.epsilon(&["layer_norm_epsilon"])?;
    let norm = NormSpec::before(NormKind::Layer, fields.wide(&["n_embd"])?, eps);
    let hidden = fields.wide(&["gating_size"])?;
    let router = |experts, top_k| -> Result<RouterSpec> {
        let (experts, top_k) = (fields.experts(&[experts])?, fields.experts(&[top_k])?);
        let net = RouterNet::Mlp { hidden, activation: Activation::Gelu };
        Ok(RouterSpec::new(net, ExpertChoice::top_k(experts, top_k, Weighting::SoftmaxAll)))
    };
    let heads = Heads { query: heads, kv: heads, dim: attention_width / heads };
    let projected = HeadMixtureSpec {
        router: router("n_att_experts", "k_att")?,
        kernel: AttentionKernel::StickBreaking,
        ..HeadMixtureSpec::dense(norm, heads, PositionEncoding::None)
    };
    let activation = MlpActivation::Plain(Activation::GeluTanh);
    let mlp = ExpertMlpSpec {
        router: router("n_mlp_experts", "k_mlp")?,
        ..ExpertMlpSpec::dense(norm, fields.wide(&["ffd_hidden"])?, activation)
    };
    let decoder = Decoder {
        vocab: fields.wide(&["vocab_size"])?,
        context: CONTEXT,
        layers: fields.layers(&["n_layer"])?,
        final_norm: norm,
        tied: fields.tied()?,
        names: DecoderNames {
            embedding: "transformer.wte.weight",
            final_norm: Prefix::new("transformer").layer_norm("ln_f"),
            head: "lm_head.weight",
        },
    };
    Ok(Box::new(move |checkpoint| {
        // A checkpoint without key and value projections uses the input for both.
        let identity = checkpoint.tensor("transformer.h.0.attn.k_proj.weight").is_none();
        let kv = if identity { KvProjection::Identity } else { KvProjection::Projected };
        let block = BlockSpec::new(HeadMixtureSpec { kv, ..projected }, mlp);
        Ok(decoder.describe("molm", block, |index| block_names(index, identity)))
    }))
}

fn block_names(index: u32, identity: bool) -> BlockNames {
    let at = Prefix::new(format!("transformer.h.{index}"));
    let router = |part: &str| RouterNames {
        hidden: at.weight(&format!("{part}.gate.w_gate.0")),
        hidden_bias: at.bias(&format!("{part}.gate.w_gate.0")),
        weight: at.weight(&format!("{part}.gate.w_gate.3")),
        ..RouterNames::default()
    };
    let experts = |name| at.weight(name).ordered(Order::InputMajor);
    let projections = ["attn.k_proj", "attn.v_proj"];
    let (kv, kv_bias) = match identity {
        true => (Pieces::default(), Pieces::default()),
        false => (at.weights(projections), at.biases(projections)),
    };
    BlockNames {
        attention: AttentionNames {
            norm: at.layer_norm("ln_1"),
            router: router("attn.q_proj"),
            query: experts("attn.q_proj.experts"),
            kv,
            kv_bias,
            output: experts("attn.q_proj.output_experts"),
            ..AttentionNames::default()
        },
        mlp: MlpNames {
            norm: at.layer_norm("ln_2"),
            router: router("mlpf"),
            up: experts("mlpf.experts"),
            down: experts("mlpf.output_experts"),
            ..MlpNames::default()
        },
        ..BlockNames::default()
    }
}
