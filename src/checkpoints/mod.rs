//! Checkpoints made of others: converted, quantised, upcycled.

mod convert;
mod fairseq;
mod quantize;
mod rewrite;
mod seeds;
mod upcycle;

pub use convert::{ConvertOptions, MoaActivation, MoaGates, convert_moa};
pub use quantize::{QuantizeOptions, quantize};
pub use rewrite::WrittenModel;
pub use upcycle::{KvSharing, UpcycleOptions, upcycle_bam};
