//! RMSNorm and LayerNorm.

use super::{Access, Kernel, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel {
    name: "norm",
    source: shaders::NORM,
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Write],
};

uniform! {
    struct Params {
        count: u32,
        quads: u32,
        width: u32,
        eps: f32,
    }
}

/// `y[i] = norm(x[rows[i]]) · weight + bias`; with a bias it is a LayerNorm, without an RMSNorm.
pub struct NormRows<'a> {
    pub x: &'a Buffer,
    /// `[width]` f32
    pub weight: &'a Buffer,
    /// `[width]` f32
    pub bias: Option<&'a Buffer>,
    /// `[count]` u32; `None` takes rows 0 … count − 1
    pub rows: Option<&'a Buffer>,
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
        recorder.dispatch(
            &params,
            Dispatch {
                kernel: &KERNEL,
                constants: &[
                    ("LAYER_NORM", f64::from(u8::from(self.bias.is_some()))),
                    ("ALL_ROWS", f64::from(u8::from(self.rows.is_none()))),
                ],
                buffers: &[
                    self.x,
                    self.weight,
                    self.bias.unwrap_or(self.weight),
                    self.rows.unwrap_or(self.weight),
                    self.y,
                ],
                groups: [1, self.count, 1],
                macs: 0,
            },
        );
    }
}
