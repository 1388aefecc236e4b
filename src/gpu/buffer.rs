//! Storage buffers that know their size and are freed when dropped.

use std::sync::Arc;

use super::Gpu;

/// Where parts of a buffer may start: WebGPU's default `minStorageBufferOffsetAlignment`.
pub const PART_ALIGNMENT: u64 = 256;

/// A GPU storage buffer, or a part of one. Clones and parts share the memory, which is freed with the last of them.
#[derive(Clone)]
pub struct Buffer {
    inner: Arc<Inner>,
    first: u64,
    bytes: u64,
}

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
        let raw = gpu.call(|device, _| device.create_buffer(&descriptor));
        let id = gpu.account(bytes);
        Self { inner: Arc::new(Inner { raw, id, bytes, gpu: gpu.clone() }), first: 0, bytes }
    }

    /// Writes `data` at byte `offset` before whatever is submitted next. Both are multiples of 4.
    pub fn write<T: bytemuck::NoUninit>(&self, offset: u64, data: &[T]) {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if !bytes.is_empty() {
            let Inner { gpu, raw, .. } = &*self.inner;
            gpu.call(|_, queue| queue.write_buffer(raw, self.first + offset, bytes));
        }
    }

    /// `bytes` bytes from byte `first` on. `first` is a multiple of [`PART_ALIGNMENT`], `bytes` of 16.
    pub fn part(&self, first: u64, bytes: u64) -> Self {
        Self { inner: self.inner.clone(), first: self.first + first, bytes }
    }

    /// All of the memory that this is a part of.
    pub fn whole(&self) -> Self {
        Self { inner: self.inner.clone(), first: 0, bytes: self.inner.bytes }
    }

    /// Where this part starts in the whole.
    pub fn first_byte(&self) -> u64 {
        self.first
    }

    /// Whether both are parts of one buffer.
    pub fn shares(&self, other: &Self) -> bool {
        self.inner.id == other.inner.id
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A number no other buffer of this device has; parts of one buffer have the same.
    pub(super) fn id(&self) -> u64 {
        self.inner.id
    }

    /// What tells this part from every other.
    pub(super) fn key(&self) -> (u64, u64, u64) {
        (self.inner.id, self.first, self.bytes)
    }

    pub(super) fn raw(&self) -> &wgpu::Buffer {
        &self.inner.raw
    }

    pub(super) fn binding(&self) -> wgpu::BufferBinding<'_> {
        let size = std::num::NonZeroU64::new(self.bytes);
        wgpu::BufferBinding { buffer: &self.inner.raw, offset: self.first, size }
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
