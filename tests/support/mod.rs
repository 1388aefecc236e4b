//! What tests on a GPU share: devices, guarded buffers, matrices, seeded numbers, tolerances, property runs.
#![allow(dead_code)] // each test binary uses its own part

pub mod cache;

use std::{
    fmt::Debug,
    io::Write,
    sync::{Once, OnceLock},
};

use bytemuck::{NoUninit, Pod};
use half::f16;
use headwise::internal::{
    Buffer, CachePrecision, Counters, Gpu, GpuOptions, KernelChoice, Matrix, MatrixShape, Precision,
    Recorder, pack_rows, padded,
};
#[allow(unused_imports)] // as for what stands below
pub use headwise_reference::noise::{hash, noise};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};

/// Every shape of the hot kernels that computes in f32.
pub const CHOICES: [KernelChoice; 4] =
    [KernelChoice::Plain, KernelChoice::Broadcast, KernelChoice::Workgroup, KernelChoice::Subgroup];

/// The [`CHOICES`] that this run is for: those that `HEADWISE_TEST_CHOICES` names, as in `broadcast,subgroup`, or all.
pub fn choices() -> Vec<KernelChoice> {
    let Ok(names) = std::env::var("HEADWISE_TEST_CHOICES") else { return CHOICES.to_vec() };
    let named = |name: &str| {
        let found = CHOICES.into_iter().find(|choice| format!("{choice:?}").eq_ignore_ascii_case(name));
        found.unwrap_or_else(|| panic!("HEADWISE_TEST_CHOICES: found {name}, expected some of {CHOICES:?}"))
    };
    names.split(',').map(named).collect()
}

/// Those that round inputs to fewer bits.
pub const ROUNDING: [KernelChoice; 2] = [KernelChoice::F16, KernelChoice::Packed];

/// The device that runs `choice` under WebGPU's default limits: one for the whole process.
///
/// Panics without an adapter: a machine that cannot run these tests must not pass them.
pub fn gpu(choice: KernelChoice) -> &'static Gpu {
    const COUNT: usize = CHOICES.len() + ROUNDING.len();
    static GPUS: [OnceLock<Gpu>; COUNT] = [const { OnceLock::new() }; COUNT];
    let mut all = CHOICES.iter().chain(&ROUNDING);
    let index = all.position(|&one| one == choice).expect("one of CHOICES or ROUNDING");
    GPUS[index].get_or_init(|| {
        let options = GpuOptions::new().default_limits(true).kernels(choice);
        let gpu = pollster::block_on(Gpu::new(options))
            .unwrap_or_else(|error| panic!("these tests need a GPU or a software adapter: {error}"));
        announce(&gpu);
        gpu
    })
}

/// Says once what the tests run on, past the test harness, which would swallow it.
fn announce(gpu: &Gpu) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let it = gpu.capabilities();
        let (name, backend, driver) = (&it.name, &it.backend, &it.driver);
        let subgroups = it.subgroups.map_or("none".to_owned(), |(low, high)| format!("{low} to {high}"));
        let line = format!("adapter: {name} ({backend}, {driver}), subgroups: {subgroups}\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    });
}

/// Runs what `record` records. Buffers must outlive the call: they are freed when dropped, recorded or not.
pub fn run(gpu: &Gpu, record: impl FnOnce(&mut Recorder)) -> Counters {
    let mut recorder = Recorder::new(gpu);
    record(&mut recorder);
    recorder.submit();
    recorder.counters()
}

/// The first `count` elements of a buffer.
pub fn read<T: Pod>(gpu: &Gpu, buffer: &Buffer, count: usize) -> Vec<T> {
    let bytes = (count * size_of::<T>()) as u64;
    let pending = Recorder::new(gpu).submit_and_read(&[(buffer, 0, bytes)]);
    let bytes = pollster::block_on(pending.wait("a test")).unwrap_or_else(|error| panic!("{error}"));
    bytemuck::pod_collect_to_vec(&bytes)
}

/// Words that a kernel may write, between words that it must not.
pub struct Guarded {
    pub buffer: Buffer,
    gpu: Gpu,
    before: usize,
    words: usize,
}

impl Guarded {
    /// A word that nothing computes by chance.
    const MARK: u32 = 777.777_f32.to_bits();
    const AFTER: usize = 256;

    /// `words` marked words for a kernel to overwrite, from index `before` of the buffer.
    pub fn new(gpu: &Gpu, before: usize, words: usize) -> Self {
        Self::holding(gpu, before, &vec![Self::MARK; words])
    }

    /// As `new`, for rows of `width` floats.
    pub fn rows(gpu: &Gpu, rows: usize, width: u32) -> Self {
        Self::new(gpu, 0, rows * padded(width) as usize)
    }

    /// Words with a value, for kernels that change them or write only some.
    pub fn holding<T: NoUninit>(gpu: &Gpu, before: usize, values: &[T]) -> Self {
        let words: &[u32] = bytemuck::cast_slice(values);
        let mut all = vec![Self::MARK; before + words.len() + Self::AFTER];
        all[before..before + words.len()].copy_from_slice(words);
        let buffer = Buffer::with_data(gpu, "test.guarded", &all);
        Self { buffer, gpu: gpu.clone(), before, words: words.len() }
    }

    /// How many words a kernel may write.
    pub fn words(&self) -> usize {
        self.words
    }

    /// The words; panics if any around them changed.
    pub fn read<T: Pod>(&self) -> Vec<T> {
        let all: Vec<u32> = read(&self.gpu, &self.buffer, self.before + self.words + Self::AFTER);
        let (before, rest) = all.split_at(self.before);
        let (words, after) = rest.split_at(self.words);
        let untouched = before.iter().chain(after).all(|&word| word == Self::MARK);
        assert!(untouched, "the kernel wrote outside its rows: {before:?} … {after:?}");
        bytemuck::pod_collect_to_vec(words)
    }

    /// The words as rows of `width` floats without their padding, which must be zero.
    pub fn read_rows(&self, width: u32) -> Vec<f64> {
        unpad(&self.read::<f32>(), width)
    }

    /// Whether a value is the mark, that is: was never written.
    pub fn is_untouched(value: f64) -> bool {
        value == f64::from(f32::from_bits(Self::MARK))
    }
}

/// Rows of `width` as the GPU holds them: f32, each row padded with zeros.
pub fn pad(values: &[f64], width: u32) -> Vec<f32> {
    let (width, stride) = (width as usize, padded(width) as usize);
    let mut rows = vec![0.0; values.len() / width * stride];
    for (row, values) in rows.chunks_exact_mut(stride).zip(values.chunks_exact(width)) {
        for (to, from) in row.iter_mut().zip(values) {
            *to = *from as f32;
        }
    }
    rows
}

/// The reverse of [`pad`]; panics if the padding is not zero. Rows that were never written keep any padding.
pub fn unpad(values: &[f32], width: u32) -> Vec<f64> {
    let untouched = |row: &[f32]| row.iter().all(|&value| Guarded::is_untouched(f64::from(value)));
    let mut rows = Vec::new();
    for row in values.chunks_exact(padded(width) as usize) {
        let (row, padding) = row.split_at(width as usize);
        let clean = padding.iter().all(|&value| value == 0.0) || (untouched(row) && untouched(padding));
        assert!(clean, "padding is {padding:?}");
        rows.extend(row.iter().copied().map(f64::from));
    }
    rows
}

/// A buffer of rows of `width` floats.
pub fn upload(gpu: &Gpu, values: &[f64], width: u32) -> Buffer {
    Buffer::with_data(gpu, "test.rows", &pad(values, width))
}

/// A buffer with `values` from index `first`, and `stranger` before and after them: a value that a kernel reading
/// too far would take for one of its own.
pub fn among<T: NoUninit>(gpu: &Gpu, first: u32, values: &[T], stranger: T) -> Buffer {
    let before = vec![stranger; first as usize];
    Buffer::with_data(gpu, "test.values", &[&before, values, &[stranger; 70]].concat())
}

/// Values as they are after storage in `precision`.
pub fn stored(values: &[f64], precision: Precision) -> Vec<f64> {
    let round = |&value: &f64| match precision {
        Precision::F32 => f64::from(value as f32),
        Precision::F16 => f16::from_f64(value).to_f64(),
        _ => panic!("a quantised value depends on its neighbours"),
    };
    values.iter().map(round).collect()
}

/// A matrix of `values`, in the order of a file, cut into parts of `part_rows` (a multiple of 8).
pub fn matrix(gpu: &Gpu, shape: MatrixShape, precision: Precision, part_rows: u32, values: &[f64]) -> Matrix {
    matrix_of_rows(gpu, shape, precision, part_rows, &rows_as_stored(shape, precision, values))
}

/// The rows of a matrix of `values` as the GPU stores them.
pub fn rows_as_stored(shape: MatrixShape, precision: Precision, values: &[f64]) -> Vec<u8> {
    let rows = pad(values, shape.inputs);
    match precision {
        Precision::F32 => bytemuck::cast_slice(&rows).to_vec(),
        Precision::F16 => rows.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        _ => quantized(&rows, shape.inputs, precision),
    }
}

/// Rows of `inputs` weights in a quantised precision.
pub fn quantized(rows: &[f32], inputs: u32, precision: Precision) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack_rows(precision, padded(inputs) as usize, rows, &mut bytes).expect("finite weights");
    bytes
}

/// As [`matrix`], of rows that are already as the GPU stores them.
pub fn matrix_of_rows(
    gpu: &Gpu,
    shape: MatrixShape,
    precision: Precision,
    part_rows: u32,
    bytes: &[u8],
) -> Matrix {
    let matrix = Matrix::in_parts(gpu, "test.weights", shape, precision, part_rows);

    // In two pieces, as a stream of chunks would come.
    let row_bytes = precision.row_bytes(shape.inputs) as usize;
    let file_rows = bytes.len() / row_bytes;
    let (head, tail) = bytes.split_at(file_rows / 3 * row_bytes);
    matrix.write_rows(0, head);
    matrix.write_rows((file_rows / 3) as u64, tail);
    matrix
}

/// Panics unless every value is within 1e-5 of the oracle's, relative to the largest of the oracle's values, or
/// to 1 where that is larger. Inputs are in [−1, 1), so 1 is what a single term of a sum may be.
#[track_caller]
pub fn assert_close(got: &[f64], expected: &[f64], what: impl Debug) {
    assert_within(1e-5, got, expected, what);
}

/// As [`assert_close`], for a cache that holds `precision`: f16 is within 5e-3.
#[track_caller]
pub fn assert_close_in(precision: CachePrecision, got: &[f64], expected: &[f64], what: impl Debug) {
    let bound = match precision {
        CachePrecision::F32 => 1e-5,
        CachePrecision::F16 => 5e-3,
        other => panic!("{other:?} has no oracle"),
    };
    assert_within(bound, got, expected, what);
}

#[track_caller]
fn assert_within(bound: f64, got: &[f64], expected: &[f64], what: impl Debug) {
    assert_eq!(got.len(), expected.len(), "{what:?}: lengths");
    let scale = expected.iter().fold(1.0, |scale: f64, value| scale.max(value.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs() / scale;
        // Written so that a NaN fails.
        assert!(error <= bound, "{what:?}: element {i} is {got}, not {expected}: {error:e} of {scale}");
    }
}

/// Runs a test twenty times; panics unless it gives the same bits each time.
#[track_caller]
pub fn assert_repeatable(test: impl Fn() -> Vec<f64>) {
    let bits = || test().into_iter().map(f64::to_bits).collect::<Vec<u64>>();
    let first = bits();
    for repeat in 1..20 {
        assert!(bits() == first, "repeat {repeat} gave other bits");
    }
}

/// Tries `test` on `cases` values of `strategy`, the same ones in every run, and shrinks the first that fails.
///
/// `HEADWISE_TEST_SCALE=10` tries ten times as many.
#[track_caller]
pub fn check<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value))
where
    S::Value: Debug,
{
    let scale = std::env::var("HEADWISE_TEST_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let config = Config {
        cases: cases * scale,
        rng_seed: RngSeed::Fixed(0x4ead),
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&strategy, |case| {
        test(case);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// A size from 1 to `max`, often small, often 1.
pub fn size(max: u32) -> impl Strategy<Value = u32> {
    prop_oneof![1 => Just(1), 2 => 1..=max.min(12), 3 => 1..=max]
}

/// How weights of any width are stored.
pub fn precision() -> impl Strategy<Value = Precision> {
    prop_oneof![Just(Precision::F32), Just(Precision::F16)]
}

/// How weights are stored, be it in groups.
pub fn any_precision() -> impl Strategy<Value = Precision> {
    prop::sample::select(&[Precision::F32, Precision::F16, Precision::Q8, Precision::Q4][..])
}
