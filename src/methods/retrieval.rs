//! Which heads fetch what the model writes next.
//!
//! A head copies a token where its largest weight is on a token that is the next one; one that does not choose it copies nothing.
//!
//! ```text
//! copied(h) = copied tokens of the answer / tokens of the answer                (AttentionInfluence, arXiv 2505.07293)
//! needle(h) = copied tokens, from within the needle / length of the needle      (Retrieval Head, arXiv 2404.15574)
//! ```

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

use super::{head_rows, heads_of};
use crate::{
    Error, Model, Result,
    probes::{Address, Observe, Positions, What},
};

/// A text whose end answers what stands before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// All of it.
    pub ids: Vec<u32>,
    /// Which of them are the answer: not the first.
    pub answer: Range<usize>,
    /// Which of them it is to be taken from, where that is known.
    #[serde(default)]
    pub needle: Option<Range<usize>>,
}

/// What counts as fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Definition {
    /// The share of the answer that a head copies from anywhere.
    Copied,
    /// The share of the needle that a head copies from within the needle; above 1 where it copies a token more than once.
    Needle,
}

/// How much a head fetches, a score for each sample.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HeadRetrieval {
    /// The head.
    pub at: Address,
    /// In the order of the samples.
    pub scores: Vec<f64>,
}

impl HeadRetrieval {
    /// The mean over the samples.
    pub fn mean(&self) -> f64 {
        super::mean(self.scores.iter().copied()).unwrap_or(0.0)
    }
}

/// The scores of all heads, as files of Retrieval_Head hold them: `{"layer-head": [a score for each run, …]}`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Retrieval {
    /// In the order of layers and heads.
    pub heads: Vec<HeadRetrieval>,
}

impl Retrieval {
    /// From such a file's text.
    ///
    /// # Errors
    /// [`Error::Argument`] that names what is not so.
    pub fn from_json(text: &str) -> Result<Self> {
        let expected = r#"{"16-19": [0.94, …], …}: layer-head, and a score for each run"#;
        let refused = |found: String| Error::argument("retrieval scores", found, expected);
        let scores: BTreeMap<String, Vec<f64>> =
            serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
        let mut heads = Vec::with_capacity(scores.len());
        for (name, scores) in scores {
            let numbers = name.split_once('-').map(|(layer, head)| (layer.parse(), head.parse()));
            let Some((Ok(layer), Ok(head))) = numbers else {
                return Err(refused(format!("the name {}", crate::weights::quote(&name))));
            };
            heads.push(HeadRetrieval { at: Address::head(layer, head), scores });
        }
        heads.sort_by_key(|one| one.at);
        Ok(Self { heads })
    }

    /// Such a file's text.
    pub fn to_json(&self) -> String {
        let name = |at: &Address| format!("{}-{}", at.layer.unwrap_or(0), at.index.unwrap_or(0));
        let scores: serde_json::Map<String, serde_json::Value> =
            self.heads.iter().map(|one| (name(&one.at), one.scores.clone().into())).collect();
        serde_json::Value::Object(scores).to_string()
    }

    /// The heads by their mean score, best first, the lower number first among equals.
    pub fn ranked(&self) -> Vec<(Address, f64)> {
        let mut ranked: Vec<(Address, f64)> = self.heads.iter().map(|one| (one.at, one.mean())).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked
    }
}

/// Scores all heads over some samples.
///
/// # Errors
/// A sample whose answer or needle is not within its text, a needle that is asked for and not known, and as [`Model::trace`].
pub async fn retrieval(model: &Model, samples: &[Sample], definition: Definition) -> Result<Retrieval> {
    super::check_writes(model).await?;
    let mut heads: BTreeMap<Address, Vec<f64>> = BTreeMap::new();
    for (number, Sample { ids, answer, needle }) in samples.iter().enumerate() {
        let refused = |found: String, expected: &str| {
            Err(Error::argument("sample", format!("{found} of sample {number}"), expected))
        };
        if answer.start == 0 || answer.end > ids.len() || answer.is_empty() {
            return refused(format!("the answer {answer:?}"), "some tokens of it behind the first");
        }
        let needle = match (definition, needle) {
            (Definition::Copied, _) => 0..ids.len(),
            (Definition::Needle, Some(needle)) if needle.end <= ids.len() && !needle.is_empty() => {
                needle.clone()
            }
            (Definition::Needle, _) => {
                return refused(format!("the needle {needle:?}"), "some tokens of its text");
            }
        };
        // The row before a token says what it becomes.
        let asked = Positions::Range(answer.start as u32 - 1, answer.end as u32 - 1);
        let capture = "L*H*:rows".parse::<crate::probes::Capture>()?.positions(asked);
        let observe = Observe::new().capture(capture).budget(u64::MAX);
        let trace = model.trace(&[ids], &observe).await?;
        let mut counts: BTreeMap<Address, u32> =
            heads_of(trace.of(What::Rows)).into_iter().map(|at| (at, 0)).collect();
        let Some(argmax) = trace.column("argmax") else { continue };
        for row in head_rows(&trace) {
            let from = row.columns[argmax] as usize;
            let copies = needle.contains(&from) && ids[from] == ids[row.position as usize + 1];
            *counts.entry(row.at).or_default() += u32::from(copies);
        }
        let of = match definition {
            Definition::Copied => answer.len(),
            Definition::Needle => needle.len(),
        };
        for (at, copied) in counts {
            heads.entry(at).or_default().push(f64::from(copied) / of as f64);
        }
    }
    let heads = heads.into_iter().map(|(at, scores)| HeadRetrieval { at, scores });
    Ok(Retrieval { heads: heads.collect() })
}
