//! UoE (arXiv 2503.02495): every head attends among the tokens it takes of a whole sequence. No checkpoint is published;
//! the attention's tensors are named as in the original.

use crate::{
    Result,
    layers::{HeadMixtureSpec, PositionEncoding, RouterNet, RouterSpec, Scope},
    models::{
        AttentionNames, BlockNames, BlockSpec, Describe, MlpNames, PlainLayout, Prefix, Rope, RouterNames,
    },
    ops::{ExpertChoice, Weighting},
    weights::{Fields, Order},
};

/// Reads a UoE config.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run.
pub(super) fn read(fields: &Fields<'_>) -> Result<Describe> {
    let PlainLayout { decoder, heads, norm, mlp } = PlainLayout::read(fields)?;
    let kept = fields.optional_size(&["heads_per_token"], heads.query as usize)?;
    let kept = kept.map_or((heads.query / 2).max(1), |n| n as u32);
    let theta = Rope::whole(fields)?.ok_or_else(|| fields.missing(&["rope_theta"]))?;
    let position = PositionEncoding::Rope { theta: f64::from(theta), channels: heads.dim };
    let choice = ExpertChoice::top_k(heads.query, kept, Weighting::Constant);
    let scope = Scope::Sequence { causal: true };
    let attention = HeadMixtureSpec {
        router: RouterSpec { scope, ..RouterSpec::new(RouterNet::Linear, choice) },
        heads_per_expert: 1,
        ..HeadMixtureSpec::dense(norm, heads, position)
    };
    Ok(decoder.describe("uoe", BlockSpec::new(attention, mlp), block_names).whole())
}

fn block_names(index: u32) -> BlockNames {
    let at = Prefix::plain(index);
    let (gate, kv) = ("attention.gate", ["attention.k_proj", "attention.v_proj"]);
    BlockNames {
        attention: AttentionNames {
            norm: at.layer_norm("norm1"),
            router: RouterNames { bias: at.bias(gate), ..RouterNames::linear(at.weight(gate)) },
            query: at.weight("attention.q_proj"),
            query_bias: at.bias("attention.q_proj"),
            kv: at.weights(kv),
            kv_bias: at.biases(kv),
            output: at.weight("attention.o_proj").ordered(Order::Columns),
            output_bias: at.bias("attention.o_proj"),
            output_bias_of_expert: true,
            ..AttentionNames::default()
        },
        mlp: MlpNames::plain(&at),
        ..BlockNames::default()
    }
}
