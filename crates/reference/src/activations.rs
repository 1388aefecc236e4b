//! The activations of router nets and of the MLPs of MoLM.

use std::f64::consts::PI;

/// What stands between two linear maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// [`gelu`].
    Gelu,
    /// [`gelu_tanh`].
    GeluTanh,
    /// tanh x.
    Tanh,
    /// max(x, 0).
    Relu,
}

impl Activation {
    /// f(x), element by element.
    pub fn apply(self, x: &[f64]) -> Vec<f64> {
        let f = match self {
            Activation::Gelu => gelu,
            Activation::GeluTanh => gelu_tanh,
            Activation::Tanh => f64::tanh,
            Activation::Relu => |x: f64| x.max(0.0),
        };
        x.iter().copied().map(f).collect()
    }
}

/// x · Φ(x) = x/2 · (1 + erf(x/√2)) (Hendrycks and Gimpel 2016, arXiv 1606.08415).
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / 2f64.sqrt()))
}

/// x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³))), the same paper's approximation.
pub fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

/// 1 / (1 + e^(−x)).
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// ln sigmoid(x), which neither overflows nor rounds to −∞.
pub fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// erf x = 2/√π · e^(−x²) · Σ_n 2ⁿ·x^(2n+1) / (1·3·…·(2n+1)), all terms of one sign (DLMF 7.6.2).
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum(); // 1 − erf 6 is 2e-17
    }
    let (mut term, mut sum) = (x, 0.0);
    for n in 1..400 {
        sum += term;
        term *= 2.0 * x * x / f64::from(2 * n + 1);
    }
    2.0 / PI.sqrt() * (-x * x).exp() * sum
}
