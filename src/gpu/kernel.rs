//! Kernels and their pipelines.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

#[cfg(not(target_arch = "wasm32"))]
use wgpu::naga::back::PipelineConstants;

#[cfg(not(target_arch = "wasm32"))]
use super::specialise::Parsed;
use super::{Gpu, ParamsLayout, device::lock};

/// How a kernel uses a storage buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    Write,
}

/// One WGSL file, as `build.rs` lists it.
pub struct Shader {
    /// The file's name without ending: `routed_matvec`, or `routed_matvec.subgroup` for a variant.
    pub name: &'static str,
    /// The WGSL text with its includes expanded.
    pub source: &'static str,
    /// How each storage buffer is used, from binding 1.
    pub bindings: &'static [Access],
}

/// A WGSL file and the parameters that it reads.
///
/// Binding 0 is the uniform parameter struct; storage buffers follow from binding 1 in the order of
/// `bindings`. The entry point is `main`.
#[derive(Debug)]
pub struct Kernel {
    /// As in [`Shader`].
    pub name: &'static str,
    pub source: &'static str,
    pub bindings: &'static [Access],
    /// How its parameters lie in memory.
    pub params: fn() -> ParamsLayout,
}

/// Values for a kernel's `override` constants.
pub type Constants<'a> = &'a [(&'static str, f64)];

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
}

impl Pipeline {
    /// The compiled pipeline.
    ///
    /// A shader the driver refuses shows up in [`Gpu::check`].
    pub fn raw(&self, gpu: &Gpu) -> &wgpu::ComputePipeline {
        self.raw.get_or_init(|| self.kernel.compile(gpu, &self.interface, &self.constants))
    }
}

/// Compiles those of `pipelines` that are not, on as many threads as there are cores: on some drivers one takes as long as
/// a whole step.
pub(super) fn compile<'a>(gpu: &Gpu, pipelines: impl Iterator<Item = &'a Arc<Pipeline>>) {
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
            pipeline.raw(gpu);
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

impl Kernel {
    /// A file whose parameters lie as `params` says.
    pub const fn new(shader: &'static Shader, params: fn() -> ParamsLayout) -> Self {
        Self { name: shader.name, source: shader.source, bindings: shader.bindings, params }
    }

    /// The pipeline for these constants.
    pub(super) fn pipeline(&'static self, gpu: &Gpu, constants: Constants<'_>) -> Arc<Pipeline> {
        let key = (self.name, constants.iter().map(|(name, value)| (*name, value.to_bits())).collect());
        let make = || Pipeline {
            kernel: self,
            constants: constants.to_vec(),
            interface: self.interface(gpu),
            raw: OnceLock::new(),
        };
        lock(&gpu.pipelines().pipelines).entry(key).or_insert_with(|| Arc::new(make())).clone()
    }

    /// Makes what natively a driver gets for some constants; nothing where the text or a constant is wrong.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn specialiser(&self) -> impl Fn(&PipelineConstants) -> Option<wgpu::naga::Module> {
        let parsed = Parsed::default();
        move |constants| parsed.specialise(self.source, constants)
    }

    /// The text as the device wants it.
    fn text(&self) -> Cow<'static, str> {
        #[cfg(target_arch = "wasm32")]
        if self.name.ends_with(".subgroup") || self.name.ends_with(".broadcast") {
            return format!("{}{}", super::web_subgroups::ENABLE, self.source).into();
        }
        self.source.into()
    }

    fn interface(&self, gpu: &Gpu) -> Arc<Interface> {
        let mut interfaces = lock(&gpu.pipelines().interfaces);
        let id = interfaces.len();
        interfaces.entry(self.name).or_insert_with(|| Arc::new(self.make_interface(gpu, id))).clone()
    }

    fn label(&self) -> String {
        format!("headwise.{}", self.name)
    }

    fn make_interface(&self, gpu: &Gpu, id: usize) -> Interface {
        let (device, label) = (gpu.device(), self.label());
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
            .chain(self.bindings.iter().map(storage))
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
        Interface {
            layout,
            pipeline_layout,
            module: OnceLock::new(),
            #[cfg(not(target_arch = "wasm32"))]
            parsed: Parsed::default(),
            id,
        }
    }

    fn compile(&self, gpu: &Gpu, interface: &Interface, constants: Constants<'_>) -> wgpu::ComputePipeline {
        let (device, label) = (gpu.device(), self.label());
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
            let values = constants.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
            if let Some(special) = interface.parsed.specialise(self.source, &values) {
                return pipeline(&module(wgpu::ShaderSource::Naga(Cow::Owned(special))), &[]);
            }
        }
        pipeline(interface.module.get_or_init(|| module(wgpu::ShaderSource::Wgsl(self.text()))), constants)
    }
}
