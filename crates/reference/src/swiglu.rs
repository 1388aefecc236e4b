//! The gated activation (Shazeer 2020, arXiv 2002.05202).

/// y = silu(g) · u, silu(g) = g / (1 + e^(−g)). A row of x `[rows, 2·width]` is g, then u.
pub fn swiglu(x: &[f64], width: usize) -> Vec<f64> {
    assert_eq!(x.len() % (2 * width), 0, "swiglu: x is not a whole number of rows");
    let mut y = Vec::with_capacity(x.len() / 2);
    for row in x.chunks_exact(2 * width) {
        let (gate, up) = row.split_at(width);
        y.extend(gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u));
    }
    y
}
