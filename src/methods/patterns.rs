//! Which heads look at the token before, at earlier tokens of the same kind, and at what came after those.
//!
//! ```text
//! previous(h)  = mean_t A[t, t−1]
//! duplicate(h) = mean_t Σ_{j < t, x_j = x_t} A[t, j]
//! induction(h) = mean_t Σ_{0 < j ≤ t, x_{j−1} = x_t} A[t, j]
//! ```
//!
//! over the tokens that have such keys and chose the head (Olsson et al. 2022, arXiv 2209.11895; the names are those of
//! TransformerLens's head detector).

use std::collections::HashMap;

use serde::Serialize;

use super::head_rows;
use crate::{
    Model, Result,
    probes::{Address, Keys, Observe},
};

/// How much of a head's weight falls where.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HeadPatterns {
    /// The head.
    pub at: Address,
    /// Mean weight of the token before.
    pub previous: f64,
    /// Mean weight of earlier tokens that are the same.
    pub duplicate: f64,
    /// Mean weight of tokens that came after those.
    pub induction: f64,
    /// Tokens that chose the head: all of them where heads are not routed.
    pub tokens: u64,
}

/// For each token the earlier places of the same token, and those behind them.
fn earlier(ids: &[u32]) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let mut places: HashMap<u32, Vec<u32>> = HashMap::new();
    let same: Vec<Vec<u32>> = (0..)
        .zip(ids)
        .map(|(place, id)| {
            let own = places.entry(*id).or_default();
            let before = own.clone();
            own.push(place);
            before
        })
        .collect();
    let behind = same.iter().map(|places| places.iter().map(|place| place + 1).collect()).collect();
    (same, behind)
}

/// A text of `length` random ids below `vocab`, twice, by a seed: whoever copies has something to copy.
pub fn repeated(vocab: u32, length: usize, seed: u64) -> Vec<u32> {
    // SplitMix64.
    let draw = |i: usize| {
        let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % u64::from(vocab.max(1))) as u32
    };
    let once: Vec<u32> = (0..length).map(draw).collect();
    once.repeat(2)
}

/// The patterns of all heads over some texts, in the order of layers and heads.
///
/// # Errors
/// As [`Model::trace`].
pub async fn patterns(model: &Model, texts: &[&[u32]]) -> Result<Vec<HeadPatterns>> {
    #[derive(Default)]
    struct Sums {
        /// Sum, and tokens that have such keys: previous, duplicate, induction.
        of: [(f64, u64); 3],
        tokens: u64,
    }
    let mut sums: Vec<(Address, Sums)> = Vec::new();
    for ids in texts {
        let (same, behind) = earlier(ids);
        let has = |keys: &[Vec<u32>], position: u32| !keys[position as usize].is_empty();
        let observe = Observe::new()
            .capture("L*H*:rows".parse()?)
            .budget(u64::MAX)
            .mass("previous", Keys::Behind(1))
            .mass("duplicate", Keys::OfRow(same.clone()))
            .mass("induction", Keys::OfRow(behind));
        let trace = model.trace(&[ids], &observe).await?;
        let first = crate::probes::STATISTICS.len();
        for row in head_rows(&trace) {
            // Rows come head by head, so the last is likeliest to be meant.
            let place = match sums.iter().rposition(|(at, _)| *at == row.at) {
                Some(place) => place,
                None => {
                    sums.push((row.at, Sums::default()));
                    sums.len() - 1
                }
            };
            let own = &mut sums[place].1;
            own.tokens += 1;
            let counts = [row.position > 0, has(&same, row.position), has(&same, row.position)];
            for ((sum, counts), &mass) in own.of.iter_mut().zip(counts).zip(&row.columns[first..]) {
                if counts {
                    *sum = (sum.0 + f64::from(mass), sum.1 + 1);
                }
            }
        }
    }
    sums.sort_by_key(|(at, _)| *at);
    let mean = |(sum, count): (f64, u64)| if count == 0 { 0.0 } else { sum / count as f64 };
    let patterns = sums.into_iter().map(|(at, Sums { of, tokens })| {
        let [previous, duplicate, induction] = of.map(mean);
        HeadPatterns { at, previous, duplicate, induction, tokens }
    });
    Ok(patterns.collect())
}
