//! Choices that were made before, in place of a router's.

use super::{Kernel, Routes, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::REPLAY_ROUTES, Params::layout);

uniform! {
    struct Params {
        first: u32,
        count: u32,
    }
}

/// Workgroups of a row of the grid.
const ROW: u32 = 65_535;

/// `chosen[i] = taken[i]`, gates likewise, but where `taken[i]` is [`OPEN`](Self::OPEN); `i` are those of one router.
pub struct ReplayRoutes<'a> {
    /// As [`Routes::chosen`]
    pub taken: &'a Buffer,
    /// As [`Routes::gates`]
    pub gates: &'a Buffer,
    pub routes: Routes<'a>,
    /// Choices of all tokens.
    pub count: u32,
}

impl ReplayRoutes<'_> {
    /// The choice of a token that chooses by itself.
    pub const OPEN: u32 = u32::MAX - 1;

    pub fn record(&self, recorder: &mut Recorder) {
        let Routes { chosen, gates, first, .. } = self.routes;
        let groups = self.count.div_ceil(64);
        recorder.dispatch(
            &Params { first, count: self.count },
            Dispatch::new(
                &KERNEL,
                &[self.taken, self.gates, chosen, gates],
                [groups.min(ROW), groups.div_ceil(ROW), 1],
            ),
        );
    }
}
