//! JetMoE (arXiv 2404.07413): attention experts and MLP experts, both top-k routed, keys and values shared.

mod config;
#[cfg(test)]
mod tests;

use crate::{
    Result,
    layers::{
        ExpertMlpSpec, HeadMixtureSpec, Heads, MlpActivation, NormSpec, PositionEncoding, RouterNet,
        RouterSpec,
    },
    models::{
        AttentionNames, BlockNames, BlockSpec, Decoder, DecoderNames, Describe, Description, MlpNames,
        Prefix, RouterNames,
    },
    ops::{ExpertChoice, NormKind, Weighting},
    weights::{Checkpoint, Fields, Order},
};
use config::{Config, Experts};

/// The epsilon of the norms inside the blocks. The published models are trained with this value there, whatever
/// their config says: the config's epsilon is used by the final norm alone.
const BLOCK_NORM_EPS: f32 = 1e-6;

/// Reads a JetMoE config.
///
/// # Errors
/// When the config is not JetMoE's or contradicts itself; then, when the tensors do.
pub(super) fn read(fields: &Fields<'_>) -> Result<Describe> {
    let config = Config::read(fields)?;
    Ok(Box::new(move |checkpoint| describe(&config, checkpoint)))
}

fn describe(config: &Config, checkpoint: &Checkpoint) -> Result<Description> {
    let Experts { attention, mlp, hidden } = config.experts(checkpoint)?;
    let router = |experts| {
        let choice = ExpertChoice::top_k(experts, config.active, Weighting::SoftmaxTopK);
        RouterSpec::new(RouterNet::Linear, choice)
    };
    let norm = |eps| NormSpec::before(NormKind::Rms, config.width, eps);
    // Keys and values are tiled over the experts: head j of each reads key/value head j.
    let heads = Heads { query: config.kv_heads, kv: config.kv_heads, dim: config.head_dim };
    let theta = f64::from(config.rope_theta);
    let position = PositionEncoding::Rope { theta, channels: config.head_dim };
    let block = BlockSpec::new(
        HeadMixtureSpec {
            router: router(attention),
            ..HeadMixtureSpec::dense(norm(BLOCK_NORM_EPS), heads, position)
        },
        (hidden > 0).then(|| ExpertMlpSpec {
            router: router(mlp),
            ..ExpertMlpSpec::dense(norm(BLOCK_NORM_EPS), hidden, MlpActivation::SwiGlu)
        }),
    );
    let decoder = Decoder {
        vocab: config.vocab,
        context: config.context,
        layers: config.layers,
        final_norm: norm(config.final_norm_eps),
        tied: config.tied,
        names: DecoderNames {
            embedding: "model.embed_tokens.weight",
            final_norm: Prefix::new("model").weight("norm"),
            head: "lm_head.weight",
        },
    };
    Ok(decoder.describe("jetmoe", block, block_names))
}

fn block_names(index: u32) -> BlockNames {
    let at = Prefix::llama(index);
    let experts = |name| at.weight(name).ordered(Order::OutputMajor);
    BlockNames {
        attention: AttentionNames {
            norm: at.weight("input_layernorm"),
            router: RouterNames::linear(at.weight("self_attention.experts.router.layer")),
            query: experts("self_attention.experts.input_linear"),
            kv: at.weight("self_attention.kv_proj"),
            output: experts("self_attention.experts.output_linear"),
            // Once, after the sum over experts.
            output_bias: at.bias("self_attention.experts"),
            ..AttentionNames::default()
        },
        mlp: MlpNames {
            norm: at.weight("post_attention_layernorm"),
            router: RouterNames::linear(at.weight("mlp.router.layer")),
            up: experts("mlp.input_linear"),
            down: experts("mlp.output_linear"),
            down_bias: at.bias("mlp"),
            ..MlpNames::default()
        },
        ..BlockNames::default()
    }
}
