//! The GPU room: adapters and capabilities, buffers, pipelines, recording, readback.
//!
//! Nothing in here knows what attention is.

#[macro_use]
mod params;

mod adapter;
mod buffer;
mod clock;
mod device;
mod kernel;
mod lock;
mod pace;
mod pipelines;
mod readback;
mod recorder;
#[cfg(not(target_arch = "wasm32"))]
mod specialise;
mod staging;
mod under_way;
#[cfg(target_arch = "wasm32")]
mod web_nudge;
#[cfg(target_arch = "wasm32")]
mod web_subgroups;

pub use adapter::{AdapterSelection, Capabilities};
pub use clock::Clock;
pub use device::{Gpu, GpuOptions, KernelChoice, KernelMemory, NotePlace};

pub use buffer::{Buffer, PART_ALIGNMENT};
pub use kernel::{Access, Constants, Kernel, Shader};
pub use params::ParamsLayout;
pub(crate) use params::UniformField;
pub use readback::Pending;
pub use recorder::{BufferCopy, Counters, Dispatch, Recorder};
