//! How fast a model is, beside what its adapter does at best; and whether the adapter computes right.

#[cfg(not(target_arch = "wasm32"))]
mod bench;
#[cfg(not(target_arch = "wasm32"))]
mod bench_report;
#[cfg(feature = "selftest")]
mod selftest;
#[cfg(not(target_arch = "wasm32"))]
#[allow(missing_docs)] // documented where it matters, public to this crate's own benches only
pub(crate) mod yardstick;

#[cfg(not(target_arch = "wasm32"))]
pub use bench::Bench;
#[cfg(not(target_arch = "wasm32"))]
pub use bench_report::{BenchReport, BenchRow, Limit, Spread};
#[cfg(feature = "selftest")]
pub use selftest::{Selftest, SelftestReport, SelftestRow, SelftestStatus};
