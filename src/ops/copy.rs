//! A plain copy: the yardstick for bytes per second.

use super::{Access, Kernel, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel =
    Kernel { name: "copy", source: shaders::COPY, bindings: &[Access::Read, Access::Write] };

/// Lanes of the kernel's workgroup.
const LANES: u32 = 64;

uniform! {
    struct Params {
        quads: u32,
    }
}

/// `dst = src`, in 16-byte quads; at most 65,535 · 64 · `each` of them.
pub struct Copy<'a> {
    pub src: &'a Buffer,
    pub dst: &'a Buffer,
    pub quads: u32,
    /// Quads that one invocation copies, a multiple of 4.
    pub each: u32,
    /// Whether they stand side by side.
    pub runs: bool,
}

impl Copy<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        recorder.dispatch(
            &Params { quads: self.quads },
            Dispatch {
                kernel: &KERNEL,
                constants: &[("EACH", f64::from(self.each)), ("RUNS", f64::from(u8::from(self.runs)))],
                buffers: &[self.src, self.dst],
                groups: [self.quads.div_ceil(LANES * self.each), 1, 1],
                macs: 0,
                weight_bytes: 0,
                cache_bytes: 0,
            },
        );
    }
}
