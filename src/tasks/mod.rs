//! What a user calls: load a model, generate text, look at logits and routes.

mod generate;
mod info;
mod logits;
mod model;
mod routes;
mod run;
mod session;
#[cfg(feature = "tokenizer")]
mod text;

pub use generate::{Cancel, Generate, Generation, StopReason, Token};
pub use info::{AttentionInfo, MlpInfo, ModelInfo, PrecisionMemory};
pub use logits::Logits;
pub use model::{LoadOptions, Model};
pub use routes::{Choice, LayerRoutes, LayerUse, RouterUse, Routes, TokenRoutes};
#[cfg(feature = "tokenizer")]
pub use text::{TextStream, Tokenizer};
