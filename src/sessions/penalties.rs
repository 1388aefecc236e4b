//! What changes logits before a token is chosen by them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Session, check_ids, session::LogitRow};
use crate::{
    Error, Result,
    gpu::{Buffer, Gpu, Recorder},
    layers::Workspace,
    ops::{AdjustLogits, BANNED, FROM_PROMPT, TokenCounts, padded},
};

/// How logits are changed before a token is chosen by them; for [`Session::set_penalties`]. In the order of the methods, with
/// `n` the times that the new text has a token: `logit / repetition` (`· repetition` below zero) where prompt or new text have it,
/// `− presence` where `n > 0`, `− n · frequency`, `+ bias`.
///
/// With serde these are fields that are named as the methods here are; a bias of `null` bans a token.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    #[serde(deserialize_with = "biases")]
    #[cfg_attr(feature = "typescript", ts(as = "BTreeMap<u32, Option<f32>>"))]
    bias: BTreeMap<u32, f32>,
}

/// JSON has no −∞, and writes null in its place.
fn biases<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<BTreeMap<u32, f32>, D::Error> {
    let biases: BTreeMap<u32, Option<f32>> = serde::Deserialize::deserialize(from)?;
    Ok(biases.into_iter().map(|(id, bias)| (id, bias.unwrap_or(f32::NEG_INFINITY))).collect())
}

impl Default for Penalties {
    /// None.
    fn default() -> Self {
        Self { repetition: 1.0, presence: 0.0, frequency: 0.0, bias: BTreeMap::new() }
    }
}

impl Penalties {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes less likely what the prompt or the new text has: the logit of such a token is divided by `penalty`, or multiplied where
    /// it is below zero, as transformers does. 1 changes nothing, less makes repetition likelier.
    pub fn repetition(mut self, penalty: f32) -> Self {
        self.repetition = penalty;
        self
    }

    /// Taken off the logits of tokens that the new text has, as in OpenAI's API; 0 changes nothing.
    pub fn presence(mut self, penalty: f32) -> Self {
        self.presence = penalty;
        self
    }

    /// Taken off the logits of tokens of the new text, once for each time that it has them, as in OpenAI's API; 0 changes nothing.
    pub fn frequency(mut self, penalty: f32) -> Self {
        self.frequency = penalty;
        self
    }

    /// Added to the logits of these ids, whatever the text has; −∞ bans a token. Of equal ids the last counts.
    pub fn bias(mut self, biases: impl IntoIterator<Item = (u32, f32)>) -> Self {
        self.bias = biases.into_iter().collect();
        self
    }

    /// Refuses what is out of range for any model.
    ///
    /// # Errors
    /// [`Error::Argument`] for the first such penalty.
    pub fn check(&self) -> Result<()> {
        if !(self.repetition > 0.0 && self.repetition.is_finite()) {
            let expected = "a finite number above 0; 1 is none";
            return Err(Error::argument("repetition penalty", self.repetition, expected));
        }
        for (name, penalty) in [("presence penalty", self.presence), ("frequency penalty", self.frequency)] {
            if !penalty.is_finite() {
                return Err(Error::argument(name, penalty, "a finite number; 0 is none"));
            }
        }
        match self.bias.iter().find(|(_, bias)| bias.is_nan() || **bias == f32::INFINITY) {
            None => Ok(()),
            Some((id, bias)) => {
                let found = format!("{bias} for token {id}");
                Err(Error::argument("logit bias", found, "a finite number, or -inf to ban the token"))
            }
        }
    }

    /// Refuses tokens that a vocabulary does not have, and to ban all that it has.
    pub(crate) fn check_for(&self, vocab: u32) -> Result<()> {
        if let Some(id) = self.bias.keys().find(|&&id| id >= vocab) {
            let expected = format!("a token below the vocabulary size {vocab}");
            return Err(Error::argument("logit bias", format!("one for token {id}"), expected));
        }
        match (0..vocab).all(|id| self.bans(id)) {
            false => Ok(()),
            true => Err(Error::argument("logit bias", "-inf for every token", "a token to choose")),
        }
    }

    /// Whether its bias bans a token.
    pub(crate) fn bans(&self, id: u32) -> bool {
        self.bias.get(&id).is_some_and(|bias| *bias <= BANNED)
    }
}

/// Penalties at work in a session. Its buffers stay, be they used again or not.
pub(super) struct Adjusting {
    /// Those in force; nothing is recorded without any.
    penalties: Option<Penalties>,
    /// `[sequences, vocab]` u32: what each sequence has
    counts: Buffer,
    /// `[vocab]`
    bias: Buffer,
    /// `[logit_rows, vocab]`: what tokens are chosen by
    adjusted: Buffer,
    /// `[logit_rows, vocab]`: logits from the host
    offered: Buffer,
    /// Whether the next tokens are chosen by those.
    is_offered: bool,
    sequences: u32,
    vocab: u32,
}

impl Adjusting {
    /// Bytes of the four buffers.
    fn sizes(sequences: u32, logit_rows: u32, vocab: u32) -> [u64; 4] {
        [sequences, 1, logit_rows, logit_rows].map(|rows| 4 * u64::from(rows) * u64::from(padded(vocab)))
    }

    fn new(gpu: &Gpu, sequences: u32, logit_rows: u32, vocab: u32) -> Result<Self> {
        let sizes = Self::sizes(sequences, logit_rows, vocab);
        let what = "the penalties of a session";
        sizes.iter().try_for_each(|&bytes| gpu.fits(what, bytes))?;
        gpu.plan(what, sizes.iter().sum())?;
        let [counts, bias, adjusted, offered] = sizes.map(|bytes| Buffer::new(gpu, "penalties", bytes));
        gpu.check("allocating penalties")?;
        let (penalties, is_offered) = (None, false);
        Ok(Self { penalties, counts, bias, adjusted, offered, is_offered, sequences, vocab })
    }

    pub fn bytes(&self) -> u64 {
        [&self.counts, &self.bias, &self.adjusted, &self.offered].iter().map(|buffer| buffer.bytes()).sum()
    }

    /// Writes down what the sequences have read, and the biases.
    fn start(&mut self, penalties: &Penalties, read: &[&[u32]]) {
        let stride = padded(self.vocab) as usize;
        let mut counts = vec![0; stride];
        for (sequence, ids) in read.iter().enumerate() {
            counts.fill(0);
            ids.iter().for_each(|&id| counts[id as usize] = FROM_PROMPT);
            self.counts.write(4 * (sequence * stride) as u64, &counts);
        }
        let mut bias = vec![0.0; stride];
        penalties.bias.iter().for_each(|(&id, &value)| bias[id as usize] = value.max(BANNED));
        self.bias.write(0, &bias);
        (self.penalties, self.is_offered) = (Some(penalties.clone()), false);
    }

    fn counts<'a>(&'a self, workspace: &'a Workspace, rows: u32) -> TokenCounts<'a> {
        let Self { counts, sequences, vocab, .. } = self;
        let Workspace { spans, logit_rows: rows_of, .. } = workspace;
        TokenCounts { counts, spans, rows_of, sequences: *sequences, rows, vocab: *vocab }
    }

    /// Refuses rows that share a sequence, as what one of them chooses would count for the next.
    pub fn check_rows(&self, rows: &[LogitRow]) -> Result<()> {
        let mut seen = BTreeSet::new();
        match rows.iter().find(|row| !seen.insert(row.sequence)) {
            Some(row) if self.penalties.is_some() => {
                let found = format!("several of sequence {}", row.sequence);
                Err(Error::argument("rows of logits", found, "one of each sequence, with penalties"))
            }
            _ => Ok(()),
        }
    }

    /// Records what tokens are chosen by, and says where that is.
    pub fn record<'a>(&'a self, recorder: &mut Recorder, workspace: &'a Workspace, rows: u32) -> &'a Buffer {
        let Some(Penalties { repetition, presence, frequency, .. }) = self.penalties else {
            return &workspace.logits;
        };
        let logits = if self.is_offered { &self.offered } else { &workspace.logits };
        let (counts, bias, adjusted) = (self.counts(workspace, rows), &self.bias, &self.adjusted);
        AdjustLogits { logits, counts, bias, adjusted, repetition, presence, frequency }.record(recorder);
        adjusted
    }

    /// Records that the tokens that were chosen are among those written.
    pub fn record_chosen(&mut self, recorder: &mut Recorder, workspace: &Workspace, rows: u32) {
        self.is_offered = false;
        if self.penalties.is_some() {
            self.counts(workspace, rows).record(recorder, &workspace.tokens);
        }
    }
}

impl Session {
    /// Lets penalties change the logits of each [`sample`](Self::sample) to come; none with `None`. `prompts` has, for each sequence,
    /// the ids that count as its prompt, whether it has read them or is about to. From here on what is sampled counts as written,
    /// and a step has one row of logits of each sequence at the most. [`rewind`](Self::rewind) and [`restore`](Self::restore) take
    /// nothing back of what was counted: call this once more behind them, with all that a sequence has.
    ///
    /// # Errors
    /// A penalty out of range, an id outside the vocabulary, more prompts than sequences, and [`Error::TooLarge`] where there is no
    /// room: `[sequences + 2 · logit rows + 1, vocabulary]` four-byte numbers on the GPU.
    pub fn set_penalties(&mut self, penalties: Option<&Penalties>, prompts: &[&[u32]]) -> Result<()> {
        let Some(penalties) = penalties else {
            if let Some(adjusting) = &mut self.adjusting {
                adjusting.penalties = None;
            }
            return Ok(());
        };
        let vocab = self.transformer.spec.outputs;
        penalties.check()?;
        penalties.check_for(vocab)?;
        if prompts.len() > self.layout.sequences as usize {
            let expected = format!("at most {}, one for each sequence", self.layout.sequences);
            return Err(Error::argument("prompts", prompts.len(), expected));
        }
        prompts.iter().try_for_each(|ids| check_ids(ids, vocab))?;
        // What was recorded reads what is about to be written.
        self.submit_recorded();
        if self.adjusting.is_none() {
            let (sequences, rows) = (self.layout.sequences, self.layout.logit_rows);
            self.adjusting = Some(Adjusting::new(self.recorder.gpu(), sequences, rows, vocab)?);
        }
        if let Some(adjusting) = &mut self.adjusting {
            adjusting.start(penalties, prompts);
        }
        Ok(())
    }

    /// Lets the next [`sample`](Self::sample) choose by these logits `[rows, vocabulary]` in place of the last step's, while
    /// penalties are in force. −∞ bans a token.
    pub(crate) fn offer(&mut self, logits: &[f32]) {
        self.submit_recorded();
        let Some(adjusting) = &mut self.adjusting else { return };
        let (vocab, stride) = (adjusting.vocab as usize, padded(adjusting.vocab) as usize);
        for (row, logits) in logits.chunks(vocab).enumerate() {
            let finite: Vec<f32> = logits.iter().map(|logit| logit.max(BANNED)).collect();
            adjusting.offered.write(4 * (row * stride) as u64, &finite);
        }
        adjusting.is_offered = true;
    }
}
