//! Weight matrices on the GPU.

use std::sync::Arc;

use super::interleave::{Interleaver, Run};
use crate::{
    Error, Result,
    gpu::{Buffer, Gpu, PART_ALIGNMENT},
    ops::padded,
};

/// How weights are stored on the GPU. Sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, unpacked in the kernels; needs no device feature.
    F16,
    /// Groups of 32 weights: a signed byte each and a 16-bit scale.
    Q8,
    /// Groups of 32 weights: 4 bits each, a 16-bit scale and a 16-bit minimum.
    Q4,
}

/// Consecutive inputs of a row that share a scale in [`Precision::Q8`] and [`Precision::Q4`].
pub const QUANTIZED_GROUP: u32 = 32;

impl Precision {
    /// The `WEIGHT_FORMAT` of `shaders/shared/weights.wgsl`.
    pub(super) fn format(self) -> f64 {
        match self {
            Self::F32 => 0.0,
            Self::F16 => 1.0,
            Self::Q8 => 2.0,
            Self::Q4 => 3.0,
        }
    }

    /// Bytes of a row of `inputs` weights, padding and scales included: whole vec4s of u32, with codes as in
    /// `shaders/shared/weights.wgsl`, then the scales.
    pub fn row_bytes(self, inputs: u32) -> u64 {
        let groups = groups(inputs);
        self.code_bytes(inputs)
            + match self {
                Self::F32 | Self::F16 => 0,
                Self::Q8 => 16 * groups.div_ceil(8),
                Self::Q4 => 16 * groups.div_ceil(4),
            }
    }

    /// Bytes of a row before the scales.
    fn code_bytes(self, inputs: u32) -> u64 {
        match self {
            Self::F32 => 4 * u64::from(padded(inputs)),
            Self::F16 => 2 * u64::from(padded(inputs)),
            Self::Q8 => 32 * groups(inputs),
            Self::Q4 => 16 * groups(inputs),
        }
    }

    /// Whether weights are codes that share scales.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Q8 | Self::Q4)
    }

    /// Whether rows of so many inputs can be stored so: quantised ones are whole groups.
    pub fn holds(self, inputs: u32) -> bool {
        !self.is_quantized() || padded(inputs).is_multiple_of(QUANTIZED_GROUP)
    }

    /// As on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }
}

/// Groups of a row, of which the last may not be whole.
fn groups(inputs: u32) -> u64 {
    u64::from(padded(inputs).div_ceil(QUANTIZED_GROUP))
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "q8" => Ok(Self::Q8),
            "q4" => Ok(Self::Q4),
            other => Err(Error::argument("precision", other, "f32, f16, q8 or q4")),
        }
    }
}

/// What happens to an output of a linear layer after its bias; the formulas stand in
/// `shaders/shared/activation.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    #[default]
    None,
    /// The exact GELU.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    Tanh,
    Relu,
}

impl Activation {
    /// The `ACTIVATION` of the shader.
    pub(super) fn code(self) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Gelu => 1.0,
            Self::GeluTanh => 2.0,
            Self::Tanh => 3.0,
            Self::Relu => 4.0,
        }
    }
}

/// What a linear layer adds to its outputs.
#[derive(Clone, Copy)]
pub enum Bias<'a> {
    None,
    /// `[outputs]`, the same for every expert
    OfAll(&'a Buffer),
    /// `[experts, outputs]`, rows padded; for outputs of one assignment each
    OfExpert(&'a Buffer),
}

impl<'a> Bias<'a> {
    /// A bias of all experts, if there is one.
    pub fn of_all(buffer: Option<&'a Buffer>) -> Self {
        buffer.map_or(Self::None, Self::OfAll)
    }

    pub(super) fn buffer(self) -> Option<&'a Buffer> {
        match self {
            Self::None => None,
            Self::OfAll(buffer) | Self::OfExpert(buffer) => Some(buffer),
        }
    }
}

/// The sizes of a stack of matrices, one for each expert.
///
/// In a file it is `[experts, halves · outputs, inputs]`, output-major. Two halves mean a gate and an up
/// projection for SwiGLU, stacked along the outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixShape {
    pub experts: u32,
    pub halves: u32,
    pub outputs: u32,
    pub inputs: u32,
}

impl MatrixShape {
    /// One dense matrix.
    pub fn dense(outputs: u32, inputs: u32) -> Self {
        Self { experts: 1, halves: 1, outputs, inputs }
    }

    /// Rows of all experts and halves together, as they stand in a file.
    pub fn rows(&self) -> u64 {
        [self.experts, self.halves, self.outputs].iter().map(|&n| u64::from(n)).product()
    }

    /// Weights in all experts together.
    pub fn parameters(&self) -> u64 {
        self.rows() * u64::from(self.inputs)
    }

    /// Multiply-accumulates of one row through one expert.
    pub fn macs(&self) -> u64 {
        [self.halves, self.outputs, self.inputs].iter().map(|&n| u64::from(n)).product()
    }

    /// Bytes on the GPU, with every row padded and rows in whole quads.
    pub fn bytes(&self, precision: Precision) -> u64 {
        self.bytes_of_rows(precision, self.outputs.next_multiple_of(4))
    }

    /// Bytes of `rows` output rows of every expert and half.
    fn bytes_of_rows(&self, precision: Precision, rows: u32) -> u64 {
        u64::from(self.experts) * u64::from(self.halves) * u64::from(rows) * precision.row_bytes(self.inputs)
    }

    /// Output rows in each part when no binding may be larger than `max_binding` bytes.
    ///
    /// # Errors
    /// When not even eight rows of every expert fit.
    pub fn part_rows(&self, precision: Precision, max_binding: u64, name: &str) -> Result<u32> {
        let whole = self.bytes(precision);
        if whole <= max_binding && self.outputs <= MAX_PART_ROWS {
            return Ok(self.outputs.max(1));
        }
        let eight = self.bytes_of_rows(precision, 8);
        let rows = (max_binding / eight * 8).min(u64::from(u32::MAX)) as u32;
        if rows == 0 {
            return Err(Error::TooLarge {
                what: format!("eight rows of {name}"),
                need: eight,
                have: max_binding,
                limit: "one storage binding of the adapter".to_owned(),
            });
        }
        Ok(rows.min(self.outputs).min(MAX_PART_ROWS))
    }
}

/// Output rows of a part at the most: a dispatch has 65,535 workgroups a dimension, of four outputs each.
const MAX_PART_ROWS: u32 = 65_535 * 4 / 8 * 8;

/// A stack of weight matrices, cut along the outputs so that every part fits one binding.
///
/// A part holds its output rows of every expert: `[experts, halves, part rows / 4]` quads of four rows of
/// [`Precision::row_bytes`] each, zeros where the last quad has fewer. The vec4s of a quad's rows alternate, as
/// `shaders/shared/weights.wgsl` says: kernels compute four outputs at a time, and so read one stream instead of four.
/// A clone is the same memory.
#[derive(Clone)]
pub struct Matrix {
    pub shape: MatrixShape,
    pub precision: Precision,
    pub parts: Vec<Part>,
    interleaver: Arc<Interleaver>,
}

/// Consecutive output rows of a [`Matrix`].
#[derive(Clone)]
pub struct Part {
    pub buffer: Buffer,
    pub first_row: u32,
    pub rows: u32,
}

impl Matrix {
    /// Allocates a zeroed matrix.
    ///
    /// # Errors
    /// As [`MatrixShape::part_rows`], and when `precision` does not hold rows of this width.
    pub fn new(gpu: &Gpu, name: &str, shape: MatrixShape, precision: Precision) -> Result<Self> {
        if !precision.holds(shape.inputs) {
            let expected =
                format!("f32 or f16 for {name}, whose rows of {} are not whole groups", shape.inputs);
            return Err(Error::argument("precision", precision.name(), expected));
        }
        let capabilities = gpu.capabilities();
        let max = capabilities.max_binding.min(capabilities.max_buffer);
        let part_rows = shape.part_rows(precision, max, name)?;
        Ok(Self::in_parts(gpu, name, shape, precision, part_rows))
    }

    /// Allocates a zeroed matrix whose parts have `part_rows` output rows, a multiple of 8 where there are several.
    pub fn in_parts(gpu: &Gpu, name: &str, shape: MatrixShape, precision: Precision, part_rows: u32) -> Self {
        let parts = (0..shape.outputs)
            .step_by(part_rows as usize)
            .map(|first_row| {
                let rows = part_rows.min(shape.outputs - first_row);
                let bytes = MatrixShape { outputs: rows, ..shape }.bytes(precision);
                Part { buffer: Buffer::new(gpu, name, bytes), first_row, rows }
            })
            .collect();
        Self { shape, precision, parts, interleaver: Arc::default() }
    }

    /// Allocates a matrix and a dense one of as many inputs behind it, in one buffer where they fit one binding, so that
    /// one dispatch can read both.
    ///
    /// # Errors
    /// As [`Matrix::new`].
    pub fn pair(
        gpu: &Gpu,
        names: [&str; 2],
        shapes: [MatrixShape; 2],
        precision: Precision,
    ) -> Result<[Self; 2]> {
        let capabilities = gpu.capabilities();
        let max = capabilities.max_binding.min(capabilities.max_buffer);
        let [first, second] = shapes;
        let start = first.bytes(precision).next_multiple_of(PART_ALIGNMENT);
        let bytes = start + second.bytes(precision);
        let small = [first, second].iter().all(|shape| shape.outputs <= MAX_PART_ROWS);
        if bytes > max || !small || !precision.holds(first.inputs) {
            return Ok([
                Self::new(gpu, names[0], first, precision)?,
                Self::new(gpu, names[1], second, precision)?,
            ]);
        }
        let whole = Buffer::new(gpu, names[0], bytes);
        let of = |shape: MatrixShape, from| {
            let buffer = whole.part(from, shape.bytes(precision).max(16));
            let parts = vec![Part { buffer, first_row: 0, rows: shape.outputs }];
            Self { shape, precision, parts, interleaver: Arc::default() }
        };
        Ok([of(first, 0), of(second, start)])
    }

    /// Whether [`Matrix::pair`] put `second` into the same buffer.
    pub fn is_paired_with(&self, second: &Self) -> bool {
        match (&self.parts[..], &second.parts[..]) {
            ([own], [behind]) => own.buffer.shares(&behind.buffer),
            _ => false,
        }
    }

    /// Bytes of one output row of one expert.
    pub fn row_bytes(&self) -> u64 {
        MatrixShape { experts: 1, halves: 1, ..self.shape }.bytes_of_rows(self.precision, 1)
    }

    /// Bytes of the output rows that `part` has of one expert.
    pub fn expert_bytes(&self, part: &Part) -> u64 {
        MatrixShape { experts: 1, ..self.shape }.bytes_of_rows(self.precision, part.rows)
    }

    /// Frees what was kept of quads that will never be whole, once all rows are written.
    pub fn finish(&self) {
        self.interleaver.finish();
    }

    /// Writes whole file rows, `first_row` counted over `[experts, halves · outputs]`; `bytes` holds them in
    /// this matrix's precision, each of [`Precision::row_bytes`].
    pub fn write_rows(&self, first_row: u64, bytes: &[u8]) {
        let row_bytes = self.precision.row_bytes(self.shape.inputs);
        let code_bytes = self.precision.code_bytes(self.shape.inputs);
        let outputs = u64::from(self.shape.outputs);
        let (mut row, mut rest) = (first_row, bytes);
        while !rest.is_empty() {
            // `block` counts (expert, half) pairs; runs of rows inside one are contiguous in a part.
            let (block, output) = (row / outputs, row % outputs);
            let Some(index) = self.parts.iter().rposition(|part| u64::from(part.first_row) <= output) else {
                return;
            };
            let part = &self.parts[index];
            let in_part = output - u64::from(part.first_row);
            let run = (u64::from(part.rows) - in_part).min(rest.len() as u64 / row_bytes);
            if run == 0 {
                return;
            }
            let (now, later) = rest.split_at((run * row_bytes) as usize);
            let rows =
                Run { part: index, block, first: in_part, of: u64::from(part.rows), row_bytes, code_bytes };
            self.interleaver.write(&part.buffer, &rows, now);
            (row, rest) = (row + run, later);
        }
    }
}

impl Part {
    /// The output quads this part owns (the last part owns the zero padding too) and its multiply-accumulates
    /// for one assignment.
    pub fn quads_and_macs(&self, shape: &MatrixShape) -> (u32, u64) {
        let last = self.first_row + self.rows == shape.outputs;
        let end = if last { padded(shape.outputs) } else { self.first_row + self.rows };
        let macs = MatrixShape { outputs: self.rows, ..*shape }.macs();
        ((end - self.first_row) / 4, macs)
    }
}
