//! Routed linear: `routed_matvec` and `routed_matmul`, with weights in every precision.

use headwise_reference::{
    activations,
    noise::{hash, noise},
    rounding::{self, Rounding},
    routed_linear::{RoutedLinear, routed_linear},
};

use super::{
    Finding, Lab, Run,
    lab::{Stored, unpad},
};
use crate::{
    Result,
    gpu::KernelChoice,
    ops::{
        Activation, Bias, Group, GroupBuffers, MatrixShape, Precision, RoutedMatmul, RoutedMatvec, Routes,
        tile_rows,
    },
};

const PRECISIONS: [Precision; 4] = [Precision::F32, Precision::F16, Precision::Q8, Precision::Q4];
/// Every other one: each variant of a kernel that has any has one of these, and of the rest.
const SOME: [Precision; 2] = [Precision::F32, Precision::Q8];
const OTHERS: [Precision; 2] = [Precision::F16, Precision::Q4];

/// A product of noise.
#[derive(Clone, Copy)]
struct Linear {
    name: &'static str,
    /// How its weights are stored, in turn. Whatever that is, rows are found and sums end in the same way, and each pair of both is
    /// a pipeline that drivers may take seconds for: so one kind of product is tried with all, the others with every other one.
    precisions: &'static [Precision],
    shape: MatrixShape,
    part_rows: u32,
    rows: u32,
    /// Assignments summed into a row.
    slots: u32,
    src_div: u32,
    routed: bool,
    gated: bool,
    bias: bool,
    activation: Activation,
    residual: bool,
}

const PLAIN: Linear = Linear {
    name: "one row",
    precisions: &SOME,
    shape: MatrixShape { experts: 1, halves: 1, outputs: 37, inputs: 60 },
    part_rows: 40,
    rows: 1,
    slots: 1,
    src_div: 1,
    routed: false,
    gated: false,
    bias: true,
    activation: Activation::Gelu,
    residual: false,
};

/// As a token's: one row of a dense matrix, all experts with gates, and several rows over parts of a matrix.
const FEW: [Linear; 3] = [
    PLAIN,
    Linear {
        name: "3 tokens, all of 4 experts, gated, two halves",
        precisions: &PRECISIONS,
        shape: MatrixShape { experts: 4, halves: 2, outputs: 50, inputs: 543 },
        part_rows: 56,
        rows: 3,
        slots: 4,
        src_div: 4,
        routed: true,
        gated: true,
        bias: false,
        activation: Activation::None,
        residual: true,
    },
    Linear {
        name: "7 rows of 5 experts, in parts",
        precisions: &OTHERS,
        shape: MatrixShape { experts: 5, halves: 1, outputs: 67, inputs: 124 },
        part_rows: 24,
        rows: 7,
        src_div: 2,
        routed: true,
        bias: false,
        activation: Activation::None,
        ..PLAIN
    },
];

/// As a prompt's.
const MANY: [Linear; 3] = [
    Linear { activation: Activation::Tanh, ..PLAIN },
    Linear {
        name: "50 tokens, 2 of 5 experts, two halves",
        precisions: &PRECISIONS,
        shape: MatrixShape { experts: 5, halves: 2, outputs: 50, inputs: 159 },
        part_rows: 56,
        rows: 100,
        src_div: 2,
        routed: true,
        bias: false,
        activation: Activation::None,
        ..PLAIN
    },
    Linear {
        name: "67 rows, in parts",
        shape: MatrixShape { experts: 1, halves: 1, outputs: 133, inputs: 224 },
        part_rows: 48,
        rows: 67,
        activation: Activation::Tanh,
        ..PLAIN
    },
];

pub(super) async fn check(run: &mut Run<'_>, labs: &[Lab]) {
    for lab in labs {
        for precision in PRECISIONS {
            let variant = lab.variants.matvec_of(precision).name();
            for linear in FEW.into_iter().filter(|linear| linear.precisions.contains(&precision)) {
                let case = format!("{}, {}", precision.name(), linear.name);
                let work = linear.matvec(lab, precision);
                run.case(lab, ("routed_matvec", variant), &case, work).await;
            }
        }
    }
    for lab in labs {
        for precision in PRECISIONS {
            let variant = lab.variants.matmul_of(precision, true).name();
            for linear in MANY.into_iter().filter(|linear| linear.precisions.contains(&precision)) {
                let case = format!("{}, {}", precision.name(), linear.name);
                let work = linear.matmul(lab, precision);
                run.case(lab, ("routed_matmul", variant), &case, work).await;
            }
        }
    }
}

/// The numbers of a [`Linear`].
struct Operands {
    stored: Stored,
    src: Vec<f64>,
    chosen: Vec<u32>,
    gates: Vec<f64>,
    bias: Vec<f64>,
    residual: Vec<f64>,
}

impl Linear {
    fn operands(&self, precision: Precision) -> Result<Operands> {
        let MatrixShape { experts, outputs, inputs, .. } = self.shape;
        let assignments = (self.rows * self.slots) as usize;
        let mut weights = noise(2, self.shape.parameters() as usize);
        if self.activation != Activation::None {
            // Sums are near 1, where activations bend.
            let scale = 0.5f64.powi(inputs.ilog2() as i32 / 2);
            weights.iter_mut().for_each(|weight| *weight *= scale);
        }
        let every = self.slots == experts;
        // All experts of each row, or any.
        let expert = |i: usize| if every { i as u64 } else { hash(1, i) } % u64::from(experts);
        Ok(Operands {
            stored: Stored::new(&weights, inputs, precision)?,
            src: noise(3, assignments.div_ceil(self.src_div as usize) * inputs as usize),
            chosen: (0..assignments).map(|i| expert(i) as u32).collect(),
            gates: noise(4, assignments),
            bias: noise(5, outputs as usize),
            residual: noise(6, (self.rows * outputs) as usize),
        })
    }

    /// How far `got` is from the reference.
    fn compare(&self, got: &[f64], operands: &Operands, rounding: Rounding) -> Finding {
        let op = RoutedLinear {
            weight: &operands.stored.weights,
            out_rows: (self.shape.halves * self.shape.outputs) as usize,
            in_width: self.shape.inputs as usize,
            experts: &operands.chosen,
            gates: self.gated.then_some(&operands.gates[..]),
            slots: self.slots as usize,
            src: &operands.src,
            src_div: self.src_div as usize,
            bias: self.bias.then_some(&operands.bias[..]),
            residual: self.residual.then_some(&operands.residual[..]),
            swiglu: self.shape.halves == 2,
        };
        let product = routed_linear(&op);
        let expected = match self.activation {
            Activation::Gelu => activations::Activation::Gelu.apply(&product),
            Activation::Tanh => activations::Activation::Tanh.apply(&product),
            _ => product,
        };
        let mut bounds = match rounding {
            Rounding::None => Vec::new(),
            rounding => rounding::bounds(&op, &operands.stored.coded, rounding),
        };
        if self.activation != Activation::None {
            // Their slopes are at most 1.13.
            bounds.iter_mut().for_each(|bound| *bound *= 1.13);
        }
        Finding::within(got, &expected, &bounds)
    }

    async fn matvec(self, lab: &Lab, precision: Precision) -> Result<Finding> {
        let operands = self.operands(precision)?;
        let MatrixShape { outputs, inputs, .. } = self.shape;
        let [chosen, gates] = [lab.data(&operands.chosen), lab.floats(&operands.gates)];
        let dst = match self.residual {
            true => lab.output_of(&super::lab::pad(&operands.residual, outputs)),
            false => lab.output_rows(self.rows, outputs),
        };
        let (src, bias) = (lab.rows(&operands.src, inputs), lab.rows(&operands.bias, outputs));
        let matrix = lab.matrix(self.shape, &operands.stored, self.part_rows);
        let routes = Routes { chosen: &chosen, gates: &gates, first: 0, scores: &gates, first_score: 0 };
        let record = |recorder: &mut _| {
            RoutedMatvec {
                src: &src,
                matrix: &matrix,
                routes: self.routed.then_some(routes),
                gated: self.gated,
                bias: if self.bias { Bias::OfAll(&bias) } else { Bias::None },
                activation: self.activation,
                dst: &dst.buffer,
                residual: self.residual,
                rows: self.rows,
                slots: self.slots,
                src_div: self.src_div,
                beside: None,
            }
            .record(recorder);
        };
        let read = lab.run(&[&dst], record).await?;
        let rounding = match lab.choice {
            KernelChoice::Packed if precision.is_quantized() => Rounding::ToCodes { block: 8 },
            _ => Rounding::None,
        };
        Ok(self.compare(&unpad(&read[0], outputs)?, &operands, rounding))
    }

    async fn matmul(self, lab: &Lab, precision: Precision) -> Result<Finding> {
        let operands = self.operands(precision)?;
        let MatrixShape { experts, outputs, inputs, .. } = self.shape;
        let tile_rows = tile_rows(&lab.gpu, self.rows, experts);
        let [chosen, gates] = [lab.data(&operands.chosen), lab.floats(&operands.gates)];
        let groups = GroupBuffers::new(&lab.gpu, self.rows, experts, tile_rows);
        let dst = lab.output_rows(self.rows, outputs);
        let (src, bias) = (lab.rows(&operands.src, inputs), lab.rows(&operands.bias, outputs));
        let matrix = lab.matrix(self.shape, &operands.stored, self.part_rows);
        let routes = Routes { chosen: &chosen, gates: &gates, first: 0, scores: &gates, first_score: 0 };
        let record = |recorder: &mut _| {
            if self.routed {
                Group { routes, assignments: self.rows, experts, tile_rows, into: &groups }.record(recorder);
            }
            RoutedMatmul {
                src: &src,
                matrix: &matrix,
                groups: self.routed.then_some(&groups),
                bias: if self.bias { Bias::OfAll(&bias) } else { Bias::None },
                activation: self.activation,
                dst: &dst.buffer,
                rows: self.rows,
                src_div: self.src_div,
                bounded: true,
            }
            .record(recorder);
        };
        let read = lab.run(&[&dst], record).await?;
        let rounding = match lab.choice {
            KernelChoice::F16 if precision != Precision::F32 && lab.gpu.capabilities().shader_f16 => {
                Rounding::To16Bits
            }
            KernelChoice::Packed if precision.is_quantized() => Rounding::ToCodes { block: 16 },
            _ => Rounding::None,
        };
        Ok(self.compare(&unpad(&read[0], outputs)?, &operands, rounding))
    }
}
