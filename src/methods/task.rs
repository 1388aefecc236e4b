//! A task as what heads put out (SITE, arXiv 2507.20906): the mean of each head's output at the last token of prompts with examples,
//! mixed into a prompt without any.
//!
//! ```text
//! t[l, h] = mean over prompts of z[l, h, last]        z[l, h, last] ← (1 − a) · z[l, h, last] + a · t[l, h]
//! ```
//!
//! `a` is one number for all heads, or one for each, searched head by head over 0, ½ and 1: published are those that gradients find.

use serde::{Deserialize, Serialize};

use super::{log_sum_exp, logit_of, logits_behind, with_edits};
use crate::{
    Edit, Edits, Error, Model, Result,
    probes::{Address, Capture, Change, Observe, Positions, Vectors, What},
};

/// What heads put out at the last token of a task's prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TaskVector {
    /// One for each head.
    pub heads: Vec<TaskHead>,
}

/// Of one head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TaskHead {
    /// Which.
    pub at: Address,
    /// The mean of its output.
    pub mean: Vec<f32>,
    /// How much of it is mixed in, from 0 to 1.
    pub part: f32,
}

/// A question without examples, and the first token of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// The prompt.
    pub prompt: &'a [u32],
    /// What should follow.
    pub answer: u32,
}

impl TaskVector {
    /// Of prompts with examples, all of them mixed in by `part`. A head that no last token chose has no place in it.
    ///
    /// # Errors
    /// No prompts, a part that is none, and as [`Model::trace`].
    pub async fn learn(model: &Model, prompts: &[&[u32]], part: f32) -> Result<Self> {
        if prompts.is_empty() {
            return Err(Error::argument("prompts", "none", "at least one"));
        }
        super::check_writes(model).await?;
        if !(0.0..=1.0).contains(&part) {
            return Err(Error::argument("part", part, "from 0 to 1"));
        }
        let mut heads: Vec<(Address, Vec<f64>, u32)> = Vec::new();
        for ids in prompts {
            let last = Positions::List(vec![(ids.len() as u32).saturating_sub(1)]);
            let capture = "L*H*:z".parse::<Capture>()?.positions(last);
            let trace = model.trace(&[ids], &Observe::new().capture(capture)).await?;
            let all =
                trace.of(What::Z).flat_map(|one| one.heads.iter().enumerate().map(move |head| (one, head)));
            for (place, (one, (head, &number))) in all.enumerate() {
                let z = one.at(0, head);
                if heads.len() == place {
                    heads.push((Address::head(one.layer, number), vec![0.0; z.len()], 0));
                }
                // Nothing but zeros is what a head puts out that the token did not choose.
                let (_, sum, count) = &mut heads[place];
                *count += u32::from(z.iter().any(|&z| z != 0.0));
                sum.iter_mut().zip(z).for_each(|(sum, &z)| *sum += f64::from(z));
            }
        }
        let chosen = heads.into_iter().filter(|(_, _, count)| *count > 0);
        let heads = chosen.map(|(at, sum, count)| {
            let mean = sum.iter().map(|sum| (sum / f64::from(count)) as f32).collect();
            TaskHead { at, mean, part }
        });
        Ok(Self { heads: heads.collect() })
    }

    /// From its JSON form.
    ///
    /// # Errors
    /// [`Error::Argument`] that names what is not so.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| {
            Error::argument("task", error, r#"{"heads": [{"at": "L1H2", "mean": [0.5, …], "part": 0.5}]}"#)
        })
    }

    /// The edits that mix it in at a position: that of a prompt's last token.
    pub fn edits(&self, position: u32) -> Edits {
        let mixed = self.heads.iter().filter(|head| head.part > 0.0);
        let edit = |TaskHead { at, mean, part }: &TaskHead| {
            let change = Change::Mix { part: *part, with: Vectors::One(mean.clone()) };
            Edit::new(*at, change).positions(Positions::List(vec![position]))
        };
        mixed.map(edit).collect()
    }

    /// The model that answers prompts of `tokens` tokens so.
    ///
    /// # Errors
    /// A task of another model.
    pub fn applied(&self, model: &Model, tokens: usize) -> Result<Model> {
        with_edits(model, self.edits((tokens as u32).saturating_sub(1)).iter().cloned())
    }

    /// The mean loss of the answers, in nats, and the share of questions whose likeliest answer is right.
    ///
    /// # Errors
    /// No questions, one without a prompt, and as [`Model::logits`].
    pub async fn score(&self, model: &Model, questions: &[Question<'_>]) -> Result<(f64, f64)> {
        if questions.is_empty() {
            return Err(Error::argument("questions", "none", "at least one"));
        }
        let (mut loss, mut right) = (0.0, 0.0);
        for Question { prompt, answer } in questions {
            let row = logits_behind(&self.applied(model, prompt.len())?, prompt).await?;
            let own = logit_of(&row, *answer)?;
            loss += log_sum_exp(&row) - f64::from(own);
            right += f64::from(u8::from(row.iter().all(|&other| other <= own)));
        }
        Ok((loss / questions.len() as f64, right / questions.len() as f64))
    }

    /// Searches each head's part over 0, ½ and 1, head after head, for the smallest loss of these questions; `rounds` times.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub async fn search(&mut self, model: &Model, questions: &[Question<'_>], rounds: usize) -> Result<f64> {
        let (mut best, _) = self.score(model, questions).await?;
        for _ in 0..rounds {
            for head in 0..self.heads.len() {
                let before = self.heads[head].part;
                let mut kept = before;
                for part in [0.0, 0.5, 1.0].into_iter().filter(|&part| part != before) {
                    self.heads[head].part = part;
                    let (loss, _) = self.score(model, questions).await?;
                    if loss < best {
                        (best, kept) = (loss, part);
                    }
                }
                self.heads[head].part = kept;
            }
        }
        Ok(best)
    }
}
