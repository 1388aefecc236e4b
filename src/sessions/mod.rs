//! Sessions: sequences on the GPU, one step at a time, and what their routers chose.

mod capture_plan;
mod edits;
mod forward;
mod keeping;
mod meant;
mod observe;
mod options;
mod penalties;
pub(crate) mod readback;
mod reading;
mod replay;
pub(crate) mod router_use;
mod routes;
mod runs;
mod sampling;
pub(crate) mod saved;
mod session;
mod states;
mod translation;

pub(crate) use edits::Resolved;
pub(crate) use forward::check_ids;
pub(crate) use options::STEP_TOKENS;
pub use options::SessionOptions;
#[cfg(feature = "chat")]
pub(crate) use options::most_positions;
pub use penalties::Penalties;
pub use reading::PendingTokens;
pub(crate) use reading::{SampledTokens, Wanted};
pub use router_use::{DropMargin, LayerUse, RouterShape, RouterUse};
pub use routes::{Choice, LayerRoutes, RouteArray, Routes, TokenRoutes};
pub use runs::{LogitRows, Run};
pub(crate) use runs::{Room, steps};
pub use sampling::Sampling;
pub use session::Session;
pub use states::PendingValues;
pub(crate) use translation::{Row, TargetLayout, TranslationSession};
