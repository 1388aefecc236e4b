//! Finding an adapter and saying what it can do.

use serde::Serialize;

use crate::{Error, Result};

/// Which adapter to use.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AdapterSelection {
    /// The platform's choice, preferring a fast GPU and falling back to software.
    #[default]
    Auto,
    /// A CPU rasteriser such as lavapipe, SwiftShader or WARP.
    Software,
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the CPU's memory.
    Integrated,
    /// The adapter of this number, counted from 0 as `headwise adapters` and [`Gpu::adapters`](crate::Gpu::adapters) do.
    Number(usize),
    /// The first adapter whose name contains this text, ignoring case.
    Name(String),
}

impl AdapterSelection {
    /// Whether this selection may mean an adapter, which is the `number`th of all.
    pub fn matches(&self, number: usize, adapter: &Capabilities) -> bool {
        match self {
            Self::Auto => true,
            Self::Number(wanted) => *wanted == number,
            Self::Software => adapter.software,
            Self::Discrete => adapter.kind == "discrete",
            Self::Integrated => adapter.kind == "integrated",
            Self::Name(name) => adapter.name.to_lowercase().contains(&name.to_lowercase()),
        }
    }
}

impl std::str::FromStr for AdapterSelection {
    type Err = std::convert::Infallible;

    /// A word of those above, a number, or else a part of a name. A number is never a part of a name: many have digits in
    /// them.
    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let text = text.trim();
        Ok(match text.to_lowercase().as_str() {
            "auto" | "" => Self::Auto,
            "software" => Self::Software,
            "discrete" => Self::Discrete,
            "integrated" => Self::Integrated,
            _ => text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Number),
        })
    }
}

impl std::fmt::Display for AdapterSelection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Number(number) => return number.fmt(f),
            Self::Auto => "auto",
            Self::Software => "software",
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Name(name) => name,
        })
    }
}

/// What a device can do, in our own words: filled from wgpu natively and in the browser.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Capabilities {
    /// Adapter name; browsers may leave it empty.
    pub name: String,
    /// Graphics API, e.g. `vulkan`, `metal`, `dx12`, `webgpu`.
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: String,
    /// Driver name and version.
    pub driver: String,
    /// True for a CPU rasteriser, where register-tiled kernels beat workgroup memory.
    pub software: bool,
    /// Smallest and largest subgroup size, when kernels may use subgroup operations.
    pub subgroups: Option<(u32, u32)>,
    /// Kernels may use 16-bit floats. Weights stored as f16 do not need it.
    pub shader_f16: bool,
    /// Passes can be timed on the GPU.
    pub timestamps: bool,
    /// Largest part of a buffer one kernel can see, in bytes.
    pub max_binding: u64,
    /// Largest buffer, in bytes.
    pub max_buffer: u64,
    /// Storage buffers one kernel can see.
    pub max_storage_buffers: u32,
    /// Workgroup memory, in bytes.
    pub max_workgroup_memory: u32,
    /// Invocations in one workgroup.
    pub max_workgroup_invocations: u32,
}

impl Capabilities {
    /// Those of every adapter of the machine.
    pub async fn of_all() -> Vec<Self> {
        all(&instance().await).await.iter().map(Self::of).collect()
    }

    /// What `adapter` could give a device.
    pub(super) fn of(adapter: &wgpu::Adapter) -> Self {
        Self::new(adapter, adapter.features() & WANTED_FEATURES, &adapter.limits())
    }

    /// Capabilities of a device made with `features` and `limits` on `adapter`.
    pub(super) fn new(adapter: &wgpu::Adapter, features: wgpu::Features, limits: &wgpu::Limits) -> Self {
        let info = adapter.get_info();
        // Some browsers have subgroups and do not say how large they are.
        let subgroups = Some((info.subgroup_min_size, info.subgroup_max_size)).filter(|&(least, most)| {
            features.contains(wgpu::Features::SUBGROUP) && 0 < least && least <= most
        });
        Self {
            backend: info.backend.to_str().to_owned(),
            kind: kind_of(info.device_type).to_owned(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            software: is_software(&info),
            name: info.name,
            subgroups,
            shader_f16: features.contains(wgpu::Features::SHADER_F16),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            max_binding: limits.max_storage_buffer_binding_size,
            max_buffer: limits.max_buffer_size,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            max_workgroup_memory: limits.max_compute_workgroup_storage_size,
            max_workgroup_invocations: limits.max_compute_invocations_per_workgroup,
        }
    }
}

/// The optional features headwise asks for where the adapter has them.
pub(super) const WANTED_FEATURES: wgpu::Features =
    wgpu::Features::SUBGROUP.union(wgpu::Features::SHADER_F16).union(wgpu::Features::TIMESTAMP_QUERY);

/// What `device` was opened with.
pub(super) fn features_of(device: &wgpu::Device) -> wgpu::Features {
    #[cfg(target_arch = "wasm32")]
    if super::web_subgroups::enabled(device) {
        return device.features() | wgpu::Features::SUBGROUP;
    }
    device.features()
}

/// `limits`, raised to what the kernels need of a device, which WebGPU's defaults have. The size of bindings and buffers is
/// looked at where one is made.
fn needed_limits(limits: wgpu::Limits) -> wgpu::Limits {
    wgpu::Limits {
        max_storage_buffers_per_shader_stage: limits.max_storage_buffers_per_shader_stage.max(8),
        // Those and the parameters.
        max_bindings_per_bind_group: limits.max_bindings_per_bind_group.max(9),
        max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size.max(16 << 10),
        max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup.max(256),
        max_compute_workgroup_size_x: limits.max_compute_workgroup_size_x.max(256),
        max_compute_workgroup_size_y: limits.max_compute_workgroup_size_y.max(16),
        max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension.max(65_535),
        ..limits
    }
}

/// `limits`, raised to what headwise needs, and to what it makes use of as far as `adapter` has it.
pub(super) fn wanted_limits(adapter: &wgpu::Adapter, limits: wgpu::Limits) -> wgpu::Limits {
    let (has, limits) = (adapter.limits(), needed_limits(limits));
    wgpu::Limits {
        max_storage_buffer_binding_size: limits
            .max_storage_buffer_binding_size
            .max(has.max_storage_buffer_binding_size),
        max_buffer_size: limits.max_buffer_size.max(has.max_buffer_size),
        ..limits
    }
}

/// Refuses a device that is not of `adapter`, as far as names tell.
pub(super) fn is_of(adapter: &wgpu::Adapter, device: &wgpu::Device) -> Result<()> {
    let (own, given) = (device.adapter_info(), adapter.get_info());
    let same = |a: &wgpu::AdapterInfo, b: &wgpu::AdapterInfo| {
        (a.backend, a.vendor, a.device, &a.name) == (b.backend, b.vendor, b.device, &b.name)
    };
    // Browsers before `GPUDevice.adapterInfo` know nothing of a device's adapter.
    if cfg!(target_arch = "wasm32") || same(&own, &given) {
        return Ok(());
    }
    let named = |info: &wgpu::AdapterInfo| format!("{} ({})", info.name, info.backend.to_str());
    Err(Error::argument("adapter", named(&given), format!("that of the device, {}", named(&own))))
}

/// Refuses a device whose adapter or `limits` are not enough for every kernel.
pub(super) fn suffices(adapter: &wgpu::Adapter, limits: &wgpu::Limits) -> Result<()> {
    if !adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        return Err(Error::argument("adapter", "one without compute shaders", "one that has them"));
    }
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    needed_limits(limits.clone()).check_limits_with_fail_fn(limits, false, |name, needed, has| {
        found.push(format!("{name} {has}"));
        expected.push(needed.to_string());
    });
    if found.is_empty() {
        return Ok(());
    }
    Err(Error::argument("device", found.join(", "), format!("at least {}", expected.join(", "))))
}

/// Percent of the memory that a driver can give now, beyond which making a buffer is an error. Where a driver tells no
/// budget (Vulkan without `VK_EXT_memory_budget`, Metal, browsers), it alone decides.
const MEMORY_PERCENT: u8 = 95;

/// An instance over the platform's own backends; `WGPU_BACKEND` narrows it, or names another that was compiled in.
pub(super) async fn instance() -> wgpu::Instance {
    let instance = instance_of(wgpu::Backends::PRIMARY);
    // OpenGL is for machines that have nothing else: it starts slowly, and its adapters are those of the others once more.
    #[cfg(all(feature = "gles", not(target_arch = "wasm32")))]
    if std::env::var_os("WGPU_BACKEND").is_none() && all(&instance).await.is_empty() {
        return instance_of(wgpu::Backends::GL);
    }
    instance
}

fn instance_of(backends: wgpu::Backends) -> wgpu::Instance {
    let mut descriptor =
        wgpu::InstanceDescriptor { backends, ..wgpu::InstanceDescriptor::new_without_display_handle() };
    // `dxcompiler.dll` where it lies beside the program or on the path, else FXC, which has neither subgroups nor 16-bit
    // floats; `WGPU_DX12_COMPILER` says otherwise.
    descriptor.backend_options.dx12.shader_compiler = wgpu::Dx12Compiler::Auto;
    let mut descriptor = descriptor.with_env();
    // The error comes instead of a system that swaps until nothing moves. What is made already stays usable.
    descriptor.memory_budget_thresholds.for_resource_creation = Some(MEMORY_PERCENT);
    wgpu::Instance::new(descriptor)
}

/// Every adapter of the machine. In a browser there is at most one.
pub(super) async fn all(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    #[cfg(target_arch = "wasm32")]
    let adapters = instance.request_adapter(&high_performance()).await.into_iter().collect();
    #[cfg(not(target_arch = "wasm32"))]
    let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    adapters
}

/// The adapter that fits `selection` best, or an error that lists what there is.
pub(super) async fn select(instance: &wgpu::Instance, selection: &AdapterSelection) -> Result<wgpu::Adapter> {
    if *selection == AdapterSelection::Auto
        && let Ok(adapter) = instance.request_adapter(&high_performance()).await
    {
        return Ok(adapter);
    }
    let mut adapters = all(instance).await;
    let found: Vec<String> = adapters.iter().enumerate().map(describe).collect();
    let matches = |(number, adapter)| selection.matches(number, &Capabilities::of(adapter));
    let position = adapters.iter().enumerate().position(matches);
    match position {
        Some(index) => Ok(adapters.swap_remove(index)),
        None => Err(Error::NoAdapter {
            wanted: selection.to_string(),
            found: if found.is_empty() { nothing() } else { found.join(", ") },
        }),
    }
}

/// What is to be said where there is no adapter at all.
fn nothing() -> String {
    match std::env::var_os("WGPU_BACKEND") {
        // Set to nothing, or to a word that nobody knows, it leaves no backend.
        Some(named) => {
            format!("none with WGPU_BACKEND={named:?}, expected {BACKENDS}, or nothing set; {ADVICE}")
        }
        None => format!("none; {ADVICE}"),
    }
}

#[cfg(not(feature = "gles"))]
const BACKENDS: &str = "vulkan, metal or dx12";
#[cfg(feature = "gles")]
const BACKENDS: &str = "vulkan, metal, dx12 or gl";

const ADVICE: &str = if cfg!(target_arch = "wasm32") {
    "this browser has no WebGPU adapter"
} else {
    "install a Vulkan driver (on Debian and Ubuntu, `apt-get install mesa-vulkan-drivers` \
     brings a software one)"
};

fn high_performance() -> wgpu::RequestAdapterOptions<'static, 'static> {
    wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..Default::default()
    }
}

fn describe((number, adapter): (usize, &wgpu::Adapter)) -> String {
    let info = adapter.get_info();
    format!("{number}: {} ({}, {})", info.name, info.backend.to_str(), kind_of(info.device_type))
}

fn kind_of(device_type: wgpu::DeviceType) -> &'static str {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    }
}

/// Browsers report no device type, so SwiftShader is known by its name.
fn is_software(info: &wgpu::AdapterInfo) -> bool {
    info.device_type == wgpu::DeviceType::Cpu
        || ["swiftshader", "llvmpipe", "lavapipe"].iter().any(|software| {
            info.name.to_lowercase().contains(software) || info.driver.to_lowercase().contains(software)
        })
}
