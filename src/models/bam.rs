//! BAM (arXiv 2408.08274): whole attention modules of several dense models as the experts of a soft mixture, their MLPs
//! as those of a routed one. No checkpoint is published; the layout is that of `headwise upcycle --method bam`.

use super::{
    AttentionNames, BlockNames, BlockSpec, Blueprint, Describe, MlpNames, RouterNames, Task,
    limits::MOST_EXPERTS, llama::Sizes, rms_norm_names,
};
use crate::{
    Result,
    layers::{ExpertMlpSpec, HeadMixtureSpec, NormPlacement, NormSpec, RouterNet, RouterSpec},
    ops::{ExpertChoice, Weighting},
    weights::{Checkpoint, Fields, Order},
};

/// A BAM `config.json`: Llama's sizes, and an object `bam`.
struct Config {
    sizes: Sizes,
    experts: u32,
    /// Whether each module brings its own keys and values.
    expert_kv: bool,
    parallel: bool,
    mlp_top_k: u32,
    mlp_weighting: Weighting,
}

/// Reads a BAM config.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run; then, when the tensors contradict it.
pub(crate) fn read(fields: &Fields<'_>) -> Result<Describe> {
    let count = |name| fields.size(&[name], MOST_EXPERTS).map(|n| n as u32);
    let config = Config {
        sizes: Sizes::read(fields)?,
        experts: count("bam.experts")?,
        expert_kv: fields.one_of("bam.kv", [("expert", true), ("shared", false)])?,
        parallel: fields.flag("bam.parallel_block")?.unwrap_or(false),
        mlp_top_k: count("bam.mlp_top_k")?,
        mlp_weighting: fields.one_of(
            "bam.mlp_gate",
            [("softmax_topk", Weighting::SoftmaxTopK), ("softmax", Weighting::SoftmaxAll)],
        )?,
    };
    Ok(Box::new(move |checkpoint| blueprint(&config, checkpoint)))
}

fn blueprint(config: &Config, checkpoint: &Checkpoint) -> Result<Blueprint> {
    let sizes = &config.sizes;
    let router = |top_k, weighting| {
        RouterSpec::new(RouterNet::Linear, ExpertChoice::top_k(config.experts, top_k, weighting))
    };
    let (dense, mlp) = (sizes.attention(), sizes.mlp());
    let block = BlockSpec {
        attention: HeadMixtureSpec {
            // Soft: every module runs.
            router: router(config.experts, Weighting::SoftmaxAll),
            kv_heads: if config.expert_kv { config.experts * dense.kv_heads } else { dense.kv_heads },
            ..dense
        },
        cross: None,
        mlp: ExpertMlpSpec {
            norm: NormSpec {
                placement: if config.parallel { NormPlacement::Shared } else { NormPlacement::Before },
                ..sizes.norm
            },
            router: router(config.mlp_top_k, config.mlp_weighting),
            ..mlp
        },
    };
    let names = (0..sizes.layers).map(|index| block_names(config.parallel, index)).collect();
    let (spec, names) = sizes.decoder(block, names);
    Blueprint::checked(("bam", Task::Generate), spec.into(), names, checkpoint, &sizes.file)
}

fn block_names(parallel: bool, index: u32) -> BlockNames {
    let layer = |name: &str| format!("model.layers.{index}.{name}");
    let name = |name: &str| format!("{}.weight", layer(name));
    BlockNames {
        attention: AttentionNames {
            norm: rms_norm_names(&layer("input_layernorm")),
            router: RouterNames::linear(name("self_attn.router")),
            query: vec![name("self_attn.experts.q_proj").into()],
            kv: ["self_attn.k_proj", "self_attn.v_proj"].map(|proj| name(proj).into()).to_vec(),
            output: name("self_attn.experts.o_proj"),
            query_order: Order::OutputMajor,
            output_order: Order::OutputMajor,
            ..AttentionNames::default()
        },
        cross: None,
        mlp: MlpNames {
            norm: if parallel { Vec::new() } else { rms_norm_names(&layer("post_attention_layernorm")) },
            router: RouterNames::linear(name("mlp.router")),
            up: vec![name("mlp.experts.gate_up_proj").into()],
            down: name("mlp.experts.down_proj"),
            order: Order::OutputMajor,
            ..MlpNames::default()
        },
    }
}
