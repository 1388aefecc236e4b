//! Appending keys or values that are not rotated to the cache.

use super::{
    HeadLayout, Kernel, KeyValues, cache_layout::CacheWindow, head_stride, key_values::Binding, padded,
    shaders,
};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::CACHE_APPEND, Params::layout);

uniform! {
    struct Params {
        cache: CacheWindow,
        tokens: u32,
        kv_heads: u32,
        sequences: u32,
        head_quads: u32,
        src_quads: u32,
        first: u32,
    }
}

/// Which half of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOrValue {
    Key,
    Value,
}

/// The key or the value of each token into its slot, from column `first` of `src` on.
pub struct CacheAppend<'a> {
    pub heads: HeadLayout,
    /// `[tokens]` [`Span`](super::Span)s
    pub spans: &'a Buffer,
    /// `[tokens, src_width]`
    pub src: &'a Buffer,
    pub src_width: u32,
    /// The first column of `src` to copy, a multiple of 4.
    pub first: u32,
    pub half: KeyOrValue,
    pub cache: &'a KeyValues,
    pub tokens: u32,
}

impl CacheAppend<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Self { heads, cache, tokens, .. } = *self;
        let layout = &cache.layout;
        let (channels, bytes, values) = match self.half {
            KeyOrValue::Key => (heads.key_dim, layout.key_bytes(), 0.0),
            KeyOrValue::Value => (heads.value_dim, layout.value_bytes(), 1.0),
        };
        for Binding { window, buffer, share } in cache.bindings() {
            let params = Params {
                cache: window,
                tokens,
                kv_heads: heads.kv_heads,
                sequences: layout.sequences,
                head_quads: head_stride(channels) / 4,
                src_quads: padded(self.src_width) / 4,
                first: self.first / 4,
            };
            let written = u64::from(tokens) * u64::from(heads.kv_heads) * bytes;
            let eights = window.heads * padded(channels) / 8;
            recorder.dispatch(
                &params,
                Dispatch {
                    constants: &[heads.span_constant(), layout.precision.constant(), ("VALUES", values)],
                    cache_bytes: share.of(written),
                    ..Dispatch::new(
                        &KERNEL,
                        &[self.spans, self.src, buffer],
                        [eights.div_ceil(64), tokens, 1],
                    )
                },
            );
        }
    }
}
