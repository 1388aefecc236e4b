//! Norm, linear router and choice, in one kernel.

use super::{ExpertChoice, Kernel, NormKind, Routes, Variants, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::NORM_ROUTER, Params::layout);

/// Experts a router may choose from; the size of the kernel's score memory.
pub const MAX_EXPERTS: u32 = 256;

uniform! {
    struct Params {
        quads: u32,
        width: u32,
        experts: u32,
        rows: u32,
        top_k: u32,
        team: u32,
        first: u32,
        first_score: u32,
        eps: f32,
    }
}

/// What a router scores.
#[derive(Clone, Copy)]
pub enum RouterInput<'a> {
    /// `xn = norm(x)`, which it writes down.
    Normed {
        kind: NormKind,
        eps: f32,
        /// As in [`NormRows`](super::NormRows).
        weights: &'a Buffer,
        /// `[tokens, width]`
        x: &'a Buffer,
        /// `[tokens, width]`
        xn: &'a Buffer,
    },
    /// `xn` as it stands.
    AsIs {
        /// `[tokens, width]`
        xn: &'a Buffer,
        /// Bound in place of an output, never written.
        spare: &'a Buffer,
    },
}

/// The choice from the scores `router · xn + bias`.
pub struct NormRouter<'a> {
    pub input: RouterInput<'a>,
    /// `[score rows, width]`, rows padded; see [`ExpertChoice::score_rows`]
    pub router: &'a Buffer,
    /// `[score rows]`
    pub bias: Option<&'a Buffer>,
    /// Where the routes go.
    pub routes: Routes<'a>,
    pub tokens: u32,
    pub width: u32,
    pub choice: ExpertChoice,
}

impl NormRouter<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let rows = self.choice.score_rows();
        let (norm, eps, weights, x, xn) = match self.input {
            RouterInput::Normed { kind: NormKind::Rms, eps, weights, x, xn } => (1.0, eps, weights, x, xn),
            RouterInput::Normed { kind: NormKind::Layer, eps, weights, x, xn } => (2.0, eps, weights, x, xn),
            RouterInput::AsIs { xn, spare } => (0.0, 0.0, xn, xn, spare),
        };
        let lanes = Variants::of(recorder.gpu()).row_lanes;
        let params = Params {
            quads: padded(self.width) / 4,
            width: self.width,
            experts: self.choice.experts,
            rows,
            top_k: self.choice.top_k,
            team: lanes / rows.next_power_of_two().min(lanes),
            first: self.routes.first,
            first_score: self.routes.first_score,
            eps,
        };
        let bias = f64::from(u8::from(self.bias.is_some()));
        let mut constants = vec![("NORM", norm), ("BIAS", bias), ("LANES", f64::from(lanes))];
        constants.extend(self.choice.constants());
        recorder.dispatch(
            &params,
            Dispatch {
                kernel: &KERNEL,
                constants: &constants,
                buffers: &[
                    x,
                    weights,
                    self.router,
                    self.bias.unwrap_or(self.router),
                    xn,
                    self.routes.chosen,
                    self.routes.gates,
                    self.routes.scores,
                ],
                groups: [1, self.tokens, 1],
                macs: u64::from(self.tokens) * u64::from(rows) * u64::from(self.width),
                weight_bytes: 4 * u64::from(rows) * u64::from(padded(self.width)),
                cache_bytes: 0,
            },
        );
    }
}
