//! How fast a model is, beside what its adapter does at best.

mod bench;
mod bench_report;
#[allow(missing_docs)] // documented where it matters, public to this crate's own benches only
pub(crate) mod yardstick;

pub use bench::Bench;
pub use bench_report::{BenchReport, BenchRow, Limit, Spread};
