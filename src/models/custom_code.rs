//! Models that bring code of their own.

use serde_json::Value;

use crate::{
    Result,
    weights::{Fields, shown},
};

/// Refuses a model whose config names code of its own to compute with, which nobody here runs.
///
/// For families whose tensors do not tell them from another: what the code does instead of the family's maths can be
/// anything. `advice` says what to write into the config if it is known after all.
pub(super) fn refuse_custom_code(fields: &Fields<'_>, advice: &str) -> Result<()> {
    let Some((_, map)) = fields.get(&["auto_map"])? else { return Ok(()) };
    // Code for the config or the tokenizer does not compute.
    let computes = |(name, class): &(&String, &Value)| name.starts_with("AutoModel") && !class.is_null();
    let code = match map {
        Value::Object(map) => match map.iter().find(computes) {
            None => return Ok(()),
            Some((name, class)) => format!("auto_map.{name} = {}", shown(class)),
        },
        // Not said for what it is.
        other => format!("auto_map = {}", shown(other)),
    };
    let why = format!("this model computes by code of its own, which headwise does not run. {advice}");
    Err(fields.unsupported(code, why))
}
