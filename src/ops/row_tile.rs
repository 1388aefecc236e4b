//! The tile of query rows that one subgroup takes, where attention runs by single subgroups.

use super::{HeadLayout, Variant, Variants};
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
    pub fn choose(gpu: &Gpu, heads: &HeadLayout, rows: u32) -> Option<Self> {
        let Variant::Broadcast { lanes } = Variants::of(gpu).attention else { return None };
        let columns = (heads.value_stride() / 4).div_ceil(lanes).next_power_of_two();
        // Heads too large for subgroups of 4 take the other kernels.
        (columns <= MOST_COLUMNS).then_some(Self {
            lanes,
            rows: rows.next_power_of_two().min(Self::most_rows(lanes)),
            columns,
        })
    }

    /// Rows of a tile where there are enough of them.
    pub fn most_rows(lanes: u32) -> u32 {
        lanes.min(MOST_ROWS)
    }

    /// As the kernels take them.
    pub fn constants(&self) -> [(&'static str, f64); 3] {
        [("LANES", self.lanes), ("ROWS", self.rows), ("COLUMNS", self.columns)]
            .map(|(name, value)| (name, f64::from(value)))
    }

    /// Tiles of one token's rows, over `kv_heads` key/value heads.
    pub fn of_token(&self, heads: &HeadLayout, kv_heads: u32) -> u32 {
        heads.rows_of_kv_head().div_ceil(self.rows) * kv_heads
    }
}
