//! A tensor's values on their way into the memory that was asked for, or quantised into a file.

#[cfg(not(target_arch = "wasm32"))]
use super::{Checkpoint, Source};
use super::{
    Chunk, Form, Loss, Piece, Request, TensorInfo, check_scales, pack_counted,
    place::{Layout, Placer},
    quote,
};
use crate::{
    Error, Result,
    gpu::Buffer,
    ops::{Matrix, MatrixShape, Precision, head_stride, padded},
};

/// Where a request's values go, the same memory that its layer has.
pub(super) enum Place {
    Matrix(Matrix),
    Rows(Buffer),
}

/// Where one tensor, or a part of it, goes.
pub(super) struct Target<'a> {
    request: &'a Request,
    place: &'a Place,
    window: Window,
    staging: Staging,
    loss: Loss,
}

/// A part of a tensor.
#[derive(Clone, Copy, Default)]
pub(super) struct Window {
    /// The part's first value in the tensor and the one after its last.
    start: u64,
    end: u64,
    /// Values of the pieces stacked above it.
    before: u64,
}

impl Window {
    pub fn new(piece: &Piece, tensor: &TensorInfo, before: u64) -> Self {
        let row = tensor.elements() / tensor.shape.first().map_or(1, |&rows| rows.max(1) as u64);
        let (start, end) = match piece.rows {
            None => (0, tensor.elements()),
            Some((first, count)) => (row * first as u64, row * (first + count) as u64),
        };
        Self { start, end, before }
    }

    /// Values of the part.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// What of a chunk belongs to the part, and its first value's number in all stacked pieces.
    pub fn of<'a>(&self, chunk: &Chunk<'a>) -> Option<(Chunk<'a>, u64)> {
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
    /// The values of `piece`, behind so many of the pieces above it.
    pub fn new(
        (request, place): (&'a Request, &'a Place),
        piece: &Piece,
        tensor: &TensorInfo,
        before: u64,
    ) -> Self {
        let window = Window::new(piece, tensor, before);
        Self { request, place, window, staging: Staging::Nothing, loss: Loss::default() }
    }

    /// A matrix that the file has quantised.
    pub fn packed(request: &'a Request, place: &'a Place) -> Self {
        let window = Window::default();
        Self { request, place, window, staging: Staging::Packed, loss: Loss::default() }
    }

    /// Values that go here.
    pub fn len(&self) -> u64 {
        self.window.len()
    }

    /// Places the values of a chunk that belong here.
    pub fn fill(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        if let (Staging::Packed, Place::Matrix(matrix)) = (&self.staging, self.place) {
            check_scales(matrix.precision, matrix.shape.inputs, chunk)?;
            matrix.write_rows(chunk.first_row, chunk.bytes);
            return Ok(());
        }
        let Some((chunk, first)) = self.window.of(chunk) else { return Ok(()) };
        match (self.place, self.request.form) {
            (Place::Matrix(matrix), Form::Matrix(_, layout)) => {
                self.place_matrix(matrix, &chunk, layout, first)
            }
            (Place::Matrix(_), _) => Ok(()),
            (Place::Rows(buffer), _) => {
                let mut values = Vec::new();
                chunk.to_f32(&mut values);
                self.place_rows(buffer, first, &values);
                Ok(())
            }
        }
    }

    /// Refuses a tensor, all of whose values have been placed, if its precision lost too much of them.
    pub fn check_loss(&self, chunk: &Chunk<'_>) -> Result<()> {
        match self.place {
            Place::Matrix(matrix) => self.loss.check(chunk.file, &chunk.tensor.name, matrix.precision),
            Place::Rows(_) => Ok(()),
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
        let tensor = checkpoint.tensor(&piece.name).ok_or_else(|| absent(piece))?;
        let window = Window::new(piece, tensor, before);
        before += window.len();
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
pub(super) fn pack(
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

/// A tensor that the checkpoint was never asked for: an error rather than a panic.
pub(super) fn absent(piece: &Piece) -> Error {
    Error::bad_file("checkpoint", format!("tensor {}", quote(&piece.name)), "nothing", "a tensor")
}
