//! The families, each a file that reads a `config.json` and says what the model is and where its tensors are.

mod albert;
mod bam;
mod jetmoe;
mod llama;
mod moa;
mod molm;
mod switch_head;
mod uoe;
mod vit;

use super::Describe;
use crate::{Result, weights::Fields};

/// Reads a config, strictly, and checks it in itself.
type Read = fn(&Fields<'_>) -> Result<Describe>;

/// The families by their `model_type`.
pub(super) const FAMILIES: &[(&str, Read)] = &[
    ("albert", albert::read),
    ("jetmoe", jetmoe::read),
    ("llama", llama::read),
    ("moa", moa::read),
    ("moduleformer", molm::read),
    ("vit", vit::read),
    ("vit_moh", vit::read),
    ("bam", bam::read),
    ("switchhead", switch_head::read),
    ("uoe", uoe::read),
];

/// All of them, for a message.
pub(super) fn list() -> String {
    FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
