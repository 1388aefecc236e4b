//! Choosing the next token on the GPU.

use super::{Kernel, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

/// What stands for a token where a row's logits are not all finite, the twin of `shaders/shared/finite.wgsl`.
pub const NOT_FINITE: u32 = u32::MAX;

/// Temperatures whose quotients every GPU computes. Beyond them, logits within ±10³⁰ are as good as equal, or the highest
/// is alone, all the same.
const TEMPERATURES: std::ops::RangeInclusive<f32> = 1.175_494_4e-38..=8.507_059e37;

pub static ARGMAX: Kernel = Kernel::new(&shaders::ARGMAX, ArgmaxParams::layout);

pub static SAMPLE: Kernel = Kernel::new(&shaders::SAMPLE, SampleParams::layout);

uniform! {
    struct ArgmaxParams {
        vocab: u32,
        stride: u32,
    }
}

uniform! {
    struct SampleParams {
        vocab: u32,
        stride: u32,
        top_k: u32,
        seed_low: u32,
        seed_high: u32,
        top_p: f32,
        temperature: f32,
    }
}

/// `tokens[r] = argmax(logits[r])`, ties to the lower index; [`NOT_FINITE`] if a logit is not.
pub struct Argmax<'a> {
    /// `[rows, vocab]`, rows padded
    pub logits: &'a Buffer,
    /// `[rows]` u32
    pub tokens: &'a Buffer,
    pub rows: u32,
    pub vocab: u32,
}

impl Argmax<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        recorder.dispatch(
            &ArgmaxParams { vocab: self.vocab, stride: padded(self.vocab) },
            Dispatch::new(&ARGMAX, &[self.logits, self.tokens], [1, self.rows, 1]),
        );
    }
}

/// Draws `tokens[r]` from `softmax(logits[r] / temperature)` cut to `top_k` and `top_p`; the exact rule stands
/// in `shaders/sample.wgsl`. [`NOT_FINITE`] if a logit is not.
pub struct Sample<'a> {
    /// `[rows, vocab]`, rows padded
    pub logits: &'a Buffer,
    /// `[tokens]` of (position, sequence)
    pub spans: &'a Buffer,
    /// `[rows]` u32: the token in `spans` each row belongs to
    pub rows_of: &'a Buffer,
    /// `[rows]` u32
    pub tokens: &'a Buffer,
    pub rows: u32,
    pub vocab: u32,
    /// Above 0.
    pub temperature: f32,
    /// At least 1; `vocab` or more keeps all.
    pub top_k: u32,
    /// In (0, 1]; 1 keeps all.
    pub top_p: f32,
    pub seed: u64,
}

impl Sample<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let params = SampleParams {
            vocab: self.vocab,
            stride: padded(self.vocab),
            top_k: self.top_k,
            seed_low: self.seed as u32,
            seed_high: (self.seed >> 32) as u32,
            top_p: self.top_p,
            temperature: self.temperature.clamp(*TEMPERATURES.start(), *TEMPERATURES.end()),
        };
        recorder.dispatch(
            &params,
            Dispatch::new(&SAMPLE, &[self.logits, self.spans, self.rows_of, self.tokens], [1, self.rows, 1]),
        );
    }
}
