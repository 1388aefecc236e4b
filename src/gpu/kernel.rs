//! Kernels: WGSL files, their bindings and parameters.

#[cfg(not(target_arch = "wasm32"))]
use wgpu::naga::back::PipelineConstants;

use super::ParamsLayout;
#[cfg(not(target_arch = "wasm32"))]
use super::specialise::Parsed;

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

impl Kernel {
    /// A file whose parameters lie as `params` says.
    pub const fn new(shader: &'static Shader, params: fn() -> ParamsLayout) -> Self {
        Self { name: shader.name, source: shader.source, bindings: shader.bindings, params }
    }

    /// Makes what natively a driver gets for some constants; nothing where the text or a constant is wrong.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn specialiser(&self) -> impl Fn(&PipelineConstants) -> Option<wgpu::naga::Module> {
        let parsed = Parsed::default();
        move |constants| parsed.specialise(self.source, constants)
    }
}
