//! Buffers that the host can map, kept from one readback to the next.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU8, Ordering},
};

use super::{Gpu, lock::lock};

/// Buffers kept at most: more than there are steps in flight.
const KEPT: usize = 8;
/// Larger ones, such as for the logits of a long text, are made for one readback.
const KEPT_BYTES: u64 = 1 << 20;
const SMALLEST: u64 = 256;

/// The buffers that no readback uses, oldest first.
#[derive(Clone, Default)]
pub(super) struct StagingPool(Arc<Mutex<Vec<Staging>>>);

/// A buffer to copy to and to map. Freed when dropped.
pub(super) struct Staging {
    raw: wgpu::Buffer,
    bytes: u64,
    state: Arc<AtomicU8>,
    gpu: Gpu,
}

const UNMAPPED: u8 = 0;
/// The device may still answer: until then nothing else may use the buffer. One that is unmapped and mapped again
/// meanwhile would be given out as soon as the earlier submission is done.
const MAPPING: u8 = 1;
const MAPPED: u8 = 2;
const FAILED: u8 = 3;

impl StagingPool {
    /// A buffer of at least `bytes` bytes, from the pool where it has one.
    pub fn take(&self, gpu: &Gpu, bytes: u64) -> Staging {
        let bytes = bytes.max(SMALLEST).next_power_of_two();
        let mut idle = lock(&self.0);
        idle.retain_mut(|staging| staging.settle() != FAILED);
        let found = idle.iter().position(|staging| staging.bytes == bytes && staging.state() == UNMAPPED);
        found.map(|index| idle.remove(index)).unwrap_or_else(|| Staging::new(gpu, bytes))
    }

    /// Keeps a buffer for later, mapped or not.
    pub fn give_back(&self, mut staging: Staging) {
        if staging.bytes > KEPT_BYTES || staging.settle() == FAILED {
            return;
        }
        let mut idle = lock(&self.0);
        if idle.len() == KEPT {
            idle.remove(0);
        }
        idle.push(staging);
    }
}

impl Staging {
    fn new(gpu: &Gpu, bytes: u64) -> Self {
        let descriptor = wgpu::BufferDescriptor {
            label: Some("headwise.readback"),
            size: bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let raw = gpu.call(|device, _| device.create_buffer(&descriptor));
        gpu.account(bytes);
        Self { raw, bytes, state: Arc::new(AtomicU8::new(UNMAPPED)), gpu: gpu.clone() }
    }

    pub fn raw(&self) -> &wgpu::Buffer {
        &self.raw
    }

    /// Maps the first `bytes` bytes and tells `then` how it went.
    pub fn map(
        &self,
        bytes: u64,
        then: impl FnOnce(std::result::Result<(), wgpu::BufferAsyncError>) + Send + 'static,
    ) {
        self.state.store(MAPPING, Ordering::Release);
        let state = self.state.clone();
        let answered = move |result: std::result::Result<(), wgpu::BufferAsyncError>| {
            state.store(if result.is_ok() { MAPPED } else { FAILED }, Ordering::Release);
            then(result);
        };
        self.gpu.call(|_, _| self.raw.map_async(wgpu::MapMode::Read, ..bytes, answered));
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    /// Unmaps a buffer that is mapped; its state.
    fn settle(&mut self) -> u8 {
        if self.state() == MAPPED {
            self.gpu.call(|_, _| self.raw.unmap());
            self.state.store(UNMAPPED, Ordering::Release);
        }
        self.state()
    }
}

impl Drop for Staging {
    /// Frees at once; a copy that was submitted still finishes.
    fn drop(&mut self) {
        self.raw.destroy();
        self.gpu.release(self.bytes);
    }
}
