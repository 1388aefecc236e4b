//! How a session is laid out.

use crate::{Error, Result, gpu::Gpu};

/// Positions of a sequence on a software adapter. Mesa's llvmpipe ends an invocation, without an error, after 65,535
/// turns of its loops, which row attention reaches between 14,000 and 16,000 keys.
pub(super) const SOFTWARE_POSITIONS: u32 = 12_288;

/// Positions by which a cache grows.
pub(super) const PAGE: u32 = 64;

/// Tokens of a step where nothing else is asked for.
pub(crate) const STEP_TOKENS: u32 = 512;

/// Sequences, tokens and rows of a step that a dispatch can count.
const MOST: u32 = 65_535;

/// What a [`Session`](super::Session) has room for.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize, PartialEq, Eq)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct SessionOptions {
    sequences: u32,
    positions: Option<u32>,
    reserve: u32,
    step_tokens: Option<u32>,
    logit_rows: Option<u32>,
    hidden: bool,
}

impl Default for SessionOptions {
    /// One sequence as long as the model's context, 512 tokens in a step.
    fn default() -> Self {
        Self { sequences: 1, positions: None, reserve: 1, step_tokens: None, logit_rows: None, hidden: false }
    }
}

impl SessionOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sequences side by side, numbered from 0.
    pub fn sequences(mut self, sequences: u32) -> Self {
        self.sequences = sequences;
        self
    }

    /// Positions of each sequence at the most: the model's context, or as many of it as the device can attend to, unless
    /// said otherwise.
    pub fn positions(mut self, positions: u32) -> Self {
        self.positions = Some(positions);
        self
    }

    /// Positions to have memory for from the start, in pages of 64. It grows, to at least twice as much, when a sequence
    /// needs more.
    pub fn reserve(mut self, positions: u32) -> Self {
        self.reserve = positions;
        self
    }

    /// Tokens of a step, over all sequences: 512 unless said otherwise, or fewer where sequences are short.
    pub fn step_tokens(mut self, tokens: u32) -> Self {
        self.step_tokens = Some(tokens);
        self
    }

    /// Rows of logits of a step, over all sequences: one for each sequence unless said otherwise.
    pub fn logit_rows(mut self, rows: u32) -> Self {
        self.logit_rows = Some(rows);
        self
    }

    /// Leaves the output head out: a row that would want logits is a hidden state, normed as the head would read it, for
    /// [`Session::hidden`](super::Session::hidden). There are no logits, and no memory for them.
    pub fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    /// What that is for a model of this context.
    pub(super) fn layout(&self, gpu: &Gpu, context: u32) -> Result<Layout> {
        let within = |name, found, most| match (1..=most).contains(&found) {
            true => Ok(found),
            false => Err(Error::argument(name, found, format!("at least 1, at most {most}"))),
        };
        let sequences = within("sequences", self.sequences, MOST)?;
        let capacity =
            within("positions", self.positions.unwrap_or_else(|| most_positions(gpu, context)), context)?;
        let usual = STEP_TOKENS.min(sequences.saturating_mul(capacity)).max(sequences);
        let step_tokens = within("tokens of a step", self.step_tokens.unwrap_or(usual), MOST)?;
        let rows = self.logit_rows.unwrap_or_else(|| sequences.min(step_tokens));
        let logit_rows = within("rows of logits of a step", rows, step_tokens)?;
        let first = within("positions to reserve", self.reserve, capacity)?;
        Ok(Layout { sequences, capacity, first, step_tokens, logit_rows, hidden: self.hidden })
    }
}

/// The sizes of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub sequences: u32,
    /// Positions of each sequence at the most.
    pub capacity: u32,
    /// Positions that are wanted for sure.
    first: u32,
    /// Tokens of one step, over all sequences.
    pub step_tokens: u32,
    /// Rows of logits of one step.
    pub logit_rows: u32,
    /// Whether they stay hidden states.
    pub hidden: bool,
}

impl Layout {
    /// Positions to start with: whole pages.
    pub fn first_capacity(&self) -> u32 {
        self.first.next_multiple_of(PAGE).min(self.capacity)
    }
}

/// The most positions of a sequence on a device, for a model of this context.
pub(crate) fn most_positions(gpu: &Gpu, context: u32) -> u32 {
    if gpu.capabilities().software { context.min(SOFTWARE_POSITIONS) } else { context }
}
