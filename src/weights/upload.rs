//! From a checkpoint's bytes to the GPU: plan, allocate, stream.

use std::{collections::HashMap, sync::Arc};

use super::{Checkpoint, Chunk, Source, TensorInfo, check_finite};
use crate::{
    Error, Result,
    gpu::{Buffer, Gpu},
    ops::{Matrix, MatrixShape, Precision, padded},
};

/// What a tensor of the file becomes on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A stack of matrices in the load's precision.
    Matrix(MatrixShape),
    /// Rows of f32: norms, biases, routers. `finite` refuses NaN and infinity, which would make routing
    /// meaningless without anything looking wrong.
    Rows { rows: u32, width: u32, finite: bool },
}

impl Form {
    /// One row of f32.
    pub fn vector(width: u32) -> Self {
        Self::Rows { rows: 1, width, finite: false }
    }

    /// Weights of the file.
    pub fn parameters(&self) -> u64 {
        match self {
            Self::Matrix(shape) => shape.parameters(),
            Self::Rows { rows, width, .. } => u64::from(*rows) * u64::from(*width),
        }
    }

    /// Bytes on the GPU.
    pub fn bytes(&self, precision: Precision) -> u64 {
        match self {
            Self::Matrix(shape) => shape.bytes(precision),
            Self::Rows { rows, width, .. } => 4 * u64::from(*rows) * u64::from(padded(*width)),
        }
    }

    fn row_width(&self) -> u32 {
        match self {
            Self::Matrix(shape) => shape.inputs,
            Self::Rows { width, .. } => *width,
        }
    }
}

/// A tensor that a model wants, by its name in the file.
pub(crate) struct Request {
    pub name: String,
    pub form: Form,
}

/// Bytes done and bytes in all, as loading goes on.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// The tensors on the GPU, by name.
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
/// Host memory stays at a few chunks whatever the tensors' sizes.
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
    let mut store = Store { matrices: HashMap::new(), rows: HashMap::new() };
    let mut forms = HashMap::new();
    let mut wanted: Vec<&TensorInfo> = Vec::new();
    for Request { name, form } in requests {
        let tensor = checkpoint
            .tensor(name)
            .ok_or_else(|| Error::bad_file("checkpoint", format!("tensor {name}"), "nothing", "a tensor"))?;
        wanted.push(tensor);
        forms.insert(name.as_str(), *form);
        match form {
            Form::Matrix(shape) => {
                store.matrices.insert(name.clone(), Matrix::new(gpu, name, *shape, precision)?);
            }
            Form::Rows { .. } => {
                store.rows.insert(name.clone(), Buffer::new(gpu, name, form.bytes(precision)));
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
        let name = chunk.tensor.name.as_str();
        let form = forms[name];
        match form {
            Form::Matrix(shape) => {
                let bytes = staging.convert(&chunk, precision, shape.inputs)?;
                store.matrices[name].write_rows(chunk.first_row, bytes);
            }
            Form::Rows { width, finite, .. } => {
                let bytes = staging.convert(&chunk, Precision::F32, width)?;
                if finite {
                    check_finite(name, chunk.file, bytemuck::cast_slice(bytes))?;
                }
                let row_bytes = 4 * u64::from(padded(form.row_width()));
                store.rows[name].write(chunk.first_row * row_bytes, bytes);
            }
        }
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

/// Reused memory for converting a chunk.
#[derive(Default)]
struct Staging {
    f32s: Vec<f32>,
    f16s: Vec<u16>,
    padded_f32s: Vec<f32>,
    padded_f16s: Vec<u16>,
}

impl Staging {
    /// The chunk's rows in `precision`, each padded to the GPU's row width.
    fn convert(&mut self, chunk: &Chunk<'_>, precision: Precision, width: u32) -> Result<&[u8]> {
        match precision {
            Precision::F32 => {
                chunk.to_f32(&mut self.f32s);
                Ok(bytemuck::cast_slice(pad(&self.f32s, width, &mut self.padded_f32s)))
            }
            Precision::F16 => {
                chunk.to_f16(&mut self.f16s)?;
                Ok(bytemuck::cast_slice(pad(&self.f16s, width, &mut self.padded_f16s)))
            }
        }
    }
}

/// `rows` themselves when they need no padding, else a padded copy in `scratch`.
fn pad<'a, T: Copy + Default>(rows: &'a [T], width: u32, scratch: &'a mut Vec<T>) -> &'a [T] {
    let (width, row) = (width as usize, padded(width) as usize);
    if width == row {
        return rows;
    }
    scratch.clear();
    for values in rows.chunks(width) {
        scratch.extend_from_slice(values);
        scratch.resize(scratch.len().next_multiple_of(row), T::default());
    }
    scratch
}
