//! Every adapter of every backend, and whether it gives a device that headwise can use.

use headwise::{Capabilities, Gpu, GpuOptions, wgpu};
use serde::Serialize;

use super::{super::bytes, machine::BACKEND};

/// An adapter and what came of opening it.
#[derive(Serialize)]
pub struct Tried {
    name: String,
    backend: String,
    pub kind: String,
    driver: String,
    /// Vendor and device on the bus.
    id: String,
    /// What a device has; none where it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Capabilities>,
    /// Bytes that models may still take, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_left: Option<u64>,
    /// Why it cannot be used.
    pub refused: Option<String>,
    /// What has to be set before `--adapter` finds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    needs: Option<&'static str>,
}

/// Those of all backends that were compiled in, OpenGL's included, unless `WGPU_BACKEND` names some.
pub async fn try_all() -> Vec<Tried> {
    let descriptor = wgpu::InstanceDescriptor {
        backends: wgpu::Backends::all(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    let instance = wgpu::Instance::new(descriptor.with_env());
    let mut all = Vec::new();
    for adapter in instance.enumerate_adapters(wgpu::Backends::all()).await {
        let info = adapter.get_info();
        let opened = open(&adapter).await;
        let kind = format!("{:?}", info.device_type).to_lowercase();
        all.push(Tried {
            backend: info.backend.to_str().to_owned(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            id: format!("{:04x}:{:04x}", info.vendor, info.device),
            kind: opened.as_ref().map_or(kind, |gpu| gpu.capabilities().kind.clone()),
            memory_left: opened.as_ref().ok().and_then(Gpu::memory_left),
            capabilities: opened.as_ref().ok().map(|gpu| gpu.capabilities().clone()),
            refused: opened.err(),
            needs: None,
            name: info.name,
        });
    }
    // OpenGL's are looked for where there is nothing else, or where they are asked for.
    let gl = |tried: &Tried| tried.backend == wgpu::Backend::Gl.to_str();
    if !all.iter().all(gl) && std::env::var_os(BACKEND).is_none() {
        all.iter_mut().filter(|tried| gl(tried)).for_each(|tried| tried.needs = Some("WGPU_BACKEND=gl"));
    }
    all
}

/// A device as headwise asks for it.
async fn open(adapter: &wgpu::Adapter) -> Result<Gpu, String> {
    let descriptor = wgpu::DeviceDescriptor {
        required_features: Gpu::wanted_features(adapter),
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let (device, queue) = adapter.request_device(&descriptor).await.map_err(|error| error.to_string())?;
    Gpu::from_wgpu(adapter, &device, &queue, GpuOptions::new()).map_err(|error| error.to_string())
}

impl Tried {
    pub fn describe(&self) -> String {
        let Self { name, backend, kind, driver, id, .. } = self;
        let needs = self.needs.map_or(String::new(), |needs| format!("; found with {needs}"));
        let what = match (&self.capabilities, &self.refused) {
            (_, Some(why)) => format!("REFUSED: {}", why.replace('\n', " ")),
            (Some(it), _) => {
                let subgroups =
                    it.subgroups.map_or("no subgroups".to_owned(), |(least, most)| match least == most {
                        true => format!("subgroups of {least}"),
                        false => format!("subgroups of {least} to {most}"),
                    });
                let f16 = if it.shader_f16 { ", f16 arithmetic" } else { "" };
                format!(
                    "binding {}, buffer {}, {subgroups}{f16}",
                    bytes::show(it.max_binding),
                    bytes::show(it.max_buffer)
                )
            }
            (None, None) => String::new(),
        };
        format!("{name} ({backend}, {kind}, {driver}, {id}): {what}{needs}")
    }
}
