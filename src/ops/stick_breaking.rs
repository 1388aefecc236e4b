//! Stick-breaking attention: each key, from the newest back, takes its share of what the later ones left.

use super::{
    HeadLayout, Kernel, KeyValues, Routes, attention_merge::merge_sticks, head_layout::Params,
    key_values::Binding, shaders, splits::Splits,
};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::STICK_BREAKING, Params::layout);

/// Stick-breaking attention, one workgroup for each query row, in each section of the cache.
pub struct StickBreaking<'a> {
    pub heads: HeadLayout,
    pub spans: &'a Buffer,
    pub q: &'a Buffer,
    pub cache: &'a KeyValues,
    /// As in [`DecodeAttention`](super::DecodeAttention), as are the routes.
    pub scratch: &'a Buffer,
    pub routes: Option<Routes<'a>>,
    /// `[tokens · slots, heads · value_dim]`
    pub out: &'a Buffer,
    pub tokens: u32,
    /// Keys that all tokens together see, for the counters.
    pub keys: u64,
}

impl StickBreaking<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Self { heads, cache, tokens, keys, .. } = *self;
        let (chosen, first_route) =
            self.routes.map_or((self.spans, 0), |routes| (routes.chosen, routes.first));
        let splits = Splits::of(cache, None);
        let into = if splits.all == 1 { self.out } else { self.scratch };
        let constants = [heads.span_constant(), cache.layout.precision.constant()];
        for Binding { window, buffer, share } in cache.bindings() {
            recorder.dispatch(
                &Params { first_route, splits: splits.all, ..heads.params(&cache.layout, window, tokens) },
                Dispatch {
                    kernel: &KERNEL,
                    constants: &[&constants[..], &heads.expert_constants()].concat(),
                    buffers: &[self.spans, self.q, buffer, chosen, into],
                    groups: [heads.used_heads(), tokens, 1],
                    macs: share.of(heads.macs(keys)),
                    weight_bytes: 0,
                    cache_bytes: share.of(cache.layout.read_bytes(keys)),
                },
            );
        }
        if splits.all > 1 {
            merge_sticks(recorder, &heads, tokens, splits.all, [self.scratch, self.out]);
        }
    }
}
