//! The router that compares directions: a token's projection with a centroid of each expert.

use super::{Kernel, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::COSINE_ROUTER, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        experts: u32,
        hidden_quads: u32,
        score_quads: u32,
    }
}

/// `scores[t][e] = exp(temperature) · cos(hidden[t], centroid_e)` (ModuleFormer's third kind of gate).
pub struct CosineRouter<'a> {
    /// `[tokens, width]`, rows padded
    pub hidden: &'a Buffer,
    /// `[experts, width]` f32, rows padded
    pub centroids: &'a Buffer,
    /// `[1]` f32
    pub temperature: &'a Buffer,
    /// `[tokens, experts]`, rows padded
    pub scores: &'a Buffer,
    pub tokens: u32,
    pub experts: u32,
    pub width: u32,
}

impl CosineRouter<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let params = Params {
            tokens: self.tokens,
            experts: self.experts,
            hidden_quads: padded(self.width) / 4,
            score_quads: padded(self.experts) / 4,
        };
        recorder.dispatch(
            &params,
            Dispatch {
                kernel: &KERNEL,
                constants: &[],
                buffers: &[self.hidden, self.centroids, self.temperature, self.scores],
                groups: [self.experts.div_ceil(64), self.tokens, 1],
                macs: u64::from(self.tokens) * u64::from(self.experts) * u64::from(self.width),
                weight_bytes: 4 * u64::from(self.experts) * u64::from(padded(self.width)),
                cache_bytes: 0,
            },
        );
    }
}
