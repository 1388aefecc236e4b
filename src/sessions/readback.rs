//! What sessions read back from a step, in which form it comes, and that it is made of numbers.

use std::ops::ControlFlow;

use crate::{
    Error, Result,
    gpu::{Buffer, Recorder},
    layers::{Step, Workspace},
    models::StackSpec,
    ops::{NOT_FINITE, TopLogits, padded},
};

/// Bytes to read: a buffer, the first byte, how many.
pub(crate) type Range<'a> = (&'a Buffer, u64, u64);

/// Where the routes of a step are: its chosen experts, then their gates.
pub(crate) fn route_ranges<'a>(workspace: &'a Workspace, stack: &StackSpec, step: &Step) -> [Range<'a>; 2] {
    let bytes = 4 * u64::from(step.tokens) * u64::from(stack.routes_per_token());
    [(&workspace.chosen, 0, bytes), (&workspace.gates, 0, bytes)]
}

/// Where the logits of a step are, rows padded; [`logits`] reads them.
pub(crate) fn logit_range<'a>(workspace: &'a Workspace, outputs: u32, step: &Step) -> Range<'a> {
    (&workspace.logits, 0, 4 * u64::from(step.logit_rows) * u64::from(padded(outputs)))
}

/// Logits `[rows, outputs]` without the padding of their rows.
///
/// # Errors
/// [`Error::NotFinite`] where one is not.
pub(crate) fn logits(bytes: &[u8], outputs: u32) -> Result<Vec<f32>> {
    rows("the logits", bytes, outputs)
}

/// Rows of `width` numbers, without their padding, if they are numbers.
///
/// # Errors
/// [`Error::NotFinite`] where one is not.
pub(crate) fn rows(what: &'static str, bytes: &[u8], width: u32) -> Result<Vec<f32>> {
    let padded_rows: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
    let rows = padded_rows.chunks(padded(width) as usize);
    finite(what, rows.flat_map(|row| row[..width as usize].iter().copied()).collect())
}

/// Records the choice of the `n` largest logits of each row.
pub(crate) fn record_top(recorder: &mut Recorder, workspace: &Workspace, outputs: u32, step: &Step, n: u32) {
    let Workspace { logits, top_ids: ids, top_values: values, .. } = workspace;
    TopLogits { logits, ids, values, rows: step.logit_rows, vocab: outputs, n }.record(recorder);
}

/// Where the chosen logits are; [`ranked`] reads them.
pub(crate) fn top_ranges<'a>(workspace: &'a Workspace, step: &Step, n: u32) -> [Range<'a>; 2] {
    let bytes = 4 * u64::from(step.logit_rows) * u64::from(n);
    [(&workspace.top_ids, 0, bytes), (&workspace.top_values, 0, bytes)]
}

/// Rows of (id, log-probability) from all ids, then all values.
///
/// # Errors
/// [`Error::NotFinite`] where a row of logits was not.
pub(crate) fn ranked(bytes: &[u8], n: u32) -> Result<Vec<Vec<(u32, f32)>>> {
    let (ids, values) = bytes.split_at(bytes.len() / 2);
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(values);
    let pairs: Vec<(u32, f32)> = chosen(ids)?.into_iter().zip(values).collect();
    Ok(pairs.chunks(n as usize).map(<[_]>::to_vec).collect())
}

/// Ids that the GPU chose by their logits.
///
/// # Errors
/// [`Error::NotFinite`] where a row of logits was not.
pub(crate) fn chosen(bytes: &[u8]) -> Result<Vec<u32>> {
    let ids: Vec<u32> = bytemuck::pod_collect_to_vec(bytes);
    match ids.contains(&NOT_FINITE) {
        false => Ok(ids),
        true => Err(Error::NotFinite { what: "the logits", found: "NaN or infinity".to_owned() }),
    }
}

/// The values, if they are numbers.
///
/// # Errors
/// [`Error::NotFinite`] where one is not.
pub(crate) fn finite(what: &'static str, values: Vec<f32>) -> Result<Vec<f32>> {
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(values),
        Some(value) => Err(Error::NotFinite { what, found: value.to_string() }),
    }
}

/// Lets a step run to its end.
pub(crate) fn unwatched(_submitted: u64, _of: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Bytes of all ranges together.
pub(crate) fn length(ranges: &[Range<'_>]) -> usize {
    ranges.iter().map(|(_, _, bytes)| *bytes as usize).sum()
}
