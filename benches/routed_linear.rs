//! The routed linear kernels, in every variant and with weights as f32 and f16, on this machine's adapter.
//!
//! `cargo bench --bench routed_linear` prints a time for each and then, each from rounds of one run that take turns:
//! - the bytes of weights that the matrix-vector form reads in a second, against a plain copy (read and written),
//! - a prompt with 64 rows for each expert, against a dense product of as many operations,
//! - k of 8 experts, against all 8.

mod support;

use criterion::{BenchmarkId, Criterion};
use headwise::{
    Gpu, Precision,
    internal::{MatrixShape, Yardstick},
};
use support::{Form, Linear, PRECISIONS, VARIANTS, in_turns, open, open_and_announce};

const EXPERTS: u32 = 8;
/// Experts each token uses, from one to all.
const ACTIVE: [u32; 4] = [1, 2, 4, 8];
/// Experts that JetMoE's tokens use.
const TOP: u32 = 2;
/// Width of JetMoE.
const JETMOE: u32 = 2048;
/// Rows of the prompts: 64 for each expert.
const ROWS: u32 = 64 * EXPERTS;
const ROUNDS: usize = 7;

fn square(width: u32) -> MatrixShape {
    MatrixShape { experts: EXPERTS, halves: 1, outputs: width, inputs: width }
}

/// A time for each form, variant and precision.
fn times(criterion: &mut Criterion) {
    for (form, width, tokens) in [(Form::Matvec, JETMOE, 1), (Form::Matmul, 512, ROWS / TOP)] {
        let name = format!("{form:?}, {tokens} tokens, {TOP} of {EXPERTS} experts of {width} × {width}");
        let mut group = criterion.benchmark_group(name);
        for (variant, kernels) in VARIANTS {
            let gpu = open(kernels);
            for (stored, precision) in PRECISIONS {
                let mut linear = Linear::new(&gpu, square(width), precision, tokens, TOP);
                group.bench_function(BenchmarkId::new(variant, stored), |bencher| {
                    bencher.iter_custom(|iterations| linear.time(form, iterations));
                });
            }
        }
        group.finish();
    }
}

/// One token, against the copy.
fn bytes_against_a_copy() {
    for (variant, kernels) in VARIANTS {
        let gpu = open(kernels);
        let mut copy = Yardstick::copy(&gpu, &headwise::Cancel::new()).expect("a copy");
        for (stored, precision) in PRECISIONS {
            let mut linear = Linear::new(&gpu, square(JETMOE), precision, 1, TOP);
            let (bytes, _) = linear.work(Form::Matvec);
            let mut reads = || bytes / linear.seconds(Form::Matvec, 8);
            let mut copies = || copy.rate().expect("a copy");
            let rates = in_turns(ROUNDS, &mut [&mut reads, &mut copies]);
            println!(
                "matvec {variant} {stored}, {JETMOE} × {JETMOE}: {:.2} GB/s of weights, {:.2} of a copy's {:.2} GB/s",
                rates[0] / 1e9,
                rates[0] / rates[1],
                rates[1] / 1e9
            );
        }
    }
}

/// A prompt, against the dense product of the variant that is fastest at it.
fn prompts_against_a_dense_product() {
    // The other shapes of the hot kernels run the workgroup's.
    let gpus = [VARIANTS[0], VARIANTS[1]].map(|(variant, kernels)| (variant, open(kernels)));
    for width in [512, JETMOE] {
        for (stored, precision) in PRECISIONS {
            let linears =
                gpus.each_ref().map(|(_, gpu)| Linear::new(gpu, square(width), precision, ROWS / TOP, TOP));
            let denses = gpus
                .each_ref()
                .map(|(_, gpu)| Yardstick::dense(gpu, ROWS, width, precision).expect("a product"));
            let mut measures: Vec<Box<dyn FnMut() -> f64>> = Vec::new();
            for mut linear in linears {
                let (_, operations) = linear.work(Form::Matmul);
                measures.push(Box::new(move || operations / linear.seconds(Form::Matmul, 1)));
            }
            for mut dense in denses {
                measures.push(Box::new(move || dense.rate().expect("a product")));
            }
            let mut measures: Vec<&mut dyn FnMut() -> f64> =
                measures.iter_mut().map(|measure| &mut **measure as &mut dyn FnMut() -> f64).collect();
            let rates = in_turns(ROUNDS, &mut measures);
            let (routed, dense) = rates.split_at(gpus.len());
            let best = dense.iter().copied().fold(0.0, f64::max);
            for ((variant, _), rate) in gpus.iter().zip(routed) {
                println!(
                    "matmul {variant} {stored}, {width} × {width}, {} rows for each expert: {:.2} GFLOP/s, {:.2} of the \
                     best dense product's {:.2}",
                    ROWS / EXPERTS,
                    rate / 1e9,
                    rate / best,
                    best / 1e9
                );
            }
        }
    }
}

/// What sparsity saves.
fn few_experts_against_all(gpu: &Gpu) {
    for width in [1024, JETMOE] {
        for (what, form, tokens) in [("1 token", Form::Matvec, 1), ("128 tokens", Form::Matmul, 128)] {
            let mut linears =
                ACTIVE.map(|active| Linear::new(gpu, square(width), Precision::F16, tokens, active));
            let mut measures = linears.each_mut().map(|linear| move || linear.seconds(form, 2));
            let mut measures = measures.each_mut().map(|measure| measure as &mut dyn FnMut() -> f64);
            let medians = in_turns(ROUNDS, &mut measures);
            for (active, median) in ACTIVE.iter().zip(&medians) {
                let (ratio, ideal) = (median / medians[3], f64::from(*active) / f64::from(EXPERTS));
                println!(
                    "{what}, {width} × {width}: {active} of {EXPERTS} experts take {ratio:.2} of the time of all (k/E = \
                     {ideal:.2})"
                );
            }
        }
    }
}

fn main() {
    let gpu = open_and_announce();
    times(&mut Criterion::default().configure_from_args().sample_size(10));
    bytes_against_a_copy();
    prompts_against_a_dense_product();
    few_experts_against_all(&gpu);
}
