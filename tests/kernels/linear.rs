//! Routed linear in both forms, `routed_matvec` and `routed_matmul`, in every variant.

use headwise::internal::{
    Activation, Beside, Bias, Buffer, Counters, Gpu, Group, GroupBuffers, KernelChoice, Matrix, MatrixShape,
    Precision, RoutedMatmul, RoutedMatvec, Routes, tile_rows,
};
use proptest::prelude::*;

use crate::{
    reference::{
        activations,
        quantize::Scheme,
        routed_linear::{RoutedLinear, routed_linear},
    },
    support::{
        Guarded, among, any_precision, assert_close, assert_repeatable, check, choices, gpu, hash, matrix,
        matrix_of_rows, noise, pad, quantized, rows_as_stored, run, size, stored, upload,
    },
};

/// A routed linear map of random numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    pub shape: MatrixShape,
    pub precision: Precision,
    /// Rows of a part of the matrix.
    pub part_rows: u32,
    /// Rows of the result, and assignments summed into each.
    pub rows: u32,
    pub slots: u32,
    pub src_div: u32,
    /// Experts that any assignment chose; absent for a dense matrix.
    pub used: Option<u32>,
    /// Where the routes start.
    pub first: u32,
    pub gated: bool,
    pub bias: Biased,
    pub activation: Activation,
    pub residual: bool,
    pub seed: u64,
}

/// What is added to the outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Biased {
    No,
    Once,
    /// By expert; rows of one assignment each.
    ByExpert,
}

impl Biased {
    fn once(bias: bool) -> Self {
        if bias { Self::Once } else { Self::No }
    }
}

/// A dense or routed matrix; a stack of several experts that is not routed does not exist.
pub(super) fn any_linear(max_rows: u32, max_slots: u32) -> impl Strategy<Value = Linear> {
    // Inputs on both sides of what the 64 lanes of a workgroup hold in one step, 8 each.
    let inputs = prop_oneof![3 => size(200), 1 => 450..1200u32];
    let shape = (size(9), 1..=2u32, size(150), inputs);
    let rows = (size(max_rows), size(max_slots), size(5));
    let biased = prop::sample::select(vec![Biased::No, Biased::Once, Biased::ByExpert]);
    let switches = (any::<(bool, bool)>(), biased, any::<bool>());
    let rest = (any_precision(), 1..=12u32, any::<u32>(), size(7), activation(), any::<u64>());
    (shape, rows, switches, rest).prop_map(
        |(
            (experts, halves, outputs, inputs),
            (rows, slots, src_div),
            ((routed, gated), bias, residual),
            (precision, part_blocks, used, first, activation, seed),
        )| {
            let experts = if routed { experts } else { 1 };
            // Quantised rows are whole groups with their padding.
            let inputs = match precision.is_quantized() {
                true => inputs.next_multiple_of(32) - (seed % 8) as u32,
                false => inputs,
            };
            Linear {
                shape: MatrixShape { experts, halves, outputs, inputs },
                precision,
                part_rows: 8 * part_blocks,
                rows,
                slots,
                src_div,
                used: routed.then_some(1 + used % experts),
                first: if routed || gated { first - 1 } else { 0 },
                // Gates come with routes.
                gated: gated && routed,
                bias: if bias == Biased::ByExpert && slots > 1 { Biased::Once } else { bias },
                activation,
                residual,
                seed,
            }
        },
    )
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Tanh, Activation::Relu];

fn activation() -> impl Strategy<Value = Activation> {
    prop_oneof![1 => Just(Activation::None), 2 => prop::sample::select(&ACTIVATIONS[..])]
}

/// How the oracle says it.
fn activate(activation: Activation, x: &[f64]) -> Vec<f64> {
    let f = match activation {
        Activation::None => return x.to_vec(),
        Activation::Gelu => activations::Activation::Gelu,
        Activation::GeluTanh => activations::Activation::GeluTanh,
        Activation::Tanh => activations::Activation::Tanh,
        Activation::Relu => activations::Activation::Relu,
    };
    f.apply(x)
}

/// The numbers of a [`Linear`].
pub(super) struct Operands {
    /// As they are after storage.
    pub weights: Vec<f64>,
    /// Rows in a quantised precision; else they are made of `weights`.
    pub rows: Option<Vec<u8>>,
    pub src: Vec<f64>,
    pub chosen: Vec<u32>,
    pub gates: Vec<f64>,
    pub bias: Vec<f64>,
    pub residual: Vec<f64>,
}

impl Linear {
    fn assignments(&self) -> usize {
        (self.rows * self.slots) as usize
    }

    pub fn operands(&self) -> Operands {
        let MatrixShape { experts, outputs, inputs, .. } = self.shape;
        let out = (self.rows * outputs) as usize;
        let sources = self.assignments().div_ceil(self.src_div as usize);
        let used = u64::from(self.used.unwrap_or(1));
        // Any `used` neighbours, so that the experts before and after them are empty.
        let expert = |i| (hash(self.seed + 1, i) % used + self.seed % 97) % u64::from(experts);
        let mut weights = noise(self.seed + 2, self.shape.parameters() as usize);
        if self.activation != Activation::None {
            // Sums are near 1, where activations bend, and so are their rounding errors.
            let scale = 0.5f64.powi(inputs.ilog2() as i32 / 2);
            weights.iter_mut().for_each(|weight| *weight *= scale);
        }
        let scheme = match self.precision {
            Precision::Q8 => Some(Scheme::Q8),
            Precision::Q4 => Some(Scheme::Q4),
            Precision::F32 | Precision::F16 => None,
            other => panic!("{other:?} has no oracle"),
        };
        let (weights, rows) = match scheme {
            None => (stored(&weights, self.precision), None),
            Some(scheme) => {
                let rows = quantized(&pad(&weights, inputs), inputs, self.precision);
                let padded = scheme.unpack(&rows, inputs.next_multiple_of(8) as usize);
                let row = |row: &[f64]| row[..inputs as usize].to_vec();
                (padded.chunks(inputs.next_multiple_of(8) as usize).flat_map(row).collect(), Some(rows))
            }
        };
        Operands {
            weights,
            rows,
            src: noise(self.seed + 3, sources * inputs as usize),
            chosen: (0..self.assignments()).map(|i| expert(i) as u32).collect(),
            gates: noise(self.seed + 4, self.assignments()),
            bias: noise(self.seed + 5, (experts * outputs) as usize),
            residual: noise(self.seed + 6, out),
        }
    }

    /// The product of the oracle, before what stands behind it.
    pub fn product<'a>(&self, operands: &'a Operands) -> RoutedLinear<'a> {
        RoutedLinear {
            weight: &operands.weights,
            out_rows: (self.shape.halves * self.shape.outputs) as usize,
            in_width: self.shape.inputs as usize,
            experts: &operands.chosen,
            gates: self.gated.then_some(&operands.gates[..]),
            slots: self.slots as usize,
            src: &operands.src,
            src_div: self.src_div as usize,
            bias: (self.bias == Biased::Once).then_some(&operands.bias[..self.shape.outputs as usize]),
            residual: None,
            swiglu: self.shape.halves == 2,
        }
    }

    pub fn oracle(&self, operands: &Operands) -> Vec<f64> {
        let outputs = self.shape.outputs as usize;
        let mut product = routed_linear(&self.product(operands));
        if self.bias == Biased::ByExpert {
            for (row, expert) in product.chunks_exact_mut(outputs).zip(&operands.chosen) {
                let bias = &operands.bias[*expert as usize * outputs..][..outputs];
                row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
        }
        let mut y = activate(self.activation, &product);
        if self.residual {
            y.iter_mut().zip(&operands.residual).for_each(|(y, residual)| *y += residual);
        }
        y
    }

    /// Bytes of one expert: rows padded to whole blocks of eight weights, or groups of 32 with their scales.
    fn expert_bytes(&self) -> u64 {
        let MatrixShape { halves, outputs, inputs, .. } = self.shape;
        let padded = u64::from(inputs.div_ceil(8)) * 8;
        let row = match self.precision {
            Precision::F32 => 4 * padded,
            Precision::F16 => 2 * padded,
            Precision::Q8 => Scheme::Q8.row_bytes(padded as usize) as u64,
            Precision::Q4 => Scheme::Q4.row_bytes(padded as usize) as u64,
            other => panic!("{other:?} has no oracle"),
        };
        u64::from(halves * outputs) * row
    }

    /// Multiply-accumulates, by the definition.
    pub fn macs(&self) -> u64 {
        let MatrixShape { halves, outputs, inputs, .. } = self.shape;
        self.assignments() as u64 * u64::from(halves) * u64::from(outputs) * u64::from(inputs)
    }

    /// Chosen experts and gates on the GPU, among those of other routers.
    fn routes(&self, gpu: &Gpu, operands: &Operands) -> (Buffer, Buffer) {
        let gates: Vec<f32> = operands.gates.iter().map(|&gate| gate as f32).collect();
        (among(gpu, self.first, &operands.chosen, 0), among(gpu, self.first, &gates, 0.5))
    }

    fn as_routes<'a>(&self, chosen: &'a Buffer, gates: &'a Buffer) -> Routes<'a> {
        Routes { chosen, gates, first: self.first, scores: gates, first_score: 0 }
    }

    fn as_bias<'a>(&self, bias: &'a Buffer) -> Bias<'a> {
        match self.bias {
            Biased::No => Bias::None,
            Biased::Once => Bias::OfAll(bias),
            Biased::ByExpert => Bias::OfExpert(bias),
        }
    }

    fn matrix(&self, gpu: &Gpu, operands: &Operands) -> Matrix {
        match &operands.rows {
            Some(rows) => matrix_of_rows(gpu, self.shape, self.precision, self.part_rows, rows),
            None => matrix(gpu, self.shape, self.precision, self.part_rows, &operands.weights),
        }
    }

    pub fn matvec(&self, gpu: &Gpu, operands: &Operands) -> (Vec<f64>, Counters) {
        let MatrixShape { outputs, inputs, .. } = self.shape;
        let (chosen, gates) = self.routes(gpu, operands);
        let dst = match self.residual {
            true => Guarded::holding(gpu, 0, &pad(&operands.residual, outputs)),
            false => Guarded::rows(gpu, self.rows as usize, outputs),
        };
        let bias = upload(gpu, &operands.bias, outputs);
        let src = upload(gpu, &operands.src, inputs);
        let matrix = self.matrix(gpu, operands);
        let routes = self.as_routes(&chosen, &gates);
        let counters = run(gpu, |recorder| {
            RoutedMatvec {
                beside: None,
                src: &src,
                matrix: &matrix,
                routes: self.used.map(|_| routes),
                gated: self.gated,
                bias: self.as_bias(&bias),
                activation: self.activation,
                dst: &dst.buffer,
                residual: self.residual,
                rows: self.rows,
                slots: self.slots,
                src_div: self.src_div,
            }
            .record(recorder);
        });
        (dst.read_rows(outputs), counters)
    }

    /// Only for `slots` = 1, without gates or residual.
    pub fn matmul(&self, gpu: &Gpu, operands: &Operands) -> (Vec<f64>, Counters) {
        self.matmul_of(gpu, operands, true)
    }

    /// As `matmul`, of inputs that may or may not pass what 16-bit floats hold.
    pub fn matmul_of(&self, gpu: &Gpu, operands: &Operands, bounded: bool) -> (Vec<f64>, Counters) {
        let MatrixShape { experts, outputs, inputs, .. } = self.shape;
        let (chosen, gates) = self.routes(gpu, operands);
        let groups =
            self.used.map(|_| GroupBuffers::new(gpu, self.rows, experts, tile_rows(gpu, self.rows, experts)));
        let dst = Guarded::rows(gpu, self.rows as usize, outputs);
        let bias = upload(gpu, &operands.bias, outputs);
        let src = upload(gpu, &operands.src, inputs);
        let matrix = self.matrix(gpu, operands);
        let routes = self.as_routes(&chosen, &gates);
        let counters = run(gpu, |recorder| {
            if let Some(groups) = &groups {
                Group {
                    routes,
                    assignments: self.rows,
                    experts,
                    tile_rows: tile_rows(gpu, self.rows, experts),
                    into: groups,
                }
                .record(recorder);
            }
            RoutedMatmul {
                src: &src,
                matrix: &matrix,
                groups: groups.as_ref(),
                bias: self.as_bias(&bias),
                activation: self.activation,
                dst: &dst.buffer,
                rows: self.rows,
                src_div: self.src_div,
                bounded,
            }
            .record(recorder);
        });
        (dst.read_rows(outputs), counters)
    }
}

#[test]
fn a_dense_product_beside_a_routed_one_is_the_same_in_one_dispatch() {
    check(48, (any_linear(5, 1), size(60)), |(linear, width)| {
        let shape = MatrixShape { halves: 1, ..linear.shape };
        let tokens = linear.rows;
        let rows = tokens * linear.src_div;
        let routed = Linear { shape, slots: 1, rows, gated: false, residual: false, ..linear };
        let dense = Linear {
            shape: MatrixShape::dense(width, shape.inputs),
            rows: tokens,
            src_div: 1,
            used: None,
            bias: Biased::No,
            activation: Activation::None,
            seed: routed.seed + 50,
            ..routed
        };
        let (ours, theirs) = (routed.operands(), dense.operands());
        let theirs = Operands { src: ours.src.clone(), ..theirs };
        let expected = [routed.oracle(&ours), dense.oracle(&theirs)];
        for choice in choices() {
            let gpu = gpu(choice);
            let pair =
                Matrix::pair(gpu, ["routed", "dense"], [shape, dense.shape], routed.precision).unwrap();
            assert!(pair[0].is_paired_with(&pair[1]));
            for (matrix, operands) in pair.iter().zip([&ours, &theirs]) {
                let stored = || rows_as_stored(matrix.shape, matrix.precision, &operands.weights);
                matrix.write_rows(0, &operands.rows.clone().unwrap_or_else(stored));
            }
            let (chosen, gates) = routed.routes(gpu, &ours);
            let (bias, src) = (upload(gpu, &ours.bias, shape.outputs), upload(gpu, &ours.src, shape.inputs));
            let dst = Guarded::rows(gpu, rows as usize, shape.outputs);
            let beside = Guarded::rows(gpu, tokens as usize, width);
            let routes = routed.as_routes(&chosen, &gates);
            let counters = run(gpu, |recorder| {
                RoutedMatvec {
                    src: &src,
                    matrix: &pair[0],
                    routes: routed.used.map(|_| routes),
                    gated: false,
                    bias: routed.as_bias(&bias),
                    activation: routed.activation,
                    dst: &dst.buffer,
                    residual: false,
                    rows,
                    slots: 1,
                    src_div: routed.src_div,
                    beside: Some(Beside { matrix: &pair[1], dst: &beside.buffer }),
                }
                .record(recorder);
            });
            assert_close(&dst.read_rows(shape.outputs), &expected[0], choice);
            assert_close(&beside.read_rows(width), &expected[1], choice);
            assert_eq!(counters.dispatches, 1);
            assert_eq!(counters.macs, routed.macs() + dense.macs());
            let bytes = u64::from(rows) * routed.expert_bytes() + u64::from(tokens) * dense.expert_bytes();
            assert_eq!(counters.weight_bytes, bytes);
        }
    });
}

#[test]
fn routed_matvec_sums_the_gated_experts_of_each_row() {
    check(64, any_linear(7, 6), |linear| {
        let operands = linear.operands();
        let expected = linear.oracle(&operands);
        for choice in choices() {
            let (got, counters) = linear.matvec(gpu(choice), &operands);
            assert_close(&got, &expected, choice);
            assert_eq!(counters.macs, linear.macs());
            // Every assignment reads its expert.
            let experts = u64::from(linear.rows * linear.slots);
            assert_eq!(counters.weight_bytes, experts * linear.expert_bytes());
        }
    });
}

#[test]
fn routed_matmul_multiplies_each_assignment_by_its_expert() {
    check(64, any_linear(150, 1), |linear| {
        let linear = Linear { slots: 1, gated: false, residual: false, ..linear };
        let operands = linear.operands();
        let expected = linear.oracle(&operands);
        for choice in choices() {
            let (got, counters) = linear.matmul(gpu(choice), &operands);
            assert_close(&got, &expected, choice);
            assert_eq!(counters.macs, linear.macs());
            // Every expert is read once, if that many can have been chosen.
            let experts = u64::from(linear.rows.min(linear.shape.experts));
            assert_eq!(counters.weight_bytes, experts * linear.expert_bytes());
        }
    });
}

/// 40 tokens that use 3 of 5 experts, of a matrix in three parts.
const TYPICAL: Linear = Linear {
    shape: MatrixShape { experts: 5, halves: 2, outputs: 100, inputs: 72 },
    precision: Precision::F32,
    part_rows: 40,
    rows: 120,
    slots: 1,
    src_div: 3,
    used: Some(4),
    first: 6,
    gated: false,
    bias: Biased::Once,
    activation: Activation::None,
    residual: false,
    seed: 11,
};

/// Each x alone, as the one weight of a row, so that nothing but the activation can be wrong. Half of x is bias.
#[test]
fn activations_hold_inputs_of_any_size() {
    let sizes = [
        0.0, 1e-30, 1e-6, 1e-3, 0.1, 0.25, 0.5, 0.9, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 9.0,
        10.0, 20.0, 43.0, 44.0, 45.0, 88.0, 89.0, 90.0, 100.0, 1e3, 1e4, 1e10, 1e15, 1e20, 1e30, 1e38,
    ];
    let xs: Vec<f64> = sizes.iter().flat_map(|&x| [x, -x]).map(|x| f64::from(x as f32)).collect();
    for activation in ACTIVATIONS {
        for bias in [Biased::No, Biased::Once] {
            let part = if bias == Biased::Once { 0.5 } else { 1.0 };
            let shape = MatrixShape::dense(xs.len() as u32, 1);
            let linear =
                Linear { shape, activation, bias, rows: 1, src_div: 1, used: None, first: 0, ..TYPICAL };
            let operands = Operands {
                weights: xs.iter().map(|x| x * part).collect(),
                src: vec![1.0],
                bias: xs.iter().map(|x| x * part).collect(),
                ..linear.operands()
            };
            let expected = activate(activation, &xs);
            for choice in choices() {
                let gpu = gpu(choice);
                for got in [linear.matvec(gpu, &operands).0, linear.matmul(gpu, &operands).0] {
                    for ((x, got), expected) in xs.iter().zip(&got).zip(&expected) {
                        assert_close(&[*got], &[*expected], (choice, activation, x));
                    }
                }
            }
        }
    }
}

/// Every activation in every variant, with each combination of what comes before and after it.
#[test]
fn activations_come_after_the_bias_and_before_the_residual() {
    for activation in ACTIVATIONS {
        for (biased, residual) in [(false, false), (true, false), (false, true), (true, true)] {
            let bias = Biased::once(biased);
            for halves in [1, 2] {
                let shape = MatrixShape { halves, outputs: 101, ..TYPICAL.shape };
                let matvec = Linear {
                    shape,
                    rows: 10,
                    slots: 3,
                    src_div: 1,
                    gated: true,
                    activation,
                    bias,
                    residual,
                    ..TYPICAL
                };
                // Here every assignment has a row of its own, so each expert may have a bias of its own, too.
                let bias = if residual && biased { Biased::ByExpert } else { bias };
                let matmul = Linear { shape, activation, bias, ..TYPICAL };
                let matvec_operands = matvec.operands();
                let matmul_operands = matmul.operands();
                let matvec_expected = matvec.oracle(&matvec_operands);
                let matmul_expected = matmul.oracle(&matmul_operands);
                for choice in choices() {
                    let gpu = gpu(choice);
                    let what = (choice, activation, bias, residual);
                    assert_close(&matvec.matvec(gpu, &matvec_operands).0, &matvec_expected, what);
                    assert_close(&matmul.matmul(gpu, &matmul_operands).0, &matmul_expected, what);
                }
            }
        }
    }
}

#[test]
fn routed_linear_gives_the_same_bits_every_time() {
    let operands = TYPICAL.operands();
    let gated = Linear { rows: 30, slots: 4, gated: true, residual: true, ..TYPICAL };
    let gated_operands = gated.operands();
    for choice in choices() {
        let gpu = gpu(choice);
        assert_repeatable(|| TYPICAL.matmul(gpu, &operands).0);
        assert_repeatable(|| TYPICAL.matvec(gpu, &operands).0);
        assert_repeatable(|| gated.matvec(gpu, &gated_operands).0);
        for activation in ACTIVATIONS {
            let active = Linear { activation, ..TYPICAL };
            assert_repeatable(|| active.matmul(gpu, &operands).0);
            assert_repeatable(|| active.matvec(gpu, &operands).0);
        }
    }
}

#[test]
fn a_row_gives_the_same_bits_alone_and_in_a_batch() {
    let operands = TYPICAL.operands();
    let outputs = TYPICAL.shape.outputs as usize;
    let inputs = TYPICAL.shape.inputs as usize;
    for choice in choices() {
        let gpu = gpu(choice);
        let batches = [TYPICAL.matmul(gpu, &operands).0, TYPICAL.matvec(gpu, &operands).0];
        for row in [0, 50, 119] {
            let alone = Linear { rows: 1, ..TYPICAL };
            let token = row / TYPICAL.src_div as usize;
            let operands = Operands {
                chosen: vec![operands.chosen[row]],
                gates: vec![operands.gates[row]],
                src: operands.src[token * inputs..][..inputs].to_vec(),
                ..TYPICAL.operands()
            };
            let alone = [alone.matmul(gpu, &operands).0, alone.matvec(gpu, &operands).0];
            for (batch, alone) in batches.iter().zip(&alone) {
                assert_eq!(batch[row * outputs..][..outputs], alone[..], "{choice:?}, row {row}");
            }
        }
    }
}

/// Routing is sparse in the work that is counted, exactly: k experts of E cost k/E of all E.
#[test]
fn k_of_e_experts_cost_k_parts_in_e_of_all() {
    let gpu = gpu(KernelChoice::Plain);
    let macs = |k: u32| {
        let linear = Linear { rows: 20 * k, src_div: k, used: Some(5), ..TYPICAL };
        let matvec = Linear { rows: 20, slots: k, src_div: 1, ..linear };
        let few = matvec.matvec(gpu, &matvec.operands()).1;
        let many = linear.matmul(gpu, &linear.operands()).1;
        [few.macs, many.macs]
    };
    let all = macs(5);
    assert_eq!(all, [20 * 5 * 2 * 100 * 72; 2]);
    for k in 1..5 {
        assert_eq!(macs(k).map(|macs| macs * 5), all.map(|all| all * u64::from(k)), "{k} of 5");
    }
}

/// However small the binding, a matrix is cut into parts that fit it, of whole blocks of 8 rows.
#[test]
fn a_matrix_is_cut_into_parts_that_fit_a_binding() {
    let any = (size(9), 1..=2u32, size(500), size(500), any_precision(), 1..200_000u64);
    check(256, any, |(experts, halves, outputs, inputs, precision, max_binding)| {
        let shape = MatrixShape { experts, halves, outputs, inputs };
        let bytes = |outputs| MatrixShape { outputs, ..shape }.bytes(precision);
        match shape.part_rows(precision, max_binding, "a matrix") {
            Ok(rows) => {
                assert!(bytes(rows) <= max_binding && (1..=outputs).contains(&rows));
                assert!(rows == outputs || rows.is_multiple_of(8), "{rows} rows");
            }
            Err(_) => assert!(bytes(outputs) > max_binding && bytes(8) > max_binding),
        }
    });
}

#[test]
fn an_expert_out_of_range_spoils_only_its_own_row() {
    for wild in [TYPICAL.shape.experts, 1 << 31, u32::MAX] {
        let mut operands = TYPICAL.operands();
        let outputs = TYPICAL.shape.outputs as usize;
        let row = 57;
        // `routed_matvec` takes the last expert instead.
        operands.chosen[row] = TYPICAL.shape.experts - 1;
        let expected = TYPICAL.oracle(&operands);
        operands.chosen[row] = wild;
        for choice in choices() {
            let (got, _) = TYPICAL.matvec(gpu(choice), &operands);
            assert_close(&got, &expected, (choice, wild));

            // Grouping leaves the assignment out, so nobody writes its row.
            let (mut got, _) = TYPICAL.matmul(gpu(choice), &operands);
            let row = row * outputs..(row + 1) * outputs;
            assert!(got[row.clone()].iter().copied().all(Guarded::is_untouched), "{choice:?}, {wild}");
            got[row.clone()].copy_from_slice(&expected[row]);
            assert_close(&got, &expected, (choice, wild));
        }
    }
}

/// Garbage where `group_scan` and `group_scatter` write must not make `routed_matmul` write elsewhere.
#[test]
fn routed_matmul_survives_a_garbage_tile_table() {
    let operands = TYPICAL.operands();
    let MatrixShape { experts, outputs, inputs, .. } = TYPICAL.shape;
    // Just past what exists, and anywhere.
    let garbage = |seed: u64, count: u64| -> Vec<u32> {
        let near = u64::from(2 * TYPICAL.rows);
        let value = |i| hash(seed, i) % [near, 1 << 32][hash(seed + 100, i) as usize % 2];
        (0..count as usize).map(|i| value(i) as u32).collect()
    };
    for choice in choices() {
        let gpu = gpu(choice);
        let groups = GroupBuffers::new(gpu, TYPICAL.rows, experts, tile_rows(gpu, TYPICAL.rows, experts));
        let src = upload(gpu, &operands.src, inputs);
        let matrix = matrix(gpu, TYPICAL.shape, TYPICAL.precision, TYPICAL.part_rows, &operands.weights);
        for seed in 0..8 {
            groups.order.write(0, &garbage(seed, groups.order.bytes() / 4));
            groups.tiles.write(0, &garbage(seed + 50, groups.tiles.bytes() / 4));
            let dst = Guarded::rows(gpu, TYPICAL.rows as usize, outputs);
            run(gpu, |recorder| {
                RoutedMatmul {
                    src: &src,
                    matrix: &matrix,
                    groups: Some(&groups),
                    bias: Bias::None,
                    activation: Activation::None,
                    dst: &dst.buffer,
                    rows: TYPICAL.rows,
                    src_div: TYPICAL.src_div,
                    bounded: true,
                }
                .record(recorder);
            });
            assert!(dst.read::<f32>().iter().all(|value| value.is_finite()));
        }
    }
}
