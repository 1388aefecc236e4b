//! Published methods that measure and steer heads, one file each, made of probes, sessions and tasks: none has a kernel or a layer
//! of its own. `examples/own_method.rs` is one more.

mod difference;
mod divergence;
mod guidance;
mod hunt;
mod importance;
mod indicators;
mod influence;
mod patch;
mod patterns;
mod reinforce;
mod retrieval;
mod rings;
mod task;

pub use difference::{ExpertDifference, expert_difference};
pub use divergence::{HeadDivergence, divergence};
pub use guidance::Guidance;
pub use hunt::{Hunt, HuntRound};
pub use importance::{HeadImportance, importance};
pub use indicators::{HeadIndicators, indicators};
pub use influence::{Influence, influence};
pub use patch::{HeadEffect, Pair, Path, patch, patched};
pub use patterns::{HeadPatterns, patterns, repeated};
pub use reinforce::reinforce;
pub use retrieval::{Definition, HeadRetrieval, Retrieval, Sample, retrieval};
pub use rings::{HeadRings, rings};
pub use task::{Question, TaskHead, TaskVector};

use divergence::last_outputs;

use crate::{
    Error, Model, Result, Score,
    probes::{Address, Edit, Edits, Observe, Recorded, Trace, What},
};

/// One row of [`What::Rows`] of a head that the token chose.
struct HeadRow<'a> {
    at: Address,
    position: u32,
    columns: &'a [f32],
}

/// The rows of all heads that their tokens chose, layer by layer, head by head.
fn head_rows(trace: &Trace) -> impl Iterator<Item = HeadRow<'_>> {
    // A row that sums to one has a largest weight.
    let largest = trace.column("argmax_weight").unwrap_or(usize::MAX);
    trace.of(What::Rows).flat_map(move |recorded| {
        let heads = recorded.heads.iter().enumerate();
        heads.flat_map(move |(place, &head)| {
            let rows = recorded.rows.iter().enumerate();
            let rows = rows.map(move |(row, &[_, position])| HeadRow {
                at: Address::head(recorded.layer, head),
                position,
                columns: recorded.at(row, place),
            });
            rows.filter(move |row| row.columns.get(largest).is_some_and(|&weight| weight > 0.0))
        })
    })
}

/// Every query head of every layer of a model that reads text.
///
/// # Errors
/// As [`Model::trace`].
pub async fn heads(model: &Model) -> Result<Vec<Address>> {
    // A trace of one token says what there is.
    let trace = model.trace(&[&[0]], &Observe::new().capture("L*H*:z".parse()?)).await?;
    Ok(heads_of(trace.of(What::Z)))
}

/// Every head of every layer that `recorded` has.
fn heads_of<'a>(recorded: impl Iterator<Item = &'a Recorded>) -> Vec<Address> {
    recorded.flat_map(|one| one.heads.iter().map(|&head| Address::head(one.layer, head))).collect()
}

/// Refuses a model that does not say what comes next.
async fn check_writes(model: &Model) -> Result<()> {
    model.score_ids(&[], &Score::new()).await.map(|_| ())
}

/// The logits behind a prompt, `[vocab]`.
async fn logits_behind(model: &Model, prompt: &[u32]) -> Result<Vec<f32>> {
    let mut logits = model.logits(&[prompt]).await?.pop().unwrap_or_default();
    Ok(logits.values.split_off(logits.values.len().saturating_sub(logits.vocab)))
}

/// That of an answer.
fn logit_of(logits: &[f32], answer: u32) -> Result<f32> {
    logits.get(answer as usize).copied().ok_or_else(|| {
        Error::argument("answer", answer, format!("below the vocabulary size {}", logits.len()))
    })
}

/// ln Σ exp(z): what log-probabilities are below their logits.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&z| f64::from(z - most).exp()).sum();
    f64::from(most) + sum.ln()
}

/// The model with these edits behind those it has.
fn with_edits(model: &Model, edits: impl IntoIterator<Item = Edit>) -> Result<Model> {
    let mut all: Edits = model.edits().clone();
    all.extend(edits);
    model.edited(&all)
}

/// The mean; nothing of none.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}
