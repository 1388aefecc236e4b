//! What carries a difference between two prompts (activation and path patching; Wang et al. 2022, arXiv 2211.00593; circuit reuse,
//! arXiv 2310.08744).
//!
//! ```text
//! effect(h) = (m(clean, z_h from the other prompt) − m(clean)) / (m(other) − m(clean)),     m = logit of one answer − of the other
//! ```
//!
//! Direct: all other heads are held at what they put out in the clean prompt, so that only the paths from `h` to the end, or into the
//! receivers' queries, keys or values, carry anything.

use serde::Serialize;

use super::{heads_of, logit_of, logits_behind, with_edits};
use crate::{
    Edit, Error, Model, Result,
    probes::{Address, Capture, Observe, Recorded, Trace, What},
};

/// Two prompts of the same length, and the tokens that answer them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The prompt that is worked on.
    pub clean: &'a [u32],
    /// The one that values come from.
    pub other: &'a [u32],
    /// The answers of either.
    pub answers: [u32; 2],
}

/// What a head carries.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HeadEffect {
    /// The head.
    pub at: Address,
    /// Of [`patch`] the share of the difference, 0 is none and 1 all of it; of [`patched`] what was measured.
    pub effect: f64,
}

/// Which way values take.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Path {
    /// Any: later heads see what comes of it.
    Any,
    /// From the head to the end alone.
    Direct,
    /// From the head into what these heads read: their queries, keys or values.
    Into(What, Vec<Address>),
}

/// `logit[a] − logit[b]` behind a prompt.
async fn metric(model: &Model, pair: &Pair<'_>, prompt: &[u32]) -> Result<f64> {
    let logits = logits_behind(model, prompt).await?;
    let [one, other] = pair.answers.map(|answer| logit_of(&logits, answer).map(f64::from));
    Ok(one? - other?)
}

/// The edits that put a head's recorded values back.
fn values_of(trace: &Trace, at: Address) -> Vec<Edit> {
    let of_layer = |one: &&Recorded| Some(one.layer) == at.layer;
    let all = trace.of(What::Z).filter(of_layer).flat_map(|one| one.edits(0, 1.0));
    all.filter(|edit| edit.at == at).collect()
}

/// What `measure` says of the model for the `clean` prompt, with each head's values of the `other` prompt in their place, in the order of
/// layers and heads.
///
/// # Errors
/// Prompts of different lengths, receivers that are no such heads, as [`Model::trace`], and those of `measure`.
pub async fn patched(
    model: &Model,
    [clean, other]: [&[u32]; 2],
    path: &Path,
    mut measure: impl AsyncFnMut(&Model) -> Result<f64>,
) -> Result<Vec<HeadEffect>> {
    if clean.len() != other.len() {
        let found = format!("{} and {} tokens", clean.len(), other.len());
        return Err(Error::argument("prompts", found, "two of the same length"));
    }
    super::check_writes(model).await?;
    if let Path::Into(what, _) = path
        && !matches!(what, What::Q | What::K | What::V)
    {
        return Err(Error::argument("receivers", what.name(), "their q, k or v"));
    }
    let observe = Observe::new().capture("L*H*:z".parse()?);
    let (own, theirs) = (model.trace(&[clean], &observe).await?, model.trace(&[other], &observe).await?);
    let heads = heads_of(own.of(What::Z));
    let held: Vec<Vec<Edit>> = heads.iter().map(|&at| values_of(&own, at)).collect();
    let mut found = Vec::with_capacity(heads.len());
    for (number, &at) in heads.iter().enumerate() {
        let sent = values_of(&theirs, at);
        let others = held.iter().enumerate().filter(|(other, _)| *other != number);
        let others = others.flat_map(|(_, edits)| edits.iter().cloned());
        let patched = match path {
            Path::Any => with_edits(model, sent)?,
            Path::Direct => with_edits(model, others.chain(sent))?,
            Path::Into(what, receivers) => {
                // What the receivers read of it, all else as it was; then these readings alone.
                let sending = with_edits(model, others.chain(sent))?;
                let captures = receivers.iter().map(|&at| Capture::new(at, *what));
                let observe = captures.fold(Observe::new(), Observe::capture);
                let read = sending.trace(&[clean], &observe).await?;
                with_edits(model, read.recorded.iter().flat_map(|one| one.edits(0, 1.0)))?
            }
        };
        found.push(HeadEffect { at, effect: measure(&patched).await? });
    }
    Ok(found)
}

/// The share of the answers' difference that each head carries.
///
/// # Errors
/// Answers that the prompts do not tell apart, and as [`patched`].
pub async fn patch(model: &Model, pair: &Pair<'_>, path: &Path) -> Result<Vec<HeadEffect>> {
    super::check_writes(model).await?;
    let base = metric(model, pair, pair.clean).await?;
    let whole = metric(model, pair, pair.other).await? - base;
    if whole.abs() < 1e-6 {
        let found = format!("a difference of {whole:e}");
        return Err(Error::argument("prompts", found, "two whose answers differ"));
    }
    let measure = async |patched: &Model| metric(patched, pair, pair.clean).await;
    let mut found = patched(model, [pair.clean, pair.other], path, measure).await?;
    found.iter_mut().for_each(|one| one.effect = (one.effect - base) / whole);
    Ok(found)
}
