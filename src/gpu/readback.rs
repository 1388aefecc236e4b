//! Getting results back to the host.

use futures_intrusive::channel::shared::{OneshotReceiver, oneshot_channel};

use tracing::Instrument as _;

use super::{
    Buffer, Gpu, Recorder,
    staging::{Staging, StagingPool},
    waiting::{Submission, done},
};
#[cfg(doc)]
use crate::Error;
use crate::Result;

/// Bytes on their way back from the GPU.
pub struct Pending {
    gpu: Gpu,
    /// Taken out by the drop only, which gives it back to the pool.
    staging: Option<Staging>,
    pool: StagingPool,
    mapped: OneshotReceiver<std::result::Result<(), wgpu::BufferAsyncError>>,
    submission: Submission,
    bytes: u64,
}

impl Recorder {
    /// Submits what was recorded and starts reading `ranges` of (buffer, offset, bytes) behind it. The
    /// result is their concatenation. Offsets and sizes are multiples of 4.
    pub fn submit_and_read(&mut self, ranges: &[(&Buffer, u64, u64)]) -> Pending {
        let bytes: u64 = ranges.iter().map(|(_, _, bytes)| bytes).sum();
        let (gpu, pool) = (self.gpu().clone(), self.staging().clone());
        let staging = pool.take(&gpu, bytes);
        let submission = self.submit_with(|encoder| {
            let mut at = 0;
            for (buffer, offset, bytes) in ranges.iter().filter(|(_, _, bytes)| *bytes > 0) {
                let from = buffer.first_byte() + *offset;
                encoder.copy_buffer_to_buffer(buffer.raw(), from, staging.raw(), at, *bytes);
                at += bytes;
            }
        });
        let (sender, mapped) = oneshot_channel();
        staging.map(mapped_bytes(bytes), move |result| {
            // The receiver is gone when the reader was dropped: then nobody wants the answer.
            let _ = sender.send(result);
        });
        Pending { gpu, staging: Some(staging), pool, mapped, submission, bytes }
    }
}

/// Nothing cannot be mapped.
fn mapped_bytes(bytes: u64) -> u64 {
    bytes.max(4)
}

impl Pending {
    /// Waits for the bytes.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] or [`Error::Gpu`] when the work before the read failed.
    pub async fn wait(self, during: &str) -> Result<Vec<u8>> {
        let span = tracing::debug_span!("readback", bytes = self.bytes);
        self.arrive(during).instrument(span).await
    }

    async fn arrive(self, during: &str) -> Result<Vec<u8>> {
        done(&self.gpu, self.submission.clone(), during).await?;
        let refused = |why: &dyn std::fmt::Display| self.gpu.refused(during, &why);
        let mapped = self.mapped.receive();
        #[cfg(target_arch = "wasm32")]
        let mapped = super::web_nudge::nudging(self.gpu.queue(), mapped);
        let result = mapped.await;
        self.gpu.check(during)?;
        let abandoned = || refused(&"the readback was abandoned");
        result.ok_or_else(abandoned)?.map_err(|error| refused(&error))?;
        let staging = self.staging.as_ref().ok_or_else(abandoned)?;
        let view = staging.raw().get_mapped_range(..mapped_bytes(self.bytes));
        let view = view.map_err(|error| refused(&error))?;
        Ok(view[..self.bytes as usize].to_vec())
    }
}

impl Drop for Pending {
    /// Read or not, the buffer serves again.
    fn drop(&mut self) {
        if let Some(staging) = self.staging.take() {
            self.pool.give_back(staging);
        }
    }
}
