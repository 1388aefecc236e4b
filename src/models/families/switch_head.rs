//! SwitchHead (arXiv 2312.07987): within each head, value and output experts by two sigmoid routers. No checkpoint is
//! published; the attention's tensors are named as in the original.

use crate::{
    Result,
    layers::{HeadMixtureSpec, KvProjection, PositionEncoding, RouterNet, RouterSpec},
    models::{
        AttentionNames, BlockNames, BlockSpec, Describe, MlpNames, PlainLayout, Prefix, Rope, RouterNames,
    },
    ops::{ExpertChoice, Weighting},
    weights::{Fields, Order},
};

/// Reads a SwitchHead config.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run.
pub(super) fn read(fields: &Fields<'_>) -> Result<Describe> {
    let PlainLayout { decoder, heads, norm, mlp } = PlainLayout::read(fields)?;
    let (experts, top_k) = (fields.experts(&["num_experts"])?, fields.experts(&["num_experts_per_tok"])?);
    let all = heads.query.saturating_mul(experts);
    let choice = ExpertChoice { groups: heads.query, ..ExpertChoice::top_k(all, top_k, Weighting::Sigmoid) };
    let router = RouterSpec::new(RouterNet::Linear, choice);
    let (theta, rotated) = Rope::stated(fields)?;
    let position = match (rotated * heads.dim as f32).round() as u32 {
        0 => PositionEncoding::None,
        channels => PositionEncoding::Rope { theta: f64::from(theta), channels },
    };
    let attention = HeadMixtureSpec {
        router,
        heads_per_expert: 1,
        query_share: experts,
        kv: KvProjection::MixedValues(router),
        ..HeadMixtureSpec::dense(norm, heads, position)
    };
    Ok(decoder.describe("switchhead", BlockSpec::new(attention, mlp), block_names).whole())
}

fn block_names(index: u32) -> BlockNames {
    let at = Prefix::plain(index);
    let experts = |name| at.tensor(name).ordered(Order::InputMajor);
    BlockNames {
        attention: AttentionNames {
            norm: at.layer_norm("norm1"),
            router: RouterNames::linear(at.tensor("attention.sel_o")),
            query: at.weight("attention.q"),
            kv: at.weight("attention.k"),
            values: experts("attention.v"),
            value_router: RouterNames::linear(at.tensor("attention.sel_v")),
            output: experts("attention.o"),
            ..AttentionNames::default()
        },
        mlp: MlpNames::plain(&at),
        ..BlockNames::default()
    }
}
