//! A device that the app has made, and goes on working with while a model writes on it: each token drops heat into a ring of
//! cells, which a kernel of the app's own spreads.
//!
//! `cargo run --release --example own_device -- "The king shall"`

use std::{error::Error, ops::ControlFlow};

use headwise::{Generate, Gpu, GpuOptions, Model, block_on, wgpu};

const CELLS: u32 = 64;

/// One heat more at `cell`, and a quarter of each cell's to either side.
const SPREAD: &str = "
    @group(0) @binding(0) var<storage, read> before: array<f32, 64>;
    @group(0) @binding(1) var<storage, read_write> after: array<f32, 64>;
    @group(0) @binding(2) var<storage, read> cell: u32;
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) id: vec3<u32>) {
        let i = id.x;
        let sides = before[(i + 63u) % 64u] + before[(i + 1u) % 64u];
        after[i] = 0.5 * before[i] + 0.25 * sides + select(0.0, 1.0, i == cell);
    }
";

/// The app's work: two buffers of cells that take turns.
struct Ring {
    device: wgpu::Device,
    queue: wgpu::Queue,
    pipeline: wgpu::ComputePipeline,
    cells: [wgpu::Buffer; 2],
    cell: wgpu::Buffer,
    steps: usize,
}

impl Ring {
    fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let source = wgpu::ShaderSource::Wgsl(SPREAD.into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("spread"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        let (cells, cell) = ([(); 2].map(|()| buffer(device, usage, CELLS)), buffer(device, usage, 1));
        Self { device: device.clone(), queue: queue.clone(), pipeline, cells, cell, steps: 0 }
    }

    fn drop_heat(&mut self, cell: u32) {
        let [before, after] = [0, 1].map(|turn| &self.cells[(self.steps + turn) % 2]);
        self.queue.write_buffer(&self.cell, 0, &cell.to_le_bytes());
        let entries: Vec<_> = [before, after, &self.cell]
            .iter()
            .zip(0..)
            .map(|(buffer, binding)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let layout = &self.pipeline.get_bind_group_layout(0);
        let group = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
        let group = self.device.create_bind_group(&group);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
        drop(pass);
        self.queue.submit([encoder.finish()]);
        self.steps += 1;
    }

    fn heat(&self) -> Result<Vec<f32>, Box<dyn Error>> {
        let read = buffer(&self.device, wgpu::BufferUsages::MAP_READ, CELLS);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&self.cells[self.steps % 2], 0, &read, 0, read.size());
        self.queue.submit([encoder.finish()]);
        read.map_async(wgpu::MapMode::Read, .., |_| ());
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(bytemuck::pod_collect_to_vec(&read.get_mapped_range(..)?))
    }
}

fn buffer(device: &wgpu::Device, usage: wgpu::BufferUsages, words: u32) -> wgpu::Buffer {
    let (size, usage) = (4 * u64::from(words), usage | wgpu::BufferUsages::COPY_DST);
    device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
}

/// The text, and the heat of each cell after it.
pub(crate) async fn run(prompt: &str, tokens: usize) -> Result<(String, Vec<f32>), Box<dyn Error>> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle().with_env());
    let adapter = instance.request_adapter(&Default::default()).await?;
    let wanted = wgpu::DeviceDescriptor {
        // What the app needs, which is nothing here, and what headwise makes use of.
        required_features: wgpu::Features::empty() | Gpu::wanted_features(&adapter),
        required_limits: Gpu::wanted_limits(&adapter, wgpu::Limits::default()),
        ..Default::default()
    };
    let (device, queue) = adapter.request_device(&wanted).await?;
    let gpu = Gpu::from_wgpu(&adapter, &device, &queue, GpuOptions::new())?;
    let model = Model::demo(&gpu).await?;
    let (mut ring, mut text) = (Ring::new(&device, &queue), String::new());
    let options = Generate::new().seed(1).stop_at([]).max_new(tokens);
    let streamed = model.generate(prompt, &options, |token| {
        text += &token.text;
        ring.drop_heat(token.id % CELLS);
        ControlFlow::Continue(())
    });
    streamed.await?;
    Ok((text, ring.heat()?))
}

fn main() -> Result<(), Box<dyn Error>> {
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "She had never".to_owned());
    let (text, heat) = block_on(run(&prompt, 80))?;
    let shades = heat.iter().map(|&heat| " .:-=+*#%@".chars().nth(heat as usize).unwrap_or('@'));
    println!("{prompt}{text}\n|{}|", shades.collect::<String>());
    Ok(())
}
