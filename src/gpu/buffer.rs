//! Storage buffers that know their size and are freed when dropped.

use std::sync::Arc;

use super::Gpu;

/// A GPU storage buffer. Clones share it; the memory is freed with the last clone.
#[derive(Clone)]
pub struct Buffer(Arc<Inner>);

struct Inner {
    raw: wgpu::Buffer,
    id: u64,
    bytes: u64,
    gpu: Gpu,
}

impl Buffer {
    /// A zeroed storage buffer of at least `bytes` bytes (rounded up to 16, never empty).
    ///
    /// A refusal by the device shows up in [`Gpu::check`]; nothing panics.
    pub fn new(gpu: &Gpu, label: &str, bytes: u64) -> Self {
        let bytes = bytes.max(16).next_multiple_of(16);
        Self::with_usage(
            gpu,
            label,
            bytes,
            wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        )
    }

    /// A storage buffer holding `data`.
    pub fn with_data<T: bytemuck::NoUninit>(gpu: &Gpu, label: &str, data: &[T]) -> Self {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let buffer = Self::new(gpu, label, bytes.len() as u64);
        buffer.write(0, bytes);
        buffer
    }

    /// A uniform buffer for parameters.
    pub(super) fn uniform(gpu: &Gpu, label: &str, bytes: u64) -> Self {
        Self::with_usage(gpu, label, bytes, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST)
    }

    fn with_usage(gpu: &Gpu, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Self {
        let label = format!("headwise.{label}");
        let descriptor =
            wgpu::BufferDescriptor { label: Some(&label), size: bytes, usage, mapped_at_creation: false };
        let raw = gpu.device().create_buffer(&descriptor);
        let id = gpu.account(bytes);
        Self(Arc::new(Inner { raw, id, bytes, gpu: gpu.clone() }))
    }

    /// Writes `data` at byte `offset` before whatever is submitted next. Both are multiples of 4.
    pub fn write<T: bytemuck::NoUninit>(&self, offset: u64, data: &[T]) {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if !bytes.is_empty() {
            self.0.gpu.queue().write_buffer(&self.0.raw, offset, bytes);
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// A number no other buffer of this device has.
    pub(super) fn id(&self) -> u64 {
        self.0.id
    }

    pub(super) fn raw(&self) -> &wgpu::Buffer {
        &self.0.raw
    }
}

impl Drop for Inner {
    /// Frees at once instead of when the last bind group or, in a browser, the garbage collector lets go.
    /// Work already submitted still finishes.
    fn drop(&mut self) {
        self.raw.destroy();
        self.gpu.release(self.bytes);
    }
}
