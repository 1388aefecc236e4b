//! Getting results back to the host.

use futures_intrusive::channel::shared::{OneshotReceiver, oneshot_channel};

use super::{Buffer, Gpu, Recorder};
use crate::{Error, Result};

/// Bytes on their way back from the GPU.
pub struct Pending {
    gpu: Gpu,
    staging: wgpu::Buffer,
    mapped: OneshotReceiver<std::result::Result<(), wgpu::BufferAsyncError>>,
    submission: wgpu::SubmissionIndex,
    bytes: usize,
}

impl Recorder {
    /// Submits what was recorded and starts reading `ranges` of (buffer, offset, bytes) behind it. The
    /// result is their concatenation. Offsets and sizes are multiples of 4.
    pub fn submit_and_read(&mut self, ranges: &[(&Buffer, u64, u64)]) -> Pending {
        let bytes: u64 = ranges.iter().map(|(_, _, bytes)| bytes).sum();
        let gpu = self.gpu().clone();
        let staging = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("headwise.readback"),
            // Nothing cannot be mapped.
            size: bytes.max(4),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let submission = self.submit_with(|encoder| {
            let mut at = 0;
            for (buffer, offset, bytes) in ranges.iter().filter(|(_, _, bytes)| *bytes > 0) {
                let from = buffer.first_byte() + *offset;
                encoder.copy_buffer_to_buffer(buffer.raw(), from, &staging, at, *bytes);
                at += bytes;
            }
        });
        let (sender, mapped) = oneshot_channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone when the reader was dropped: then nobody wants the answer.
            let _ = sender.send(result);
        });
        Pending { gpu, staging, mapped, submission, bytes: bytes as usize }
    }
}

impl Pending {
    /// Waits for the bytes.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] or [`Error::Gpu`] when the work before the read failed.
    pub async fn wait(self, during: &str) -> Result<Vec<u8>> {
        // Natively somebody has to drive the device; in a browser this does nothing.
        let poll = wgpu::PollType::Wait { submission_index: Some(self.submission), timeout: None };
        let polled = self.gpu.device().poll(poll);
        self.gpu.check(during)?;
        let failed = |message: String| Error::Gpu { during: during.to_owned(), message };
        polled.map_err(|error| failed(error.to_string()))?;
        let result = self.mapped.receive().await;
        self.gpu.check(during)?;
        match result {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(failed(error.to_string())),
            None => return Err(failed("the readback was abandoned".to_owned())),
        }
        let view = self.staging.get_mapped_range(..).map_err(|error| failed(error.to_string()))?;
        let bytes = view[..self.bytes].to_vec();
        drop(view);
        self.staging.destroy();
        Ok(bytes)
    }
}
