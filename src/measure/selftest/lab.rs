//! A device in one choice of kernels, and what cases do on it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use half::f16;
use headwise_reference::quantize::Scheme;

use crate::{
    Error, Result,
    gpu::{Buffer, Gpu, GpuOptions, KernelChoice, Recorder, WasmNotSend},
    ops::{Matrix, MatrixShape, Precision, Variants, padded},
    weights::pack_rows,
};

/// The device of a selftest as if it had been opened with a choice of kernels.
pub(super) struct Lab {
    pub gpu: Gpu,
    pub choice: KernelChoice,
    pub variants: Variants,
    spoilt: AtomicBool,
}

/// Words that a kernel may write, before words that it must not.
pub(super) struct Output {
    pub buffer: Buffer,
    words: usize,
}

/// A word that nothing computes by chance.
const MARK: u32 = 777.777_f32.to_bits();
/// Words behind an output.
const AFTER: usize = 64;

impl Lab {
    pub fn new(gpu: &Gpu, choice: KernelChoice) -> Result<Self> {
        let options = GpuOptions::new().kernels(choice).without_kernel_cache();
        let gpu = Gpu::from_wgpu(gpu.adapter(), gpu.device(), gpu.queue(), options)?;
        Ok(Self { variants: Variants::of(&gpu), choice, gpu, spoilt: AtomicBool::new(false) })
    }

    /// The device as it is, for work whose errors shall not be others'.
    #[cfg(feature = "tokenizer")]
    pub fn own(gpu: &Gpu) -> Self {
        let (variants, choice) = (Variants::of(gpu), gpu.kernel_choice());
        Self { gpu: gpu.apart(), variants, choice, spoilt: AtomicBool::new(false) }
    }

    /// Whether from now on a word of each first output comes back changed, as a kernel that computes wrong would leave it.
    pub fn spoil(&self, spoilt: bool) {
        self.spoilt.store(spoilt, Relaxed);
    }

    pub fn data<T: bytemuck::NoUninit>(&self, data: &[T]) -> Buffer {
        Buffer::with_data(&self.gpu, "selftest.data", data)
    }

    /// Numbers as they are.
    pub fn floats(&self, values: &[f64]) -> Buffer {
        self.data(&values.iter().map(|&value| value as f32).collect::<Vec<_>>())
    }

    /// Rows of `width` floats.
    pub fn rows(&self, values: &[f64], width: u32) -> Buffer {
        self.data(&pad(values, width))
    }

    /// Words for a kernel to overwrite.
    pub fn output(&self, words: usize) -> Output {
        self.output_of(&vec![MARK; words])
    }

    /// Rows of `width` floats for a kernel to overwrite.
    pub fn output_rows(&self, rows: u32, width: u32) -> Output {
        self.output(rows as usize * padded(width) as usize)
    }

    /// Words with a value, for kernels that change them.
    pub fn output_of<T: bytemuck::NoUninit>(&self, values: &[T]) -> Output {
        let words: &[u32] = bytemuck::cast_slice(values);
        let all = [words, &[MARK; AFTER]].concat();
        Output { buffer: self.data(&all), words: words.len() }
    }

    /// Runs what `record` records, and reads outputs back.
    pub async fn run(
        &self,
        outputs: &[&Output],
        record: impl FnOnce(&mut Recorder) + WasmNotSend,
    ) -> Result<Vec<Vec<u32>>> {
        let mut recorder = Recorder::new(&self.gpu);
        record(&mut recorder);
        self.read(recorder, outputs).await
    }

    /// Apart from [`run`](Self::run), of which a program has one for each kernel.
    async fn read(&self, mut recorder: Recorder, outputs: &[&Output]) -> Result<Vec<Vec<u32>>> {
        let ranges: Vec<(&Buffer, u64, u64)> =
            outputs.iter().map(|output| (&output.buffer, 0, 4 * (output.words + AFTER) as u64)).collect();
        let bytes = recorder.submit_and_read(&ranges).wait("the selftest").await?;
        let mut words = bytemuck::pod_collect_to_vec::<u8, u32>(&bytes);
        let mut all = Vec::new();
        for output in outputs {
            let rest = words.split_off(output.words + AFTER);
            if words.split_off(output.words).iter().any(|&word| word != MARK) {
                return Err(wrong("the kernel wrote behind its output"));
            }
            all.push(std::mem::replace(&mut words, rest));
        }
        if self.spoilt.load(Relaxed) {
            let size = |word: &&mut u32| **word & 0x7fff_ffff;
            let largest = all.first_mut().and_then(|words| words.iter_mut().max_by_key(size));
            // An eighth of a float, and any other number, too.
            largest.into_iter().for_each(|word| *word ^= 1 << 20);
        }
        Ok(all)
    }

    /// A matrix of noise, in parts of `part_rows` rows.
    pub fn matrix(&self, shape: MatrixShape, stored: &Stored, part_rows: u32) -> Matrix {
        let matrix = Matrix::in_parts(&self.gpu, "selftest.weights", shape, stored.precision, part_rows);
        matrix.write_rows(0, &stored.bytes);
        matrix
    }
}

/// What a kernel did that no error is for.
pub(super) fn wrong(message: &str) -> Error {
    Error::Gpu { during: "the selftest".to_owned(), message: message.to_owned() }
}

/// Weights as they are stored, and what they are then.
pub(super) struct Stored {
    pub precision: Precision,
    bytes: Vec<u8>,
    pub weights: Vec<f64>,
    /// The part of each weight that meets inputs rounded to codes.
    pub coded: Vec<f64>,
}

impl Stored {
    /// Rows of `inputs` weights.
    ///
    /// # Errors
    /// Where quantisation refuses them.
    pub fn new(values: &[f64], inputs: u32, precision: Precision) -> Result<Self> {
        let rows = pad(values, inputs);
        let (width, padded) = (inputs as usize, padded(inputs) as usize);
        let scheme = match precision {
            Precision::F32 => {
                let weights = values.iter().map(|&value| f64::from(value as f32)).collect();
                let bytes = bytemuck::cast_slice(&rows).to_vec();
                return Ok(Self { precision, bytes, weights, coded: values.to_vec() });
            }
            Precision::F16 => {
                // `from_f64` rounds otherwise by machine: by way of f32, at once, or after it has cut off bits.
                let weights = values.iter().map(|&value| f16::from_f32(value as f32).to_f64()).collect();
                let bytes = rows.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
                return Ok(Self { precision, bytes, weights, coded: values.to_vec() });
            }
            Precision::Q8 => Scheme::Q8,
            Precision::Q4 => Scheme::Q4,
        };
        let mut bytes = Vec::new();
        pack_rows(precision, padded, &rows, &mut bytes).map_err(|error| wrong(&format!("{error:?}")))?;
        let all = scheme.unpack(&bytes, padded);
        let weights = all.chunks_exact(padded).flat_map(|row| row[..width].to_vec()).collect();
        let coded = headwise_reference::rounding::coded(scheme, &bytes, width, padded);
        Ok(Self { precision, bytes, weights, coded })
    }
}

/// Rows of `width` as the GPU holds them: f32, each row padded with zeros.
pub(super) fn pad(values: &[f64], width: u32) -> Vec<f32> {
    let (width, stride) = (width as usize, padded(width) as usize);
    let mut rows = vec![0.0; values.len() / width * stride];
    for (row, values) in rows.chunks_exact_mut(stride).zip(values.chunks_exact(width)) {
        row.iter_mut().zip(values).for_each(|(to, from)| *to = *from as f32);
    }
    rows
}

/// The reverse of [`pad`], of words.
///
/// # Errors
/// Where the padding is not zero.
pub(super) fn unpad(words: &[u32], width: u32) -> Result<Vec<f64>> {
    let mut rows = Vec::new();
    for row in words.chunks_exact(padded(width) as usize) {
        let (row, padding) = row.split_at(width as usize);
        if padding.iter().any(|&word| f32::from_bits(word) != 0.0) {
            return Err(wrong("the padding of a row is not zero"));
        }
        rows.extend(floats_of(row));
    }
    Ok(rows)
}

/// Words as the floats they are.
pub(super) fn floats_of(words: &[u32]) -> Vec<f64> {
    words.iter().map(|&word| f64::from(f32::from_bits(word))).collect()
}
