//! Many texts in few steps.

use std::{collections::VecDeque, ops::Range};

use super::Model;
use crate::{
    Cancel, Error, Result,
    sessions::{LogitRows, PendingValues, Run, Session, SessionOptions},
};

/// Tokens of a step where memory allows.
const TOKENS: usize = 1024;
/// Sequences side by side where memory allows.
const SEQUENCES: usize = 64;

/// What a step has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub tokens: usize,
    pub sequences: usize,
}

/// A part of a text that a step reads, in sequence `text % room.sequences`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub text: usize,
    pub tokens: Range<usize>,
}

/// How texts are laid side by side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing {
    /// Tokens of a step at the most, unless one whole text has more.
    pub step_tokens: Option<usize>,
    /// Whether each text has to be in one step.
    pub whole: bool,
    /// Whether it has to be alone there.
    pub alone: bool,
    /// Whether rows stay hidden states.
    pub hidden: bool,
}

/// What is asked of a piece.
pub(super) struct Ask<'a> {
    /// Its ids.
    pub ids: &'a [u32],
    /// Which of them count.
    pub rows: LogitRows<'a>,
    /// For each that counts the id whose log-probability is wanted; none where hidden states are.
    pub targets: &'a [u32],
}

/// Steps submitted ahead of the one that is read.
const STEPS_AHEAD: usize = 2;

/// A session, and the steps in which it reads all texts.
pub(super) struct Packed {
    session: Session,
    room: Room,
    steps: Vec<Vec<Piece>>,
    /// Numbers of a row that comes back.
    row: usize,
}

impl Model {
    /// Lays texts of so many tokens side by side, in steps as large as memory has room for; nothing where there are no tokens.
    ///
    /// # Errors
    /// [`Error::TooLarge`] where the smallest steps are, and as [`Model::session`].
    pub(super) fn pack(&self, lengths: &[usize], packing: Packing) -> Result<Option<Packed>> {
        let (longest, all) = (lengths.iter().copied().max().unwrap_or(0), lengths.iter().sum());
        let Packing { step_tokens, whole, alone, hidden } = packing;
        if step_tokens == Some(0) {
            return Err(Error::argument("tokens of a step", 0, "at least 1"));
        }
        if longest == 0 {
            return Ok(None);
        }
        // What the smallest step must hold.
        let least = Room { tokens: if whole { longest } else { 1 }, sequences: 1 };
        let tokens = step_tokens.unwrap_or(TOKENS).min(all).max(least.tokens);
        let sequences = if alone { 1 } else { SEQUENCES.min(lengths.len()).min(tokens) };
        let mut room = Room { tokens, sequences };
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        loop {
            let options = SessionOptions::new()
                .sequences(number(room.sequences))
                .positions(number(longest))
                .reserve(number(longest))
                .step_tokens(number(room.tokens))
                .logit_rows(number(room.tokens));
            match self.session(if hidden { options.hidden() } else { options }) {
                Err(Error::TooLarge { .. }) if room != least => {
                    room.tokens = (room.tokens / 2).max(least.tokens);
                    room.sequences = (room.sequences / 2).max(least.sequences);
                }
                session => {
                    let row = if hidden { self.info().width as usize } else { 1 };
                    let steps = steps(lengths, room, whole);
                    return Ok(Some(Packed { session: session?, room, steps, row }));
                }
            }
        }
    }
}

impl Packed {
    /// Reads all texts: `ask` says what is wanted of a piece, `take` gets the numbers of each piece, in order. One that is
    /// cancelled ends without an error after the steps that are under way.
    ///
    /// # Errors
    /// As those of [`Session`].
    pub async fn read<'a>(
        mut self,
        cancel: &Cancel,
        ask: impl Fn(&Piece) -> Ask<'a>,
        mut take: impl FnMut(&Piece, &[f32]),
    ) -> Result<()> {
        let mut pending: VecDeque<(Vec<(Piece, usize)>, PendingValues)> = VecDeque::new();
        let mut steps = std::mem::take(&mut self.steps).into_iter();
        loop {
            if let Some(pieces) = steps.next().filter(|_| !cancel.is_cancelled()) {
                match self.submit(pieces, cancel, &ask).await {
                    Ok(read) => pending.push_back(read),
                    Err(Error::Cancelled) => {}
                    Err(error) => return Err(error),
                }
                if pending.len() <= STEPS_AHEAD {
                    continue;
                }
            }
            let Some((pieces, values)) = pending.pop_front() else { return Ok(()) };
            let values = values.wait().await?;
            let mut rest = &values[..];
            for (piece, rows) in pieces {
                let (own, others) = rest.split_at(rows * self.row);
                take(&piece, own);
                rest = others;
            }
        }
    }

    /// Submits a step; with each piece the rows that come back of it.
    async fn submit<'a>(
        &mut self,
        pieces: Vec<Piece>,
        cancel: &Cancel,
        ask: &impl Fn(&Piece) -> Ask<'a>,
    ) -> Result<(Vec<(Piece, usize)>, PendingValues)> {
        let (mut runs, mut targets, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for piece in &pieces {
            let sequence = (piece.text % self.room.sequences) as u32;
            if piece.tokens.start == 0 {
                self.session.rewind(sequence, 0)?;
            }
            let Ask { ids, rows, targets: wanted } = ask(piece);
            let run = Run::ids(sequence, ids).logits(rows);
            counts.push(run.row_count());
            runs.push(run);
            targets.extend_from_slice(wanted);
        }
        self.session.forward(&runs)?;
        let watch = |_, _| cancel.flow();
        let values = match targets.is_empty() {
            true => self.session.read_all_states(watch).await?,
            false => self.session.read_token_logprobs(&targets, watch).await?,
        };
        Ok((pieces.into_iter().zip(counts).collect(), values))
    }
}

/// Cuts texts of so many tokens, one after the other, into steps: anywhere, or between texts only. Of no two texts that share
/// a sequence one is begun before the other has ended.
fn steps(lengths: &[usize], room: Room, whole: bool) -> Vec<Vec<Piece>> {
    let mut steps: Vec<Vec<Piece>> = Vec::new();
    let mut left = 0;
    for (text, &length) in lengths.iter().enumerate() {
        let mut at = 0;
        while at < length {
            let first = steps.last().and_then(|step| step.first()).map_or(text, |piece| piece.text);
            let fits = if whole { length <= left } else { left > 0 };
            if !fits || text - first >= room.sequences {
                steps.push(Vec::new());
                left = room.tokens;
            }
            let end = length.min(at + left);
            if let Some(step) = steps.last_mut() {
                step.push(Piece { text, tokens: at..end });
            }
            left -= end - at;
            at = end;
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (text, first token, end) of the pieces of each step.
    fn cut(lengths: &[usize], tokens: usize, sequences: usize, whole: bool) -> Vec<Vec<[usize; 3]>> {
        let piece = |piece: &Piece| [piece.text, piece.tokens.start, piece.tokens.end];
        let steps = steps(lengths, Room { tokens, sequences }, whole);
        steps.iter().map(|step| step.iter().map(piece).collect()).collect()
    }

    #[test]
    fn texts_are_cut_where_a_step_is_full() {
        let expected = vec![vec![[0, 0, 3], [1, 0, 1]], vec![[1, 1, 5]], vec![[1, 5, 6], [4, 0, 2]]];
        assert_eq!(cut(&[3, 6, 0, 0, 2], 4, 8, false), expected);
        assert!(cut(&[], 4, 8, false).is_empty() && cut(&[0, 0], 4, 8, true).is_empty());
    }

    #[test]
    fn whole_texts_stay_whole() {
        assert_eq!(
            cut(&[3, 1, 2, 4], 4, 8, true),
            [vec![[0, 0, 3], [1, 0, 1]], vec![[2, 0, 2]], vec![[3, 0, 4]]]
        );
    }

    #[test]
    fn a_sequence_has_one_text_in_a_step() {
        assert_eq!(cut(&[1, 1, 1], 9, 2, false), [vec![[0, 0, 1], [1, 0, 1]], vec![[2, 0, 1]]]);
        assert_eq!(
            cut(&[1, 1, 1, 0, 1], 9, 3, false),
            [vec![[0, 0, 1], [1, 0, 1], [2, 0, 1]], vec![[4, 0, 1]]]
        );
        // Every token once, in order, whatever the sizes.
        for (tokens, sequences) in [(1, 1), (2, 3), (5, 2), (100, 4)] {
            let lengths: Vec<usize> = (0..40).map(|text| text * 7 % 11).collect();
            let mut read = vec![0; lengths.len()];
            for step in steps(&lengths, Room { tokens, sequences }, false) {
                assert!(step.iter().map(|piece| piece.tokens.len()).sum::<usize>() <= tokens);
                let mut taken = vec![false; sequences];
                for Piece { text, tokens } in step {
                    assert!(!std::mem::replace(&mut taken[text % sequences], true));
                    assert_eq!(tokens.start, read[text]);
                    read[text] = tokens.end;
                }
            }
            assert_eq!(read, lengths);
        }
    }
}
