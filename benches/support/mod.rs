//! What the benches share: a device for each variant, a routed linear layer, the time of recorded work, medians of rounds
//! that take turns.
#![allow(dead_code)] // each bench uses its own part

use std::time::{Duration, Instant};

use headwise::{
    Gpu, GpuOptions, KernelChoice, Precision, block_on,
    internal::{
        Activation, Bias, Buffer, Group, GroupBuffers, Matrix, MatrixShape, Recorder, RoutedMatmul,
        RoutedMatvec, Routes, least_tile_rows, padded, tile_rows,
    },
};

/// Every shape of the hot kernels; the last two only for weights that are stored as coarsely as they multiply.
pub const VARIANTS: [(&str, KernelChoice); 6] = [
    ("plain", KernelChoice::Plain),
    ("broadcast", KernelChoice::Broadcast),
    ("workgroup", KernelChoice::Workgroup),
    ("subgroup", KernelChoice::Subgroup),
    ("f16", KernelChoice::F16),
    ("packed", KernelChoice::Packed),
];

/// Ways to store weights.
pub const PRECISIONS: [(&str, Precision); 4] =
    [("f32", Precision::F32), ("f16", Precision::F16), ("q8", Precision::Q8), ("q4", Precision::Q4)];

/// Opens the adapter with one shape of the hot kernels.
pub fn open(kernels: KernelChoice) -> Gpu {
    block_on(Gpu::new(GpuOptions::new().kernels(kernels))).expect("a GPU adapter")
}

/// Opens the adapter with the shapes that suit it, and says which it is.
pub fn open_and_announce() -> Gpu {
    let gpu = open(KernelChoice::Tuned);
    println!("adapter: {} ({})", gpu.capabilities().name, gpu.capabilities().driver);
    gpu
}

/// Time of `iterations` submissions of what `record` records.
pub fn time(recorder: &mut Recorder, iterations: u64, mut record: impl FnMut(&mut Recorder)) -> Duration {
    let start = Instant::now();
    for _ in 0..iterations {
        record(recorder);
        recorder.submit();
    }
    recorder.gpu().settle().expect("the GPU finishes");
    start.elapsed()
}

/// The middle one of some measurements.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of each measurement over `rounds` rounds in which all take turns, after one to warm up.
pub fn in_turns(rounds: usize, measure: &mut [&mut dyn FnMut() -> f64]) -> Vec<f64> {
    let mut values = vec![Vec::new(); measure.len()];
    for round in 0..=rounds {
        for (measure, values) in measure.iter_mut().zip(&mut values) {
            let value = measure();
            if round > 0 {
                values.push(value);
            }
        }
    }
    values.into_iter().map(median).collect()
}

/// A routed linear map of a step: `active` experts for each token.
pub struct Linear {
    pub recorder: Recorder,
    matrix: Matrix,
    tokens: u32,
    active: u32,
    src: Buffer,
    dst: Buffer,
    chosen: Buffer,
    gates: Buffer,
    groups: GroupBuffers,
}

impl Linear {
    /// Routes spread evenly over the experts; values do not matter.
    pub fn new(gpu: &Gpu, shape: MatrixShape, precision: Precision, tokens: u32, active: u32) -> Self {
        let assignments = tokens * active;
        let rows = |rows: u32, width: u32| 4 * u64::from(rows) * u64::from(padded(width));
        let expert = |token: u32| move |slot: u32| (token * active + slot) % shape.experts;
        let chosen: Vec<u32> = (0..tokens).flat_map(|token| (0..active).map(expert(token))).collect();
        Self {
            recorder: Recorder::new(gpu),
            matrix: Matrix::new(gpu, "bench", shape, precision).expect("rows that fit a binding"),
            tokens,
            active,
            src: Buffer::new(gpu, "src", rows(tokens, shape.inputs)),
            dst: Buffer::new(gpu, "dst", rows(assignments, shape.outputs)),
            gates: Buffer::new(gpu, "gates", 4 * u64::from(assignments)),
            groups: GroupBuffers::new(gpu, assignments, shape.experts, least_tile_rows(gpu)),
            chosen: Buffer::with_data(gpu, "chosen", &chosen),
        }
    }

    /// Bytes of weights that one run needs, and floating-point operations, two for each multiply-accumulate.
    pub fn work(&mut self, form: Form) -> (f64, f64) {
        let before = self.recorder.counters();
        self.seconds(form, 1);
        let counters = self.recorder.counters() - before;
        (counters.weight_bytes as f64, 2.0 * counters.macs as f64)
    }

    /// Seconds of one run, the mean of `iterations`.
    pub fn seconds(&mut self, form: Form, iterations: u64) -> f64 {
        self.time(form, iterations).as_secs_f64() / iterations as f64
    }

    /// Time of `iterations` submissions.
    pub fn time(&mut self, form: Form, iterations: u64) -> Duration {
        let Self { recorder, matrix, tokens, active, src, dst, chosen, gates, groups } = self;
        let (tokens, active) = (*tokens, *active);
        let routes = Routes { chosen, gates, first: 0, scores: gates, first_score: 0 };
        let (experts, assignments, src_div) = (matrix.shape.experts, tokens * active, active);
        let (bias, activation) = (Bias::None, Activation::None);
        time(recorder, iterations, |recorder| match form {
            Form::Matvec => RoutedMatvec {
                beside: None,
                src,
                matrix,
                routes: Some(routes),
                gated: false,
                bias,
                activation,
                dst,
                residual: false,
                rows: assignments,
                slots: 1,
                src_div,
            }
            .record(recorder),
            Form::Matmul => {
                let tile_rows = tile_rows(recorder.gpu(), assignments, experts);
                Group { routes, assignments, experts, tile_rows, into: groups }.record(recorder);
                let groups = Some(&*groups);
                let (rows, bounded) = (assignments, true);
                RoutedMatmul { src, matrix, groups, bias, activation, dst, rows, src_div, bounded }
                    .record(recorder);
            }
        })
    }
}

/// The form of a routed linear map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For few tokens.
    Matvec,
    /// For many: grouped by expert, in tiles.
    Matmul,
}
