//! JetMoE (arXiv 2404.07413): attention experts and MLP experts, both top-k routed, keys and values shared.
//!
//! Everything JetMoE is stands here and in its config reader: which mixture it is, and where its tensors are.

use super::{
    BlockNames, BlockSpec, Blueprint, DecoderNames, DecoderSpec,
    jetmoe_config::{self as config, Config, layer, layer_tensor},
};
use crate::{
    Result,
    layers::{
        Activation, AttentionKernel, ExpertMlpSpec, HeadMixtureSpec, KvMap, KvProjection, NormSpec,
        PositionEncoding, RouterNet, RouterSpec, Selection, Weighting,
    },
    weights::Checkpoint,
};

/// The blueprint of a JetMoE checkpoint.
///
/// # Errors
/// When config and tensors are not a JetMoE model that both agree on.
pub(crate) fn blueprint(config: &Config, checkpoint: &Checkpoint) -> Result<Blueprint> {
    let shapes = config.shapes(checkpoint)?;
    // The config reader bounds every dimension at 2²⁴, so these conversions keep the value.
    let size = |n: usize| n as u32;
    let width = size(shapes.width);
    let router = |experts: usize| RouterSpec {
        net: RouterNet::Linear,
        experts: size(experts),
        selection: Selection::TopK(size(config.active)),
        weighting: Weighting::SoftmaxTopK,
    };
    let norm = NormSpec { width, eps: config::BLOCK_NORM_EPS };
    let block = BlockSpec {
        attention: HeadMixtureSpec {
            norm,
            router: router(shapes.attention_experts),
            heads_per_expert: size(config.kv_heads),
            kv_heads: size(config.kv_heads),
            head_dim: size(config.head_dim),
            kv: KvProjection::Shared,
            kv_map: KvMap::Tiled,
            position: PositionEncoding::Rope { theta: f64::from(config.rope_theta) },
            kernel: AttentionKernel::Softmax,
            output_bias: true,
        },
        mlp: ExpertMlpSpec {
            norm,
            router: router(shapes.mlp_experts),
            hidden: size(shapes.mlp_width),
            activation: Activation::SwiGlu,
            output_bias: true,
        },
    };
    let spec = DecoderSpec {
        vocab: size(shapes.vocab),
        width,
        context: size(config.context),
        blocks: vec![block; config.layers],
        final_norm: NormSpec { width, eps: config.final_norm_eps },
        bos: config.bos,
        eos: config.eos.clone(),
    };
    let names = DecoderNames {
        embedding: config::EMBEDDING.to_owned(),
        final_norm: config::FINAL_NORM.to_owned(),
        head: shapes.lm_head.then(|| config::LM_HEAD.to_owned()),
        blocks: (0..config.layers).map(block_names).collect(),
    };
    Ok(Blueprint { family: "jetmoe", spec, names })
}

fn block_names(index: usize) -> BlockNames {
    let name = |name| layer_tensor(index, name);
    BlockNames {
        attention_norm: name(layer::ATTENTION_NORM),
        attention_router: name(layer::ATTENTION_ROUTER),
        query: name(layer::QUERY),
        kv: name(layer::KEY_VALUE),
        output: name(layer::ATTENTION_OUT),
        output_bias: name(layer::ATTENTION_BIAS),
        mlp_norm: name(layer::MLP_NORM),
        mlp_router: name(layer::MLP_ROUTER),
        up: name(layer::MLP_IN),
        down: name(layer::MLP_OUT),
        down_bias: name(layer::MLP_BIAS),
    }
}
