//! Recording: ops push dispatches, one submission runs them all in one compute pass.

use std::{collections::HashMap, ops::ControlFlow, sync::Arc};

use encase::{ShaderType, UniformBuffer, internal::WriteInto};
use serde::Serialize;

use super::{
    Access, Buffer, Constants, Gpu, Kernel,
    pipelines::{Interface, Pipeline, compile},
    staging::StagingPool,
    under_way::Queue,
    waiting::Submission,
};
use crate::Result;

/// Exact counts of recorded work, for tests, `info` and benches.
///
/// Kernels for few rows let each row work on its own, and their bytes count for each row. Kernels for many rows share what
/// they read, and theirs count once for each dispatch: of a matrix, at most as many experts as there are assignments (an
/// upper bound, since only the GPU knows how many of them tokens chose); of a cache, for each sequence as many keys as the
/// longest of them has. For one decoded token both numbers are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Counters {
    /// Kernel launches.
    pub dispatches: u64,
    /// Multiply-accumulates the chosen experts and attended keys need.
    pub macs: u64,
    /// Bytes of weights that the work needs, as they are stored on the GPU, rows padded: the matrices of the chosen experts
    /// (both halves of a gated one), dense matrices, routers and the rows of the embedding table. Norms and biases, a
    /// vector each, are left out.
    pub weight_bytes: u64,
    /// Bytes that the work has to move at least: `weight_bytes`, keys and values read, keys and values written.
    /// Activations, which a GPU keeps in its caches, are left out.
    pub bytes: u64,
    /// Submissions to the queue, one compute pass each.
    pub passes: u64,
}

impl std::ops::Sub for Counters {
    type Output = Self;

    /// What was recorded since `before` was taken from the same recorder, or by more of the same work.
    fn sub(self, before: Self) -> Self {
        Self {
            dispatches: self.dispatches - before.dispatches,
            macs: self.macs - before.macs,
            weight_bytes: self.weight_bytes - before.weight_bytes,
            bytes: self.bytes - before.bytes,
            passes: self.passes - before.passes,
        }
    }
}

/// One kernel launch.
pub struct Dispatch<'a> {
    pub kernel: &'static Kernel,
    pub constants: Constants<'a>,
    /// Storage buffers in the order of the kernel's bindings.
    pub buffers: &'a [&'a Buffer],
    /// Workgroups in x, y and z; a zero anywhere records nothing.
    pub groups: [u32; 3],
    /// Multiply-accumulates, for the counters.
    pub macs: u64,
    /// Bytes of weights, for the counters.
    pub weight_bytes: u64,
    /// Bytes of keys and values read and written, for the counters.
    pub cache_bytes: u64,
}

/// Bytes to copy from one buffer to another. Offsets and lengths are multiples of 4.
pub struct BufferCopy<'a> {
    pub from: &'a Buffer,
    pub from_offset: u64,
    pub to: &'a Buffer,
    pub to_offset: u64,
    pub bytes: u64,
}

impl<'a> Dispatch<'a> {
    /// A launch without constants that counts no work.
    pub fn new(kernel: &'static Kernel, buffers: &'a [&'a Buffer], groups: [u32; 3]) -> Self {
        Self { kernel, constants: &[], buffers, groups, macs: 0, weight_bytes: 0, cache_bytes: 0 }
    }

    /// Whether no written buffer is bound a second time, which browsers refuse.
    fn writes_alone(&self) -> bool {
        let written =
            self.kernel.bindings.iter().zip(self.buffers).filter(|(access, _)| **access == Access::Write);
        written
            .into_iter()
            .all(|(_, buffer)| self.buffers.iter().filter(|other| other.id() == buffer.id()).count() == 1)
    }
}

/// Collects dispatches and submits them. Bind groups, parameter memory and the buffers of readbacks are reused from one submission
/// to the next, so keep one recorder per session.
pub struct Recorder {
    gpu: Gpu,
    dispatches: Vec<Recorded>,
    arenas: Vec<Arena>,
    used_slots: usize,
    /// Whether the parameters of what was recorded are on the GPU: the first part after some were recorded brings all of them.
    params_sent: bool,
    slot_bytes: usize,
    bind_groups: HashMap<BindGroupKey, wgpu::BindGroup>,
    /// Buffers of recorded dispatches: dropped before they are submitted, they would be destroyed under them.
    used: Vec<Buffer>,
    counters: Counters,
    spare: Buffer,
    staging: StagingPool,
    queue: Queue,
}

struct Recorded {
    pipeline: Arc<Pipeline>,
    bind_group: wgpu::BindGroup,
    offset: u32,
    groups: [u32; 3],
    macs: u64,
}

/// Uniform memory for the parameters of [`ARENA_SLOTS`] dispatches.
struct Arena {
    buffer: Buffer,
    bytes: Vec<u8>,
}

#[derive(PartialEq, Eq, Hash)]
struct BindGroupKey {
    interface: usize,
    arena: usize,
    buffers: Vec<(u64, u64, u64)>,
}

const ARENA_SLOTS: usize = 256;

impl Recorder {
    pub fn new(gpu: &Gpu) -> Self {
        Self {
            slot_bytes: gpu.device().limits().min_uniform_buffer_offset_alignment.max(256) as usize,
            gpu: gpu.clone(),
            dispatches: Vec::new(),
            arenas: Vec::new(),
            used_slots: 0,
            params_sent: false,
            bind_groups: HashMap::new(),
            used: Vec::new(),
            counters: Counters::default(),
            spare: Buffer::new(gpu, "spare", 0),
            staging: StagingPool::default(),
            queue: Queue::new(),
        }
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Where readbacks get their buffers.
    pub(super) fn staging(&self) -> &StagingPool {
        &self.staging
    }

    /// A small buffer to bind in place of an output that a kernel does not write.
    pub fn spare(&self) -> Buffer {
        self.spare.clone()
    }

    /// Counts of everything recorded so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Adds a kernel launch with its parameters.
    pub fn dispatch<P: ShaderType + WriteInto>(&mut self, params: &P, dispatch: Dispatch<'_>) {
        debug_assert_eq!(dispatch.buffers.len(), dispatch.kernel.bindings.len(), "{}", dispatch.kernel.name);
        debug_assert!(dispatch.writes_alone(), "{}: a written buffer is bound twice", dispatch.kernel.name);
        if dispatch.groups.contains(&0) {
            return;
        }
        let pipeline = self.gpu.pipelines().pipeline(self.gpu.calls(), dispatch.kernel, dispatch.constants);
        let (arena, offset) = self.push_params(params);
        let bind_group = self.bind_group(&pipeline.interface, arena, dispatch.buffers);
        self.used.extend(dispatch.buffers.iter().map(|&buffer| buffer.clone()));
        self.counters.dispatches += 1;
        self.counters.macs += dispatch.macs;
        self.counters.weight_bytes += dispatch.weight_bytes;
        self.counters.bytes += dispatch.weight_bytes + dispatch.cache_bytes;
        let Dispatch { groups, macs, .. } = dispatch;
        self.dispatches.push(Recorded { pipeline, bind_group, offset, groups, macs });
    }

    /// Submits what was recorded as one compute pass.
    pub fn submit(&mut self) {
        self.submit_with(|_| {});
    }

    /// Submits what was recorded in parts that each hold no more than the device does in a fifth of a second, by its counted
    /// multiply-accumulates and as fast as it was so far, and keeps the last part for the caller to submit. A part is as
    /// many dispatches as fit, or one; most work is one part.
    ///
    /// Before each part, the last included, it waits until at most one other is under way, and asks `watch`, which is told
    /// how many multiply-accumulates were submitted before, of how many. On [`ControlFlow::Break`] what is left is dropped.
    ///
    /// # Errors
    /// What the device reports.
    pub async fn submit_ahead(
        &mut self,
        mut watch: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let total = self.dispatches.iter().map(|recorded| recorded.macs).sum();
        let mut submitted = 0;
        loop {
            self.queue.make_room(&self.gpu).await?;
            if watch(submitted, total).is_break() {
                self.forget_recorded();
                return Ok(ControlFlow::Break(()));
            }
            let (dispatches, macs) = self.next_part();
            if dispatches == self.dispatches.len() {
                return Ok(ControlFlow::Continue(()));
            }
            self.submit_first(dispatches, |_| {});
            submitted += macs;
        }
    }

    /// How many of the recorded dispatches, and multiply-accumulates, one submission may hold.
    fn next_part(&self) -> (usize, u64) {
        let budget = self.gpu.pace().budget();
        let mut macs = 0;
        for (index, recorded) in self.dispatches.iter().enumerate() {
            if macs > 0 && macs + recorded.macs > budget {
                return (index, macs);
            }
            macs += recorded.macs;
        }
        (self.dispatches.len(), macs)
    }

    /// Whether nothing was recorded that is not submitted yet.
    pub fn is_empty(&self) -> bool {
        self.dispatches.is_empty()
    }

    /// Submits what was recorded, then copies, one after the other.
    pub fn copy_among(&mut self, copies: &[BufferCopy<'_>]) {
        if !self.is_empty() {
            self.submit();
        }
        self.gpu.call(|device, queue| {
            let mut encoder = device.create_command_encoder(&Default::default());
            for copy in copies {
                let BufferCopy { from, to, bytes, .. } = copy;
                let from_offset = from.first_byte() + copy.from_offset;
                let to_offset = to.first_byte() + copy.to_offset;
                encoder.copy_buffer_to_buffer(from.raw(), from_offset, to.raw(), to_offset, *bytes);
            }
            queue.submit([encoder.finish()]);
        });
    }

    /// As [`copy_among`](Self::copy_among), into buffers that replace others, so nothing stays cached of those.
    pub fn copy(&mut self, copies: &[BufferCopy<'_>]) {
        self.copy_among(copies);
        self.bind_groups.clear();
    }

    /// Submits what was recorded as one compute pass, followed by what `then` encodes.
    pub(super) fn submit_with(&mut self, then: impl FnOnce(&mut wgpu::CommandEncoder)) -> Submission {
        let submission = self.submit_first(self.dispatches.len(), then);
        self.forget_recorded();
        submission
    }

    /// Submits the first `dispatches` of what was recorded.
    fn submit_first(
        &mut self,
        dispatches: usize,
        then: impl FnOnce(&mut wgpu::CommandEncoder),
    ) -> Submission {
        if !std::mem::replace(&mut self.params_sent, true) {
            for (index, arena) in self.arenas.iter().enumerate() {
                let slots = self.used_slots.saturating_sub(index * ARENA_SLOTS).min(ARENA_SLOTS);
                arena.buffer.write(0, &arena.bytes[..slots * self.slot_bytes]);
            }
        }
        let Self { gpu, dispatches: all, .. } = self;
        compile(gpu.calls(), all.iter().map(|recorded| &recorded.pipeline));
        let macs = all[..dispatches].iter().map(|recorded| recorded.macs).sum();
        let submission = gpu.call(|device, queue| {
            let mut encoder = device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                for recorded in all.drain(..dispatches) {
                    let [x, y, z] = recorded.groups;
                    pass.set_pipeline(recorded.pipeline.raw(gpu.calls()));
                    pass.set_bind_group(0, &recorded.bind_group, &[recorded.offset]);
                    pass.dispatch_workgroups(x, y, z);
                }
            }
            then(&mut encoder);
            queue.submit([encoder.finish()]);
            Submission::up_to_now(queue)
        });
        self.counters.passes += 1;
        self.queue.push(&self.gpu, macs, submission.clone());
        submission
    }

    /// Starts anew: what was recorded is submitted, or not wanted.
    fn forget_recorded(&mut self) {
        self.dispatches.clear();
        self.used.clear();
        self.used_slots = 0;
        self.params_sent = false;
    }

    /// Writes parameters into the next arena slot; returns the arena's index and the slot's offset.
    fn push_params<P: ShaderType + WriteInto>(&mut self, params: &P) -> (usize, u32) {
        let (arena, slot) = (self.used_slots / ARENA_SLOTS, self.used_slots % ARENA_SLOTS);
        self.used_slots += 1;
        self.params_sent = false;
        let arena_bytes = ARENA_SLOTS * self.slot_bytes;
        if arena == self.arenas.len() {
            let buffer = Buffer::uniform(&self.gpu, "params", arena_bytes as u64);
            self.arenas.push(Arena { buffer, bytes: vec![0; arena_bytes] });
        }
        let offset = slot * self.slot_bytes;
        let mut encoded = UniformBuffer::new(Vec::with_capacity(self.slot_bytes));
        // Encoding into a growable Vec of a fixed-size struct cannot fail.
        if encoded.write(params).is_ok() {
            let encoded = encoded.into_inner();
            self.arenas[arena].bytes[offset..offset + encoded.len()].copy_from_slice(&encoded);
        }
        (arena, offset as u32)
    }

    fn bind_group(&mut self, interface: &Interface, arena: usize, buffers: &[&Buffer]) -> wgpu::BindGroup {
        let key = BindGroupKey {
            interface: interface.id,
            arena,
            buffers: buffers.iter().map(|b| b.key()).collect(),
        };
        let (gpu, params, slot) = (&self.gpu, &self.arenas[arena].buffer, self.slot_bytes as u64);
        let make = || {
            let params = wgpu::BufferBinding {
                buffer: params.raw(),
                offset: 0,
                size: std::num::NonZeroU64::new(slot),
            };
            let storage = buffers.iter().map(|buffer| buffer.binding());
            let entries: Vec<_> = std::iter::once(params)
                .chain(storage)
                .zip(0..)
                .map(|(buffer, binding)| wgpu::BindGroupEntry {
                    binding,
                    resource: wgpu::BindingResource::Buffer(buffer),
                })
                .collect();
            let descriptor =
                wgpu::BindGroupDescriptor { label: None, layout: &interface.layout, entries: &entries };
            gpu.call(|device, _| device.create_bind_group(&descriptor))
        };
        self.bind_groups.entry(key).or_insert_with(make).clone()
    }
}
