//! headwise runs transformers whose attention heads are routed.
#![allow(dead_code, unused_imports)]
mod error;
#[allow(missing_docs)]
mod gpu;
#[allow(missing_docs)]
mod layers;
#[allow(missing_docs)]
mod ops;
pub use error::{Error, Result};
#[doc(hidden)]
pub mod internal {
    pub use crate::{gpu::*, layers::*, ops::*};
}
