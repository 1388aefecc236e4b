//! What only this crate's own tests count and set.

use super::{Gpu, GpuOptions};

/// Counts of a device.
pub trait ForTests {
    /// How many buffers headwise has made on it.
    fn created_buffers(&self) -> u64;
    /// How many pipelines were asked for.
    fn compiled_pipelines(&self) -> usize;
}

impl ForTests for Gpu {
    fn created_buffers(&self) -> u64 {
        self.buffers_made()
    }

    fn compiled_pipelines(&self) -> usize {
        self.pipelines().len()
    }
}

/// Settings of a device.
pub trait OptionsForTests {
    /// Multiply-accumulates that one submission may hold, in place of what the device does in a fifth of a second.
    fn submission_macs(self, macs: u64) -> Self;
    /// Bytes that one binding may hold, fewer than the limits say.
    fn most_binding(self, bytes: u64) -> Self;
}

impl OptionsForTests for GpuOptions {
    fn submission_macs(mut self, macs: u64) -> Self {
        self.submission_macs = Some(macs);
        self
    }

    fn most_binding(mut self, bytes: u64) -> Self {
        self.most_binding = Some(bytes);
        self
    }
}
