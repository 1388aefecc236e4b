//! Sessions: batches of sequences on the GPU, one step at a time, and what their routers chose.

mod cancel;
pub(crate) mod readback;
mod router_use;
pub(crate) mod routes;
mod session;
mod translation;

pub use cancel::Cancel;
pub use router_use::{DropMargin, LayerUse, RouterShape, RouterUse};
pub use routes::{Choice, LayerRoutes, Routes, TokenRoutes};
#[cfg(feature = "chat")]
pub(crate) use session::most_positions;
pub(crate) use session::{PendingTokens, Sampling, Session, SessionLayout, check_ids};
pub(crate) use translation::{Row, TargetLayout, TranslationSession};
