//! Which heads look at a context (VHD, arXiv 2412.13949, of images there): how much a head's output at the last token changes when
//! the context is taken away.
//!
//! ```text
//! z = head(with), z' = head(without);   l2: ‖z − z'‖   relative: ‖z − z'‖ / ‖z‖   cosine: 1 − z·z' / (‖z‖ ‖z'‖)
//! ```

use serde::Serialize;

use crate::{
    Error, Model, Result,
    probes::{Address, Observe, Positions, Trace, What},
};

/// How much a head's output changes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HeadDivergence {
    /// The head.
    pub at: Address,
    /// ‖z − z'‖.
    pub l2: f64,
    /// ‖z − z'‖ / ‖z‖.
    pub relative: f64,
    /// 1 − cos(z, z'); 1 where one of them is nothing.
    pub cosine: f64,
}

/// Of every head at the last token of `with` and of `without`. A head that neither last token chose is left out.
///
/// # Errors
/// Texts that are empty or end with different tokens, and as [`Model::trace`].
pub async fn divergence(model: &Model, with: &[u32], without: &[u32]) -> Result<Vec<HeadDivergence>> {
    let [with, without] = last_outputs(model, [with, without]).await?;
    let mut found = Vec::new();
    for (a, b) in with.of(What::Z).zip(without.of(What::Z)) {
        for (place, &head) in a.heads.iter().enumerate() {
            let (z, other) = (a.at(0, place), b.at(0, place));
            let norm = |z: &[f32]| z.iter().map(|&z| f64::from(z).powi(2)).sum::<f64>().sqrt();
            let (norms, moved) = ([norm(z), norm(other)], z.iter().zip(other).map(|(a, b)| a - b));
            if norms == [0.0; 2] {
                continue;
            }
            let l2 = norm(&moved.collect::<Vec<f32>>());
            let dot: f64 = z.iter().zip(other).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            let product = norms[0] * norms[1];
            found.push(HeadDivergence {
                at: Address::head(a.layer, head),
                l2,
                relative: if norms[0] > 0.0 { l2 / norms[0] } else { f64::INFINITY },
                cosine: if product > 0.0 { 1.0 - dot / product } else { 1.0 },
            });
        }
    }
    Ok(found)
}

/// What the heads put out at the last token of two texts that end alike.
pub(super) async fn last_outputs(model: &Model, texts: [&[u32]; 2]) -> Result<[Trace; 2]> {
    let ends = texts.map(|ids| ids.last());
    if ends[0].is_none() || ends[0] != ends[1] {
        let named = ends.map(|id| id.map_or("nothing".to_owned(), |id| format!("token {id}")));
        let found = format!("{} and {} at the end", named[0], named[1]);
        return Err(Error::argument("texts", found, "two that end with the same token"));
    }
    let [with, without] = texts.map(|ids| last(model, ids));
    Ok([with.await?, without.await?])
}

/// What the heads put out at a text's last token.
async fn last(model: &Model, ids: &[u32]) -> Result<Trace> {
    let capture = "L*H*:z".parse::<crate::probes::Capture>()?;
    let capture = capture.positions(Positions::List(vec![ids.len() as u32 - 1]));
    model.trace(&[ids], &Observe::new().capture(capture)).await
}
