//! headwise runs transformers whose attention heads are routed.
#![allow(dead_code, unused_imports)]
mod error;
#[allow(missing_docs)]
mod gpu;
mod layers;
mod models;
#[allow(missing_docs)]
mod ops;
mod tasks;
mod weights;

pub use error::{Error, Result};
pub use gpu::{AdapterReport, AdapterSelection, Capabilities, Counters, Gpu, GpuOptions, KernelChoice};
pub use ops::Precision;
pub use tasks::*;
pub use weights::Source;
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
pub use weights::fuzzing;

/// The rooms below the public ones, open to this crate's own tests and benches. Not a stable interface.
#[doc(hidden)]
pub mod internal {
    pub use crate::{gpu::*, ops::*};
}
