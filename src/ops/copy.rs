//! A plain copy: the yardstick for bytes per second.

use super::{Access, Kernel, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel =
    Kernel { name: "copy", source: shaders::COPY, bindings: &[Access::Read, Access::Write] };

/// Lanes of the kernel's workgroup.
const LANES: u32 = 64;

/// Workgroups in a row of the grid at the most.
const MOST_GROUPS: u32 = 32_768;

uniform! {
    struct Params {
        quads: u32,
        groups_x: u32,
    }
}

/// `dst = src`, in 16-byte quads.
pub struct Copy<'a> {
    pub src: &'a Buffer,
    pub dst: &'a Buffer,
    pub quads: u32,
    /// Quads that one invocation copies.
    pub each: u32,
}

impl Copy<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let groups = self.quads.div_ceil(LANES * self.each);
        let groups_x = groups.min(MOST_GROUPS);
        recorder.dispatch(
            &Params { quads: self.quads, groups_x },
            Dispatch {
                kernel: &KERNEL,
                constants: &[("EACH", f64::from(self.each))],
                buffers: &[self.src, self.dst],
                groups: [groups_x, groups.div_ceil(groups_x.max(1)), 1],
                macs: 0,
                weight_bytes: 0,
                cache_bytes: 0,
            },
        );
    }
}
