//! From a checkpoint's bytes to the GPU: plan, allocate, stream.

use std::{collections::HashMap, sync::Arc};

use super::{
    Checkpoint, Chunk, Source, TensorInfo, check_finite,
    place::{Layout, Order, Placer, file_length},
};
use crate::{
    Error, Result,
    gpu::{Buffer, Gpu},
    ops::{Matrix, MatrixShape, Precision, head_stride, padded},
};

/// What tensors of the file become on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A stack of matrices in the load's precision.
    Matrix(MatrixShape, Layout),
    /// Rows of f32: routers. `finite` refuses NaN and infinity, which would make routing meaningless without
    /// anything looking wrong.
    Rows { rows: u32, width: u32, finite: bool },
    /// One row of f32: norms and biases.
    Vector(u32),
    /// One row of f32 made of heads of `head_dim` channels.
    Heads { width: u32, head_dim: u32 },
}

impl Form {
    /// An output-major matrix without heads that need padding.
    pub fn matrix(shape: MatrixShape) -> Self {
        Self::Matrix(shape, Layout::default())
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
            Self::Rows { rows, width, .. } => u64::from(rows) * u64::from(width),
            Self::Vector(width) => u64::from(width),
            Self::Heads { width, head_dim } => u64::from(file_length(width, Some(head_dim))),
        }
    }

    /// The shape in the file, of each of `parts` tensors that are stacked.
    fn file_shape(&self, parts: usize) -> Vec<usize> {
        let part = |n: u32| n as usize / parts.max(1);
        match *self {
            Self::Matrix(MatrixShape { experts, halves, outputs, inputs }, layout) => {
                let outputs = halves * file_length(outputs, layout.output_heads);
                let inputs = file_length(inputs, layout.input_heads);
                match layout.order {
                    Order::Dense => vec![part(outputs), inputs as usize],
                    Order::OutputMajor => vec![experts as usize, part(outputs), inputs as usize],
                    Order::InputMajor => vec![experts as usize, inputs as usize, part(outputs)],
                    Order::Columns => vec![part(outputs), (experts * inputs) as usize],
                }
            }
            Self::Rows { rows, width, .. } => vec![rows as usize, width as usize],
            Self::Vector(width) => vec![part(width)],
            Self::Heads { width, head_dim } => vec![part(file_length(width, Some(head_dim)))],
        }
    }

    /// Bytes on the GPU.
    pub fn bytes(&self, precision: Precision) -> u64 {
        match *self {
            Self::Matrix(shape, _) => shape.bytes(precision),
            Self::Rows { rows, width, .. } => 4 * u64::from(rows) * u64::from(padded(width)),
            Self::Vector(width) | Self::Heads { width, .. } => 4 * u64::from(padded(width)),
        }
    }
}

/// Something that a model wants from the file: one tensor, or several stacked along their first dimension.
pub(crate) struct Request {
    pub names: Vec<String>,
    pub form: Form,
}

impl Request {
    pub fn new(name: &str, form: Form) -> Self {
        Self { names: vec![name.to_owned()], form }
    }

    /// One matrix or row of several tensors, the first on top.
    pub fn stacked(names: &[String], form: Form) -> Self {
        Self { names: names.to_vec(), form }
    }
}

/// Compares what a model wants with what a checkpoint has: every tensor with its exact shape, and none besides but
/// the `ignorable` (a name, or `*` and the end of names).
///
/// # Errors
/// The first tensor that is missing, mis-shaped or unknown. `config` is where the shapes come from.
pub(crate) fn check_shapes(
    checkpoint: &Checkpoint,
    requests: &[Request],
    ignorable: &[&str],
    config: &str,
) -> Result<()> {
    let mut known = std::collections::HashSet::new();
    for Request { names, form } in requests {
        for name in names {
            checkpoint.require(name, &form.file_shape(names.len()), config)?;
            known.insert(name.as_str());
        }
    }
    let expected = format!("only the tensors of the model that {config} describes");
    checkpoint.refuse_unexpected(|name| known.contains(name), ignorable, &expected)
}

/// Bytes done and bytes in all, as loading goes on.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// The tensors on the GPU, by the first of their names.
pub(crate) struct Store {
    matrices: HashMap<String, Matrix>,
    rows: HashMap<String, Buffer>,
}

impl Store {
    /// Takes out a matrix that was requested.
    pub fn matrix(&mut self, name: &str) -> Result<Matrix> {
        self.matrices.remove(name).ok_or_else(|| not_requested(name))
    }

    /// A matrix that two layers share.
    pub fn shared_matrix(&mut self, name: &str) -> Result<Arc<Matrix>> {
        self.matrix(name).map(Arc::new)
    }

    /// Takes out rows that were requested.
    pub fn rows(&mut self, name: &str) -> Result<Buffer> {
        self.rows.remove(name).ok_or_else(|| not_requested(name))
    }
}

/// A family asked for a tensor at build time that it did not list: an error rather than a panic.
fn not_requested(name: &str) -> Error {
    Error::bad_file("model", format!("tensor {name}"), "not requested", "a tensor of the family's list")
}

/// Upload bytes that may wait in the queue before loading pauses for the device to take them.
const IN_FLIGHT: u64 = 16 << 20;

/// Streams `requests` to the GPU.
///
/// Host memory stays at a few chunks whatever the tensors' sizes (one expert's matrix, where the file holds it
/// input-major).
///
/// # Errors
/// What the checkpoint's reader finds, values that do not fit `precision`, and what the device reports.
pub(crate) async fn upload(
    gpu: &Gpu,
    source: &Source,
    checkpoint: &Checkpoint,
    requests: &[Request],
    precision: Precision,
    progress: Progress<'_>,
) -> Result<Store> {
    let mut targets = HashMap::new();
    let mut wanted: Vec<&TensorInfo> = Vec::new();
    let mut store = Store { matrices: HashMap::new(), rows: HashMap::new() };
    for request in requests {
        let mut before = 0;
        for name in &request.names {
            let tensor = checkpoint.tensor(name).ok_or_else(|| {
                Error::bad_file("checkpoint", format!("tensor {name}"), "nothing", "a tensor")
            })?;
            wanted.push(tensor);
            targets.insert(name.as_str(), Target { request, before });
            before += tensor.elements();
        }
        let Some(name) = request.names.first() else { continue };
        match request.form {
            Form::Matrix(shape, _) => {
                store.matrices.insert(name.clone(), Matrix::new(gpu, name, shape, precision)?);
            }
            Form::Rows { .. } | Form::Vector(_) | Form::Heads { .. } => {
                store.rows.insert(name.clone(), Buffer::new(gpu, name, request.form.bytes(precision)));
            }
        }
    }
    gpu.check("allocating the model")?;

    let total = wanted.iter().map(|tensor| tensor.bytes).sum();
    let (mut done, mut waiting) = (0, 0);
    let mut staging = Staging::default();
    let mut stream = checkpoint.stream(source, wanted);
    progress(done, total);
    while let Some(chunk) = stream.next().await? {
        targets[chunk.tensor.name.as_str()].place(&store, &chunk, precision, &mut staging)?;
        done += chunk.bytes.len() as u64;
        waiting += chunk.bytes.len() as u64;
        progress(done, total);
        if waiting >= IN_FLIGHT {
            gpu.flush().await?;
            waiting = 0;
        }
    }
    gpu.flush().await?;
    Ok(store)
}

/// Where one tensor goes.
struct Target<'a> {
    request: &'a Request,
    /// Values of the tensors stacked above it.
    before: u64,
}

/// Reused memory for converting chunks. A placer lives as long as its tensor is streaming.
#[derive(Default)]
struct Staging {
    f32s: Vec<f32>,
    f16s: Vec<u16>,
    tensor: String,
    placers: Option<(Placer<f32>, Placer<u16>)>,
}

impl Target<'_> {
    fn place(
        &self,
        store: &Store,
        chunk: &Chunk<'_>,
        precision: Precision,
        staging: &mut Staging,
    ) -> Result<()> {
        let name = self.request.names[0].as_str();
        let width = chunk.width().max(1) as u64;
        let first = self.before / width + chunk.first_row;
        match self.request.form {
            Form::Matrix(_, layout) => {
                if staging.tensor != chunk.tensor.name {
                    staging.tensor.clone_from(&chunk.tensor.name);
                    staging.placers = None;
                }
                let new = || (Placer::new(layout), Placer::new(layout));
                let (wide, narrow) = staging.placers.get_or_insert_with(new);
                match precision {
                    Precision::F32 => {
                        chunk.to_f32(&mut staging.f32s);
                        wide.place(&store.matrices[name], first, &staging.f32s);
                    }
                    Precision::F16 => {
                        chunk.to_f16(&mut staging.f16s)?;
                        narrow.place(&store.matrices[name], first, &staging.f16s);
                    }
                }
            }
            Form::Vector(_) => {
                chunk.to_f32(&mut staging.f32s);
                store.rows[name].write(0, &staging.f32s);
            }
            Form::Rows { width, finite, .. } => {
                chunk.to_f32(&mut staging.f32s);
                if finite {
                    check_finite(&chunk.tensor.name, chunk.file, &staging.f32s)?;
                }
                for (offset, row) in (first..).zip(staging.f32s.chunks(width as usize)) {
                    store.rows[name].write(offset * 4 * u64::from(padded(width)), row);
                }
            }
            Form::Heads { head_dim, .. } => {
                chunk.to_f32(&mut staging.f32s);
                for (head, values) in
                    (self.before / u64::from(head_dim)..).zip(staging.f32s.chunks(head_dim as usize))
                {
                    store.rows[name].write(head * 4 * u64::from(head_stride(head_dim)), values);
                }
            }
        }
        Ok(())
    }
}
