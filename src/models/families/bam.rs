//! BAM (arXiv 2408.08274): whole attention modules of several dense models as the experts of a soft mixture, their MLPs
//! as those of a routed one. No checkpoint is published; the layout is that of `headwise upcycle --method bam`.

use crate::{
    Result,
    layers::{ExpertMlpSpec, HeadMixtureSpec, NormPlacement, NormSpec, RouterNet, RouterSpec},
    models::{AttentionNames, BlockNames, BlockSpec, Describe, LlamaLayout, MlpNames, Prefix, RouterNames},
    ops::{ExpertChoice, Weighting},
    weights::{Fields, Order, Pieces},
};

/// Reads a BAM config: Llama's sizes, and an object `bam`.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run.
pub(super) fn read(fields: &Fields<'_>) -> Result<Describe> {
    let LlamaLayout { decoder, attention: dense, mlp } = LlamaLayout::read(fields)?;
    let Some(mlp) = mlp else {
        return Err(fields.bad("intermediate_size", 0, "a width: BAM mixes MLPs, too"));
    };
    let experts = fields.experts(&["bam.experts"])?;
    let router =
        |top_k, weighting| RouterSpec::new(RouterNet::Linear, ExpertChoice::top_k(experts, top_k, weighting));
    // Whether each module brings its own keys and values.
    let expert_kv = fields.one_of("bam.kv", [("expert", true), ("shared", false)])?;
    let attention = HeadMixtureSpec {
        // Soft: every module runs.
        router: router(experts, Weighting::SoftmaxAll),
        kv_heads: if expert_kv { experts * dense.kv_heads } else { dense.kv_heads },
        ..dense
    };
    let parallel = fields.flag("bam.parallel_block")?.unwrap_or(false);
    let placement = if parallel { NormPlacement::Shared } else { NormPlacement::Before };
    let top_k = fields.experts(&["bam.mlp_top_k"])?;
    let gates = [("softmax_topk", Weighting::SoftmaxTopK), ("softmax", Weighting::SoftmaxAll)];
    let mlp = ExpertMlpSpec {
        norm: NormSpec { placement, ..mlp.norm },
        router: router(top_k, fields.one_of("bam.mlp_gate", gates)?),
        ..mlp
    };
    let block = BlockSpec::new(attention, mlp);
    Ok(decoder.describe("bam", block, |index| block_names(parallel, index)).whole())
}

fn block_names(parallel: bool, index: u32) -> BlockNames {
    let at = Prefix::llama(index);
    let experts = |name| at.weight(name).ordered(Order::OutputMajor);
    let (attention, mlp) = (AttentionNames::llama(&at), MlpNames::llama(&at));
    BlockNames {
        attention: AttentionNames {
            router: RouterNames::linear(at.weight("self_attn.router")),
            query: experts("self_attn.experts.q_proj"),
            output: experts("self_attn.experts.o_proj"),
            ..attention
        },
        mlp: MlpNames {
            norm: if parallel { Pieces::default() } else { mlp.norm },
            router: RouterNames::linear(at.weight("mlp.router")),
            up: experts("mlp.experts.gate_up_proj"),
            down: experts("mlp.experts.down_proj"),
            ..MlpNames::default()
        },
        ..BlockNames::default()
    }
}
