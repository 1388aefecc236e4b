//! The tile of query rows that one subgroup takes, where attention runs by single subgroups.

use super::{AttentionShape, Variant, Variants};
use crate::gpu::Gpu;

/// Rows of a tile at the most.
const MOST_ROWS: u32 = 8;

/// Vec4s of a head that a lane has room for.
const MOST_COLUMNS: u32 = 4;

/// The constants of `shaders/shared/row_tile.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowTile {
    lanes: u32,
    /// Query rows of the tile.
    pub rows: u32,
    /// Vec4s of a head that a lane takes.
    columns: u32,
}

impl RowTile {
    /// The tile for `rows` query rows that read one key/value head; none where the device runs the other kernels.
    pub fn choose(gpu: &Gpu, shape: &AttentionShape, rows: u32) -> Option<Self> {
        let Variant::Broadcast { lanes } = Variants::of(gpu).attention else { return None };
        let columns = (shape.head_stride() / 4).div_ceil(lanes).next_power_of_two();
        // Heads too large for subgroups of 4 take the other kernels.
        (columns <= MOST_COLUMNS).then_some(Self {
            lanes,
            rows: rows.next_power_of_two().min(MOST_ROWS).min(lanes),
            columns,
        })
    }

    pub fn lanes(&self) -> (&'static str, f64) {
        ("LANES", f64::from(self.lanes))
    }

    pub fn rows(&self) -> (&'static str, f64) {
        ("ROWS", f64::from(self.rows))
    }

    pub fn columns(&self) -> (&'static str, f64) {
        ("COLUMNS", f64::from(self.columns))
    }

    /// Tiles of one token's rows, over all key/value heads.
    pub fn of_token(&self, shape: &AttentionShape) -> u32 {
        shape.rows_of_kv_head().div_ceil(self.rows) * shape.kv_heads
    }
}
