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
#[non_exhaustive]
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

/// What a step has room for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub tokens: usize,
    /// Of logits.
    pub rows: usize,
}

/// Cuts runs into steps that have room for them; whole sequences, or the whole batch, where the stack works on nothing less.
pub(crate) fn steps<'a>(stack: &StackSpec, runs: &[Run<'a>], room: Room) -> Vec<Vec<Run<'a>>> {
    if stack.whole_sequences().is_none() {
        return cut(runs, room);
    }
    match stack.cuts_sequences() {
        true => vec![runs.to_vec()],
        false => runs.iter().map(|&run| vec![run]).collect(),
    }
}

/// As [`steps`], where any token is a place to cut: sequence after sequence, but for the last tokens of those that want no
/// other logits, which come together behind all others.
fn cut<'a>(runs: &[Run<'a>], room: Room) -> Vec<Vec<Run<'a>>> {
    let rows: usize = runs.iter().map(|run| run.rows().len()).sum();
    if runs.iter().map(Run::tokens).sum::<usize>() <= room.tokens && rows <= room.rows {
        return vec![runs.to_vec()];
    }
    let (mut heads, mut last) = (Steps::new(room), Steps::new(room));
    for (head, tail) in runs.iter().map(|run| run.split()) {
        if let Some(head) = head {
            heads.push_pieces(head);
        }
        if let Some(tail) = tail {
            last.push(tail);
        }
    }
    heads.steps.into_iter().chain(last.steps).collect()
}

/// Steps that are being filled.
struct Steps<'a> {
    steps: Vec<Vec<Run<'a>>>,
    /// Of each step, and what the last one has left of it.
    room: Room,
    left: Room,
}

impl<'a> Steps<'a> {
    fn new(room: Room) -> Self {
        Self { steps: Vec::new(), room, left: Room { tokens: 0, rows: 0 } }
    }

    /// Adds a run as it is: to the last step, if that has room for it.
    fn push(&mut self, run: Run<'a>) {
        let (tokens, rows) = (run.tokens(), run.rows().len());
        if self.steps.is_empty() || tokens > self.left.tokens || rows > self.left.rows {
            self.steps.push(Vec::new());
            self.left = self.room;
        }
        if let Some(step) = self.steps.last_mut() {
            step.push(run);
        }
        self.left.tokens = self.left.tokens.saturating_sub(tokens);
        self.left.rows = self.left.rows.saturating_sub(rows);
    }

    /// Adds a run of ids, of which all tokens want logits or none, in as many pieces as it takes.
    fn push_pieces(&mut self, run: Run<'a>) {
        let most = |room: Room| match run.logits {
            LogitRows::None => room.tokens,
            _ => room.tokens.min(room.rows),
        };
        let mut rest = run.host_ids();
        while !rest.is_empty() {
            let fit = if most(self.left) > 0 { most(self.left) } else { most(self.room).max(1) };
            let (now, later) = rest.split_at(fit.min(rest.len()));
            self.push(Run::ids(run.sequence, now).logits(run.logits));
            rest = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sequence, ids and rows of logits of a run.
    type Shown = (u32, Vec<u32>, Vec<u32>);

    /// Room for so many tokens, and for logits of all of them.
    fn of(tokens: usize) -> Room {
        Room { tokens, rows: tokens }
    }

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
        assert_eq!(shown(&cut(&runs, of(4))), [[(3, vec![1, 2, 3], vec![2]), (1, vec![99], vec![0])]]);
    }

    #[test]
    fn the_last_tokens_come_together_behind_all_others() {
        let runs = [Run::ids(0, &[1, 2, 3, 4]), Run::ids(1, &[5]), Run::sampled(2), Run::ids(3, &[6, 7])];
        let expected = [
            vec![(0, vec![1, 2, 3], vec![]), (3, vec![6], vec![])],
            vec![(0, vec![4], vec![0]), (1, vec![5], vec![0]), (2, vec![99], vec![0]), (3, vec![7], vec![0])],
        ];
        assert_eq!(shown(&cut(&runs, of(4))), expected);
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
        assert_eq!(shown(&cut(&runs, of(2))), expected);
    }

    #[test]
    fn a_run_with_rows_of_its_own_stays_whole() {
        let runs = [Run::ids(0, &[1, 2, 3]), Run::ids(1, &[4, 5, 6]).logits(LogitRows::At(&[1]))];
        let expected =
            [vec![(0, vec![1, 2], vec![])], vec![(0, vec![3], vec![0]), (1, vec![4, 5, 6], vec![1])]];
        assert_eq!(shown(&cut(&runs, of(4))), expected);
    }

    #[test]
    fn logits_that_a_step_has_no_room_for_wait_for_the_next() {
        let all = Run::ids(0, &[1, 2, 3]).logits(LogitRows::All);
        let expected = [vec![(0, vec![1, 2], vec![0, 1])], vec![(0, vec![3], vec![0])]];
        assert_eq!(shown(&cut(&[all], Room { tokens: 8, rows: 2 })), expected);
        // Of last tokens, too.
        let runs = [Run::ids(0, &[1, 2]), Run::sampled(1), Run::ids(2, &[3])];
        let expected = [
            vec![(0, vec![1], vec![])],
            vec![(0, vec![2], vec![0]), (1, vec![99], vec![0])],
            vec![(2, vec![3], vec![0])],
        ];
        assert_eq!(shown(&cut(&runs, of(2))), expected);
        assert_eq!(shown(&cut(&runs, Room { tokens: 8, rows: 2 })), expected);
    }
}
