//! How far the heads of a vision transformer look (arXiv 2303.13731): their weight by distance on the grid of patches.
//!
//! ```text
//! ring_k(h) = mean over patches p of Σ A[p, q] over the patches q with max(|Δrow|, |Δcolumn|) = k
//! ```

use serde::Serialize;

use super::{head_rows, heads_of};
use crate::{
    Image, Model, Result,
    probes::{Address, Capture, Keys, Observe, Positions, What},
};

/// How far a head looks.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HeadRings {
    /// The head.
    pub at: Address,
    /// Mean weight at each distance, 0 to one less than the patches of a side.
    pub rings: Vec<f64>,
    /// Mean weight of the class token.
    pub class: f64,
    /// Patches that chose the head, of all images.
    pub patches: u64,
}

impl HeadRings {
    /// The mean distance of what it looks at, in patches, the class token left out.
    pub fn distance(&self) -> f64 {
        let sum: f64 = self.rings.iter().sum();
        let weighed: f64 = self.rings.iter().enumerate().map(|(k, mass)| k as f64 * mass).sum();
        if sum > 0.0 { weighed / sum } else { 0.0 }
    }
}

/// Of every head over some images, in the order of layers and heads.
///
/// # Errors
/// As [`Model::trace_images`].
pub async fn rings(model: &Model, images: &[Image]) -> Result<Vec<HeadRings>> {
    let grid = model.image_grid()?;
    let patches = grid * grid;
    let distance = |a: u32, b: u32| (a / grid).abs_diff(b / grid).max((a % grid).abs_diff(b % grid));
    // Position 0 is the class token's.
    let ring = |k: u32| {
        let of = |row: u32| match row {
            0 => Vec::new(),
            _ => (0..patches).filter(|&q| distance(row - 1, q) == k).map(|q| q + 1).collect(),
        };
        Keys::OfRow((0..=patches).map(of).collect())
    };
    let capture = "L*H*:rows".parse::<Capture>()?.positions(Positions::Range(1, patches + 1));
    let observe = Observe::new().capture(capture).budget(u64::MAX).mass("class", Keys::At(vec![0]));
    let observe = (0..grid).fold(observe, |observe, k| observe.mass(&k.to_string(), ring(k)));
    let first = crate::probes::STATISTICS.len();
    let mut found: Vec<HeadRings> = Vec::new();
    for image in images {
        let trace = model.trace_images(std::slice::from_ref(image), &observe).await?;
        if found.is_empty() {
            let new = |at| HeadRings { at, rings: vec![0.0; grid as usize], class: 0.0, patches: 0 };
            found = heads_of(trace.of(What::Rows)).into_iter().map(new).collect();
        }
        for row in head_rows(&trace) {
            let Some(own) = found.iter_mut().find(|one| one.at == row.at) else { continue };
            own.class += f64::from(row.columns[first]);
            own.rings
                .iter_mut()
                .zip(&row.columns[first + 1..])
                .for_each(|(sum, &mass)| *sum += f64::from(mass));
            own.patches += 1;
        }
    }
    for one in &mut found {
        let share = 1.0 / one.patches.max(1) as f64;
        one.class *= share;
        one.rings.iter_mut().for_each(|mass| *mass *= share);
    }
    Ok(found)
}
