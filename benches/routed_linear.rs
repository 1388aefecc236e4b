//! What sparsity saves: the routed linear kernels with k of 8 experts, against all 8, on this machine's adapter.
//!
//! `cargo bench --bench routed_linear` prints a time for each k and, at the end, the ratios of one run.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use headwise::{
    Gpu, GpuOptions, Precision, block_on,
    internal::{
        Activation, Bias, Buffer, Group, GroupBuffers, Matrix, MatrixShape, Recorder, RoutedMatmul,
        RoutedMatvec, Routes, least_tile_rows, tile_rows,
    },
};

const EXPERTS: u32 = 8;
const SHAPE: MatrixShape = MatrixShape { experts: EXPERTS, halves: 1, outputs: 1024, inputs: 1024 };
/// Experts each token uses, from one to all.
const ACTIVE: [u32; 4] = [1, 2, 4, 8];

struct Setup {
    recorder: Recorder,
    matrix: Matrix,
    src: Buffer,
    dst: Buffer,
    chosen: Buffer,
    gates: Buffer,
    groups: GroupBuffers,
}

impl Setup {
    /// Buffers for up to `tokens` tokens, and routes that spread `active` experts evenly over them.
    fn new(gpu: &Gpu, tokens: u32, active: u32) -> Self {
        let assignments = tokens * EXPERTS;
        let bytes = |rows: u32| 4 * u64::from(rows) * 1024;
        // Scores do not matter, only that every expert gets the same number of tokens.
        let chosen: Vec<u32> =
            (0..tokens).flat_map(|token| (0..active).map(move |slot| (token + slot) % EXPERTS)).collect();
        Self {
            recorder: Recorder::new(gpu),
            matrix: Matrix::new(gpu, "bench", SHAPE, Precision::F16).expect("one part"),
            src: Buffer::new(gpu, "src", bytes(tokens)),
            dst: Buffer::new(gpu, "dst", bytes(assignments)),
            gates: Buffer::new(gpu, "gates", 4 * u64::from(assignments)),
            groups: GroupBuffers::new(gpu, assignments, EXPERTS, least_tile_rows(gpu)),
            chosen: Buffer::with_data(gpu, "chosen", &chosen),
        }
    }

    /// One decoded token: the matrix-vector form.
    fn matvec(&mut self, active: u32) {
        let Self { matrix, src, dst, chosen, gates, .. } = self;
        RoutedMatvec {
            src,
            matrix,
            routes: Some(Routes { chosen, gates, first: 0, scores: gates, first_score: 0 }),
            gated: false,
            bias: Bias::None,
            activation: Activation::None,
            dst,
            residual: false,
            rows: active,
            slots: 1,
            src_div: active,
        }
        .record(&mut self.recorder);
    }

    /// A prompt: grouped, in tiles.
    fn matmul(&mut self, tokens: u32, active: u32) {
        let assignments = tokens * active;
        let tile_rows = tile_rows(self.recorder.gpu(), assignments, EXPERTS);
        let (chosen, gates) = (&self.chosen, &self.gates);
        let routes = Routes { chosen, gates, first: 0, scores: gates, first_score: 0 };
        Group { routes, assignments, experts: EXPERTS, tile_rows, into: &self.groups }
            .record(&mut self.recorder);
        RoutedMatmul {
            src: &self.src,
            matrix: &self.matrix,
            groups: Some(&self.groups),
            bias: Bias::None,
            activation: Activation::None,
            dst: &self.dst,
            rows: assignments,
            src_div: active,
        }
        .record(&mut self.recorder);
    }

    /// Time of `iterations` submissions of what `record` records.
    fn time(&mut self, iterations: u64, record: impl Fn(&mut Self)) -> Duration {
        let start = Instant::now();
        for _ in 0..iterations {
            record(self);
            self.recorder.submit();
        }
        self.recorder.gpu().settle().expect("the GPU finishes");
        start.elapsed()
    }
}

fn main() {
    let gpu = block_on(Gpu::new(GpuOptions::new())).expect("a GPU adapter");
    println!("adapter: {} ({})", gpu.capabilities().name, gpu.capabilities().driver);
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    for (form, tokens) in [("decode, 1 token", 1), ("prefill, 128 tokens", 128)] {
        let mut group = criterion.benchmark_group(form);
        let record = |setup: &mut Setup, active| match tokens {
            1 => setup.matvec(active),
            _ => setup.matmul(tokens, active),
        };
        for active in ACTIVE {
            let mut setup = Setup::new(&gpu, tokens, active);
            group.bench_function(BenchmarkId::new("active experts", active), |bencher| {
                bencher.iter_custom(|n| setup.time(n, |setup| record(setup, active)));
            });
        }
        group.finish();

        // The ratios, from interleaved rounds of one run.
        let mut setups = ACTIVE.map(|active| Setup::new(&gpu, tokens, active));
        let mut times = ACTIVE.map(|_| Vec::new());
        for _ in 0..15 {
            for ((setup, active), times) in setups.iter_mut().zip(ACTIVE).zip(&mut times) {
                times.push(setup.time(4, |setup| record(setup, active)));
            }
        }
        let medians = times.map(|mut times| {
            times.sort();
            times[times.len() / 2].as_secs_f64()
        });
        for (active, median) in ACTIVE.iter().zip(medians) {
            let (ratio, ideal) = (median / medians[3], f64::from(*active) / f64::from(EXPERTS));
            println!(
                "{form}: {active} of {EXPERTS} experts take {ratio:.2} of the time of all (k/E = {ideal:.2})"
            );
        }
    }
}
