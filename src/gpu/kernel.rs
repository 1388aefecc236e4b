//! Kernels and their pipelines.

use std::{collections::HashMap, sync::Mutex};

use super::{Gpu, device::lock};

/// How a kernel uses a storage buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    Write,
}

/// One WGSL file: its name, its text, its bindings.
///
/// Binding 0 is the uniform parameter struct; storage buffers follow from binding 1 in the order of
/// `bindings`. The entry point is `main`.
#[derive(Debug)]
pub struct Kernel {
    /// The file's name without ending: `routed_matvec`, or `routed_matvec.subgroup` for a variant.
    pub name: &'static str,
    /// The WGSL text with its includes expanded.
    pub source: &'static str,
    /// How each storage buffer is used, from binding 1.
    pub bindings: &'static [Access],
}

/// Values for a kernel's `override` constants.
pub type Constants<'a> = &'a [(&'static str, f64)];

/// A compiled kernel with its constants filled in.
#[derive(Clone)]
pub(super) struct Pipeline {
    pub raw: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    /// A number no other pipeline of this device has.
    pub id: usize,
}

type Key = (&'static str, Vec<(&'static str, u64)>);

/// Compiled pipelines by kernel and constants; lives as long as the device.
#[derive(Default)]
pub(super) struct PipelineCache(Mutex<HashMap<Key, Pipeline>>);

impl PipelineCache {
    pub fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

impl Kernel {
    /// The pipeline for these constants, compiled on first use.
    ///
    /// A shader the driver refuses shows up in [`Gpu::check`].
    pub(super) fn pipeline(&self, gpu: &Gpu, constants: Constants<'_>) -> Pipeline {
        let key = (self.name, constants.iter().map(|(name, value)| (*name, value.to_bits())).collect());
        let mut cache = lock(&gpu.pipelines().0);
        let id = cache.len();
        cache.entry(key).or_insert_with(|| self.compile(gpu, constants, id)).clone()
    }

    /// The text as the device wants it.
    fn text(&self) -> std::borrow::Cow<'static, str> {
        #[cfg(target_arch = "wasm32")]
        if self.name.ends_with(".subgroup") || self.name.ends_with(".broadcast") {
            return format!("{}{}", super::web_subgroups::ENABLE, self.source).into();
        }
        self.source.into()
    }

    fn compile(&self, gpu: &Gpu, constants: Constants<'_>, id: usize) -> Pipeline {
        let device = gpu.device();
        let label = format!("headwise.{}", self.name);
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
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(&label),
            source: wgpu::ShaderSource::Wgsl(self.text()),
        });
        let raw = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions { constants, ..Default::default() },
            cache: None,
        });
        Pipeline { raw, layout, id }
    }
}
