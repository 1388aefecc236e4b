//! Where the values of a file's tensor go in a GPU matrix.
//!
//! On the GPU a matrix is `[experts, halves · outputs, inputs]`, output-major, heads padded to whole vec4s and rows
//! to whole blocks. Files hold it in several ways.

use crate::{
    Result,
    ops::{MatrixShape, head_stride, padded},
};

/// How a file orders a stack of matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[outputs, inputs]` of one matrix; several tensors may be stacked along the outputs.
    #[default]
    Dense,
    /// `[experts, outputs, inputs]`
    OutputMajor,
    /// `[experts, inputs, outputs]`
    InputMajor,
    /// `[outputs, experts · inputs]`: each expert reads its own columns of one dense matrix.
    Columns,
}

/// How a file's tensor maps to a matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    pub order: Order,
    /// The outputs are heads of so many channels.
    pub output_heads: Option<u32>,
    /// The inputs are heads of so many channels.
    pub input_heads: Option<u32>,
}

/// The length of `n` padded channels in a file, where heads are not padded.
pub(crate) fn file_length(n: u32, head_dim: Option<u32>) -> u32 {
    head_dim.map_or(n, |dim| n / head_stride(dim) * dim)
}

/// Where channel `index` of a file is on the GPU.
fn placed(index: usize, head_dim: Option<u32>) -> usize {
    head_dim.map_or(index, |dim| {
        let dim = dim as usize;
        index / dim * head_stride(dim as u32) as usize + index % dim
    })
}

/// A value as it is stored on the GPU.
pub(super) trait Stored: bytemuck::Pod + Default {}
impl Stored for f32 {}
impl Stored for u16 {}

/// Takes whole rows of the matrix: the first one's number, counted over `[experts, halves · outputs]`, and their values
/// with padding.
pub(super) type Sink<'a, T> = &'a mut dyn FnMut(u64, &[T]) -> Result<()>;

/// Makes the rows of a matrix from consecutive rows of its file.
pub(super) struct Placer<T> {
    layout: Layout,
    /// Rows on their way, in the GPU's layout; with `InputMajor` a whole expert's matrix.
    staged: Vec<T>,
}

impl<T: Stored> Placer<T> {
    pub fn new(layout: Layout) -> Self {
        Self { layout, staged: Vec::new() }
    }

    /// Places whole file rows, of which the first is row `first` of all stacked tensors.
    pub fn place(&mut self, shape: &MatrixShape, first: u64, values: &[T], sink: Sink<'_, T>) -> Result<()> {
        match self.layout.order {
            Order::Dense | Order::OutputMajor => self.output_rows(shape, first, values, sink),
            Order::InputMajor => self.input_rows(shape, first, values, sink),
            Order::Columns => self.column_rows(shape, first, values, sink),
        }
    }

    fn output_rows(
        &mut self,
        shape: &MatrixShape,
        first: u64,
        values: &[T],
        sink: Sink<'_, T>,
    ) -> Result<()> {
        let Layout { output_heads, input_heads, .. } = self.layout;
        let (inputs, row) = widths(shape, input_heads);
        if output_heads.is_none() && inputs == row {
            return sink(first, values);
        }
        self.pad_rows(values.chunks(inputs), row, input_heads);
        // Heads interrupt a run of rows; without them it is all one run.
        let run = output_heads.map_or(values.len() / inputs, |dim| dim as usize).max(1);
        let (mut index, mut rest) = (first as usize, self.staged.as_slice());
        while !rest.is_empty() {
            let rows = match output_heads {
                Some(_) => (run - index % run).min(rest.len() / row),
                None => rest.len() / row,
            };
            let (now, later) = rest.split_at(rows * row);
            sink(placed(index, output_heads) as u64, now)?;
            (index, rest) = (index + rows, later);
        }
        Ok(())
    }

    fn input_rows(&mut self, shape: &MatrixShape, first: u64, values: &[T], sink: Sink<'_, T>) -> Result<()> {
        let Layout { output_heads, input_heads, .. } = self.layout;
        let (inputs, row) = widths(shape, input_heads);
        let rows = (shape.halves * shape.outputs) as usize;
        let outputs = file_length(rows as u32, output_heads) as usize;
        for (offset, values) in values.chunks(outputs).enumerate() {
            let index = first as usize + offset;
            let (expert, input) = (index / inputs, index % inputs);
            if input == 0 {
                self.staged.clear();
                self.staged.resize(rows * row, T::default());
            }
            for (output, value) in values.iter().enumerate() {
                self.staged[placed(output, output_heads) * row + placed(input, input_heads)] = *value;
            }
            if input + 1 == inputs {
                sink((expert * rows) as u64, &self.staged)?;
            }
        }
        Ok(())
    }

    fn column_rows(
        &mut self,
        shape: &MatrixShape,
        first: u64,
        values: &[T],
        sink: Sink<'_, T>,
    ) -> Result<()> {
        let input_heads = self.layout.input_heads;
        let (inputs, row) = widths(shape, input_heads);
        let (experts, outputs) = (shape.experts as usize, u64::from(shape.outputs));
        for expert in 0..experts {
            let columns =
                values.chunks(experts * inputs).map(|row| &row[expert * inputs..(expert + 1) * inputs]);
            self.pad_rows(columns, row, input_heads);
            sink(expert as u64 * outputs + first, &self.staged)?;
        }
        Ok(())
    }

    /// Stages rows with their inputs where the GPU wants them.
    fn pad_rows<'a>(&mut self, rows: impl Iterator<Item = &'a [T]>, row: usize, heads: Option<u32>) {
        self.staged.clear();
        for values in rows {
            let start = self.staged.len();
            self.staged.resize(start + row, T::default());
            for (index, value) in values.iter().enumerate() {
                self.staged[start + placed(index, heads)] = *value;
            }
        }
    }
}

/// Inputs of a row in the file, and on the GPU.
fn widths(shape: &MatrixShape, input_heads: Option<u32>) -> (usize, usize) {
    let inputs = shape.inputs;
    (file_length(inputs, input_heads) as usize, padded(inputs) as usize)
}
