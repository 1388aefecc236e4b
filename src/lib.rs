//! headwise runs transformers whose attention heads are **routed**: a router picks a few of many attention
//! experts for every token, all of them share one set of keys and values, and the output is their gate-weighted
//! sum. It does so in WGSL over WebGPU, so one crate runs on Vulkan, Metal, DX12 and in any browser with WebGPU.
//!
//! ```
//! use std::ops::ControlFlow;
//! use headwise::{Generate, Gpu, GpuOptions, Model};
//!
//! # fn main() -> headwise::Result<()> {
//! headwise::block_on(async {
//!     let gpu = Gpu::new(GpuOptions::new()).await?;
//!     let model = Model::demo(&gpu).await?;
//!     model
//!         .generate("The king shall", &Generate::new().max_new(32), |token| {
//!             print!("{}", token.text);
//!             ControlFlow::Continue(())
//!         })
//!         .await
//! })?;
//! # Ok(()) }
//! ```
//!
//! # What to read next
//! - [`Gpu`] opens a device, or works on one of yours ([`Gpu::from_wgpu`]); [`Model`] loads a folder in Hugging Face layout
//!   (or the demo model) on it; a [`Source`] says where the folder is, or who reads it ([`ModelFiles`]).
//! - [`Model::generate`] streams text, [`Model::generate_ids`] continues a batch of token sequences,
//!   [`Model::logits`] returns logits and the experts each token chose. [`Model::stream`] is a `Stream` of tokens, from a thread
//!   of its own; [`Cancel`] ends any work.
//! - [`Model::session`] makes a [`Session`], what all of these are built on: sequences that read and write side by side, one
//!   step at a time, go back, fork, and become bytes.
//! - [`Model::score`] says how likely each token of many texts is, [`Model::embed`] makes vectors of them.
//! - [`Model::translate`], [`Model::fill`] and [`Model::classify`] are for models of other tasks; each has a model to try
//!   it with, [`Source::demo_translate`] and so on.
//! - [`Model::bench`] measures a model beside what its adapter does at best; [`Counters`] are exact.
//! - [`Error`] is the one error type; GPU errors, lost devices and hostile files come back as values.
//!
//! # Features
//! None is on unless it is named:
//! - `tokenizer`: text in and out.
//! - `chat`: conversations in the form of a model's chat template, [`Chat`]; brings `tokenizer`.
//! - `http`: models read from an address, `Source::http`; in a browser without it.
//! - `hub`: models from a hub, [`Hub`], kept on the disk; not in a browser. Brings `http`.
//! - `selftest`: whether a device computes right, `Gpu::selftest`.
//! - `typescript`: the types of options and results, for programs that hand them to JavaScript as JSON.
//! - `gles`: OpenGL (ES) where a machine has nothing better, natively.
//! - `demo-model`: embeds the demo models, 20 MB for generation, 20 MB for translation, 6 MB for masks, 1 MB for images.
//!   A program carries only those that it names; the `headwise` command, a crate of its own, carries all.
// docs.rs: says of each item which feature it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// In a browser everything lives on one thread, and wgpu's handles say so.
#![cfg_attr(target_arch = "wasm32", allow(clippy::arc_with_non_send_sync))]

mod cancel;
#[cfg(not(target_arch = "wasm32"))]
mod checkpoints;
mod error;
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
pub mod fuzzing;
#[allow(missing_docs)] // documented where it matters, public to this crate's own tests only
#[macro_use]
mod gpu;
#[cfg(feature = "tokenizer")]
mod guard;
#[cfg(feature = "chat")]
mod jinja;
#[allow(missing_docs)] // likewise
mod layers;
#[cfg(any(feature = "selftest", not(target_arch = "wasm32")))]
mod measure;
pub mod methods;
mod models;
#[allow(missing_docs)] // likewise
mod ops;
pub mod probes;
mod sessions;
mod tasks;

mod weights;

pub use cancel::Cancel;
#[cfg(not(target_arch = "wasm32"))]
pub use checkpoints::{
    ConvertOptions, KvSharing, MoaActivation, MoaGates, QuantizeOptions, UpcycleOptions, WrittenModel,
    convert_moa, quantize, upcycle_bam,
};
pub use error::{Error, Result};
pub use gpu::{AdapterSelection, Capabilities, Counters, Gpu, GpuOptions, KernelChoice};
#[cfg(not(target_arch = "wasm32"))]
pub use measure::{Bench, BenchReport, BenchRow, Limit, Spread};
#[cfg(feature = "selftest")]
pub use measure::{Selftest, SelftestReport, SelftestRow, SelftestStatus};
pub use ops::{AdapterReport, CachePrecision, Precision};
pub use probes::{Edit, Edits, Observe, Trace};
pub use sessions::{
    Choice, DropMargin, LayerRoutes, LayerUse, LogitRows, Penalties, PendingTokens, PendingValues,
    RouteArray, RouterShape, RouterUse, Routes, Run, Sampling, Session, SessionOptions, TokenRoutes,
};
pub use tasks::{
    AttentionInfo, Candidate, Class, Classification, Embed, Filled, FilledMask, Generate, Generation, Image,
    LoadOptions, Logits, MlpInfo, Model, ModelInfo, Pooling, PrecisionMemory, Score, Scored, StopReason,
    Token, TokenStream, TopToken, Translate, Translation, TranslationLogits,
};
#[cfg(feature = "chat")]
pub use tasks::{Chat, ChatMessage, ChatTemplate, Reply, ReplyStream};
#[cfg(feature = "tokenizer")]
pub use tasks::{TextStream, Tokenizer};
/// What writes the TypeScript of options and results: `Generation::decl(&Config::new())` is one type's, its `export_all` also writes
/// those that it is made of. Of options, JSON may leave any field out.
#[cfg(feature = "typescript")]
pub use ts_rs;
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
pub use weights::{Hub, HubModel, HubRepo};
pub use weights::{ModelFiles, ReadAt, Source};
/// The wgpu that headwise is built on: an app that shares its device with headwise needs the same version.
pub use wgpu;

#[cfg(all(feature = "tokenizer", not(target_arch = "wasm32")))]
#[doc(hidden)]
pub use guard::panic_is_caught;

#[cfg(not(target_arch = "wasm32"))]
pub use gpu::block_on;

/// The README's code runs as a test.
#[cfg(all(doctest, feature = "chat", feature = "demo-model", feature = "hub"))]
#[doc = include_str!("../README.md")]
pub struct Readme;

/// So does that of the guide for apps.
#[cfg(all(doctest, feature = "chat", feature = "demo-model", feature = "hub"))]
#[doc = include_str!("../docs/embed.md")]
pub struct EmbedGuide;

/// The rooms below the public ones, open to this crate's own command, tests and benches. Not a stable interface.
#[doc(hidden)]
pub mod internal {
    #[cfg(not(target_arch = "wasm32"))]
    pub use crate::measure::yardstick::Yardstick;
    #[cfg(not(target_arch = "wasm32"))]
    pub use crate::weights::{GrowingFile, NewFile, remove_unfinished};
    pub use crate::{gpu::*, layers::*, ops::*, weights::pack_rows};
}
