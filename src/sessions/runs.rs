//! What the sequences of a session read in one step.

use crate::models::StackSpec;

/// What one sequence reads in a step: ids, or the token that was sampled for it last.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    pub(super) sequence: u32,
    pub(super) input: Input<'a>,
    pub(super) logits: LogitRows<'a>,
}

/// Which tokens of a run want logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogitRows<'a> {
    /// None: the run is the start of a prompt.
    None,
    /// The last token, which the next one is chosen by.
    #[default]
    Last,
    /// Every token.
    All,
    /// These, counted from the run's start.
    At(&'a [u32]),
}

/// Where a run's input comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input<'a> {
    Ids(&'a [u32]),
    /// What the last sampling left on the GPU.
    Sampled,
    /// So many tokens of an image, whose patches are there already.
    Patches(u32),
}

impl<'a> Run<'a> {
    /// Lets `sequence` read `ids`. The last one wants logits.
    pub fn ids(sequence: u32, ids: &'a [u32]) -> Self {
        Self { sequence, input: Input::Ids(ids), logits: LogitRows::Last }
    }

    /// Lets `sequence` read the token that was sampled for it, which wants logits.
    pub fn sampled(sequence: u32) -> Self {
        Self { sequence, input: Input::Sampled, logits: LogitRows::Last }
    }

    /// An image of so many tokens, the first of which, its class, wants logits.
    pub(super) fn image(sequence: u32, tokens: u32) -> Self {
        Self { sequence, input: Input::Patches(tokens), logits: LogitRows::At(&[0]) }
    }

    /// Says which of its tokens want logits.
    pub fn logits(mut self, rows: LogitRows<'a>) -> Self {
        self.logits = rows;
        self
    }

    /// The sequence that reads.
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// Tokens that are read.
    pub fn tokens(&self) -> usize {
        match self.input {
            Input::Ids(ids) => ids.len(),
            Input::Sampled => 1,
            Input::Patches(tokens) => tokens as usize,
        }
    }

    /// The ids that are read, where the host knows them.
    pub(crate) fn host_ids(&self) -> &'a [u32] {
        match self.input {
            Input::Ids(ids) => ids,
            Input::Sampled | Input::Patches(_) => &[],
        }
    }

    /// The tokens that want logits, counted from the run's start.
    pub(super) fn rows(&self) -> Vec<u32> {
        let tokens = self.tokens() as u32;
        match self.logits {
            LogitRows::None => Vec::new(),
            LogitRows::Last => (tokens.saturating_sub(1)..tokens).collect(),
            LogitRows::All => (0..tokens).collect(),
            LogitRows::At(rows) => rows.to_vec(),
        }
    }

    /// How many of its tokens want logits.
    pub(crate) fn row_count(&self) -> usize {
        self.rows().len()
    }

    /// What can be read before, in any pieces, and what has to be in the last step.
    fn split(self) -> (Option<Self>, Option<Self>) {
        match (self.input, self.logits) {
            (Input::Ids(ids), LogitRows::Last) if !ids.is_empty() => {
                let (head, tail) = ids.split_at(ids.len() - 1);
                let head = (!head.is_empty()).then(|| Self::ids(self.sequence, head));
                (head.map(|head| head.logits(LogitRows::None)), Some(Self::ids(self.sequence, tail)))
            }
            (Input::Ids(_), LogitRows::None | LogitRows::All) => (Some(self), None),
            _ => (None, Some(self)),
        }
    }
}

/// Cuts runs into steps of at most `step_tokens` tokens; whole sequences, or the whole batch, where the stack works on
/// nothing less.
pub(crate) fn steps<'a>(stack: &StackSpec, runs: &[Run<'a>], step_tokens: usize) -> Vec<Vec<Run<'a>>> {
    if stack.whole_sequences().is_none() {
        return cut(runs, step_tokens);
    }
    match stack.cuts_sequences() {
        true => vec![runs.to_vec()],
        false => runs.iter().map(|&run| vec![run]).collect(),
    }
}

/// As [`steps`], where any token is a place to cut: sequence after sequence, but for the last tokens of those that want no
/// other logits, which come together in the last step.
fn cut<'a>(runs: &[Run<'a>], step_tokens: usize) -> Vec<Vec<Run<'a>>> {
    if runs.iter().map(Run::tokens).sum::<usize>() <= step_tokens {
        return vec![runs.to_vec()];
    }
    let (mut steps, mut last): (Vec<Vec<Run<'a>>>, Vec<Run<'a>>) = (Vec::new(), Vec::new());
    let mut room = 0;
    for (head, tail) in runs.iter().map(|run| run.split()) {
        last.extend(tail);
        let Some(head) = head else { continue };
        let mut rest = head.host_ids();
        while !rest.is_empty() {
            if room == 0 {
                steps.push(Vec::new());
                room = step_tokens.max(1);
            }
            let (now, later) = rest.split_at(room.min(rest.len()));
            if let Some(step) = steps.last_mut() {
                step.push(Run::ids(head.sequence, now).logits(head.logits));
            }
            room -= now.len();
            rest = later;
        }
    }
    if !last.is_empty() {
        steps.push(last);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sequence, ids and rows of logits of a run.
    type Shown = (u32, Vec<u32>, Vec<u32>);

    /// The runs of each step; a sampled token stands as 99.
    fn shown(steps: &[Vec<Run<'_>>]) -> Vec<Vec<Shown>> {
        let ids = |run: &Run<'_>| match run.input {
            Input::Sampled => vec![99],
            _ => run.host_ids().to_vec(),
        };
        let step =
            |runs: &Vec<Run<'_>>| runs.iter().map(|run| (run.sequence, ids(run), run.rows())).collect();
        steps.iter().map(step).collect()
    }

    #[test]
    fn what_fits_is_one_step() {
        let runs = [Run::ids(3, &[1, 2, 3]), Run::sampled(1)];
        assert_eq!(shown(&cut(&runs, 4)), [[(3, vec![1, 2, 3], vec![2]), (1, vec![99], vec![0])]]);
    }

    #[test]
    fn the_last_tokens_come_together_behind_all_others() {
        let runs = [Run::ids(0, &[1, 2, 3, 4]), Run::ids(1, &[5]), Run::sampled(2), Run::ids(3, &[6, 7])];
        let expected = [
            vec![(0, vec![1, 2, 3], vec![])],
            vec![(3, vec![6], vec![])],
            vec![(0, vec![4], vec![0]), (1, vec![5], vec![0]), (2, vec![99], vec![0]), (3, vec![7], vec![0])],
        ];
        assert_eq!(shown(&cut(&runs, 3)), expected);
    }

    #[test]
    fn runs_that_want_all_logits_or_none_are_cut_anywhere() {
        let runs =
            [Run::ids(0, &[1, 2, 3]).logits(LogitRows::All), Run::ids(1, &[4, 5]).logits(LogitRows::None)];
        let expected = [
            vec![(0, vec![1, 2], vec![0, 1])],
            vec![(0, vec![3], vec![0]), (1, vec![4], vec![])],
            vec![(1, vec![5], vec![])],
        ];
        assert_eq!(shown(&cut(&runs, 2)), expected);
    }

    #[test]
    fn a_run_with_rows_of_its_own_stays_whole() {
        let runs = [Run::ids(0, &[1, 2, 3]), Run::ids(1, &[4, 5, 6]).logits(LogitRows::At(&[1]))];
        let expected =
            [vec![(0, vec![1, 2], vec![])], vec![(0, vec![3], vec![0]), (1, vec![4, 5, 6], vec![1])]];
        assert_eq!(shown(&cut(&runs, 4)), expected);
    }
}
