//! Llama-layout decoders: dense, and MoH-LLaMA (arXiv 2410.11842, §4.4 of its code), in which some heads are always on
//! and of the others each token keeps those with the longest queries.

use serde_json::json;

use crate::{
    Result,
    layers::{HeadMixtureSpec, RouterNet, RouterSpec},
    models::{
        AttentionNames, BlockNames, BlockSpec, Describe, LlamaLayout, MlpNames, Prefix, refuse_custom_code,
    },
    ops::{ExpertChoice, Weighting},
    weights::{Fields, Order},
};

/// Reads a Llama config; with an object `moh` (`shared`, `routed`, `router`) it is a mixture of heads.
///
/// # Errors
/// When the config is incomplete or wants something headwise does not run.
pub(super) fn read(fields: &Fields<'_>) -> Result<Describe> {
    let LlamaLayout { decoder, attention: dense, mlp } = LlamaLayout::read(fields)?;
    let heads = dense.query_heads();
    let (family, attention, order) = match mixture(fields, heads)? {
        None => ("llama", dense, Order::Dense),
        Some((shared, top_k)) => {
            let choice = ExpertChoice { shared, ..ExpertChoice::top_k(heads, top_k, Weighting::Constant) };
            let router = RouterSpec::new(RouterNet::QueryNorm, choice);
            // A head is an expert.
            let mixed = HeadMixtureSpec { router, heads_per_expert: 1, ..dense };
            ("moh-llama", mixed, Order::Columns)
        }
    };
    let names = |index| {
        let block = Prefix::llama(index);
        let dense = AttentionNames::llama(&block);
        let attention = AttentionNames { output: dense.output.ordered(order), ..dense };
        BlockNames { attention, mlp: MlpNames::llama(&block), ..BlockNames::default() }
    };
    Ok(decoder.describe(family, BlockSpec::new(attention, mlp), names).whole())
}

/// The heads that are always on, and those that each token keeps of the others.
fn mixture(fields: &Fields<'_>, heads: u32) -> Result<Option<(u32, u32)>> {
    if fields.get(&["moh"])?.is_none() {
        // The published mixture has a Llama's tensors and nothing besides: run as one, it would be another function.
        let advice = format!(
            "If it is MoH-LLaMA3, add \"moh\": {{\"shared\": {}, \"routed\": {}, \"router\": \"query_norm\"}} to the config; \
             if it is a plain Llama all the same, take auto_map out",
            (heads / 2).max(1),
            (heads / 4).max(1)
        );
        refuse_custom_code(fields, &advice)?;
        return Ok(None);
    }
    fields.only(&["moh.router"], &json!("query_norm"), "MoH-LLaMA routes by query length")?;
    let (shared, routed) = (fields.heads(&["moh.shared"])?, fields.heads(&["moh.routed"])?);
    if shared + routed > heads {
        let expected = format!("with moh.shared, {shared}, at most num_attention_heads, {heads}");
        return Err(fields.bad("moh.routed", routed, expected));
    }
    Ok(Some((shared, routed)))
}
