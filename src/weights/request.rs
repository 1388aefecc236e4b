//! What a model wants from a checkpoint: which tensors, and what they become on the GPU.

use std::collections::HashSet;

use super::{
    Checkpoint, Piece, Pieces,
    place::{Layout, Order, file_length},
};
use crate::{
    Error, Result,
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

    /// The shape in the file, of each of `parts` tensors of one size that are stacked: rows of the dense matrix, or an
    /// expert each where the file is input-major.
    fn file_shape(&self, parts: usize) -> Vec<usize> {
        let part = |n: u32| n as usize / parts.max(1);
        match *self {
            Self::Matrix(MatrixShape { experts, halves, outputs, inputs }, layout) => {
                let outputs = halves * file_length(outputs, layout.output_heads);
                let inputs = file_length(inputs, layout.input_heads);
                match layout.order {
                    Order::OutputMajor if parts == 1 => {
                        vec![experts as usize, outputs as usize, inputs as usize]
                    }
                    Order::Dense | Order::OutputMajor => vec![part(experts * outputs), inputs as usize],
                    Order::InputMajor if parts == 1 => {
                        vec![experts as usize, inputs as usize, outputs as usize]
                    }
                    Order::InputMajor => vec![inputs as usize, outputs as usize],
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

/// Something that a model wants from the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub pieces: Vec<Piece>,
    pub form: Form,
    /// Whether a matrix may be quantised.
    quantize: bool,
    /// How many of a matrix's experts a token uses, if not all.
    used: Option<u32>,
}

impl Request {
    pub fn new(pieces: &Pieces, form: Form) -> Self {
        Self { pieces: pieces.list.clone(), form, quantize: true, used: None }
    }

    /// A stack of matrices, without heads that need padding.
    pub fn matrix(pieces: &Pieces, shape: MatrixShape) -> Self {
        Self::new(pieces, Form::Matrix(shape, Layout { order: pieces.order, ..Layout::default() }))
    }

    /// Rows of f32, as columns in a file that is input-major.
    pub fn rows(pieces: &Pieces, rows: u32, width: u32) -> Self {
        Self::new(pieces, Form::Rows { rows, width, transposed: pieces.order == Order::InputMajor })
    }

    /// The matrix's outputs are heads of so many channels.
    pub fn output_heads(self, head_dim: u32) -> Self {
        self.layout(|layout| Layout { output_heads: Some(head_dim), ..layout })
    }

    /// The matrix's inputs are heads of so many channels.
    pub fn input_heads(self, head_dim: u32) -> Self {
        self.layout(|layout| Layout { input_heads: Some(head_dim), ..layout })
    }

    fn layout(self, edit: impl FnOnce(Layout) -> Layout) -> Self {
        match self.form {
            Form::Matrix(shape, layout) => Self { form: Form::Matrix(shape, edit(layout)), ..self },
            _ => self,
        }
    }

    /// A token uses so many of the matrix's experts.
    pub fn used(self, experts: u32) -> Self {
        Self { used: Some(experts), ..self }
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

    /// Parameters of experts that a token does not use, as the files count them: heads without their padding.
    pub fn idle_parameters(&self) -> u64 {
        match (self.form, self.used) {
            (Form::Matrix(shape, _), Some(used)) => {
                let each = self.form.parameters() / u64::from(shape.experts.max(1));
                u64::from(shape.experts.saturating_sub(used)) * each
            }
            _ => 0,
        }
    }

    /// A matrix's shape.
    ///
    /// # Errors
    /// When this is no matrix.
    pub fn shape(&self) -> Result<MatrixShape> {
        match self.form {
            Form::Matrix(shape, _) => Ok(shape),
            form => Err(Error::bad_file(
                "model",
                format!("tensor {}", self.key()),
                format!("{form:?}"),
                "a matrix",
            )),
        }
    }

    /// This request, if its tensors can make the whole thing.
    ///
    /// # Errors
    /// When there are none, or too many or too few: a family has left a name out.
    pub fn whole(self) -> Result<Self> {
        let parts = self.pieces.len();
        let divides = match self.form {
            Form::Matrix(shape, Layout { order: Order::InputMajor, .. }) => {
                parts == 1 || parts == shape.experts as usize
            }
            Form::Matrix(shape, Layout { order: Order::Columns, .. }) => {
                (shape.outputs as usize).is_multiple_of(parts)
            }
            Form::Matrix(shape, _) => (shape.rows() as usize).is_multiple_of(parts),
            _ => true,
        };
        if parts > 0 && divides {
            return Ok(self);
        }
        let field = format!("the tensors of {:?}", self.form);
        Err(Error::bad_file("model", field, format!("{parts} names"), "a name for each"))
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
