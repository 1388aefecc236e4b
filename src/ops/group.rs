//! Stable grouping of assignments by expert, without a readback: count, scan, scatter.

use super::{Kernel, Routes, shaders};
use crate::gpu::{Buffer, Dispatch, Gpu, Recorder};

pub static COUNT: Kernel = Kernel::new(&shaders::GROUP_COUNT, Params::layout);

pub static SCAN: Kernel = Kernel::new(&shaders::GROUP_SCAN, Params::layout);

pub static SCATTER: Kernel = Kernel::new(&shaders::GROUP_SCATTER, Params::layout);

/// Assignments that one invocation counts; `CHUNK` of `shaders/shared/group.wgsl`.
const CHUNK: u32 = 64;

uniform! {
    struct Params {
        assignments: u32,
        experts: u32,
        chunks: u32,
        first: u32,
        tile_rows: u32,
        max_tiles: u32,
    }
}

/// Scratch and results of grouping.
pub struct GroupBuffers {
    /// `[chunks, experts]` u32, scratch
    counts: Buffer,
    /// `[assignments]` u32: assignments sorted by expert
    pub order: Buffer,
    /// `[max_tiles]` of (expert, first row in the order, rows)
    pub tiles: Buffer,
}

impl GroupBuffers {
    /// Bytes for up to `assignments` over `experts`.
    pub fn bytes(assignments: u32, experts: u32, tile_rows: u32) -> [u64; 3] {
        let (chunks, tiles) = (assignments.div_ceil(CHUNK), max_tiles(assignments, experts, tile_rows));
        [4 * u64::from(chunks) * u64::from(experts), 4 * u64::from(assignments), 12 * u64::from(tiles)]
    }

    pub fn new(gpu: &Gpu, assignments: u32, experts: u32, tile_rows: u32) -> Self {
        let [counts, order, tiles] = Self::bytes(assignments, experts, tile_rows);
        Self {
            counts: Buffer::new(gpu, "group.counts", counts),
            order: Buffer::new(gpu, "group.order", order),
            tiles: Buffer::new(gpu, "group.tiles", tiles),
        }
    }
}

/// Tiles that `assignments` over `experts` can need at the most: every expert may end in a part-filled one.
pub fn max_tiles(assignments: u32, experts: u32, tile_rows: u32) -> u32 {
    (assignments / tile_rows + experts).min(assignments)
}

/// Workgroups that grouping, and a matmul over the groups, dispatch in their widest dimension.
pub fn workgroups(assignments: u32, experts: u32, tile_rows: u32) -> u64 {
    let counting = u64::from(assignments.div_ceil(CHUNK)) * u64::from(experts);
    counting.div_ceil(64).max(u64::from(max_tiles(assignments, experts, tile_rows)))
}

/// Sorts assignments by expert and cuts each expert's run into tiles.
pub struct Group<'a> {
    pub routes: Routes<'a>,
    pub assignments: u32,
    pub experts: u32,
    pub tile_rows: u32,
    pub into: &'a GroupBuffers,
}

impl Group<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let chunks = self.assignments.div_ceil(CHUNK);
        let params = Params {
            assignments: self.assignments,
            experts: self.experts,
            chunks,
            first: self.routes.first,
            tile_rows: self.tile_rows,
            max_tiles: max_tiles(self.assignments, self.experts, self.tile_rows),
        };
        let GroupBuffers { counts, order, tiles } = self.into;
        let chosen = self.routes.chosen;
        let per_chunk = [(chunks * self.experts).div_ceil(64), 1, 1];
        let stages: [(&'static Kernel, &[&Buffer], [u32; 3]); 3] = [
            (&COUNT, &[chosen, counts], per_chunk),
            (&SCAN, &[counts, tiles], [1; 3]),
            (&SCATTER, &[chosen, counts, order], per_chunk),
        ];
        for (kernel, buffers, groups) in stages {
            recorder.dispatch(&params, Dispatch::new(kernel, buffers, groups));
        }
    }
}
