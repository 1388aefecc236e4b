//! RMSNorm and LayerNorm.

use super::{Kernel, Variants, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::NORM, Params::layout);

uniform! {
    struct Params {
        count: u32,
        quads: u32,
        width: u32,
        eps: f32,
    }
}

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x · rsqrt(mean(x²) + eps) · weight`
    Rms,
    /// `(x − mean) · rsqrt(variance + eps) · weight + bias`
    Layer,
}

/// What is normed.
#[derive(Clone, Copy)]
pub enum NormInput<'a> {
    /// The first rows of a buffer.
    Rows(&'a Buffer),
    /// Those rows of a buffer that `[count]` u32 name.
    Chosen(&'a Buffer, &'a Buffer),
    /// What stands in `y`.
    InPlace,
}

/// `y[i] = norm(x[r(i)]) · weight + bias`
pub struct NormRows<'a> {
    pub kind: NormKind,
    pub x: NormInput<'a>,
    /// `[1 or 2, width]` f32: weight, then for a LayerNorm bias
    pub weights: &'a Buffer,
    /// `[count, width]`
    pub y: &'a Buffer,
    pub count: u32,
    pub width: u32,
    pub eps: f32,
}

impl NormRows<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let params =
            Params { count: self.count, quads: padded(self.width) / 4, width: self.width, eps: self.eps };
        let (x, rows, all, in_place) = match self.x {
            NormInput::Rows(x) => (x, self.weights, 1.0, 0.0),
            NormInput::Chosen(x, rows) => (x, rows, 0.0, 0.0),
            NormInput::InPlace => (self.weights, self.weights, 0.0, 1.0),
        };
        recorder.dispatch(
            &params,
            Dispatch {
                constants: &[
                    ("LAYER_NORM", f64::from(u8::from(self.kind == NormKind::Layer))),
                    ("ALL_ROWS", all),
                    ("IN_PLACE", in_place),
                    ("LANES", f64::from(Variants::of(recorder.gpu()).row_lanes)),
                ],
                ..Dispatch::new(&KERNEL, &[x, self.weights, rows, self.y], [1, self.count, 1])
            },
        );
    }
}
