//! The router without weights: a head's score is the length of its query.

use super::{Kernel, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::QUERY_NORM, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        heads: u32,
        first_head: u32,
        head_quads: u32,
        q_quads: u32,
        score_quads: u32,
    }
}

/// `scores[t][i] = ‖q[t][first_head + i]‖₂`
pub struct QueryNorm<'a> {
    /// `[tokens, heads · head_dim]`
    pub q: &'a Buffer,
    /// `[tokens, heads]`, rows padded
    pub scores: &'a Buffer,
    pub tokens: u32,
    /// Heads there are.
    pub heads: u32,
    /// The first one to measure.
    pub first_head: u32,
    pub head_dim: u32,
}

impl QueryNorm<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let head_quads = self.head_dim.div_ceil(4);
        let measured = self.heads - self.first_head;
        let params = Params {
            tokens: self.tokens,
            heads: measured,
            first_head: self.first_head,
            head_quads,
            q_quads: padded(self.heads * 4 * head_quads) / 4,
            score_quads: padded(measured) / 4,
        };
        recorder.dispatch(
            &params,
            Dispatch {
                kernel: &KERNEL,
                constants: &[],
                buffers: &[self.q, self.scores],
                groups: [measured.div_ceil(64), self.tokens, 1],
                macs: u64::from(self.tokens) * u64::from(measured) * u64::from(self.head_dim),
                weight_bytes: 0,
                cache_bytes: 0,
            },
        );
    }
}
