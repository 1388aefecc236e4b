//! How far a routed linear map may be off whose kernel rounds what it multiplies.

use super::{dot, quantize::Scheme, routed_linear::RoutedLinear};

/// What a kernel rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rounding {
    /// Nothing.
    None,
    /// Inputs and weights to 16-bit floats, and the sums of eight products.
    To16Bits,
    /// Each block of inputs to codes of −127 to 127 times one scale.
    ToCodes {
        /// Inputs of a block.
        block: usize,
    },
}

/// The part of each weight that meets rounded codes, for rows of `inputs` weights, `padded` with zeros in storage: scale ·
/// (code − middle). Minima and the middle of q4's codes meet the inputs as they are.
pub fn coded(scheme: Scheme, bytes: &[u8], inputs: usize, padded: usize) -> Vec<f64> {
    let middle = if scheme == Scheme::Q4 { 8.0 } else { 0.0 };
    let rows = bytes.chunks_exact(scheme.row_bytes(padded));
    rows.flat_map(|row| {
        let part = |i| scheme.scale_and_min(row, padded, i / 32).0 * (scheme.code(row, i) - middle);
        (0..inputs).map(part).collect::<Vec<_>>()
    })
    .collect()
}

/// How far each output `[rows, out_width]` may be from `routed_linear`'s by rounding, beside what sums in f32 cost; `coded` is the
/// part of each weight that meets codes.
pub fn bounds(op: &RoutedLinear, coded: &[f64], rounding: Rounding) -> Vec<f64> {
    let width = if op.swiglu { op.out_rows / 2 } else { op.out_rows };
    let product = |a: usize, row: usize| {
        let x = &op.src[a / op.src_div * op.in_width..][..op.in_width];
        let at = (op.experts[a] as usize * op.out_rows + row) * op.in_width;
        let [weight, coded] = [op.weight, coded].map(|all| &all[at..][..op.in_width]);
        let bound = match rounding {
            Rounding::None => 0.0,
            Rounding::To16Bits => in_16_bits(x, weight),
            Rounding::ToCodes { block } => in_codes(x, coded, block),
        };
        (dot(x, weight), bound)
    };
    let of_assignment = |a: usize, column: usize| match op.swiglu {
        true => of_swiglu(product(a, column), product(a, width + column)),
        false => product(a, column).1,
    };
    let rows = op.experts.len() / op.slots;
    let output = |i: usize| -> f64 {
        let (row, column) = (i / width, i % width);
        let gated = |a: usize| op.gates.map_or(1.0, |gates| gates[a].abs()) * of_assignment(a, column);
        (row * op.slots..(row + 1) * op.slots).map(gated).sum()
    };
    (0..rows * width).map(output).collect()
}

/// Of silu(gate) · up, for values and their bounds; the slope of silu is at most 1.1.
fn of_swiglu((gate, gate_bound): (f64, f64), (up, up_bound): (f64, f64)) -> f64 {
    let silu = gate / (1.0 + (-gate).exp());
    1.1 * gate_bound * (up.abs() + up_bound) + silu.abs() * up_bound
}

/// Σ x · w where both are rounded to f16, multiplied in f16, and added up in f16, eight at a time: twelve roundings of one
/// part in 2,048, as each may lose what it cannot hold, below 2⁻¹⁴.
fn in_16_bits(x: &[f64], w: &[f64]) -> f64 {
    let each = (1.0 + 0.5f64.powi(11)).powi(12) - 1.0;
    x.iter().zip(w).map(|(x, w)| each * (x * w).abs() + 0.5f64.powi(14)).sum()
}

/// Σ x · w where each block of x is rounded to codes of −127 to 127 times one scale.
fn in_codes(x: &[f64], coded: &[f64], block: usize) -> f64 {
    let of_block = |(x, w): (&[f64], &[f64])| {
        let most = x.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        // A little more than half a step: the inputs are scaled in f32.
        0.500_1 * most / 127.0 * w.iter().map(|w| w.abs()).sum::<f64>()
    };
    x.chunks(block).zip(coded.chunks(block)).map(of_block).sum()
}
