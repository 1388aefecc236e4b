//! What a model wants from a checkpoint: which tensors, and what they become on the GPU.

use std::collections::HashSet;

use super::{
    Checkpoint,
    place::{Layout, Order, file_length},
};
use crate::{
    Result,
    ops::{MatrixShape, Precision, padded},
};

/// What tensors of the file become on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A stack of matrices in [`Request::precision`].
    Matrix(MatrixShape, Layout),
    /// Rows of f32: routers, position tables. `transposed` has them as columns in the file.
    Rows { rows: u32, width: u32, transposed: bool },
    /// Rows of f32, each a tensor of one dimension: a norm's weight and bias, other biases.
    Vectors { rows: u32, width: u32 },
    /// One row of f32 made of heads of `head_dim` channels.
    Heads { width: u32, head_dim: u32 },
    /// A row of f32 for each expert, made of `heads` heads of `head_dim` channels; one dimension in the file.
    ExpertHeads { experts: u32, heads: u32, head_dim: u32 },
}

impl Form {
    /// An output-major matrix without heads that need padding.
    pub fn matrix(shape: MatrixShape) -> Self {
        Self::Matrix(shape, Layout::default())
    }

    /// One vector.
    pub fn vector(width: u32) -> Self {
        Self::Vectors { rows: 1, width }
    }

    /// Weights of the file.
    pub fn parameters(&self) -> u64 {
        match *self {
            Self::Matrix(shape, layout) => MatrixShape {
                outputs: file_length(shape.outputs, layout.output_heads),
                inputs: file_length(shape.inputs, layout.input_heads),
                ..shape
            }
            .parameters(),
            Self::Rows { rows, width, .. } | Self::Vectors { rows, width } => {
                u64::from(rows) * u64::from(width)
            }
            Self::Heads { width, head_dim } => u64::from(file_length(width, Some(head_dim))),
            Self::ExpertHeads { experts, heads, head_dim } => u64::from(experts * heads * head_dim),
        }
    }

    /// The shape in the file, of each of `parts` tensors of one size that are stacked.
    fn file_shape(&self, parts: usize) -> Vec<usize> {
        let part = |n: u32| n as usize / parts.max(1);
        match *self {
            Self::Matrix(MatrixShape { experts, halves, outputs, inputs }, layout) => {
                let outputs = halves * file_length(outputs, layout.output_heads);
                let inputs = file_length(inputs, layout.input_heads);
                match layout.order {
                    Order::Dense => vec![part(experts * outputs), inputs as usize],
                    Order::OutputMajor => vec![experts as usize, part(outputs), inputs as usize],
                    Order::InputMajor => vec![experts as usize, inputs as usize, part(outputs)],
                    Order::Columns => vec![part(outputs), (experts * inputs) as usize],
                }
            }
            Self::Rows { rows, width, transposed: false } => vec![part(rows), width as usize],
            Self::Rows { rows, width, transposed: true } => vec![width as usize, rows as usize],
            Self::Vectors { width, .. } => vec![width as usize],
            Self::Heads { width, head_dim } => vec![part(file_length(width, Some(head_dim)))],
            Self::ExpertHeads { experts, heads, head_dim } => vec![part(experts * heads * head_dim)],
        }
    }

    /// Bytes on the GPU.
    pub fn bytes(&self, precision: Precision) -> u64 {
        match *self {
            Self::Matrix(shape, _) => shape.bytes(precision),
            Self::Rows { rows, width, .. } | Self::Vectors { rows, width } => {
                4 * u64::from(rows) * u64::from(padded(width))
            }
            Self::Heads { width, .. } => 4 * u64::from(padded(width)),
            Self::ExpertHeads { experts, heads, head_dim } => {
                4 * u64::from(experts) * u64::from(padded(heads * crate::ops::head_stride(head_dim)))
            }
        }
    }
}

/// A tensor of the file, or some of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub name: String,
    /// The tensor's shape, where it is not what the form implies.
    pub shape: Option<Vec<usize>>,
    /// The first row along the first dimension, and how many.
    pub rows: Option<(usize, usize)>,
}

impl From<String> for Piece {
    fn from(name: String) -> Self {
        Self { name, shape: None, rows: None }
    }
}

impl Piece {
    /// A tensor with a shape of its own.
    pub fn shaped(name: String, shape: &[usize]) -> Self {
        Self { name, shape: Some(shape.to_vec()), rows: None }
    }

    /// `count` rows of a tensor of `shape`, from row `first` on.
    pub fn rows_of(name: String, shape: &[usize], first: usize, count: usize) -> Self {
        Self { name, shape: Some(shape.to_vec()), rows: Some((first, count)) }
    }

    /// What the loaded thing goes by.
    pub fn key(&self) -> String {
        match self.rows {
            None => self.name.clone(),
            Some((first, count)) => format!("{}[{first}..{}]", self.name, first + count),
        }
    }
}

/// Something that a model wants from the file: one tensor, or several stacked along their first dimension.
pub(crate) struct Request {
    pub pieces: Vec<Piece>,
    pub form: Form,
    /// Whether a matrix may be quantised.
    quantize: bool,
    /// The key of another matrix, in whose buffer this one is to lie behind it.
    pub behind: Option<String>,
}

impl Request {
    pub fn new(piece: impl Into<Piece>, form: Form) -> Self {
        Self { pieces: vec![piece.into()], form, quantize: true, behind: None }
    }

    /// One thing of several tensors, the first on top.
    pub fn stacked(pieces: &[Piece], form: Form) -> Self {
        Self { pieces: pieces.to_vec(), form, quantize: true, behind: None }
    }

    /// Lies behind the matrix that goes by `key`, where [`Matrix::pair`](crate::ops::Matrix::pair) can do it.
    pub fn behind(self, key: String) -> Self {
        Self { behind: Some(key), ..self }
    }

    /// Stays f16 when matrices are quantised: embeddings, which are often the output head too, and routers, which are
    /// small and decide what everything else computes.
    pub fn unquantized(self) -> Self {
        Self { quantize: false, ..self }
    }

    /// How a model that is loaded in `precision` stores this: quantised where that is allowed and its rows are whole
    /// groups, else f16. What is no matrix is f32 anyway.
    pub fn precision(&self, precision: Precision) -> Precision {
        match self.form {
            Form::Matrix(shape, _) if self.quantize && precision.holds(shape.inputs) => precision,
            _ if precision.is_quantized() => Precision::F16,
            _ => precision,
        }
    }

    /// Bytes on the GPU when a model is loaded in `precision`.
    pub fn bytes(&self, precision: Precision) -> u64 {
        self.form.bytes(self.precision(precision))
    }

    /// What the loaded thing goes by.
    pub fn key(&self) -> String {
        self.pieces.first().map(Piece::key).unwrap_or_default()
    }
}

/// Compares what a model wants with what a checkpoint has: every tensor with its exact shape, and none besides but
/// those that say nothing and `spare`, which may be there or not.
///
/// # Errors
/// The first tensor that is missing, mis-shaped or unknown. `config` is where the shapes come from.
pub(crate) fn check_shapes(
    checkpoint: &Checkpoint,
    requests: &[Request],
    spare: &[String],
    config: &str,
) -> Result<()> {
    let mut known: HashSet<&str> = spare.iter().map(String::as_str).collect();
    for Request { pieces, form, .. } in requests {
        for piece in pieces {
            let implied = || form.file_shape(pieces.len());
            let shape = piece.shape.clone().unwrap_or_else(implied);
            checkpoint.require(&piece.name, &shape, config)?;
            known.insert(piece.name.as_str());
        }
    }
    let expected = format!("only the tensors of the model that {config} describes");
    checkpoint.refuse_unexpected(|name| known.contains(name), &expected)
}
