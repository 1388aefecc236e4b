//! RMSNorm, linear router and choice, in one kernel.

use super::{Access, ExpertChoice, Kernel, Routes, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel {
    name: "norm_router",
    source: shaders::NORM_ROUTER,
    bindings: &[Access::Read, Access::Read, Access::Read, Access::Write, Access::Write, Access::Write],
};

/// Experts a router may choose from; the size of the kernel's score memory.
pub const MAX_EXPERTS: u32 = 256;

/// Lanes of the kernel's workgroup.
const LANES: u32 = 64;

uniform! {
    struct Params {
        quads: u32,
        width: u32,
        experts: u32,
        top_k: u32,
        team: u32,
        first: u32,
        eps: f32,
    }
}

/// `xn = rms_norm(x)`, then the choice from the scores `router · xn`.
pub struct NormRouter<'a> {
    /// `[tokens, width]`
    pub x: &'a Buffer,
    /// `[width]`
    pub norm_weight: &'a Buffer,
    /// `[experts, width]`, rows padded
    pub router: &'a Buffer,
    /// `[tokens, width]`
    pub xn: &'a Buffer,
    /// Where the routes go.
    pub routes: Routes<'a>,
    pub tokens: u32,
    pub width: u32,
    pub choice: ExpertChoice,
    pub eps: f32,
}

impl NormRouter<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let params = Params {
            quads: padded(self.width) / 4,
            width: self.width,
            experts: self.choice.experts,
            top_k: self.choice.top_k,
            team: LANES / self.choice.experts.next_power_of_two().min(LANES),
            first: self.routes.first,
            eps: self.eps,
        };
        recorder.dispatch(
            &params,
            Dispatch {
                kernel: &KERNEL,
                constants: &self.choice.constants(),
                buffers: &[
                    self.x,
                    self.norm_weight,
                    self.router,
                    self.xn,
                    self.routes.chosen,
                    self.routes.gates,
                ],
                groups: [1, self.tokens, 1],
                macs: u64::from(self.tokens) * u64::from(self.choice.experts) * u64::from(self.width),
            },
        );
    }
}
