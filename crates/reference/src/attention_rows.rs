//! What rows of attention weights come to.

use super::softmax;

/// ln Σ exp(z).
pub fn log_sum_exp(z: &[f64]) -> f64 {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln()
}

/// ln Π (1 − σ(z)): what all keys leave of a stick.
pub fn log_rest(z: &[f64]) -> f64 {
    z.iter().map(|z| -(z.max(0.0) + (-z.abs()).exp().ln_1p())).sum()
}

/// Of one row of weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowStatistics {
    /// −Σ w ln w.
    pub entropy: f64,
    /// Σ w².
    pub squares: f64,
    /// Where the largest weight is, the first of equals.
    pub at: usize,
    /// The largest weight.
    pub most: f64,
}

/// Of a row that has at least one weight.
pub fn row_statistics(w: &[f64]) -> RowStatistics {
    let at = (0..w.len()).rev().max_by(|&a, &b| w[a].total_cmp(&w[b])).expect("a weight");
    RowStatistics {
        entropy: w.iter().filter(|w| **w > 0.0).map(|w| -w * w.ln()).sum(),
        squares: w.iter().map(|w| w * w).sum(),
        at,
        most: w[at],
    }
}

/// Σ w over a list of places; none of those behind the last weight.
pub fn mass(w: &[f64], places: &[usize]) -> f64 {
    places.iter().filter_map(|&place| w.get(place)).sum()
}

/// −Σ w ln w of a softmax, by its scores: ln Σ exp(z) − Σ w z.
pub fn entropy_of_scores(z: &[f64]) -> f64 {
    log_sum_exp(z) - softmax(z).iter().zip(z).map(|(w, z)| w * z).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_entropies_are_one() {
        let z = [0.5, -1.0, 3.0, 2.5];
        let row = row_statistics(&softmax(&z));
        assert!((row.entropy - entropy_of_scores(&z)).abs() < 1e-12);
        assert_eq!(row.at, 2);
        assert_eq!(row_statistics(&[0.25; 4]).at, 0);
    }
}
