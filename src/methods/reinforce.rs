//! Heads that look at a context, reinforced (VHR, arXiv 2412.13949, of images there): of each layer those whose output changes most
//! without the context speak louder.
//!
//! ```text
//! d_h = ‖z_h − z'_h‖;   d_h ← 0 where d_h and ‖z'_h‖² are both above mean + deviation of the layer
//! z_h ← α · z_h   for the heads with d_h above the layer's median
//! ```

use super::last_outputs;
use crate::{
    Edit, Edits, Error, Model, Result,
    probes::{Address, Change, What},
};

/// The edits that reinforce the heads of `layers`, decided at the last token of `with` and of `without`, a text that ends alike
/// and lacks the context.
///
/// # Errors
/// A scale that is no number, texts that are empty or end with different tokens, and as [`Model::trace`].
pub async fn reinforce(
    model: &Model,
    [with, without]: [&[u32]; 2],
    layers: std::ops::Range<u32>,
    alpha: f32,
) -> Result<Edits> {
    if !alpha.is_finite() {
        return Err(Error::argument("alpha", alpha, "a finite number; 2 is usual"));
    }
    let count = model.info().layers;
    if layers.start >= layers.end || layers.end > count {
        return Err(Error::argument(
            "layers",
            format!("{layers:?}"),
            format!("some of the model's 0..{count}"),
        ));
    }
    let [with, without] = last_outputs(model, [with, without]).await?;
    let mut edits = Edits::new();
    let pairs = with.of(What::Z).zip(without.of(What::Z));
    for (own, other) in pairs.filter(|(own, _)| layers.contains(&own.layer)) {
        let squares = |z: &mut dyn Iterator<Item = f64>| z.map(|z| z * z).sum::<f64>();
        let (mut changes, mut norms) = (Vec::new(), Vec::new());
        for place in 0..own.heads.len() {
            let (z, other) = (own.at(0, place), other.at(0, place));
            let moved = z.iter().zip(other).map(|(&a, &b)| f64::from(a) - f64::from(b));
            changes.push(squares(&mut moved.into_iter()).sqrt());
            norms.push(squares(&mut other.iter().map(|&z| f64::from(z))));
        }
        let [most_change, most_norm] = [&changes, &norms].map(|values| mean_and_deviation(values));
        for (change, norm) in changes.iter_mut().zip(&norms) {
            if *change > most_change && *norm > most_norm {
                *change = 0.0;
            }
        }
        let middle = median(&changes);
        let chosen = own.heads.iter().zip(&changes).filter(|(_, change)| **change > middle);
        edits
            .extend(chosen.map(|(&head, _)| Edit::new(Address::head(own.layer, head), Change::Scale(alpha))));
    }
    Ok(edits)
}

/// The mean of values and one standard deviation more.
fn mean_and_deviation(values: &[f64]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    mean + (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count => (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0,
    }
}
