//! Masked language modelling: a text with masks in, the likeliest tokens behind each out.

use serde::Serialize;

use super::Model;
use crate::{
    Error, Result,
    models::Task,
    ops::MAX_TOP_LOGITS,
    sessions::{LogitRows, Run, SessionOptions, TokenRoutes},
};

/// A token that may stand behind a mask.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Candidate {
    /// Its id.
    pub id: u32,
    /// Its text; empty when filling ids.
    pub text: String,
    /// How likely it is.
    pub probability: f32,
}

/// A mask and what may stand behind it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct FilledMask {
    /// Its place among the ids.
    pub position: usize,
    /// The likeliest first.
    pub candidates: Vec<Candidate>,
}

/// What a model says of one text.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Filled {
    /// The ids that the model read, an end token last.
    pub ids: Vec<u32>,
    /// Every mask, from left to right.
    pub masks: Vec<FilledMask>,
    /// The experts that each token chose.
    #[serde(skip)]
    pub routes: Vec<TokenRoutes>,
}

impl Filled {
    /// Of a text that was not read.
    fn nothing(ids: &[u32]) -> Self {
        Self { ids: ids.to_vec(), masks: Vec::new(), routes: Vec::new() }
    }
}

impl Model {
    /// The `top` likeliest tokens behind each mask of a text. The mask is written as the tokenizer has it, often
    /// `[MASK]`.
    ///
    /// # Errors
    /// A model that fills no masks, a text without a mask or longer than the model's context, `top` outside 1 to 16, and
    /// what the GPU reports.
    #[cfg(feature = "tokenizer")]
    pub async fn fill(&self, text: &str, top: usize) -> Result<Filled> {
        let Task::FillMask { mask, end } = self.task else { return Err(self.wrong_task("fill")) };
        let tokenizer = self.tokenizer()?;
        let ids = self.encode_ending(text, end)?;
        if !ids.contains(&mask) {
            let mask = tokenizer.token(mask).unwrap_or_else(|| format!("token {mask}"));
            return Err(Error::argument("text", "no mask", format!("{mask} at least once")));
        }
        let mut filled = self.fill_ids(&[&ids], top).await?.remove(0);
        for candidate in filled.masks.iter_mut().flat_map(|mask| &mut mask.candidates) {
            candidate.text = tokenizer.decode(&[candidate.id])?;
        }
        Ok(filled)
    }

    /// The `top` likeliest tokens behind each mask of a batch of sequences, which end as the model wants them to. Of sequences that
    /// [`Cancel`](crate::Cancel) leaves out no masks are named.
    ///
    /// # Errors
    /// As [`Model::fill`], and an id outside the vocabulary.
    pub async fn fill_ids(&self, sequences: &[&[u32]], top: usize) -> Result<Vec<Filled>> {
        let Task::FillMask { mask, .. } = self.task else { return Err(self.wrong_task("fill")) };
        self.check_prompts(sequences)?;
        let most = MAX_TOP_LOGITS.min(self.info().vocab) as usize;
        if !(1..=most).contains(&top) {
            return Err(Error::argument("top", top, format!("1 to {most}")));
        }
        let masks_of = |ids: &[u32]| -> Vec<u32> {
            (0..).zip(ids).filter(|(_, id)| **id == mask).map(|(position, _)| position).collect()
        };
        if let Some(index) = sequences.iter().position(|ids| masks_of(ids).is_empty()) {
            return Err(Error::argument("text", format!("no mask in text {index}"), "at least one mask"));
        }
        let mut results = Vec::with_capacity(sequences.len());
        for batch in packed(sequences, BATCH_TOKENS) {
            let masks: Vec<Vec<u32>> = batch.iter().map(|ids| masks_of(ids)).collect();
            let runs = (0..).zip(&batch).zip(&masks);
            let runs: Vec<Run<'_>> = runs
                .map(|((sequence, ids), masks)| Run::ids(sequence, ids).logits(LogitRows::At(masks)))
                .collect();
            let longest = batch.iter().map(|ids| ids.len()).max().unwrap_or(0) as u32;
            let layout = SessionOptions::new()
                .sequences(batch.len() as u32)
                .positions(longest)
                .reserve(longest)
                .step_tokens(batch.iter().map(|ids| ids.len()).sum::<usize>() as u32)
                .logit_rows(masks.iter().map(Vec::len).sum::<usize>() as u32);
            let mut session = self.session(layout)?;
            session.forward(&runs)?;
            let (tops, routes) = match session.read_top(top as u32).await {
                Err(Error::Cancelled) => break,
                read => read?,
            };
            let (mut tops, mut tokens) = (tops.into_iter(), 0..);
            for (ids, masks) in batch.iter().zip(&masks) {
                let filled = masks.iter().zip(tops.by_ref());
                let filled = filled.map(|(&position, top)| FilledMask {
                    position: position as usize,
                    candidates: named(top),
                });
                results.push(Filled {
                    ids: ids.to_vec(),
                    masks: filled.collect(),
                    routes: tokens.by_ref().take(ids.len()).map(|token| routes.token(token)).collect(),
                });
            }
        }
        let missed = &sequences[results.len()..];
        results.extend(missed.iter().map(|ids| Filled::nothing(ids)));
        Ok(results)
    }

    /// The error for a task that this model is not for.
    pub(super) fn wrong_task(&self, wanted: &str) -> Error {
        let found = format!("one for the task {}", self.task.name());
        Error::argument("model", found, format!("one for the task {wanted}"))
    }
}

/// Tokens of one step.
const BATCH_TOKENS: usize = 1024;

fn named(top: Vec<(u32, f32)>) -> Vec<Candidate> {
    let candidate = |(id, log): (u32, f32)| Candidate { id, text: String::new(), probability: log.exp() };
    top.into_iter().map(candidate).collect()
}

/// Whole sequences in batches of at most `tokens` tokens, or one sequence.
pub(super) fn packed<'a>(sequences: &[&'a [u32]], tokens: usize) -> Vec<Vec<&'a [u32]>> {
    let mut batches: Vec<Vec<&[u32]>> = Vec::new();
    let mut room = 0;
    for ids in sequences {
        match batches.last_mut().filter(|_| ids.len() <= room) {
            Some(batch) => batch.push(ids),
            None => {
                batches.push(vec![ids]);
                room = tokens;
            }
        }
        room = room.saturating_sub(ids.len());
    }
    batches
}
