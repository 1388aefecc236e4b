//! A plain copy: the yardstick for bytes per second.

use super::{Kernel, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::COPY, Params::layout);

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
                constants: &[("EACH", f64::from(self.each)), ("RUNS", f64::from(u8::from(self.runs)))],
                ..Dispatch::new(
                    &KERNEL,
                    &[self.src, self.dst],
                    [self.quads.div_ceil(LANES * self.each), 1, 1],
                )
            },
        );
    }
}
