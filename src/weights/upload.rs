//! From a checkpoint's bytes to the GPU: plan, allocate, stream.

use std::{collections::HashMap, ops::ControlFlow};

use super::{
    Checkpoint, Fingerprint, Form, Request, Source, TensorInfo, Tensors,
    filling::{Place, Target, absent},
};
use crate::{
    Error, Result,
    gpu::{Buffer, Gpu, breathe},
    ops::{Matrix, Precision, sinusoidal_positions},
};

/// Told the bytes done and the bytes in all, as loading goes on; may end it.
#[cfg(not(target_arch = "wasm32"))]
pub type Watch<'a> = &'a mut (dyn FnMut(u64, u64) -> ControlFlow<()> + Send);
/// As natively, on the one thread of a browser.
#[cfg(target_arch = "wasm32")]
pub type Watch<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Upload bytes that may wait in the queue before loading pauses for the device to take them.
const IN_FLIGHT: u64 = 16 << 20;

/// Memory on the GPU, all zeros, for what a walk over the layers asks for, and what will fill it.
pub(crate) struct Upload<'a> {
    gpu: &'a Gpu,
    checkpoint: &'a Checkpoint,
    precision: Precision,
    wanted: Vec<(Request, Place)>,
}

impl Tensors for Upload<'_> {
    type Matrix = Matrix;
    type Rows = Buffer;

    fn matrix(&mut self, request: Request) -> Result<Matrix> {
        if let Some(Place::Matrix(same)) = self.shared(&request) {
            return Ok(same.clone());
        }
        let (shape, stored) = (request.shape()?, request.precision(self.precision));
        let matrix = Matrix::new(self.gpu, &request.key(), shape, stored)?;
        self.wanted.push((request, Place::Matrix(matrix.clone())));
        Ok(matrix)
    }

    fn pair(&mut self, [first, second]: [Request; 2]) -> Result<[Matrix; 2]> {
        let shapes = [first.shape()?, second.shape()?];
        let stored = first.precision(self.precision);
        if second.precision(self.precision) != stored || shapes[0].inputs != shapes[1].inputs {
            return Ok([self.matrix(first)?, self.matrix(second)?]);
        }
        let pair = Matrix::pair(self.gpu, [&first.key(), &second.key()], shapes, stored)?;
        let places = pair.clone().map(Place::Matrix);
        self.wanted.extend([first, second].into_iter().zip(places));
        Ok(pair)
    }

    fn rows(&mut self, request: Request) -> Result<Buffer> {
        if let Some(Place::Rows(same)) = self.shared(&request) {
            return Ok(same.clone());
        }
        let buffer = Buffer::new(self.gpu, &request.key(), request.form.bytes(self.precision));
        self.wanted.push((request, Place::Rows(buffer.clone())));
        Ok(buffer)
    }

    fn sinusoids(&mut self, positions: u32, width: u32, first: u32) -> Buffer {
        sinusoidal_positions(self.gpu, positions, width, first)
    }
}

impl<'a> Upload<'a> {
    /// Nothing yet.
    pub fn new(gpu: &'a Gpu, checkpoint: &'a Checkpoint, precision: Precision) -> Self {
        Self { gpu, checkpoint, precision, wanted: Vec::new() }
    }

    /// What another layer has asked for that shares its weights.
    fn shared(&self, request: &Request) -> Option<&Place> {
        self.wanted.iter().find(|(other, _)| other == request).map(|(_, place)| place)
    }

    /// Streams the tensors to the GPU, and puts what tells their values from others' into `fingerprint`.
    ///
    /// Host memory stays at a few chunks whatever the tensors' sizes (one expert's matrix, where the file holds it
    /// input-major).
    ///
    /// # Errors
    /// What the checkpoint's reader finds, values that the precision does not hold, [`Error::Cancelled`] where `watch` ends it,
    /// and what the device reports.
    pub async fn stream(self, source: &Source, watch: Watch<'_>, fingerprint: &mut u64) -> Result<()> {
        let Self { gpu, checkpoint, wanted: all, .. } = self;
        let mut targets: HashMap<&str, Vec<Target<'_>>> = HashMap::new();
        let mut wanted: Vec<&TensorInfo> = Vec::new();
        for (request, place) in &all {
            if let (Form::Matrix(..), Some(tensor)) = (request.form, checkpoint.packed(&request.key())) {
                // Quantised by the file: rows in the matrix's precision.
                targets.entry(tensor.name.as_str()).or_default().push(Target::packed(request, place));
                wanted.push(tensor);
                continue;
            }
            let mut before = 0;
            for piece in &request.pieces {
                let tensor = checkpoint.tensor(&piece.name).ok_or_else(|| absent(piece))?;
                let target = Target::new((request, place), piece, tensor, before);
                before += target.len();
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
        let mut watch = |done| match watch(done, total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        };
        watch(done)?;
        while let Some(chunk) = stream.next().await? {
            *fingerprint ^= Fingerprint::of_tensor(&chunk);
            let targets = targets.get_mut(chunk.tensor.name.as_str());
            for target in targets.into_iter().flatten() {
                target.fill(&chunk)?;
                if chunk.is_last() {
                    target.check_loss(&chunk)?;
                }
            }
            done += chunk.bytes.len() as u64;
            waiting += chunk.bytes.len() as u64;
            watch(done)?;
            breathe().await;
            if waiting >= IN_FLIGHT {
                gpu.flush().await?;
                waiting = 0;
            }
        }
        gpu.flush().await?;
        for (_, place) in &all {
            if let Place::Matrix(matrix) = place {
                matrix.finish();
            }
        }
        Ok(())
    }
}
