//! The choice that looks at whole sequences: every head takes the same number of tokens.

use super::{Kernel, Routes, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::SEQUENCE_CUT, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        heads: u32,
        top_k: u32,
        sequences: u32,
        first: u32,
    }
}

/// Cuts sequences to the tokens that each head takes; the formula stands in the shader.
pub struct SequenceCut<'a> {
    /// `[tokens, top_k]` u32: heads that each token kept
    pub kept: &'a Buffer,
    /// `[sequences]` of (first token, tokens)
    pub ranges: &'a Buffer,
    /// `[tokens, heads]` [`Span`](super::Span)s
    pub head_spans: &'a Buffer,
    /// Slot h of a token is head h or nobody.
    pub routes: Routes<'a>,
    pub tokens: u32,
    pub heads: u32,
    pub top_k: u32,
    pub sequences: u32,
    pub causal: bool,
}

impl SequenceCut<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Self { tokens, heads, top_k, sequences, .. } = *self;
        let Routes { chosen, gates, first, .. } = self.routes;
        recorder.dispatch(
            &Params { tokens, heads, top_k, sequences, first },
            Dispatch {
                constants: &[("CAUSAL", f64::from(u8::from(self.causal)))],
                ..Dispatch::new(&KERNEL, &[self.kept, self.ranges, self.head_spans, chosen, gates], [1; 3])
            },
        );
    }
}
