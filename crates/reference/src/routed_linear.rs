//! The routed linear map, the oracle of `routed_matvec` and `routed_matmul`: the query, output and MLP
//! products of a mixture of attention heads
//! (Zhang et al. 2022, arXiv 2210.05144; Shen et al. 2024, arXiv 2404.07413).

use super::{combine::combine, matvec, swiglu::swiglu};

/// The operands of `routed_linear`. An assignment a = r·slots + s is slot s of output row r.
#[derive(Clone, Copy, Debug)]
pub struct RoutedLinear<'a> {
    /// W `[experts, out_rows, in_width]`.
    pub weight: &'a [f64],
    /// Rows of one expert's matrix: the output width, or twice that with SwiGLU.
    pub out_rows: usize,
    /// Columns of one expert's matrix.
    pub in_width: usize,
    /// e `[rows·slots]`: the expert of each assignment.
    pub experts: &'a [u32],
    /// `[rows·slots]`; absent: all 1.
    pub gates: Option<&'a [f64]>,
    /// Assignments summed into one output row.
    pub slots: usize,
    /// `[sources, in_width]`.
    pub src: &'a [f64],
    /// Assignments that read the same source row: k to fan a token out to its experts, 1 to read row by row.
    pub src_div: usize,
    /// `[out_width]`, added once to each output row, never gated.
    pub bias: Option<&'a [f64]>,
    /// `[rows, out_width]`, added to the output.
    pub residual: Option<&'a [f64]>,
    /// Whether f(W·src) is silu(first half) · second half; otherwise f is the identity.
    pub swiglu: bool,
}

/// y\[r\] = residual\[r\] + bias + Σ_{s<slots} gate\[a\] · f(W\[e(a)\] · src\[a / src_div\]) with
/// a = r·slots + s; y is `[rows, out_width]`.
pub fn routed_linear(op: &RoutedLinear) -> Vec<f64> {
    let matrix = op.out_rows * op.in_width;
    let out_width = if op.swiglu { op.out_rows / 2 } else { op.out_rows };
    let mut parts = Vec::with_capacity(op.experts.len() * out_width);
    for (a, &expert) in op.experts.iter().enumerate() {
        let weight = &op.weight[expert as usize * matrix..][..matrix];
        let src = &op.src[a / op.src_div * op.in_width..][..op.in_width];
        let product = matvec(weight, src);
        parts.extend(if op.swiglu { swiglu(&product, out_width) } else { product });
    }
    combine(&parts, op.slots, out_width, op.gates, op.bias, op.residual)
}
