//! A greedy search for the heads whose change serves an objective best (HeadHunter, arXiv 2506.10978):
//!
//! ```text
//! S = {};   in each round: O(S + {h}) for every head h that is left;   S ← S + the k best
//! ```

use serde::Serialize;

use crate::{
    Error, Result,
    probes::{Address, Change, Edit, Edits},
};

/// A search.
#[derive(Clone, Debug)]
pub struct Hunt {
    heads: Vec<Address>,
    change: Change,
    each: usize,
    rounds: usize,
    stop: bool,
}

/// What a round found.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HuntRound {
    /// The heads that it added, best first; none where all would have made the objective worse.
    pub added: Vec<Address>,
    /// The objective with all heads so far.
    pub objective: f64,
}

impl Hunt {
    /// Among these heads, by this change: one head in one round.
    pub fn new(heads: &[Address], change: Change) -> Self {
        Self { heads: heads.to_vec(), change, each: 1, rounds: 1, stop: false }
    }

    /// Adds so many heads in each round.
    pub fn each(mut self, heads: usize) -> Self {
        self.each = heads;
        self
    }

    /// So many rounds.
    pub fn rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// Ends where another head makes the objective worse: then it never falls.
    pub fn stop(mut self, on: bool) -> Self {
        self.stop = on;
        self
    }

    /// Searches for the largest objective of edits, which `objective` computes: of the edits without any head first, then of those
    /// of each candidate.
    ///
    /// # Errors
    /// No heads, no rounds, and those of `objective`.
    pub async fn run(&self, mut objective: impl AsyncFnMut(&Edits) -> Result<f64>) -> Result<Vec<HuntRound>> {
        for (name, count) in
            [("heads", self.heads.len()), ("rounds", self.rounds), ("heads of a round", self.each)]
        {
            if count == 0 {
                return Err(Error::argument(name, 0, "at least 1"));
            }
        }
        let mut left = self.heads.clone();
        let mut edits = Edits::new();
        let mut best = objective(&edits).await?;
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            let mut scored = Vec::new();
            for &at in &left {
                scored.push((objective(&edits.clone().with(Edit::new(at, self.change.clone()))).await?, at));
            }
            scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            scored.truncate(self.each);
            if self.stop {
                scored.retain(|(score, _)| *score >= best);
            }
            let added: Vec<Address> = scored.iter().map(|(_, at)| *at).collect();
            edits.extend(added.iter().map(|&at| Edit::new(at, self.change.clone())));
            left.retain(|at| !added.contains(at));
            best = match scored.as_slice() {
                [] => best,
                [(score, _)] => *score,
                _ => objective(&edits).await?,
            };
            let over = added.is_empty() || left.is_empty();
            rounds.push(HuntRound { added, objective: best });
            if over {
                break;
            }
        }
        Ok(rounds)
    }
}
