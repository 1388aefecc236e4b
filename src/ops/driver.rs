//! What a driver makes of loops, parameters, subgroups and 16-bit floats: kernels of `headwise selftest` alone.

use super::{Kernel, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static PLAIN: Kernel = Kernel::new(&shaders::DRIVER, LoopParams::layout);
pub static SUBGROUP: Kernel = Kernel::new(&shaders::DRIVER_SUBGROUP, SubgroupParams::layout);
pub static F16: Kernel = Kernel::new(&shaders::DRIVER_F16, ProductParams::layout);

uniform! {
    struct LoopParams {
        first: u32,
        seed: u32,
        turns: u32,
    }
}

uniform! {
    struct SubgroupParams {
        one: u32,
    }
}

uniform! {
    struct ProductParams {
        count: u32,
    }
}

/// `out[first + g] = seed + g` after `turns` turns of a generator that wraps around, for `groups` workgroups `g`.
pub struct DriverLoop<'a> {
    pub out: &'a Buffer,
    pub first: u32,
    pub seed: u32,
    pub turns: u32,
    pub groups: u32,
}

impl DriverLoop<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Self { out, first, seed, turns, groups } = *self;
        let params = LoopParams { first, seed, turns };
        recorder.dispatch(&params, Dispatch::new(&PLAIN, &[out], [groups, 1, 1]));
    }

    /// What must stand at place `first + group`.
    pub fn expected(&self, group: u32) -> u32 {
        let turn = |x: u32, _| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (0..self.turns).fold(self.seed.wrapping_add(group), turn)
    }
}

/// The size of a subgroup, and how many lanes of it add up, of each of 64 lanes.
pub struct DriverSubgroups<'a> {
    /// `[64, 2]` u32
    pub out: &'a Buffer,
}

impl DriverSubgroups<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        recorder.dispatch(&SubgroupParams { one: 1 }, Dispatch::new(&SUBGROUP, &[self.out], [1; 3]));
    }
}

/// `out[i] = src[2i] · src[2i + 1]` in 16-bit floats.
pub struct DriverProducts<'a> {
    /// `[count, 2]` f32
    pub src: &'a Buffer,
    /// `[count]` f32
    pub out: &'a Buffer,
    pub count: u32,
}

impl DriverProducts<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let groups = [self.count.div_ceil(64), 1, 1];
        let params = ProductParams { count: self.count };
        recorder.dispatch(&params, Dispatch::new(&F16, &[self.src, self.out], groups));
    }
}
