//! Models that bring code of their own.

use crate::{
    Result,
    weights::{Fields, quote},
};

/// Refuses a model whose config names code of its own to compute with, which nobody here runs.
///
/// For families whose tensors do not tell them from another: what the code does instead of the family's maths can be
/// anything. `advice` says what to write into the config if it is known after all.
pub(super) fn refuse_custom_code(fields: &Fields<'_>, advice: &str) -> Result<()> {
    let Some((_, map)) = fields.get(&["auto_map"])? else { return Ok(()) };
    // Code for the config or the tokenizer does not compute.
    let mut models = map.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("AutoModel"));
    let Some((name, class)) = models.next() else { return Ok(()) };
    let class = class.as_str().unwrap_or_default();
    let why = format!("this model computes by code of its own, which headwise does not run. {advice}");
    Err(fields.unsupported(format!("auto_map.{name} = {}", quote(class)), why))
}
