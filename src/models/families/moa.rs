//! MoA, the first mixture of attention heads (arXiv 2210.05144; layout of its repository, which is fairseq's): an
//! encoder-decoder that translates, or an encoder that fills masks. Every attention, also that to the source, is a mixture
//! of heads over one key/value head.

use serde_json::json;

use crate::{
    Result,
    layers::{
        ExpertMlpSpec, HeadMixtureSpec, Heads, KvProjection, MlpActivation, NormPlacement, NormSpec,
        PositionEncoding, RouterNet, RouterSpec,
    },
    models::{
        AttentionNames, BlockNames, BlockSpec, Describe, Description, HeadNames, InputNames, InputSpec,
        MlpNames, Prefix, RouterNames, StackNames, StackSpec, Task, TransformerNames, TransformerSpec,
    },
    ops::{Activation, ExpertChoice, NormKind, Weighting},
    weights::{Fields, Order, limits::MOST_WIDE},
};

/// Reads a MoA config.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run.
pub(super) fn read(fields: &Fields<'_>) -> Result<Describe> {
    fields.only(&["norm"], &json!("layer_norm"), "MoA norms by LayerNorm")?;
    fields.only(&["positions"], &json!("sinusoidal"), "MoA's positions are sinusoidal")?;
    let shared = "MoA shares one table among its embeddings and its head";
    fields.only(&["tie_embeddings"], &json!(true), shared)?;
    let (vocab, width) = (fields.wide(&["vocab_size"])?, fields.wide(&["d_model"])?);
    if !width.is_multiple_of(2) {
        return Err(fields.bad("d_model", width, "an even number, for sines and cosines"));
    }
    let context = fields.wide(&["max_positions"])?;
    let first = fields.optional_count(&["position_offset"], MOST_WIDE)?.unwrap_or(0) as u32;
    let scale = if fields.flag("scale_embedding")?.unwrap_or(false) { (width as f32).sqrt() } else { 1.0 };
    let input = InputSpec::Tokens { scale, sinusoidal_from: Some(first), factor: None };
    let embedding = InputNames::table("embed_tokens.weight");
    let head = HeadNames::new("lm_head.weight", true);

    let block = block(fields, width)?;
    let (encoder, encoder_names) = stack(&block, "encoder", fields.layers(&["encoder_layers"])?);
    let task = task(fields, vocab)?;
    let (spec, names) = if let Task::Translate { .. } = task {
        let (decoder, decoder_names) = stack(&block, "decoder", fields.layers(&["decoder_layers"])?);
        (
            TransformerSpec {
                encoder: Some(encoder),
                ..TransformerSpec::new(vocab, context, input, decoder)
            },
            TransformerNames {
                encoder: Some(encoder_names),
                ..TransformerNames::new(embedding, decoder_names, head)
            },
        )
    } else {
        let head = HeadNames { bias: "lm_head.bias".to_owned().into(), ..head };
        let names = TransformerNames::new(embedding, encoder_names, head);
        (TransformerSpec::new(vocab, context, input, encoder), names)
    };
    Ok(Description { family: "moa", task, spec, names }.whole())
}

/// What the model is for, with the tokens that it reads: these must be in the vocabulary.
fn task(fields: &Fields<'_>, vocab: u32) -> Result<Task> {
    let end = fields.tokens("eos_token_id")?;
    if end.len() > 1 {
        return Err(fields.bad("eos_token_id", format!("{} ids", end.len()), "one"));
    }
    let end = fields.known_token("eos_token_id", end.first(), vocab)?;
    if fields.one_of("task", [("translation", true), ("fill_mask", false)])? {
        let (start, bos) = (fields.tokens("decoder_start_token_id")?, fields.tokens("bos_token_id")?);
        let start = start.first().or(bos.first());
        let start = fields.known_token("decoder_start_token_id or bos_token_id", start, vocab)?;
        return Ok(Task::Translate { start, end });
    }
    let mask = fields.known_token("mask_token_id", fields.tokens("mask_token_id")?.first(), vocab)?;
    Ok(Task::FillMask { mask, end })
}

/// A block of either stack; a decoder's attends to the encoder besides.
fn block(fields: &Fields<'_>, width: u32) -> Result<BlockSpec> {
    let before = NormSpec::before(NormKind::Layer, width, fields.epsilon(&["norm_eps"])?);
    let placement =
        fields.one_of("norm_position", [("pre", NormPlacement::Before), ("post", NormPlacement::After)])?;
    let norm = NormSpec { placement, ..before };
    // The paper's gates, and those of its released code.
    let paper = fields.one_of("gate_weights", [("softmax_renormalized", true), ("softmax", false)])?;
    let weighting = match paper {
        true => Weighting::SoftmaxAllRenormalised { eps: fields.number(&["gate_eps"], 0.0..=0.1)? },
        false => Weighting::SoftmaxAll,
    };
    let (experts, top_k) = (fields.experts(&["num_experts"])?, fields.experts(&["top_k"])?);
    let per_expert = fields.optional_heads(&["heads_per_expert"])?.unwrap_or(1);
    let heads = Heads { query: per_expert, kv: per_expert, dim: fields.wide(&["head_dim"])? };
    let attention = HeadMixtureSpec {
        router: RouterSpec::new(RouterNet::Linear, ExpertChoice::top_k(experts, top_k, weighting)),
        ..HeadMixtureSpec::dense(norm, heads, PositionEncoding::None)
    };
    let activation = fields.one_of("activation", [("relu", Activation::Relu), ("gelu", Activation::Gelu)])?;
    let hidden = fields.wide(&["ffn_dim"])?;
    Ok(BlockSpec::new(attention, ExpertMlpSpec::dense(norm, hidden, MlpActivation::Plain(activation))))
}

fn stack(block: &BlockSpec, side: &str, layers: u32) -> (StackSpec, StackNames) {
    let causal = side == "decoder";
    let cross = causal.then_some(HeadMixtureSpec { kv: KvProjection::Memory, ..block.attention });
    let mut blocks = vec![BlockSpec { cross, ..block.clone() }; layers as usize];
    let mut names: Vec<BlockNames> = (0..layers).map(|index| block_names(side, causal, index)).collect();
    let mut final_norm = Prefix::new(side).layer_norm("layer_norm");
    // The norm after the last layer is the stack's own.
    if let (NormPlacement::After, Some(last), Some(names)) = (
        block.attention.norm.placement,
        blocks.last_mut().and_then(|last| last.mlp.as_mut()),
        names.last_mut(),
    ) {
        last.norm.placement = NormPlacement::None;
        final_norm = std::mem::take(&mut names.mlp.norm);
    }
    let norm = NormSpec { placement: NormPlacement::Before, ..block.attention.norm };
    (StackSpec::new(blocks, causal, norm), StackNames { blocks: names, final_norm })
}

fn block_names(side: &str, crosses: bool, index: u32) -> BlockNames {
    let at = Prefix::new(format!("{side}.layers.{index}"));
    let attention = |part: &str| {
        let input_major = |name: &str| at.tensor(&format!("{part}.q_proj.{name}")).ordered(Order::InputMajor);
        AttentionNames {
            norm: at.layer_norm(&format!("{part}_layer_norm")),
            router: RouterNames::linear(input_major("w_gate")),
            query: input_major("experts.w"),
            kv: at.weights(["k_proj", "v_proj"].map(|proj| format!("{part}.{proj}"))),
            output: input_major("output_experts.w"),
            ..AttentionNames::default()
        }
    };
    BlockNames {
        attention: attention("self_attn"),
        cross: crosses.then(|| attention("encoder_attn")),
        mlp: MlpNames {
            norm: at.layer_norm("final_layer_norm"),
            up: at.weight("fc1"),
            up_bias: at.bias("fc1"),
            down: at.weight("fc2"),
            down_bias: at.bias("fc2"),
            ..MlpNames::default()
        },
    }
}
