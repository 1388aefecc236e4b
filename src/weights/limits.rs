//! The largest sizes that a config may state. No published model comes near them; what exceeds them is damage.

pub(crate) const MOST_WIDE: usize = 1 << 24;
pub(crate) const MOST_LAYERS: usize = 1024;
pub(crate) const MOST_HEADS: usize = 1024;
pub(crate) const MOST_EXPERTS: usize = 256;
