//! The sum over the slots of a row, which ends a mixture of experts (Zhang et al. 2022, arXiv 2210.05144).

/// y\[r\] = residual\[r\] + bias + Σ_{s<slots} gate\[r·slots+s\] · part\[r·slots+s\], slots in order.
///
/// Parts are `[rows·slots, width]`, gates `[rows·slots]` (absent: all 1), bias `[width]` (never gated),
/// residual `[rows, width]`.
pub fn combine(
    parts: &[f64],
    slots: usize,
    width: usize,
    gates: Option<&[f64]>,
    bias: Option<&[f64]>,
    residual: Option<&[f64]>,
) -> Vec<f64> {
    let rows = parts.len() / (slots * width);
    assert_eq!(parts.len(), rows * slots * width, "combine: parts");
    assert!(gates.is_none_or(|g| g.len() == rows * slots), "combine: gates");
    assert!(bias.is_none_or(|b| b.len() == width), "combine: bias");
    assert!(residual.is_none_or(|x| x.len() == rows * width), "combine: residual");

    let mut y = vec![0.0; rows * width];
    for row in 0..rows {
        for i in 0..width {
            let gated = |a: usize| gates.map_or(1.0, |g| g[a]) * parts[a * width + i];
            let sum: f64 = (row * slots..(row + 1) * slots).map(gated).sum();
            let out = row * width + i;
            y[out] = residual.map_or(0.0, |x| x[out]) + bias.map_or(0.0, |b| b[i]) + sum;
        }
    }
    y
}
