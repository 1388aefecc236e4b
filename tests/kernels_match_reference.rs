//! Every kernel, in every variant, computes what its f64 oracle in `crates/reference/src/` says: within 1e-5, see
//! [`support::assert_close`], over random shapes, on a device with WebGPU's default limits.
//!
//! Kernels that round inputs to f16 or 8 bits are held to what that rounding may cost each output instead
//! (`kernels/rounding.rs`). Weights stored as f16 are rounded before the oracle sees them, so the same tolerance holds. Besides the
//! values, every kernel is held to its manners: rows that are not its own stay untouched, the padding of its
//! rows is zero, ids out of range do no harm, and the same input gives the same bits.
//!
//! On lavapipe, `LP_NATIVE_VECTOR_WIDTH` = 128, 256 or 512 makes subgroups of 4, 8 or 16.

use headwise_reference as reference;
mod support;

mod kernels {
    mod attention;
    mod blends;
    mod captures;
    mod device;
    mod edits;
    mod linear;
    mod penalties;
    mod rounding;
    mod routing;
    mod rows;
    mod sampling;
}
