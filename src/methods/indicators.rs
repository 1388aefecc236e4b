//! How heads spread their weight (Deconstructing Attention, arXiv 2510.11602):
//!
//! ```text
//! entropy = mean_t −Σ_j A ln A    frobenius = mean over texts of √(Σ_tj A²)    sink = mean_t A[t, 0]    local_n = mean_t A[t, t−n]
//! ```
//!
//! over the tokens that chose the head; `local_n` over those that have a token so far back.

use std::collections::BTreeMap;

use serde::Serialize;

use super::head_rows;
use crate::{
    Model, Result,
    probes::{Address, Keys, Observe},
};

/// How a head spreads its weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HeadIndicators {
    /// The head.
    pub at: Address,
    /// In nats.
    pub entropy: f64,
    /// Of a text's map.
    pub frobenius: f64,
    /// Weight of the first token.
    pub sink: f64,
    /// Weights of the tokens 0 to 3 places back.
    pub local: [f64; 4],
}

#[derive(Default)]
struct Sums {
    rows: f64,
    entropy: f64,
    sink: f64,
    local: [[f64; 2]; 4],
    /// Of each text.
    frobenius: Vec<f64>,
}

/// Of every head over some texts, in the order of layers and heads.
///
/// # Errors
/// As [`Model::trace`].
pub async fn indicators(model: &Model, texts: &[&[u32]]) -> Result<Vec<HeadIndicators>> {
    let mut sums: BTreeMap<Address, Sums> = BTreeMap::new();
    for ids in texts {
        let observe = Observe::new().capture("L*H*:rows".parse()?).budget(u64::MAX);
        let observe = observe.mass("sink", Keys::At(vec![0]));
        let observe = (0..4).fold(observe, |observe, n| observe.mass(&n.to_string(), Keys::Behind(n)));
        let trace = model.trace(&[ids], &observe).await?;
        let mut squares: BTreeMap<Address, f64> = BTreeMap::new();
        for row in head_rows(&trace) {
            let [_, _, entropy, square, _, _, sink, local @ ..] = row.columns else { continue };
            let own = sums.entry(row.at).or_default();
            own.rows += 1.0;
            own.entropy += f64::from(*entropy);
            own.sink += f64::from(*sink);
            for (n, (sum, &weight)) in (0..).zip(own.local.iter_mut().zip(local)) {
                if row.position >= n {
                    *sum = [sum[0] + f64::from(weight), sum[1] + 1.0];
                }
            }
            *squares.entry(row.at).or_default() += f64::from(*square);
        }
        squares.into_iter().for_each(|(at, sum)| sums.entry(at).or_default().frobenius.push(sum.sqrt()));
    }
    let finished = sums.into_iter().map(|(at, sums)| HeadIndicators {
        at,
        entropy: sums.entropy / sums.rows,
        frobenius: super::mean(sums.frobenius.into_iter()).unwrap_or(0.0),
        sink: sums.sink / sums.rows,
        local: sums.local.map(|[sum, count]| if count > 0.0 { sum / count } else { 0.0 }),
    });
    Ok(finished.collect())
}
