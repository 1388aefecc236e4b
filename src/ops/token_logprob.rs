//! How likely given tokens are.

use super::{Kernel, Variants, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::TOKEN_LOGPROB, Params::layout);

uniform! {
    struct Params {
        vocab: u32,
        stride: u32,
    }
}

/// `values[r] = ln softmax(logits[r])[targets[r]]`; [`NOT_FINITE`](super::NOT_FINITE) if a logit of the row is not.
pub struct TokenLogprob<'a> {
    /// `[rows, vocab]`, rows padded
    pub logits: &'a Buffer,
    /// `[rows]` u32: a token for each row
    pub targets: &'a Buffer,
    /// `[rows]` f32 by their bits
    pub values: &'a Buffer,
    pub rows: u32,
    pub vocab: u32,
}

impl TokenLogprob<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        recorder.dispatch(
            &Params { vocab: self.vocab, stride: padded(self.vocab) },
            Dispatch {
                constants: &[("LANES", f64::from(Variants::of(recorder.gpu()).row_lanes))],
                ..Dispatch::new(&KERNEL, &[self.logits, self.targets, self.values], [1, self.rows, 1])
            },
        );
    }
}
