//! What a user calls: load a model, generate text, look at logits and routes.

#[cfg(feature = "chat")]
mod chat;
#[cfg(feature = "chat")]
mod chat_template;
mod classify;
mod continuation;
mod embed;
mod fill;
mod generate;
mod generation;
mod info;
mod logit_filter;
mod logits;
mod model;
mod packing;
#[cfg(feature = "chat")]
mod reply_stream;
mod score;
mod stream;
#[cfg(feature = "tokenizer")]
mod text;
#[cfg(feature = "chat")]
mod tokenizer_config;
mod trace;
mod translate;
mod warm_up;
mod writer;

#[cfg(feature = "chat")]
pub use chat::{Chat, Reply};
#[cfg(feature = "chat")]
pub use chat_template::{ChatMessage, ChatTemplate};
pub use classify::{Class, Classification, Image};
/// The tokenizer of a model folder.
#[cfg(any(feature = "tokenizer", not(target_arch = "wasm32")))]
pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
/// The largest `tokenizer.json` that is read; the largest published ones have some 30 MB.
#[cfg(any(feature = "tokenizer", not(target_arch = "wasm32")))]
pub(crate) const MAX_TOKENIZER: u64 = 128 << 20;

pub use embed::{Embed, Pooling};
pub use fill::{Candidate, Filled, FilledMask};
pub use generation::{Generate, Generation, StopReason, Token, TopToken};
pub use info::{AttentionInfo, MlpInfo, ModelInfo, PrecisionMemory};
pub use logits::Logits;
#[cfg(all(test, not(target_arch = "wasm32")))]
pub(crate) use model::Files;
pub use model::{LoadOptions, Model};
#[cfg(feature = "chat")]
pub use reply_stream::ReplyStream;
pub use score::{Score, Scored};
pub use stream::TokenStream;
#[cfg(feature = "tokenizer")]
pub use text::{TextStream, Tokenizer};
pub use translate::{Translate, Translation, TranslationLogits};
