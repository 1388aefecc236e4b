//! What a user calls: load a model, generate text, look at logits and routes.

#[cfg(not(target_arch = "wasm32"))]
mod bench;
#[cfg(not(target_arch = "wasm32"))]
mod bench_report;
#[cfg(feature = "chat")]
mod chat;
#[cfg(feature = "chat")]
mod chat_template;
mod classify;
#[cfg(not(target_arch = "wasm32"))]
mod convert;
#[cfg(not(target_arch = "wasm32"))]
mod fairseq;
mod fill;
mod generate;
mod info;
mod logits;
mod model;
#[cfg(not(target_arch = "wasm32"))]
mod quantize;
mod readback;
#[cfg(not(target_arch = "wasm32"))]
mod rewrite;
mod router_use;
mod routes;
mod run;
#[cfg(not(target_arch = "wasm32"))]
mod seeds;
mod session;
#[cfg(feature = "tokenizer")]
mod text;
#[cfg(feature = "chat")]
mod tokenizer_config;
mod translate;
mod translation;
#[cfg(not(target_arch = "wasm32"))]
mod upcycle;
mod warm_up;
#[cfg(not(target_arch = "wasm32"))]
#[allow(missing_docs)] // documented where it matters, public to this crate's own benches only
pub(crate) mod yardstick;

#[cfg(not(target_arch = "wasm32"))]
pub use bench::Bench;
#[cfg(not(target_arch = "wasm32"))]
pub use bench_report::{BenchReport, BenchRow, Limit, Spread};
#[cfg(feature = "chat")]
pub use chat::{Chat, Reply};
#[cfg(feature = "chat")]
pub use chat_template::{ChatMessage, ChatTemplate};
pub use classify::{Class, Classification, Image};
/// The tokenizer of a model folder.
#[cfg(any(feature = "tokenizer", not(target_arch = "wasm32")))]
const TOKENIZER_FILE: &str = "tokenizer.json";
/// The largest `tokenizer.json` that is read; the largest published ones have some 30 MB.
#[cfg(any(feature = "tokenizer", not(target_arch = "wasm32")))]
const MAX_TOKENIZER: u64 = 128 << 20;

#[cfg(not(target_arch = "wasm32"))]
pub use convert::{ConvertOptions, MoaActivation, MoaGates, convert_moa};
pub use fill::{Candidate, Filled, FilledMask};
pub use generate::{Cancel, Generate, Generation, StopReason, Token};
pub use info::{AttentionInfo, MlpInfo, ModelInfo, PrecisionMemory};
pub use logits::Logits;
pub use model::{LoadOptions, Model};
#[cfg(not(target_arch = "wasm32"))]
pub use quantize::{QuantizeOptions, quantize};
#[cfg(not(target_arch = "wasm32"))]
pub use rewrite::WrittenModel;
pub use router_use::{DropMargin, LayerUse, RouterShape, RouterUse};
pub use routes::{Choice, LayerRoutes, Routes, TokenRoutes};
#[cfg(feature = "tokenizer")]
pub use text::{TextStream, Tokenizer};
pub use translate::{Translate, Translation, TranslationLogits};
#[cfg(not(target_arch = "wasm32"))]
pub use upcycle::{KvSharing, UpcycleOptions, upcycle_bam};
