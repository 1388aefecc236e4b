//! What an adapter does at best: the yardsticks that a bench holds its numbers against, in the same run.

use std::time::Instant;

use crate::{
    Cancel, Result,
    gpu::{AdapterSelection, Buffer, Gpu, GpuOptions, KernelChoice, Recorder},
    ops::{Activation, Bias, Copy, Matrix, MatrixShape, Precision, RoutedMatmul, Variants},
};

/// Bytes that are copied: more than the caches of CPUs hold, and half a binding of WebGPU's default limits.
const COPY_BYTES: u64 = 64 << 20;

/// Quads of 16 bytes that one invocation copies and whether they stand side by side, to choose from. GPUs want lanes that
/// read neighbours; software adapters want each lane to stream.
const COPIES: [(u32, bool); 6] = [(4, false), (16, false), (4, true), (64, true), (256, true), (1024, true)];

/// Rows, inputs and outputs of the dense products to choose from.
const MATMUL_SIZES: [u32; 2] = [512, 1024];

/// Trials of each candidate.
const TRIALS: usize = 3;

/// A measurement takes at least this long, by repeating the work.
const SECONDS: f64 = 0.02;

/// Repetitions in one submission at the most.
const MOST_TURNS: f64 = 64.0;

/// Work whose speed is a limit: bytes that a copy reads and writes in a second, or floating-point operations of a dense
/// product.
pub struct Yardstick {
    /// What it is, in words.
    pub name: String,
    recorder: Recorder,
    record: Box<dyn Fn(&mut Recorder) + Send + Sync>,
    /// Bytes or operations of one turn.
    amount: f64,
    /// Turns of one measurement.
    turns: u32,
    /// Seconds of the fastest trial of one turn.
    shortest: f64,
}

impl Yardstick {
    fn new(
        gpu: &Gpu,
        name: String,
        amount: f64,
        record: impl Fn(&mut Recorder) + Send + Sync + 'static,
    ) -> Result<Self> {
        let (recorder, record) = (Recorder::new(gpu), Box::new(record));
        let mut yardstick = Self { name, recorder, record, amount, turns: 1, shortest: f64::INFINITY };
        // The first turn compiles and commits memory.
        yardstick.seconds()?;
        for _ in 0..TRIALS {
            yardstick.shortest = yardstick.shortest.min(yardstick.seconds()?);
        }
        yardstick.turns = (SECONDS / yardstick.shortest).ceil().clamp(1.0, MOST_TURNS) as u32;
        Ok(yardstick)
    }

    fn faster(self, other: Self) -> Self {
        let speed = |it: &Self| it.amount / it.shortest;
        if speed(&other) > speed(&self) { other } else { self }
    }

    /// A plain copy of 64 MiB, with the work for each invocation that is fastest here. Bytes read and bytes written both
    /// count.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled), and what the GPU reports.
    pub fn copy(gpu: &Gpu, cancel: &Cancel) -> Result<Self> {
        let bytes = COPY_BYTES.min(gpu.capabilities().max_binding).min(gpu.capabilities().max_buffer);
        gpu.plan("the buffers of the copy", 2 * bytes)?;
        let (src, dst) = (Buffer::new(gpu, "copy.src", bytes), Buffer::new(gpu, "copy.dst", bytes));
        let copy = |(each, runs)| {
            let (src, dst) = (src.clone(), dst.clone());
            let place = if runs { "side by side" } else { "apart" };
            let name = format!("copy of {} MiB, {each} × 16 bytes {place} an invocation", bytes >> 20);
            Self::new(gpu, name, 2.0 * bytes as f64, move |recorder| {
                Copy { src: &src, dst: &dst, quads: (bytes / 16) as u32, each, runs }.record(recorder);
            })
        };
        let [first, others @ ..] = COPIES;
        others.into_iter().try_fold(copy(first)?, |best, other| {
            cancel.check()?;
            Ok(best.faster(copy(other)?))
        })
    }

    /// A dense product of square matrices in f32 arithmetic, with the kernel, the storage of the weights and the size that
    /// are fastest here. A multiply-accumulate counts as two operations.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled), and what the GPU reports.
    pub async fn matmul(gpu: &Gpu, cancel: &Cancel) -> Result<Self> {
        let [small, large] = MATMUL_SIZES;
        let product = |gpu: &Gpu| -> Result<Self> {
            let stored = |precision| Self::dense(gpu, small, small, precision);
            Ok(stored(Precision::F32)?.faster(stored(Precision::F16)?))
        };
        let mut best = product(gpu)?;
        for kernels in [KernelChoice::Plain, KernelChoice::Workgroup] {
            cancel.check()?;
            let adapter = AdapterSelection::Name(gpu.capabilities().name.clone());
            // An adapter may refuse another device: then its kernels are no candidates.
            if let Ok(gpu) = Gpu::new(GpuOptions::new().adapter(adapter).kernels(kernels)).await {
                best = best.faster(product(&gpu)?);
            }
        }
        for precision in [Precision::F32, Precision::F16] {
            cancel.check()?;
            let larger = Self::dense(best.recorder.gpu(), large, large, precision)?;
            best = best.faster(larger);
        }
        Ok(best)
    }

    /// A dense product of `rows` rows with a square matrix, in f32 arithmetic.
    ///
    /// # Errors
    /// What the GPU reports.
    pub fn dense(gpu: &Gpu, rows: u32, width: u32, precision: Precision) -> Result<Self> {
        let matrix = Matrix::new(gpu, "matmul.weights", MatrixShape::dense(width, width), precision)?;
        let activations = || Buffer::new(gpu, "matmul.rows", 4 * u64::from(rows) * u64::from(width));
        let (src, dst) = (activations(), activations());
        let operations = 2.0 * f64::from(rows) * f64::from(width) * f64::from(width);
        let variant = Variants::of(gpu).matmul.name();
        let stored = format!("{precision:?}").to_lowercase();
        let name = format!("dense product {rows} × {width} × {width}, weights as {stored}, {variant} kernel");
        Self::new(gpu, name, operations, move |recorder| {
            RoutedMatmul {
                src: &src,
                matrix: &matrix,
                groups: None,
                bias: Bias::None,
                activation: Activation::None,
                dst: &dst,
                rows,
                src_div: 1,
                bounded: true,
            }
            .record(recorder);
        })
    }

    /// Measures once: bytes or operations per second.
    ///
    /// # Errors
    /// What the GPU reports.
    pub fn rate(&mut self) -> Result<f64> {
        Ok(self.amount * f64::from(self.turns) / self.seconds()?)
    }

    fn seconds(&mut self) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..self.turns {
            (self.record)(&mut self.recorder);
        }
        self.recorder.submit();
        self.recorder.gpu().settle()?;
        Ok(start.elapsed().as_secs_f64())
    }
}
