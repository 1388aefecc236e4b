//! RMSNorm of chosen rows.

use super::{Access, Kernel, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel {
    name: "rms_norm",
    source: shaders::RMS_NORM,
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Write],
};

uniform! {
    struct Params {
        count: u32,
        quads: u32,
        width: u32,
        eps: f32,
    }
}

/// `y[i] = x[rows[i]] · rsqrt(mean(x²) + eps) · weight`
pub struct RmsNorm<'a> {
    pub x: &'a Buffer,
    /// `[width]` f32
    pub weight: &'a Buffer,
    /// `[count]` u32
    pub rows: &'a Buffer,
    /// `[count, width]`
    pub y: &'a Buffer,
    pub count: u32,
    pub width: u32,
    pub eps: f32,
}

impl RmsNorm<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let params =
            Params { count: self.count, quads: padded(self.width) / 4, width: self.width, eps: self.eps };
        recorder.dispatch(
            &params,
            Dispatch {
                kernel: &KERNEL,
                constants: &[],
                buffers: &[self.x, self.weight, self.rows, self.y],
                groups: [1, self.count, 1],
                macs: 0,
            },
        );
    }
}
