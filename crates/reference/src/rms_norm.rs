//! Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467).

/// y = x · (mean x² + ε)^(−1/2) · w, each row of x `[rows, width]` by itself; w is `[width]`.
pub fn rms_norm(x: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
    let width = weight.len();
    assert_eq!(x.len() % width, 0, "rms_norm: x is not a whole number of rows");
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(width) {
        let mean_square = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let scale = 1.0 / (mean_square + epsilon).sqrt();
        y.extend(row.iter().zip(weight).map(|(x, w)| x * scale * w));
    }
    y
}
