//! The GPU room: adapters and capabilities, buffers, pipelines, recording, readback.
//!
//! Nothing in here knows what attention is.

#[macro_use]
mod params;

mod adapter;
mod buffer;
mod calls;
mod clock;
mod device;
mod errors;
mod for_tests;
mod kernel;
mod lent;
mod lock;
mod loss;
mod pace;
mod pipelines;
mod readback;
mod recorder;
#[cfg(not(target_arch = "wasm32"))]
mod specialise;
mod staging;
mod under_way;
mod waiting;
#[cfg(target_arch = "wasm32")]
mod web_nudge;
#[cfg(target_arch = "wasm32")]
mod web_subgroups;
#[cfg(not(target_arch = "wasm32"))]
mod worker;

pub use adapter::{AdapterSelection, Capabilities};
pub use clock::Clock;
pub use device::{Gpu, GpuOptions, KernelChoice, KernelMemory, NotePlace};

pub use buffer::{Buffer, PART_ALIGNMENT};
pub use for_tests::{ForTests, OptionsForTests};
pub use kernel::{Access, Constants, Kernel, Shader};
pub use params::ParamsLayout;
pub(crate) use params::UniformField;
pub use readback::Pending;
pub use recorder::{BufferCopy, Counters, Dispatch, Recorder};
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use waiting::aside;
#[cfg(not(target_arch = "wasm32"))]
pub use waiting::block_on;
pub(crate) use waiting::breathe;
/// `Send` natively; in a browser everything is on one thread.
pub(crate) use wgpu::WasmNotSend;
