//! Sequences that go on from others' keys and values.

use super::{AttentionShape, Kernel, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::CACHE_REORDER, Params::layout);

uniform! {
    struct Params {
        row_quads: u32,
        positions: u32,
        capacity: u32,
        sequences: u32,
    }
}

/// `to[s][p] = from[parents[s]][p]` for the first `positions` positions.
pub struct CacheReorder<'a> {
    pub shape: AttentionShape,
    /// `[sequences]` u32
    pub parents: &'a Buffer,
    pub from: &'a Buffer,
    pub to: &'a Buffer,
    pub positions: u32,
}

impl CacheReorder<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let AttentionShape { capacity, sequences, .. } = self.shape;
        // In units of four words, whatever they hold.
        let row_quads = (self.shape.cache_row_bytes() / 16) as u32;
        recorder.dispatch(
            &Params { row_quads, positions: self.positions, capacity, sequences },
            Dispatch {
                kernel: &KERNEL,
                constants: &[],
                buffers: &[self.parents, self.from, self.to],
                groups: [(row_quads * self.positions).div_ceil(64), sequences, 1],
                macs: 0,
                weight_bytes: 0,
                // Read and written.
                cache_bytes: 2
                    * u64::from(sequences)
                    * u64::from(self.positions)
                    * self.shape.cache_row_bytes(),
            },
        );
    }
}
