//! Pipelines: kernels with their constants filled in, compiled once for a device.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

#[cfg(not(target_arch = "wasm32"))]
use super::specialise::Parsed;
use super::{Access, Constants, Kernel, errors::Calls, lock::lock};

/// A kernel with its constants filled in, compiled when it is first submitted.
pub(super) struct Pipeline {
    kernel: &'static Kernel,
    constants: Vec<(&'static str, f64)>,
    pub interface: Arc<Interface>,
    raw: OnceLock<wgpu::ComputePipeline>,
}

/// What the pipelines of a kernel share.
pub(super) struct Interface {
    pub layout: wgpu::BindGroupLayout,
    pipeline_layout: wgpu::PipelineLayout,
    module: OnceLock<wgpu::ShaderModule>,
    #[cfg(not(target_arch = "wasm32"))]
    parsed: Parsed,
    /// A number no other kernel of this device has.
    pub id: usize,
}

type Key = (&'static str, Vec<(&'static str, u64)>);

/// Pipelines by kernel and constants; lives as long as the device.
#[derive(Default)]
pub(super) struct PipelineCache {
    interfaces: Mutex<HashMap<&'static str, Arc<Interface>>>,
    pipelines: Mutex<HashMap<Key, Arc<Pipeline>>>,
}

impl PipelineCache {
    pub fn len(&self) -> usize {
        lock(&self.pipelines).len()
    }

    /// The pipeline of a kernel for these constants.
    pub fn pipeline(
        &self,
        calls: Calls<'_>,
        kernel: &'static Kernel,
        constants: Constants<'_>,
    ) -> Arc<Pipeline> {
        let key = (kernel.name, constants.iter().map(|(name, value)| (*name, value.to_bits())).collect());
        let make = || Pipeline {
            kernel,
            constants: constants.to_vec(),
            interface: self.interface(calls, kernel),
            raw: OnceLock::new(),
        };
        lock(&self.pipelines).entry(key).or_insert_with(|| Arc::new(make())).clone()
    }

    fn interface(&self, calls: Calls<'_>, kernel: &'static Kernel) -> Arc<Interface> {
        let mut interfaces = lock(&self.interfaces);
        let id = interfaces.len();
        let make = || calls.call(|device, _| Arc::new(Interface::new(device, kernel, id)));
        interfaces.entry(kernel.name).or_insert_with(make).clone()
    }
}

impl Pipeline {
    /// The compiled pipeline.
    ///
    /// A shader the driver refuses shows up in [`super::Gpu::check`].
    pub fn raw(&self, calls: Calls<'_>) -> &wgpu::ComputePipeline {
        self.raw.get_or_init(|| calls.call(|device, _| self.compile(device)))
    }

    fn compile(&self, device: &wgpu::Device) -> wgpu::ComputePipeline {
        let (interface, label) = (&self.interface, label(self.kernel));
        let module = |source| {
            device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some(&label), source })
        };
        let pipeline = |module: &wgpu::ShaderModule, constants| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: Some(&interface.pipeline_layout),
                module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions { constants, ..Default::default() },
                cache: None,
            })
        };
        #[cfg(not(target_arch = "wasm32"))]
        {
            let values = self.constants.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
            if let Some(special) = interface.parsed.specialise(self.kernel.source, &values) {
                return pipeline(&module(wgpu::ShaderSource::Naga(Cow::Owned(special))), &[]);
            }
        }
        let text = || module(wgpu::ShaderSource::Wgsl(text(self.kernel)));
        pipeline(interface.module.get_or_init(text), &self.constants)
    }
}

/// Compiles those of `pipelines` that are not, on as many threads as there are cores: on some drivers one takes as long as
/// a whole step.
pub(super) fn compile<'a>(calls: Calls<'_>, pipelines: impl Iterator<Item = &'a Arc<Pipeline>>) {
    let mut missing: Vec<&Arc<Pipeline>> =
        pipelines.filter(|pipeline| pipeline.raw.get().is_none()).collect();
    if missing.is_empty() {
        // As for nearly every submission: asking for the cores reads files.
        return;
    }
    missing.sort_by_key(|pipeline| Arc::as_ptr(pipeline));
    missing.dedup_by_key(|pipeline| Arc::as_ptr(pipeline));
    // Long ones first, so that none is left over at the end.
    missing.sort_by_key(|pipeline| std::cmp::Reverse(pipeline.kernel.source.len()));
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(pipeline) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            pipeline.raw(calls);
        }
    };
    #[cfg(not(target_arch = "wasm32"))]
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 1..cores.min(missing.len()) {
            scope.spawn(work);
        }
        work();
    });
    #[cfg(target_arch = "wasm32")]
    work();
}

impl Interface {
    fn new(device: &wgpu::Device, kernel: &Kernel, id: usize) -> Self {
        let label = label(kernel);
        let uniform = wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Uniform,
            has_dynamic_offset: true,
            min_binding_size: None,
        };
        let storage = |access: &Access| wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: *access == Access::Read },
            has_dynamic_offset: false,
            min_binding_size: None,
        };
        let entries: Vec<_> = std::iter::once(uniform)
            .chain(kernel.bindings.iter().map(storage))
            .zip(0..)
            .map(|(ty, binding)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty,
                count: None,
            })
            .collect();
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(&label),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&layout)],
            ..Default::default()
        });
        Self {
            layout,
            pipeline_layout,
            module: OnceLock::new(),
            #[cfg(not(target_arch = "wasm32"))]
            parsed: Parsed::default(),
            id,
        }
    }
}

/// The text as the device wants it.
fn text(kernel: &Kernel) -> Cow<'static, str> {
    #[cfg(target_arch = "wasm32")]
    if kernel.name.ends_with(".subgroup") || kernel.name.ends_with(".broadcast") {
        return format!("{}{}", super::web_subgroups::ENABLE, kernel.source).into();
    }
    kernel.source.into()
}

fn label(kernel: &Kernel) -> String {
    format!("headwise.{}", kernel.name)
}
