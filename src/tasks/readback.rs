//! What sessions read back from a step, and in which form it comes.

use crate::{
    gpu::{Buffer, Recorder},
    layers::{Step, Workspace},
    models::StackSpec,
    ops::{TopLogits, padded},
};

/// Bytes to read: a buffer, the first byte, how many.
pub(super) type Range<'a> = (&'a Buffer, u64, u64);

/// Where the routes of a step are: its chosen experts, then their gates.
pub(super) fn route_ranges<'a>(workspace: &'a Workspace, stack: &StackSpec, step: &Step) -> [Range<'a>; 2] {
    let bytes = 4 * u64::from(step.tokens) * u64::from(stack.routes_per_token());
    [(&workspace.chosen, 0, bytes), (&workspace.gates, 0, bytes)]
}

/// Where the logits of a step are, rows padded; [`logits`] reads them.
pub(super) fn logit_range<'a>(workspace: &'a Workspace, outputs: u32, step: &Step) -> Range<'a> {
    (&workspace.logits, 0, 4 * u64::from(step.logit_rows) * u64::from(padded(outputs)))
}

/// Logits `[rows, outputs]` without the padding of their rows.
pub(super) fn logits(bytes: &[u8], outputs: u32) -> Vec<f32> {
    let padded_rows: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
    let rows = padded_rows.chunks(padded(outputs) as usize);
    rows.flat_map(|row| row[..outputs as usize].iter().copied()).collect()
}

/// Records the choice of the `n` largest logits of each row, and says where they will be; [`ranked`] reads them.
pub(super) fn record_top<'a>(
    recorder: &mut Recorder,
    workspace: &'a Workspace,
    outputs: u32,
    step: &Step,
    n: u32,
) -> [Range<'a>; 2] {
    let Workspace { logits, top_ids: ids, top_values: values, .. } = workspace;
    TopLogits { logits, ids, values, rows: step.logit_rows, vocab: outputs, n }.record(recorder);
    let bytes = 4 * u64::from(step.logit_rows) * u64::from(n);
    [(ids, 0, bytes), (values, 0, bytes)]
}

/// Rows of (id, log-probability) from all ids, then all values.
pub(super) fn ranked(bytes: &[u8], n: u32) -> Vec<Vec<(u32, f32)>> {
    let (ids, values) = bytes.split_at(bytes.len() / 2);
    let ids: Vec<u32> = bytemuck::pod_collect_to_vec(ids);
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(values);
    let pairs: Vec<(u32, f32)> = ids.into_iter().zip(values).collect();
    pairs.chunks(n as usize).map(<[_]>::to_vec).collect()
}

/// Bytes of all ranges together.
pub(super) fn length(ranges: &[Range<'_>]) -> usize {
    ranges.iter().map(|(_, _, bytes)| *bytes as usize).sum()
}
