//! The device: one cheap handle that everything else clones.

use std::{
    any::Any,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    AdapterSelection, Capabilities, adapter, errors::Errors, loss::Loss, pace::Pace, pipelines::PipelineCache,
};
use crate::{Error, Result};

/// How to open a GPU.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct GpuOptions {
    #[serde(rename = "adapter")]
    selection: AdapterSelection,
    default_limits: bool,
    kernels: KernelChoice,
    #[serde(rename = "kernel_cache")]
    memory: KernelMemory,
    memory_limit: Option<u64>,
    #[serde(skip)]
    pub(super) submission_macs: Option<u64>,
    #[serde(skip)]
    pub(super) most_binding: Option<u64>,
}

/// Where [`KernelChoice::Auto`] finds and leaves what it measured.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct KernelMemory {
    /// What an earlier device had to remember.
    pub note: Option<String>,
    pub place: NotePlace,
}

impl Default for KernelMemory {
    fn default() -> Self {
        Self { note: None, place: NotePlace::UserCache }
    }
}

/// The folder of the file of notes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "snake_case")]
pub enum NotePlace {
    UserCache,
    Folder(PathBuf),
    Nowhere,
}

/// Which variant of the hot kernels to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KernelChoice {
    /// Measured once on an adapter and driver, in under 300 ms, and remembered: the variant by capability, or another that
    /// takes a seventh less time there.
    ///
    /// Every variant computes the same formulas, but sums in its own order, so the last bits differ from one to another. On GPUs
    /// that take a seventh less time for them, this includes the coarser products of [`F16`](Self::F16) and
    /// [`Packed`](Self::Packed), for weights that are stored as coarsely; `Tuned` has none of them. As long as the choice is remembered, results are the same bits in every run; programs that compare bits over machines
    /// or without a memory want one of the other values.
    #[default]
    Auto,
    /// By capability, without a measurement: register tiles on software adapters, with subgroups where these have one size,
    /// workgroups and subgroups on GPUs.
    Tuned,
    /// The plain kernels everywhere: register tiles, no workgroup memory in the hot loops.
    Plain,
    /// Register tiles, too, but workgroups of one subgroup whose lanes load for each other; the plain kernels where
    /// subgroups vary in size or are missing.
    Broadcast,
    /// The kernels that share work over a workgroup, without subgroup operations.
    Workgroup,
    /// As `Workgroup`, with subgroup operations where a kernel has them.
    Subgroup,
    /// As `Subgroup`, but prompts of weights that are stored in 16 bits or fewer are multiplied in 16-bit floats, where the
    /// adapter has them. Sums over more than 8 products are f32.
    F16,
    /// As `Subgroup`, but quantised weights are multiplied as 8-bit integers, with inputs that are rounded to 8 bits in blocks
    /// of 8 or 16.
    Packed,
}

impl GpuOptions {
    /// Automatic choice of adapter and kernels, the adapter's own limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses the adapter.
    pub fn adapter(mut self, selection: AdapterSelection) -> Self {
        self.selection = selection;
        self
    }

    /// Opens the device with WebGPU's default limits even when the adapter offers more, as a browser on a
    /// phone would.
    pub fn default_limits(mut self, on: bool) -> Self {
        self.default_limits = on;
        self
    }

    /// Refuses models and sessions that would take more than this many bytes together.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Chooses the variant of the hot kernels.
    pub fn kernels(mut self, kernels: KernelChoice) -> Self {
        self.kernels = kernels;
        self
    }

    /// Keeps the file of measured choices, `kernels.json`, in this folder in place of `headwise` in the user's folder of
    /// caches (or the one that the environment variable `HEADWISE_CACHE` names).
    pub fn kernel_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.memory.place = NotePlace::Folder(folder.into());
        self
    }

    /// Neither reads nor writes the file of measured choices.
    pub fn without_kernel_cache(mut self) -> Self {
        self.memory.place = NotePlace::Nowhere;
        self
    }

    /// What [`Gpu::kernels_to_remember`] gave before, for programs that have no disk. A note that is broken, or of another
    /// adapter, driver or version of headwise, is measured anew.
    pub fn remembered_kernels(mut self, note: impl Into<String>) -> Self {
        self.memory.note = Some(note.into());
        self
    }
}

/// An open GPU device, headwise's own ([`Gpu::new`]) or an app's ([`Gpu::from_wgpu`]). Cheap to clone; a device that headwise
/// opened closes when the last clone and everything made from it are gone.
#[derive(Clone)]
pub struct Gpu {
    pub(super) inner: Arc<Inner>,
    pub(super) errors: Arc<Errors>,
}

pub(super) struct Inner {
    pub origin: Origin,
    pub adapter: wgpu::Adapter,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    loss: Loss,
    capabilities: Capabilities,
    kernels: KernelChoice,
    memory: KernelMemory,
    kept: OnceLock<Box<dyn Any + Send + Sync>>,
    memory_limit: Option<u64>,
    pipelines: PipelineCache,
    pace: Pace,
    #[cfg(not(target_arch = "wasm32"))]
    /// Waits for the device where an async runtime must not.
    worker: super::worker::Worker,
    /// Bytes of live buffers, those of readbacks included.
    allocated: AtomicU64,
    next_buffer_id: AtomicU64,
}

/// Whose device it is.
pub(super) enum Origin {
    /// headwise's, on an adapter of this instance.
    Opened(wgpu::Instance),
    /// An app's.
    Lent,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Capabilities { name, backend, .. } = self.capabilities();
        f.debug_struct("Gpu")
            .field("name", name)
            .field("backend", backend)
            .field("lent", &self.is_lent())
            .finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when none fits, [`Error::Gpu`] when the adapter refuses a device.
    pub async fn new(options: GpuOptions) -> Result<Self> {
        let instance = adapter::instance().await;
        let adapter = adapter::select(&instance, &options.selection).await?;
        let mut limits = if options.default_limits { wgpu::Limits::default() } else { adapter.limits() };
        if let Some(bytes) = options.most_binding {
            limits.max_storage_buffer_binding_size = bytes.min(limits.max_storage_buffer_binding_size);
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("headwise"),
            required_features: adapter.features() & adapter::WANTED_FEATURES,
            required_limits: limits,
            ..Default::default()
        };
        let request = || adapter.request_device(&descriptor);
        #[cfg(target_arch = "wasm32")]
        let requested = super::web_subgroups::requesting(request);
        #[cfg(not(target_arch = "wasm32"))]
        let requested = request();
        let (device, queue) = requested.await.map_err(|error| Error::Gpu {
            during: format!("opening {}", adapter.get_info().name),
            message: error.to_string(),
        })?;

        let gpu = Self::of(Origin::Opened(instance), (adapter, device, queue), options);
        let capabilities = gpu.capabilities();
        tracing::info!(adapter = capabilities.name, backend = capabilities.backend, "opened GPU");
        Ok(gpu)
    }

    /// headwise on this device.
    pub(super) fn of(
        origin: Origin,
        (adapter, device, queue): (wgpu::Adapter, wgpu::Device, wgpu::Queue),
        options: GpuOptions,
    ) -> Self {
        let (errors, loss) = match origin {
            Origin::Opened(_) => (Errors::of_device(&device), Loss::told_by(&device)),
            Origin::Lent => (Errors::of_calls(), Loss::seen_on(&device)),
        };
        let features = adapter::features_of(&device);
        let capabilities = Capabilities::new(&adapter, features, &device.limits());
        let inner = Inner {
            pace: Pace::new(capabilities.software, options.submission_macs),
            capabilities,
            pipelines: PipelineCache::default(),
            #[cfg(not(target_arch = "wasm32"))]
            worker: Default::default(),
            kernels: options.kernels,
            memory: options.memory,
            kept: OnceLock::new(),
            memory_limit: options.memory_limit,
            origin,
            adapter,
            device,
            queue,
            loss,
            allocated: AtomicU64::new(0),
            next_buffer_id: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner), errors }
    }

    /// What this device can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// Bytes of GPU buffers that headwise holds on this device.
    pub fn allocated_bytes(&self) -> u64 {
        self.inner.allocated.load(Ordering::Relaxed)
    }

    /// Bytes that models and sessions may still take, where that is known.
    pub fn memory_left(&self) -> Option<u64> {
        self.bounds().into_iter().filter_map(|(have, _)| have).min()
    }

    /// What bounds the memory, each with its name.
    fn bounds(&self) -> [(Option<u64>, &'static str); 2] {
        let limited = self.inner.memory_limit.map(|limit| limit.saturating_sub(self.allocated_bytes()));
        [(limited, "the memory limit"), (self.available_bytes(), "the machine")]
    }

    /// Refuses `what` when its `need` of bytes is known not to fit.
    ///
    /// # Errors
    /// [`Error::TooLarge`] with need and have.
    pub fn plan(&self, what: &str, need: u64) -> Result<()> {
        for (have, limit) in self.bounds() {
            if let Some(have) = have.filter(|&have| have < need) {
                return Err(Error::TooLarge { what: what.to_owned(), need, have, limit: limit.to_owned() });
            }
        }
        Ok(())
    }

    /// Refuses one buffer of `need` bytes that the device cannot bind.
    ///
    /// # Errors
    /// [`Error::TooLarge`] with need and have.
    pub(crate) fn fits(&self, what: &str, need: u64) -> Result<()> {
        let have = self.inner.capabilities.max_binding.min(self.inner.capabilities.max_buffer);
        if need <= have {
            return Ok(());
        }
        let limit = "one storage binding of the adapter".to_owned();
        Err(Error::TooLarge { what: what.to_owned(), need, have, limit })
    }

    /// Bytes the device can be expected to have left for buffers, where that can be known: on a software
    /// adapter under Linux, the machine's available memory.
    fn available_bytes(&self) -> Option<u64> {
        if !self.inner.capabilities.software {
            return None;
        }
        let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    }

    /// Destroys the device, as a driver reset would. Everything on it fails from here on. A device that an app lent stays as it is:
    /// there only headwise's work fails.
    pub fn destroy(&self) {
        if !self.is_lent() {
            self.device().destroy();
        }
        self.loss().note("destroyed by the application");
    }

    /// Waits until the device has done all submitted work and freed what was dropped. Does nothing in a
    /// browser, which does both by itself.
    ///
    /// # Errors
    /// As [`Gpu::check`].
    pub fn settle(&self) -> Result<()> {
        const DURING: &str = "waiting for the GPU";
        let polled = self.loss().poll(self.device(), wgpu::PollType::wait_indefinitely());
        self.look_for_loss(DURING)?;
        polled.map(drop).map_err(|error| self.refused(DURING, &error))
    }

    /// Hands what was written so far to the device and lets it finish, so that staging memory is freed.
    pub(crate) async fn flush(&self) -> Result<()> {
        const DURING: &str = "waiting for the GPU";
        let submission = super::Recorder::new(self).submit_with(|_| {});
        super::waiting::done(self, submission, DURING).await?;
        self.look_for_loss(DURING)
    }

    pub(crate) fn kernel_choice(&self) -> KernelChoice {
        self.inner.kernels
    }

    pub(crate) fn kernel_memory(&self) -> &KernelMemory {
        &self.inner.memory
    }

    /// What a room above keeps with this device: its first value stays.
    pub(crate) fn keep<T: Any + Send + Sync + Copy>(&self, value: impl FnOnce() -> T) -> Option<T> {
        self.inner.kept.get_or_init(|| Box::new(value())).downcast_ref().copied()
    }

    /// What was kept, if anything was.
    pub(crate) fn kept<T: Any + Send + Sync + Copy>(&self) -> Option<T> {
        self.inner.kept.get()?.downcast_ref().copied()
    }

    pub(super) fn pipelines(&self) -> &PipelineCache {
        &self.inner.pipelines
    }

    pub(super) fn loss(&self) -> &Loss {
        &self.inner.loss
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn worker(&self) -> &super::worker::Worker {
        &self.inner.worker
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.inner.pace
    }

    /// How many buffers were made.
    pub(super) fn buffers_made(&self) -> u64 {
        self.inner.next_buffer_id.load(Ordering::Relaxed)
    }

    pub(super) fn account(&self, bytes: u64) -> u64 {
        self.inner.allocated.fetch_add(bytes, Ordering::Relaxed);
        self.inner.next_buffer_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn release(&self, bytes: u64) {
        self.inner.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }
}
