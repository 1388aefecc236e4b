//! How much a model needs each head: what becomes of its output without it (as in arXiv 2303.13731, there of vision transformers).
//!
//! ```text
//! z_h ← 0;   loss: L' − L    probability: p(x_t) − p'(x_t)    divergence: JS(p, p') in nats    distance: ‖y − y'‖₂
//! ```
//!
//! means over the tokens t that follow another, of a text, p the distribution of what comes next and y the residual stream behind the
//! last layer.

use serde::Serialize;

use super::with_edits;
use crate::{
    Error, Model, Result,
    probes::{Address, Change, Edit, Observe, What},
};

/// What becomes of a model's output without a head.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HeadImportance {
    /// The head.
    pub at: Address,
    /// By how much the loss grows, in nats a token.
    pub loss: f64,
    /// By how much the probability of what really comes falls.
    pub probability: f64,
    /// The Jensen-Shannon divergence of the two distributions, in nats: at most ln 2.
    pub divergence: f64,
    /// How far the residual stream behind the last layer moves.
    pub distance: f64,
}

/// What a text's tokens look like at the end of the model.
struct Ends {
    /// Log-probabilities `[tokens, vocab]`.
    logs: Vec<Vec<f64>>,
    /// The residual stream `[tokens, width]`.
    last: Vec<Vec<f32>>,
}

impl Ends {
    async fn of(model: &Model, ids: &[u32]) -> Result<Self> {
        let layer = model.info().layers.saturating_sub(1);
        let observe = Observe::new().capture(format!("L{layer}:resid-post").parse()?).budget(u64::MAX);
        let trace = model.trace(&[ids], &observe).await?;
        let rows = trace.of(What::ResidPost).flat_map(|one| one.values.chunks_exact(one.width));
        let logits = model.logits(&[ids]).await?.pop().unwrap_or_default();
        let logs = logits.values.chunks_exact(logits.vocab.max(1)).map(|row| {
            let sum = super::log_sum_exp(row);
            row.iter().map(|&z| f64::from(z) - sum).collect()
        });
        Ok(Self { logs: logs.collect(), last: rows.map(<[f32]>::to_vec).collect() })
    }
}

/// ½ Σ p ln(p/m) + ½ Σ p' ln(p'/m), m their mean.
fn jensen_shannon(p: &[f64], other: &[f64]) -> f64 {
    let part = |log: f64, other: f64| {
        let (own, mean) = (log.exp(), 0.5 * (log.exp() + other.exp()));
        if own > 0.0 { 0.5 * own * (log - mean.ln()) } else { 0.0 }
    };
    p.iter().zip(other).map(|(&a, &b)| part(a, b) + part(b, a)).sum()
}

/// Of every head, or of those named, over some texts, in their order.
///
/// # Errors
/// Texts without a token that follows another; as [`Model::trace`] and [`Model::logits`].
pub async fn importance(
    model: &Model,
    texts: &[&[u32]],
    heads: Option<&[Address]>,
) -> Result<Vec<HeadImportance>> {
    super::check_writes(model).await?;
    let heads = match heads {
        Some(heads) => heads.to_vec(),
        None => super::heads(model).await?,
    };
    let mut found: Vec<HeadImportance> = heads
        .iter()
        .map(|&at| HeadImportance { at, loss: 0.0, probability: 0.0, divergence: 0.0, distance: 0.0 })
        .collect();
    let tokens: usize = texts.iter().map(|ids| ids.len().saturating_sub(1)).sum();
    if tokens == 0 {
        return Err(Error::argument(
            "texts",
            "no token that follows another",
            "a text of at least two tokens",
        ));
    }
    let share = 1.0 / tokens as f64;
    for ids in texts {
        let plain = Ends::of(model, ids).await?;
        for one in &mut found {
            let edited = with_edits(model, [Edit::new(one.at, Change::Scale(0.0))])?;
            let without = Ends::of(&edited, ids).await?;
            for (token, &next) in ids.iter().skip(1).enumerate() {
                let (p, other) = (&plain.logs[token], &without.logs[token]);
                let (log, log_without) = (p[next as usize], other[next as usize]);
                one.loss += share * (log - log_without);
                one.probability += share * (log.exp() - log_without.exp());
                one.divergence += share * jensen_shannon(p, other);
                let moved = plain.last[token].iter().zip(&without.last[token]);
                let squares: f64 = moved.map(|(a, b)| f64::from(a - b).powi(2)).sum();
                one.distance += share * squares.sqrt();
            }
        }
    }
    Ok(found)
}
