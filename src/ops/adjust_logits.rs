//! Logits as penalties and biases leave them, and what penalties count.

use super::{Kernel, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::ADJUST_LOGITS, Params::layout);

pub static COUNT: Kernel = Kernel::new(&shaders::COUNT_TOKENS, CountParams::layout);

/// A logit or a bias that bans its token.
pub const BANNED: f32 = f32::MIN;

/// The bit of a count that says that a token was read.
pub const FROM_PROMPT: u32 = 1 << 31;

uniform! {
    struct Params {
        vocab: u32,
        stride: u32,
        sequences: u32,
        repetition: f32,
        relief: f32,
        presence: f32,
        frequency: f32,
    }
}

uniform! {
    struct CountParams {
        rows: u32,
        vocab: u32,
        stride: u32,
        sequences: u32,
    }
}

/// How often each sequence has each token, and whose rows of logits those of a step are.
#[derive(Clone, Copy)]
pub struct TokenCounts<'a> {
    /// `[sequences, vocab]` u32, rows padded: how often a token was written, and [`FROM_PROMPT`] if it was read
    pub counts: &'a Buffer,
    /// `[tokens]` spans
    pub spans: &'a Buffer,
    /// `[rows]` u32: the token in `spans` each row belongs to
    pub rows_of: &'a Buffer,
    pub sequences: u32,
    pub rows: u32,
    pub vocab: u32,
}

impl TokenCounts<'_> {
    /// Counts one token more for the sequence of each row: `tokens` `[rows]` u32. Each row is of another sequence.
    pub fn record(&self, recorder: &mut Recorder, tokens: &Buffer) {
        let Self { counts, spans, rows_of, sequences, rows, vocab } = *self;
        recorder.dispatch(
            &CountParams { rows, vocab, stride: padded(vocab), sequences },
            Dispatch::new(&COUNT, &[tokens, spans, rows_of, counts], [rows.div_ceil(64), 1, 1]),
        );
    }
}

/// `adjusted[r][v] = x − presence · [n > 0] − frequency · n + bias[v]`, `x` the logit, less likely by `repetition` if the sequence
/// has `v`; the exact rule stands in `shaders/adjust_logits.wgsl`.
pub struct AdjustLogits<'a> {
    /// `[rows, vocab]`, rows padded
    pub logits: &'a Buffer,
    pub counts: TokenCounts<'a>,
    /// `[vocab]` f32, padded; [`BANNED`] bans
    pub bias: &'a Buffer,
    /// `[rows, vocab]`, rows padded
    pub adjusted: &'a Buffer,
    /// Above 0; 1 changes nothing.
    pub repetition: f32,
    pub presence: f32,
    pub frequency: f32,
}

impl AdjustLogits<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let TokenCounts { counts, spans, rows_of, sequences, rows, vocab } = self.counts;
        let stride = padded(vocab);
        let params = Params {
            vocab,
            stride,
            sequences,
            repetition: self.repetition,
            relief: self.repetition.recip().min(f32::MAX),
            presence: self.presence,
            frequency: self.frequency,
        };
        let buffers = &[self.logits, spans, rows_of, counts, self.bias, self.adjusted];
        recorder.dispatch(&params, Dispatch::new(&KERNEL, buffers, [(stride / 4).div_ceil(64), rows, 1]));
    }
}
