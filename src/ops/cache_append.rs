//! Appending keys or values that are not rotated to the cache.

use super::{AttentionShape, Kernel, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::CACHE_APPEND, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        heads: u32,
        head_quads: u32,
        src_quads: u32,
        first: u32,
        cache_eights: u32,
        capacity: u32,
        sequences: u32,
    }
}

/// `cache[sequence][position] = src[t]`, from column `first` on.
pub struct CacheAppend<'a> {
    pub shape: AttentionShape,
    /// `[tokens]` [`Span`](super::Span)s
    pub spans: &'a Buffer,
    /// `[tokens, src_width]`
    pub src: &'a Buffer,
    pub src_width: u32,
    /// The first column of `src` to copy, a multiple of 4.
    pub first: u32,
    pub cache: &'a Buffer,
    pub tokens: u32,
}

impl CacheAppend<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let shape = &self.shape;
        let params = Params {
            tokens: self.tokens,
            heads: shape.kv_heads,
            head_quads: shape.head_stride() / 4,
            src_quads: padded(self.src_width) / 4,
            first: self.first / 4,
            cache_eights: shape.cache_row() / 8,
            capacity: shape.capacity,
            sequences: shape.sequences,
        };
        recorder.dispatch(
            &params,
            Dispatch {
                kernel: &KERNEL,
                constants: &[shape.head_spans(), shape.cache_format()],
                buffers: &[self.spans, self.src, self.cache],
                groups: [(shape.cache_row() / 8).div_ceil(64), self.tokens, 1],
                macs: 0,
                weight_bytes: 0,
                cache_bytes: u64::from(self.tokens) * shape.cache_row_bytes(),
            },
        );
    }
}
