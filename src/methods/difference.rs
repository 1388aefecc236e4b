//! Which experts some kind of text uses more than others (MoTE's fTRI, arXiv 2502.11096):
//!
//! ```text
//! a_p[l, e] = tokens of prompt p that chose expert e / tokens of p
//! D_c[l, e] = mean over prompts of class c of a_p − mean over the others
//! ```

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Error, Model, Result, probes::Address};

/// How much more one class uses an expert.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExpertDifference {
    /// The expert.
    pub at: Address,
    /// Share of the tokens that choose it, in prompts of the class.
    pub class: f64,
    /// In the others.
    pub others: f64,
    /// `class − others`.
    pub difference: f64,
}

/// Of every head expert and MLP expert, the most distinctive first. Each prompt has its ids, and whether it is of the class.
///
/// # Errors
/// Prompts that are all of the class, or none, or empty; a model without experts; as [`Model::routes`].
pub async fn expert_difference(model: &Model, prompts: &[(&[u32], bool)]) -> Result<Vec<ExpertDifference>> {
    let of_class = prompts.iter().filter(|(_, class)| *class).count();
    let others = prompts.len() - of_class;
    if of_class == 0 || others == 0 {
        let found = format!("{of_class} of the class, {others} others");
        return Err(Error::argument("prompts", found, "some of both"));
    }
    if let Some(empty) = prompts.iter().position(|(ids, _)| ids.is_empty()) {
        return Err(Error::argument("prompts", format!("no tokens in prompt {empty}"), "some in each"));
    }
    let mut shares: BTreeMap<Address, [f64; 2]> = BTreeMap::new();
    for &(ids, class) in prompts {
        let (place, count) = if class { (0, of_class) } else { (1, others) };
        let share = 1.0 / (ids.len() * count) as f64;
        for token in model.routes(ids).await? {
            for (layer, routes) in (0..).zip(&token.layers) {
                let heads = routes.attention.iter().map(|choice| Address::head_expert(layer, choice.expert));
                let mlp = routes.mlp.iter().map(|choice| Address::mlp_expert(layer, choice.expert));
                heads.chain(mlp).for_each(|at| shares.entry(at).or_default()[place] += share);
            }
        }
    }
    if shares.is_empty() {
        return Err(Error::argument("model", "one without experts", "a routed one"));
    }
    let mut found: Vec<ExpertDifference> = shares
        .into_iter()
        .map(|(at, [class, others])| ExpertDifference { at, class, others, difference: class - others })
        .collect();
    // Stable: the lower address first among equals.
    found.sort_by(|a, b| b.difference.total_cmp(&a.difference));
    Ok(found)
}
