//! Layer normalisation (Ba et al. 2016, arXiv 1607.06450).

/// y = (x − mean x) · (var x + ε)^(−1/2) · w + b, each row of x `[rows, width]` by itself, the variance over
/// all `width` values; w and b are `[width]`.
pub fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], epsilon: f64) -> Vec<f64> {
    let width = weight.len();
    assert_eq!(x.len() % width, 0, "layer_norm: x is not a whole number of rows");
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(width) {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let scale = 1.0 / (variance + epsilon).sqrt();
        y.extend(row.iter().zip(weight).zip(bias).map(|((x, w), b)| (x - mean) * scale * w + b));
    }
    y
}
