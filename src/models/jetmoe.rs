//! JetMoE (arXiv 2404.07413): attention experts and MLP experts, both top-k routed, keys and values shared.
//!
//! Everything JetMoE is stands here and in its config reader: which mixture it is, and where its tensors are.

use super::{
    BlockNames, BlockSpec, Blueprint, DecoderNames, DecoderSpec, Describe, NormNames, RouterNames,
    jetmoe_config::{self as config, Config, layer, layer_tensor},
};
use crate::{
    Result,
    layers::{
        AttentionKernel, ExpertMlpSpec, HeadMixtureSpec, KvProjection, MlpActivation, NormKind, NormSpec,
        PositionEncoding, RouterNet, RouterSpec,
    },
    ops::{ExpertChoice, Weighting},
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
        let weighting = Weighting::SoftmaxTopK;
        let choice =
            ExpertChoice { experts: size(experts), shared: 0, top_k: size(config.active), weighting };
        Some(RouterSpec { net: RouterNet::Linear, choice })
    };
    let norm = NormSpec { kind: NormKind::Rms, width, eps: config::BLOCK_NORM_EPS };
    let block = BlockSpec {
        attention: HeadMixtureSpec {
            norm,
            router: router(shapes.attention_experts),
            heads_per_expert: size(config.kv_heads),
            kv_heads: size(config.kv_heads),
            head_dim: size(config.head_dim),
            // Keys and values are tiled over the experts: head j of each reads key/value head j.
            group: 1,
            kv: KvProjection::Projected { bias: false },
            position: PositionEncoding::Rope { theta: f64::from(config.rope_theta) },
            kernel: AttentionKernel::Softmax,
            output_bias: true,
        },
        mlp: ExpertMlpSpec {
            norm,
            router: router(shapes.mlp_experts),
            hidden: size(shapes.mlp_width),
            activation: MlpActivation::SwiGlu,
            output_bias: true,
        },
    };
    let spec = DecoderSpec {
        vocab: size(shapes.vocab),
        width,
        context: size(config.context),
        blocks: vec![block; config.layers],
        final_norm: NormSpec { kind: NormKind::Rms, width, eps: config.final_norm_eps },
        bos: config.bos,
        eos: config.eos.clone(),
    };
    let names = DecoderNames {
        embedding: config::EMBEDDING.to_owned(),
        final_norm: NormNames { weight: config::FINAL_NORM.to_owned(), bias: None },
        head: shapes.lm_head.then(|| config::LM_HEAD.to_owned()),
        blocks: (0..config.layers).map(block_names).collect(),
    };
    spec.check(&config.file)?;
    Ok(Blueprint { family: "jetmoe", spec, names })
}

fn block_names(index: usize) -> BlockNames {
    let name = |name| layer_tensor(index, name);
    let norm = |weight| NormNames { weight: name(weight), bias: None };
    BlockNames {
        attention_norm: norm(layer::ATTENTION_NORM),
        attention_router: RouterNames::Linear(name(layer::ATTENTION_ROUTER)),
        query: name(layer::QUERY),
        kv: vec![name(layer::KEY_VALUE)],
        kv_bias: Vec::new(),
        output: name(layer::ATTENTION_OUT),
        output_bias: Some(name(layer::ATTENTION_BIAS)),
        mlp_norm: norm(layer::MLP_NORM),
        mlp_router: RouterNames::Linear(name(layer::MLP_ROUTER)),
        up: vec![name(layer::MLP_IN)],
        down: name(layer::MLP_OUT),
        down_bias: Some(name(layer::MLP_BIAS)),
        query_order: Order::OutputMajor,
        output_order: Order::OutputMajor,
        mlp_order: Order::OutputMajor,
    }
}
