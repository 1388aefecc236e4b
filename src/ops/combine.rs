//! The gate-weighted sum of each token's slots, added to the residual stream.

use super::{Kernel, Routes, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::COMBINE, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        quads: u32,
        slots: u32,
        first: u32,
    }
}

/// `x[t] (+)= bias + Σ_s gates[t][s] · rows[t · slots + s]`
pub struct Combine<'a> {
    /// `[tokens · slots, width]`
    pub rows: &'a Buffer,
    /// `None` adds the rows ungated.
    pub routes: Option<Routes<'a>>,
    pub bias: Option<&'a Buffer>,
    /// `[tokens, width]`
    pub x: &'a Buffer,
    /// Add to `x` instead of overwriting it.
    pub residual: bool,
    pub tokens: u32,
    pub slots: u32,
    pub width: u32,
}

impl Combine<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let quads = padded(self.width) / 4;
        let (gates, first) = self.routes.map_or((self.rows, 0), |routes| (routes.gates, routes.first));
        let params = Params { tokens: self.tokens, quads, slots: self.slots, first };
        recorder.dispatch(
            &params,
            Dispatch {
                constants: &[
                    ("BIAS", f64::from(u8::from(self.bias.is_some()))),
                    ("GATED", f64::from(u8::from(self.routes.is_some()))),
                    ("RESIDUAL", f64::from(u8::from(self.residual))),
                ],
                ..Dispatch::new(
                    &KERNEL,
                    &[self.rows, gates, self.bias.unwrap_or(self.rows), self.x],
                    [quads.div_ceil(64), self.tokens, 1],
                )
            },
        );
    }
}
