//! The variants of routed linear that round what they multiply: each output is off by no more than rounding each of its
//! inputs may cost, and all of them together by far less.

use headwise::internal::{Activation, KernelChoice, MatrixShape, Precision};

use super::linear::{Biased, Linear, Operands, any_linear};
use crate::{
    reference::{
        quantize::Scheme,
        rounding::{self, Rounding},
    },
    support::{ROUNDING, assert_close, assert_repeatable, check, gpu},
};

/// A value and how far off it may be.
#[derive(Clone, Copy)]
struct Rounded {
    value: f64,
    bound: f64,
}

impl Linear {
    /// The part of each weight that meets codes.
    fn coded(&self, operands: &Operands) -> Vec<f64> {
        let scheme = match self.precision {
            Precision::Q8 => Scheme::Q8,
            Precision::Q4 => Scheme::Q4,
            Precision::F32 | Precision::F16 => return operands.weights.clone(),
            other => panic!("{other:?} has no oracle"),
        };
        let inputs = self.shape.inputs as usize;
        let rows = operands.rows.as_ref().expect("rows of a quantised matrix");
        rounding::coded(scheme, rows, inputs, inputs.next_multiple_of(8))
    }

    /// Each output in `choice`, whose codes are of blocks of so many inputs; without an activation.
    fn rounded(&self, operands: &Operands, choice: KernelChoice, block: usize) -> Vec<Rounded> {
        let how = match (choice, self.precision) {
            (KernelChoice::F16, Precision::F16 | Precision::Q8 | Precision::Q4) => Rounding::To16Bits,
            (KernelChoice::Packed, Precision::Q8 | Precision::Q4) => Rounding::ToCodes { block },
            _ => Rounding::None,
        };
        let bounds = rounding::bounds(&self.product(operands), &self.coded(operands), how);
        let values = self.oracle(operands);
        assert_eq!(values.len(), bounds.len());
        values.into_iter().zip(bounds).map(|(value, bound)| Rounded { value, bound }).collect()
    }
}

/// Panics unless every output is within its bound and what f32 costs.
#[track_caller]
fn assert_within(got: &[f64], expected: &[Rounded], what: impl std::fmt::Debug) {
    assert_eq!(got.len(), expected.len(), "{what:?}: lengths");
    let scale = expected.iter().fold(1.0, |scale: f64, one| scale.max(one.value.abs()));
    for (i, (got, one)) in got.iter().zip(expected).enumerate() {
        let error = (got - one.value).abs();
        let bound = one.bound + 1e-5 * scale;
        assert!(
            error <= bound,
            "{what:?}: element {i} is {got}, not {}: off by {error:e} of {bound:e}",
            one.value
        );
    }
}

#[test]
fn matvecs_are_off_by_no_more_than_their_rounding() {
    check(48, any_linear(7, 6), |linear| {
        let linear = Linear { activation: Activation::None, ..linear };
        let operands = linear.operands();
        // No matvec multiplies in 16 bits.
        let exact = linear.rounded(&operands, KernelChoice::Workgroup, 8);
        let coded = linear.rounded(&operands, KernelChoice::Packed, 8);
        for (choice, expected) in [(KernelChoice::F16, exact), (KernelChoice::Packed, coded)] {
            let (got, counters) = linear.matvec(gpu(choice), &operands);
            assert_within(&got, &expected, choice);
            assert_eq!(counters.macs, linear.macs());
        }
    });
}

#[test]
fn matmuls_are_off_by_no_more_than_their_rounding() {
    check(48, any_linear(150, 1), |linear| {
        let linear =
            Linear { slots: 1, gated: false, residual: false, activation: Activation::None, ..linear };
        let operands = linear.operands();
        for choice in ROUNDING {
            let (got, counters) = linear.matmul(gpu(choice), &operands);
            assert_within(&got, &linear.rounded(&operands, choice, 16), choice);
            assert_eq!(counters.macs, linear.macs());
        }
    });
}

/// 40 tokens that use 3 of 5 experts, of a matrix in three parts.
fn typical(precision: Precision) -> Linear {
    Linear {
        shape: MatrixShape { experts: 5, halves: 1, outputs: 100, inputs: 512 },
        precision,
        part_rows: 40,
        rows: 40,
        slots: 1,
        src_div: 1,
        used: Some(4),
        first: 6,
        gated: false,
        bias: Biased::No,
        activation: Activation::None,
        residual: false,
        seed: 11,
    }
}

/// Roundings cancel out: the root of the mean square is off by less than 5e-3.
#[test]
fn outputs_together_are_off_by_little() {
    for precision in [Precision::F16, Precision::Q8, Precision::Q4] {
        let linear = typical(precision);
        let operands = linear.operands();
        let expected = linear.oracle(&operands);
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        for choice in ROUNDING {
            for got in [linear.matvec(gpu(choice), &operands).0, linear.matmul(gpu(choice), &operands).0] {
                let error = norm(&mut got.iter().zip(&expected).map(|(got, expected)| got - expected))
                    / norm(&mut expected.iter().copied());
                assert!(error < 5e-3, "{choice:?}, {precision:?}: {error:e}");
            }
        }
    }
}

/// Weights that are stored more finely are multiplied as ever.
#[test]
fn finer_weights_are_not_rounded() {
    for (precision, choices) in [(Precision::F32, &ROUNDING[..]), (Precision::F16, &[KernelChoice::Packed])] {
        let linear = typical(precision);
        let operands = linear.operands();
        let expected = linear.oracle(&operands);
        for &choice in choices {
            assert_close(&linear.matvec(gpu(choice), &operands).0, &expected, (choice, precision));
            assert_close(&linear.matmul(gpu(choice), &operands).0, &expected, (choice, precision));
        }
    }
}

/// Inputs beyond 65,504, as trained MLPs have inside: they are multiplied in f32.
#[test]
fn unbounded_inputs_are_not_rounded_to_16_bits() {
    for precision in [Precision::F16, Precision::Q8, Precision::Q4] {
        let linear = typical(precision);
        let mut operands = linear.operands();
        operands.src.iter_mut().step_by(97).for_each(|x| *x = f64::from((*x * 1e6) as f32));
        let (got, _) = linear.matmul_of(gpu(KernelChoice::F16), &operands, false);
        assert_close(&got, &linear.oracle(&operands), precision);
    }
}

#[test]
fn inputs_of_zero_and_of_any_size_stay_finite_in_codes() {
    for precision in [Precision::Q8, Precision::Q4] {
        let linear = typical(precision);
        for size in [0.0, 1e-40, 1e-30, 1e30] {
            let mut operands = linear.operands();
            operands.src.iter_mut().for_each(|x| *x = f64::from((*x * size) as f32));
            for (got, block) in [
                (linear.matvec(gpu(KernelChoice::Packed), &operands).0, 8),
                (linear.matmul(gpu(KernelChoice::Packed), &operands).0, 16),
            ] {
                assert_within(
                    &got,
                    &linear.rounded(&operands, KernelChoice::Packed, block),
                    (precision, size),
                );
            }
        }
    }
}

#[test]
fn rounded_products_give_the_same_bits_every_time_and_in_any_batch() {
    let (outputs, inputs) = (100, 512);
    for choice in ROUNDING {
        let gpu = gpu(choice);
        for precision in [Precision::F16, Precision::Q8, Precision::Q4] {
            let linear = typical(precision);
            let operands = linear.operands();
            assert_repeatable(|| linear.matmul(gpu, &operands).0);
            assert_repeatable(|| linear.matvec(gpu, &operands).0);
            let batches = [linear.matmul(gpu, &operands).0, linear.matvec(gpu, &operands).0];
            for row in [0, 39] {
                let one = Linear { rows: 1, ..linear };
                let alone = Operands {
                    chosen: vec![operands.chosen[row]],
                    gates: vec![operands.gates[row]],
                    src: operands.src[row * inputs..][..inputs].to_vec(),
                    ..linear.operands()
                };
                let alone = [one.matmul(gpu, &alone).0, one.matvec(gpu, &alone).0];
                for (batch, alone) in batches.iter().zip(&alone) {
                    assert_eq!(batch[row * outputs..][..outputs], alone[..], "{choice:?}, row {row}");
                }
            }
        }
    }
}
