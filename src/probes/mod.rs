//! What to change in a run, and what to record of it, as plain data: no GPU in here. Sessions, and every room above them, may
//! name these; layers and ops carry them out.

mod address;
mod change;
mod edit;
mod observe;
mod positions;
mod trace;
#[cfg(not(target_arch = "wasm32"))]
mod trace_file;

pub use address::{Address, Stack, Unit};
pub use change::{Change, Vectors};
pub use edit::{Edit, Edits};
pub use observe::{Capture, Keys, Mass, Observe, STATISTICS, What};
pub use positions::Positions;
pub use trace::{Recorded, Trace};
