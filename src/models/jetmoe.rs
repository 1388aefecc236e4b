//! JetMoE (arXiv 2404.07413): attention experts and MLP experts, both top-k routed, keys and values shared.
//!
//! Everything JetMoE is stands here and in its config reader: which mixture it is, and where its tensors are.

use super::{
    AttentionNames, BlockNames, BlockSpec, Blueprint, DecoderSpec, Describe, HeadNames, MlpNames,
    RouterNames, Task, TransformerNames,
    jetmoe_config::{self as config, Config, layer, layer_tensor},
};
use crate::{
    Result,
    layers::{
        ExpertMlpSpec, HeadMixtureSpec, KvProjection, MlpActivation, NormSpec, PositionEncoding, RouterNet,
        RouterSpec,
    },
    ops::{AttentionKernel, ExpertChoice, NormKind, Weighting},
    weights::{Checkpoint, Fields, Order},
};

/// Reads a JetMoE config.
///
/// # Errors
/// When the config is not JetMoE's or contradicts itself; then, when the tensors do.
pub(crate) fn read(fields: &Fields<'_>) -> Result<Describe> {
    let config = Config::read(fields)?;
    Ok(Box::new(move |checkpoint| blueprint(&config, checkpoint)))
}

fn blueprint(config: &Config, checkpoint: &Checkpoint) -> Result<Blueprint> {
    let shapes = config.shapes(checkpoint)?;
    // The config reader bounds every dimension at 2²⁴, so these conversions keep the value.
    let size = |n: usize| n as u32;
    let width = size(shapes.width);
    let router = |experts: usize| {
        let choice = ExpertChoice::top_k(size(experts), size(config.active), Weighting::SoftmaxTopK);
        RouterSpec::new(RouterNet::Linear, choice)
    };
    let norm = |eps| NormSpec::before(NormKind::Rms, width, eps);
    let block = BlockSpec {
        attention: HeadMixtureSpec {
            norm: norm(config::BLOCK_NORM_EPS),
            router: router(shapes.attention_experts),
            query_share: 1,
            heads_per_expert: size(config.kv_heads),
            kv_heads: size(config.kv_heads),
            head_dim: size(config.head_dim),
            // Keys and values are tiled over the experts: head j of each reads key/value head j.
            group: 1,
            kv: KvProjection::Projected,
            position: PositionEncoding::Rope {
                theta: f64::from(config.rope_theta),
                channels: size(config.head_dim),
            },
            kernel: AttentionKernel::Softmax,
        },
        cross: None,
        mlp: ExpertMlpSpec {
            norm: norm(config::BLOCK_NORM_EPS),
            router: router(shapes.mlp_experts),
            hidden: size(shapes.mlp_width),
            activation: MlpActivation::SwiGlu,
        },
    };
    let spec = DecoderSpec {
        vocab: size(shapes.vocab),
        context: size(config.context),
        layers: size(config.layers),
        block,
        final_norm: norm(config.final_norm_eps),
    };
    let blocks = (0..config.layers).map(block_names).collect();
    let final_norm = vec![config::FINAL_NORM.to_owned().into()];
    let head = HeadNames::new(config::LM_HEAD, config.tied);
    let names = TransformerNames::decoder(config::EMBEDDING, blocks, final_norm, head);
    Blueprint::checked(("jetmoe", Task::Generate), spec.into(), names, checkpoint, &config.file)
}

fn block_names(index: usize) -> BlockNames {
    let name = |name| layer_tensor(index, name);
    BlockNames {
        attention: AttentionNames {
            norm: vec![name(layer::ATTENTION_NORM).into()],
            router: RouterNames::linear(name(layer::ATTENTION_ROUTER)),
            query: vec![name(layer::QUERY).into()],
            kv: vec![name(layer::KEY_VALUE).into()],
            output: name(layer::ATTENTION_OUT),
            output_bias: Some(name(layer::ATTENTION_BIAS)),
            query_order: Order::OutputMajor,
            output_order: Order::OutputMajor,
            ..AttentionNames::default()
        },
        cross: None,
        mlp: MlpNames {
            norm: vec![name(layer::MLP_NORM).into()],
            router: RouterNames::linear(name(layer::MLP_ROUTER)),
            up: vec![name(layer::MLP_IN).into()],
            up_bias: None,
            down: name(layer::MLP_OUT),
            down_bias: Some(name(layer::MLP_BIAS)),
            order: Order::OutputMajor,
        },
    }
}
