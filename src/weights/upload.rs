//! From a checkpoint's bytes to the GPU: plan, allocate, stream.

use std::{collections::HashMap, sync::Arc};

use super::{
    Checkpoint, Chunk, Fingerprint, Form, Loss, Piece, Request, Source, TensorInfo, check_scales,
    pack_counted,
    place::{Layout, Placer},
    quote,
};
use crate::{
    Error, Result,
    gpu::{Buffer, Gpu},
    ops::{Matrix, MatrixShape, Precision, head_stride, padded},
};

/// Bytes done and bytes in all, as loading goes on.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// The tensors on the GPU, by the first of their pieces. A clone is the same memory.
#[derive(Clone)]
pub(crate) struct Store {
    matrices: HashMap<String, Matrix>,
    rows: HashMap<String, Buffer>,
}

impl Store {
    /// Takes out a matrix that was requested.
    pub fn matrix(&mut self, pieces: &[Piece]) -> Result<Matrix> {
        let key = key(pieces);
        self.matrices.remove(&key).ok_or_else(|| not_requested(&key))
    }

    /// A matrix that two layers share.
    pub fn shared_matrix(&mut self, name: &str) -> Result<Arc<Matrix>> {
        self.matrix(&[name.to_owned().into()]).map(Arc::new)
    }

    /// Takes out rows that were requested.
    pub fn rows(&mut self, pieces: &[Piece]) -> Result<Buffer> {
        let key = key(pieces);
        self.rows.remove(&key).ok_or_else(|| not_requested(&key))
    }

    /// Takes out rows, where a model has them.
    pub fn optional_rows(&mut self, pieces: &[Piece]) -> Result<Option<Buffer>> {
        if pieces.is_empty() { Ok(None) } else { self.rows(pieces).map(Some) }
    }
}

fn key(pieces: &[Piece]) -> String {
    pieces.first().map(Piece::key).unwrap_or_default()
}

/// A family asked for a tensor at build time that it did not list: an error rather than a panic.
fn not_requested(name: &str) -> Error {
    Error::bad_file("model", format!("tensor {name}"), "not requested", "a tensor of the family's list")
}

/// Upload bytes that may wait in the queue before loading pauses for the device to take them.
const IN_FLIGHT: u64 = 16 << 20;

/// Memory on the GPU for what was requested, and what will fill it.
pub(crate) struct Upload<'a> {
    gpu: &'a Gpu,
    checkpoint: &'a Checkpoint,
    requests: &'a [Request],
    store: Store,
}

impl<'a> Upload<'a> {
    /// Allocates memory, all zeros, for `requests`.
    ///
    /// # Errors
    /// When `precision` does not hold a matrix, or it does not fit.
    pub fn new(
        gpu: &'a Gpu,
        checkpoint: &'a Checkpoint,
        requests: &'a [Request],
        precision: Precision,
    ) -> Result<Self> {
        let store = allocate(gpu, requests, precision)?;
        gpu.check("allocating the model")?;
        Ok(Self { gpu, checkpoint, requests, store })
    }

    /// The memory, to build layers of it before it is filled.
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// Streams the tensors to the GPU, and puts what tells their values from others' into `fingerprint`.
    ///
    /// Host memory stays at a few chunks whatever the tensors' sizes (one expert's matrix, where the file holds it
    /// input-major).
    ///
    /// # Errors
    /// What the checkpoint's reader finds, values that the precision does not hold, and what the device reports.
    pub async fn stream(self, source: &Source, progress: Progress<'_>, fingerprint: &mut u64) -> Result<()> {
        let Self { gpu, checkpoint, requests, store } = self;
        let mut targets: HashMap<&str, Vec<Target<'_>>> = HashMap::new();
        let mut wanted: Vec<&TensorInfo> = Vec::new();
        for request in requests {
            if let (Form::Matrix(..), Some(tensor)) = (request.form, checkpoint.packed(&request.key())) {
                // Quantised by the file: rows in the matrix's precision.
                targets.entry(tensor.name.as_str()).or_default().push(Target::packed(request));
                wanted.push(tensor);
                continue;
            }
            let mut before = 0;
            for piece in &request.pieces {
                let tensor = checkpoint.tensor(&piece.name).ok_or_else(|| {
                    Error::bad_file("checkpoint", format!("tensor {}", piece.name), "nothing", "a tensor")
                })?;
                let target = Target::new(request, piece, tensor, before);
                before += target.window.end - target.window.start;
                let others = targets.entry(piece.name.as_str()).or_default();
                if others.is_empty() {
                    wanted.push(tensor);
                }
                others.push(target);
            }
        }
        let total = wanted.iter().map(|tensor| tensor.bytes).sum();
        let (mut done, mut waiting) = (0, 0);
        let mut stream = checkpoint.stream(source, wanted);
        progress(done, total);
        while let Some(chunk) = stream.next().await? {
            *fingerprint ^= Fingerprint::of_tensor(&chunk);
            let targets = targets.get_mut(chunk.tensor.name.as_str());
            for target in targets.into_iter().flatten() {
                target.place(&store, &chunk)?;
                if chunk.is_last() {
                    target.check_loss(&store, &chunk)?;
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
        store.matrices.values().for_each(Matrix::finish);
        Ok(())
    }
}

/// Quantises one matrix of a checkpoint, whole: its rows one after the other, each of
/// [`Precision::row_bytes`].
///
/// # Errors
/// What the checkpoint's reader finds, and values that cannot be quantised.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) async fn pack_matrix(
    source: &Source,
    checkpoint: &Checkpoint,
    request: &Request,
    (shape, layout): (&MatrixShape, Layout),
    precision: Precision,
) -> Result<Vec<u8>> {
    let row_bytes = precision.row_bytes(shape.inputs) as usize;
    // Rows that pad heads stay zero, as they do on the GPU.
    let mut all = vec![0; shape.rows() as usize * row_bytes];
    let mut packed = Vec::new();
    let mut before = 0;
    for piece in &request.pieces {
        let tensor = checkpoint.tensor(&piece.name).ok_or_else(|| not_requested(&piece.name))?;
        let window = Window::new(piece, tensor, before);
        before += window.end - window.start;
        let (mut placer, mut wide, mut loss) = (Placer::new(layout), Vec::new(), Loss::default());
        let mut stream = checkpoint.stream(source, vec![tensor]);
        while let Some(chunk) = stream.next().await? {
            let Some((chunk, first)) = window.of(&chunk) else { continue };
            chunk.to_f32(&mut wide);
            let row = first / chunk.width().max(1) as u64;
            placer.place(shape, row, &wide, &mut |row, values| {
                packed.clear();
                loss.add(pack(precision, shape, &chunk, values, &mut packed)?);
                let at = row as usize * row_bytes;
                if let Some(rows) = all.get_mut(at..at + packed.len()) {
                    rows.copy_from_slice(&packed);
                }
                Ok(())
            })?;
        }
        loss.check(checkpoint.path(tensor), &tensor.name, precision)?;
    }
    Ok(all)
}

/// Quantises rows that come from `chunk`, whose tensor an error names.
fn pack(
    precision: Precision,
    shape: &MatrixShape,
    chunk: &Chunk<'_>,
    values: &[f32],
    packed: &mut Vec<u8>,
) -> Result<Loss> {
    pack_counted(precision, padded(shape.inputs) as usize, values, packed).map_err(|value| {
        let expected = format!("finite numbers that {} reaches with scales in f16", precision.name());
        Error::bad_file(chunk.file, format!("tensor {}", quote(&chunk.tensor.name)), value, expected)
    })
}

/// Room for everything that was requested.
fn allocate(gpu: &Gpu, requests: &[Request], precision: Precision) -> Result<Store> {
    let mut store = Store { matrices: HashMap::new(), rows: HashMap::new() };
    let behind: HashMap<&str, &Request> =
        requests.iter().filter_map(|request| Some((request.behind.as_deref()?, request))).collect();
    for request in requests {
        let (key, stored) = (request.key(), request.precision(precision));
        let Form::Matrix(shape, _) = request.form else {
            let buffer = Buffer::new(gpu, &key, request.form.bytes(precision));
            store.rows.insert(key, buffer);
            continue;
        };
        if store.matrices.contains_key(&key) {
            // It lies behind another one.
            continue;
        }
        match behind.get(key.as_str()).map(|second| (second.key(), second.form, second.precision(precision)))
        {
            Some((second, Form::Matrix(other, _), same))
                if same == stored && other.inputs == shape.inputs =>
            {
                let [one, two] = Matrix::pair(gpu, [&key, &second], [shape, other], stored)?;
                store.matrices.insert(key, one);
                store.matrices.insert(second, two);
            }
            _ => {
                let matrix = Matrix::new(gpu, &key, shape, stored)?;
                store.matrices.insert(key, matrix);
            }
        }
    }
    Ok(store)
}

/// Where one tensor, or a part of it, goes.
struct Target<'a> {
    request: &'a Request,
    window: Window,
    staging: Staging,
    loss: Loss,
}

/// A part of a tensor.
#[derive(Clone, Copy, Default)]
struct Window {
    /// The part's first value in the tensor and the one after its last.
    start: u64,
    end: u64,
    /// Values of the pieces stacked above it.
    before: u64,
}

impl Window {
    fn new(piece: &Piece, tensor: &TensorInfo, before: u64) -> Self {
        let row = tensor.elements() / tensor.shape.first().map_or(1, |&rows| rows.max(1) as u64);
        let (start, end) = match piece.rows {
            None => (0, tensor.elements()),
            Some((first, count)) => (row * first as u64, row * (first + count) as u64),
        };
        Self { start, end, before }
    }

    /// What of a chunk belongs to the part, and its first value's number in all stacked pieces.
    fn of<'a>(&self, chunk: &Chunk<'a>) -> Option<(Chunk<'a>, u64)> {
        let at = chunk.first_row * chunk.width() as u64;
        let size = chunk.dtype.size() as u64;
        let (from, to) = (self.start.max(at), self.end.min(at + chunk.bytes.len() as u64 / size));
        if from >= to {
            return None;
        }
        let bytes = &chunk.bytes[((from - at) * size) as usize..((to - at) * size) as usize];
        Some((Chunk { bytes, ..*chunk }, self.before + from - self.start))
    }
}

/// What has come of a tensor and cannot be written yet.
enum Staging {
    Nothing,
    /// Rows come in the matrix's precision.
    Packed,
    Matrix(Box<(Placer<f32>, Placer<u16>)>),
    /// `[rows, width]`
    Transposed(Vec<f32>),
}

impl<'a> Target<'a> {
    fn new(request: &'a Request, piece: &Piece, tensor: &TensorInfo, before: u64) -> Self {
        Self {
            request,
            window: Window::new(piece, tensor, before),
            staging: Staging::Nothing,
            loss: Loss::default(),
        }
    }

    /// A matrix that the file has quantised.
    fn packed(request: &'a Request) -> Self {
        Self { request, window: Window::default(), staging: Staging::Packed, loss: Loss::default() }
    }

    /// Places the values of a chunk that belong here.
    fn place(&mut self, store: &Store, chunk: &Chunk<'_>) -> Result<()> {
        let key = self.request.key();
        if let Staging::Packed = self.staging {
            let matrix = &store.matrices[&key];
            check_scales(matrix.precision, matrix.shape.inputs, chunk)?;
            matrix.write_rows(chunk.first_row, chunk.bytes);
            return Ok(());
        }
        let Some((chunk, first)) = self.window.of(chunk) else { return Ok(()) };
        if let Form::Matrix(_, layout) = self.request.form {
            return self.place_matrix(&store.matrices[&key], &chunk, layout, first);
        }
        let mut values = Vec::new();
        chunk.to_f32(&mut values);
        self.place_rows(&store.rows[&key], first, &values);
        Ok(())
    }

    /// Refuses a tensor, all of whose values have been placed, if its precision lost too much of them.
    fn check_loss(&self, store: &Store, chunk: &Chunk<'_>) -> Result<()> {
        match store.matrices.get(&self.request.key()) {
            Some(matrix) => self.loss.check(chunk.file, &chunk.tensor.name, matrix.precision),
            None => Ok(()),
        }
    }

    fn place_matrix(&mut self, matrix: &Matrix, chunk: &Chunk<'_>, layout: Layout, first: u64) -> Result<()> {
        if matches!(self.staging, Staging::Nothing) {
            self.staging = Staging::Matrix(Box::new((Placer::new(layout), Placer::new(layout))));
        }
        let Staging::Matrix(placers) = &mut self.staging else { return Ok(()) };
        let row = first / chunk.width().max(1) as u64;
        let (shape, precision) = (&matrix.shape, matrix.precision);
        let loss = &mut self.loss;
        let mut wide = Vec::new();
        if precision != Precision::F16 {
            chunk.to_f32(&mut wide);
        }
        match precision {
            Precision::F32 => placers.0.place(shape, row, &wide, &mut |row, values| {
                matrix.write_rows(row, bytemuck::cast_slice(values));
                Ok(())
            }),
            Precision::F16 => {
                let mut narrow = Vec::new();
                chunk.to_f16(&mut narrow, loss)?;
                placers.1.place(shape, row, &narrow, &mut |row, values| {
                    matrix.write_rows(row, bytemuck::cast_slice(values));
                    Ok(())
                })
            }
            Precision::Q8 | Precision::Q4 => {
                let mut packed = Vec::new();
                placers.0.place(shape, row, &wide, &mut |row, values| {
                    packed.clear();
                    loss.add(pack(precision, shape, chunk, values, &mut packed)?);
                    matrix.write_rows(row, &packed);
                    Ok(())
                })
            }
        }
    }

    /// Places values of which the first is value `first` of all stacked pieces.
    fn place_rows(&mut self, buffer: &Buffer, first: u64, values: &[f32]) {
        // Runs of values that lie together, and where each lies.
        let write = |run: u32, place: &dyn Fn(u64) -> u64| {
            for (index, values) in (first / u64::from(run)..).zip(values.chunks(run as usize)) {
                buffer.write(4 * place(index), values);
            }
        };
        match self.request.form {
            Form::Matrix(..) => {}
            Form::Rows { width, transposed: false, .. } | Form::Vectors { width, .. } => {
                write(width, &|row| row * u64::from(padded(width)));
            }
            Form::Heads { head_dim, .. } => {
                write(head_dim, &|head| head * u64::from(head_stride(head_dim)));
            }
            Form::ExpertHeads { heads, head_dim, .. } => {
                let (heads, stride) = (u64::from(heads), u64::from(head_stride(head_dim)));
                let row = (heads * stride).next_multiple_of(8);
                write(head_dim, &|head| head / heads * row + head % heads * stride);
            }
            Form::Rows { rows, width, transposed: true } => {
                self.transpose(buffer, first, values, rows, width)
            }
        }
    }

    fn transpose(&mut self, buffer: &Buffer, first: u64, values: &[f32], rows: u32, width: u32) {
        let row = padded(width) as usize;
        if matches!(self.staging, Staging::Nothing) {
            self.staging = Staging::Transposed(vec![0.0; rows as usize * row]);
        }
        let Staging::Transposed(staged) = &mut self.staging else { return };
        for (index, value) in (first as usize..).zip(values) {
            staged[index % rows as usize * row + index / rows as usize] = *value;
        }
        if first as usize + values.len() == rows as usize * width as usize {
            buffer.write(0, staged);
            self.staging = Staging::Nothing;
        }
    }
}
