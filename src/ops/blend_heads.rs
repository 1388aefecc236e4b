//! What heads put out, blended with rows of attention that no query made.

use super::{
    EditPlan, HeadLayout, Kernel, KeyValues, Routes, head_layout::Params, key_values::Binding, shaders,
};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::BLEND_HEADS, Params::layout);

/// `z[r] = (1 − u) · z[r] + u · m` over the edits of row `r`'s head, `m` as `shaders/blend_heads.wgsl` says.
pub struct BlendHeads<'a> {
    pub plan: &'a EditPlan,
    /// How often each edit has changed something.
    pub applied: &'a Buffer,
    pub heads: HeadLayout,
    /// As attention reads them.
    pub spans: &'a Buffer,
    /// The experts whose heads these are; without, head `j` of slot `s` is head `s · heads + j`.
    pub routes: Option<Routes<'a>>,
    pub cache: &'a KeyValues,
    /// `[tokens · slots, heads · value_dim]`
    pub out: &'a Buffer,
    pub tokens: u32,
}

impl BlendHeads<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Self { plan, applied, heads, spans, routes, cache, out, tokens } = *self;
        let (chosen, first_route) = routes.map_or((spans, 0), |routes| (routes.chosen, routes.first));
        let constants = [
            heads.span_constant(),
            cache.layout.precision.constant(),
            ("ROUTED", f64::from(u8::from(routes.is_some()))),
        ];
        let quads = heads.used_heads() * heads.value_stride() / 4;
        for Binding { window, buffer, .. } in cache.bindings() {
            recorder.dispatch(
                &Params { first_route, ..heads.params(&cache.layout, window, tokens) },
                Dispatch {
                    constants: &[&constants[..], &heads.expert_constants()].concat(),
                    ..Dispatch::new(
                        &KERNEL,
                        &[spans, &plan.words, buffer, chosen, out, applied],
                        [quads.div_ceil(64), tokens, 1],
                    )
                },
            );
        }
    }
}
