//! How much a text needs some heads (AttentionInfluence, arXiv 2505.07293):
//!
//! ```text
//! score = (L_masked − L) / L
//! ```
//!
//! for the mean loss L of a text's tokens, and the same with those heads attending to all that they may see alike. Compare within
//! one domain only.

use serde::Serialize;

use super::with_edits;
use crate::{
    Model, Result, Score,
    probes::{Address, Change, Edit},
};

/// What becomes of a text's loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Influence {
    /// Mean loss of its tokens, in nats.
    pub loss: f64,
    /// The same without the heads.
    pub masked: f64,
    /// `(masked − loss) / loss`.
    pub score: f64,
}

/// Of each text, in their order; nothing of one with no token to score.
///
/// # Errors
/// As [`Model::score_ids`], and an edit that fits no such head.
pub async fn influence(
    model: &Model,
    heads: &[Address],
    change: Change,
    texts: &[&[u32]],
    options: &Score,
) -> Result<Vec<Option<Influence>>> {
    let masked = with_edits(model, heads.iter().map(|&at| Edit::new(at, change.clone())))?;
    let plain = model.score_ids(texts, options).await?;
    let masked = masked.score_ids(texts, options).await?;
    let loss = |scored: &crate::Scored| scored.perplexity().map(f64::ln);
    let one = |(plain, masked): (&crate::Scored, &crate::Scored)| {
        let (loss, masked) = (loss(plain)?, loss(masked)?);
        Some(Influence { loss, masked, score: (masked - loss) / loss })
    };
    Ok(plain.iter().zip(&masked).map(one).collect())
}
