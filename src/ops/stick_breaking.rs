//! Stick-breaking attention: each key, from the newest back, takes its share of what the later ones left.

use super::{AttentionShape, Kernel, Routes, attention_shape::Params, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::STICK_BREAKING, Params::layout);

/// Stick-breaking attention, one workgroup for each query row.
pub struct StickBreaking<'a> {
    pub shape: AttentionShape,
    pub spans: &'a Buffer,
    pub q: &'a Buffer,
    pub k_cache: &'a Buffer,
    pub v_cache: &'a Buffer,
    /// As in [`DecodeAttention`](super::DecodeAttention).
    pub routes: Option<Routes<'a>>,
    /// `[tokens · slots, heads · head_dim]`
    pub out: &'a Buffer,
    pub tokens: u32,
    /// Keys that all tokens together see, for the counters.
    pub keys: u64,
}

impl StickBreaking<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let shape = &self.shape;
        let (chosen, first) = self.routes.map_or((self.spans, 0), |routes| (routes.chosen, routes.first));
        recorder.dispatch(
            &shape.params(self.tokens, 1, shape.capacity, first),
            Dispatch {
                kernel: &KERNEL,
                constants: &shape.constants(),
                buffers: &[self.spans, self.q, self.k_cache, self.v_cache, chosen, self.out],
                groups: [shape.slots * shape.heads, self.tokens, 1],
                macs: shape.macs(self.keys),
                weight_bytes: 0,
                cache_bytes: shape.read_bytes(self.keys),
            },
        );
    }
}
