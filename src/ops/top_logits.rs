//! The likeliest tokens of each row of logits.

use super::{Kernel, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::TOP_LOGITS, Params::layout);

/// Tokens a row gives at the most: the kernel passes over the row once for each.
pub const MAX_TOP_LOGITS: u32 = 16;

uniform! {
    struct Params {
        vocab: u32,
        stride: u32,
        n: u32,
    }
}

/// The `n` largest logits of each row, descending, as log-probabilities.
pub struct TopLogits<'a> {
    /// `[rows, vocab]`, rows padded
    pub logits: &'a Buffer,
    /// `[rows, n]` u32
    pub ids: &'a Buffer,
    /// `[rows, n]` f32
    pub values: &'a Buffer,
    pub rows: u32,
    pub vocab: u32,
    /// At most [`MAX_TOP_LOGITS`] and `vocab`.
    pub n: u32,
}

impl TopLogits<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        recorder.dispatch(
            &Params { vocab: self.vocab, stride: padded(self.vocab), n: self.n },
            Dispatch::new(&KERNEL, &[self.logits, self.ids, self.values], [1, self.rows, 1]),
        );
    }
}
