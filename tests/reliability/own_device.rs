//! A device that an app has made: the app and headwise work on it beside each other, each hears of its own errors, and it is
//! the app's to end.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use headwise::{
    Error, Generate, Gpu, GpuOptions, KernelChoice, LoadOptions, Model, Source, block_on,
    internal::{Buffer, Dispatch, Kernel, ParamsLayout, Recorder},
    wgpu,
};

use super::{ids, load, plain_gpu, tiny};

/// An app with work of its own: a kernel that doubles numbers.
struct App {
    adapter: wgpu::Adapter,
    device: wgpu::Device,
    queue: wgpu::Queue,
    double: wgpu::ComputePipeline,
    /// What its handler of uncaptured errors was told.
    errors: Arc<Mutex<Vec<String>>>,
    /// How often its device was lost.
    losses: Arc<AtomicUsize>,
}

const DOUBLE: &str = "
    @group(0) @binding(0) var<storage, read_write> numbers: array<u32>;
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) id: vec3<u32>) { numbers[id.x] *= 2u; }
";
/// Numbers that are doubled at once.
const NUMBERS: u32 = 256;

impl App {
    fn adapter() -> wgpu::Adapter {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle().with_env());
        block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))
            .expect("these tests need a GPU adapter: scripts/setup vulkan")
    }

    fn with(adapter: wgpu::Adapter, features: wgpu::Features, limits: wgpu::Limits) -> Self {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("app"),
            required_features: features,
            required_limits: limits,
            ..Default::default()
        };
        let (device, queue) = block_on(adapter.request_device(&descriptor)).unwrap();
        let (errors, losses) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let (handler, callback) = (errors.clone(), losses.clone());
        device.on_uncaptured_error(Arc::new(move |error| handler.lock().unwrap().push(format!("{error}"))));
        device.set_device_lost_callback(move |_, _| {
            callback.fetch_add(1, Ordering::SeqCst);
        });
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(DOUBLE.into()),
        });
        let double = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        Self { adapter, device, queue, double, errors, losses }
    }

    /// With what every device has, and nothing more.
    fn plain() -> Self {
        Self::with(Self::adapter(), wgpu::Features::empty(), wgpu::Limits::default())
    }

    fn lend(&self) -> Result<Gpu, Error> {
        let options = GpuOptions::new().kernels(KernelChoice::Tuned);
        Gpu::from_wgpu(&self.adapter, &self.device, &self.queue, options)
    }

    fn buffer(&self, usage: wgpu::BufferUsages, size: u64) -> wgpu::Buffer {
        let usage = usage | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        self.device.create_buffer(&descriptor)
    }

    /// Doubles the numbers from `first` on, and looks.
    fn doubles(&self, first: u32) -> bool {
        let numbers: Vec<u32> = (first..first + NUMBERS).collect();
        let bytes = u64::from(4 * NUMBERS);
        let buffer = self.buffer(wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC, bytes);
        let read = self.buffer(wgpu::BufferUsages::MAP_READ, bytes);
        self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&numbers));
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.double.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: buffer.as_entire_binding() }],
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&self.double);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(NUMBERS / 64, 1, 1);
        }
        encoder.copy_buffer_to_buffer(&buffer, 0, &read, 0, bytes);
        self.queue.submit([encoder.finish()]);
        read.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
        self.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let view = read.get_mapped_range(..).unwrap();
        let found: &[u32] = bytemuck::cast_slice(&view);
        found.iter().zip(numbers).all(|(found, number)| *found == 2 * number)
    }

    /// Makes an error that nobody captures.
    fn errs(&self) {
        self.buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE, 16);
    }

    fn errors(&self) -> usize {
        self.errors.lock().unwrap().len()
    }

    fn losses(&self) -> usize {
        self.losses.load(Ordering::SeqCst)
    }

    /// Bytes that the driver gave, when all is done that was asked for. What was written and never submitted waits for a submission.
    fn bytes(&self) -> u64 {
        self.queue.submit([]);
        self.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        self.device.generate_allocator_report().expect("a backend that counts").total_allocated_bytes
    }
}

/// A prompt, and how transformers continues it.
fn prose() -> (String, String) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/prose/reference.json");
    let texts: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let of = |name: &str| texts["prompts"][0][name].as_str().unwrap().to_owned();
    (of("text"), of("greedy"))
}

/// Continues the prompt; `turn` is called at each token.
fn written(model: &Model, prompt: &str, mut turn: impl FnMut()) -> Result<String, Error> {
    let mut text = String::new();
    block_on(model.generate(prompt, &Generate::new().greedy().max_new(48), |token| {
        text += &token.text;
        turn();
        ControlFlow::Continue(())
    }))?;
    Ok(text)
}

#[test]
fn a_queue_of_another_device_is_refused() {
    let (one, other) = (App::plain(), App::plain());
    let options = || GpuOptions::new().kernels(KernelChoice::Tuned);
    for _ in 0..3 {
        let error = Gpu::from_wgpu(&one.adapter, &one.device, &other.queue, options()).unwrap_err();
        let expected = "queue: found one of another device, expected the one that came with the device";
        assert_eq!(error.to_string(), expected);
    }
    // Neither has heard of it; each lends its own, at rest and while its own work is under way.
    for app in [&one, &other] {
        assert!(app.errors.lock().unwrap().is_empty() && app.doubles(5));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert!(app.doubles(9));
                }
            });
            for _ in 0..50 {
                app.lend().unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn an_app_and_a_model_take_turns_on_a_plain_device() {
    let app = App::plain();
    let gpu = app.lend().unwrap();
    assert!(gpu.instance().is_none());
    assert_eq!((gpu.device(), gpu.queue(), gpu.adapter()), (&app.device, &app.queue, &app.adapter));
    let model = load(&gpu, &Source::demo()).unwrap();
    let (prompt, expected) = prose();
    let mut turns = 0;
    let text = written(&model, &prompt, || {
        assert!(app.doubles(turns));
        turns += 1;
    });
    assert_eq!(text.unwrap(), expected);
    assert!(turns >= 48, "{turns} turns");
    assert_eq!((app.errors(), app.losses()), (0, 0));
}

#[test]
fn an_app_and_a_model_work_from_two_threads_and_each_hears_of_its_own_errors() {
    let app = App::plain();
    let gpu = app.lend().unwrap();
    let model = load(&gpu, &Source::demo()).unwrap();
    let (prompt, expected) = prose();
    let written_all = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        let rounds = scope.spawn(|| {
            let mut rounds = 0;
            while !written_all.load(Ordering::SeqCst) || rounds == 0 {
                app.errs();
                assert!(app.doubles(rounds));
                rounds += 1;
            }
            rounds
        });
        let text = written(&model, &prompt, || app.errs());
        written_all.store(true, Ordering::SeqCst);
        assert_eq!(text.unwrap(), expected);
        rounds.join().unwrap()
    });
    gpu.check("all of it").unwrap();
    let told = app.errors();
    // One each round, and one each token, the prompt's among them.
    assert!(told >= rounds as usize + 48, "{told} errors, {rounds} rounds");
    assert!(app.errors.lock().unwrap().iter().all(|error| error.contains("usage")), "the app's own");
    // The app's scopes catch what the app does in them, whatever headwise does meanwhile.
    let scope = app.device.push_error_scope(wgpu::ErrorFilter::Validation);
    assert_eq!(ids(&model, &[1, 2, 3], &Generate::new().max_new(2)).unwrap().len(), 2);
    app.errs();
    assert!(block_on(scope.pop()).is_some());
    assert_eq!(app.errors(), told);
}

fn no_params() -> ParamsLayout {
    ParamsLayout { fields: Vec::new(), size: 0 }
}

static REFUSED: [Kernel; 2] = [
    Kernel { name: "refused", source: "fn main() -> { }", bindings: &[], params: no_params },
    Kernel { name: "refused too", source: "fn other() {}", bindings: &[], params: no_params },
];

#[test]
fn what_headwise_does_wrong_comes_back_from_headwise_alone() {
    let app = App::plain();
    let wrong = |during: &str, work: &dyn Fn(&Gpu)| {
        let gpu = app.lend().unwrap();
        work(&gpu);
        match gpu.check(during) {
            Err(Error::Gpu { during: found, message }) => {
                assert_eq!(found, during);
                message
            }
            other => panic!("{during}: {other:?}"),
        }
    };
    let message = wrong("making a buffer", &|gpu| drop(Buffer::new(gpu, "endless", 1 << 60)));
    assert!(message.contains("headwise.endless"), "{message}");
    // Two, so that they are compiled on two threads where there are as many cores.
    let message = wrong("compiling", &|gpu| {
        let mut recorder = Recorder::new(gpu);
        for kernel in &REFUSED {
            recorder.dispatch(&0_u32, Dispatch::new(kernel, &[], [1; 3]));
        }
        recorder.submit();
    });
    assert!(message.contains("headwise.refused"), "{message}");
    assert_eq!((app.errors(), app.losses()), (0, 0));

    // Its handle is spoilt and another is not, nor is the device.
    let spoilt = app.lend().unwrap();
    drop(Buffer::new(&spoilt, "endless", 1 << 60));
    assert!(matches!(load(&spoilt, &tiny()), Err(Error::Gpu { .. })));
    assert!(app.doubles(7));
    let model = load(&app.lend().unwrap(), &tiny()).unwrap();
    assert_eq!(ids(&model, &[1, 7, 42], &Generate::new().max_new(4)).unwrap().len(), 4);
}

#[test]
fn a_lent_device_outlives_headwise_with_no_memory_taken() {
    let app = App::plain();
    let round = || {
        let gpu = app.lend().unwrap();
        let model = load(&gpu, &Source::demo()).unwrap();
        ids(&model, &[1, 2, 3], &Generate::new().with_routes().max_new(4)).unwrap();
        model.session(Default::default()).unwrap();
    };
    assert!(app.doubles(1));
    let before = app.bytes();
    for _ in 0..3 {
        round();
        assert_eq!(app.bytes(), before);
    }
    // Headwise's own end is no end of the device.
    let gpu = app.lend().unwrap();
    let model = load(&gpu, &tiny()).unwrap();
    gpu.destroy();
    assert!(matches!(ids(&model, &[1], &Generate::new()), Err(Error::DeviceLost { .. })));
    assert!(app.doubles(2));
    assert_eq!((app.errors(), app.losses()), (0, 0));
}

#[test]
fn a_lent_device_that_is_lost_is_an_error_of_headwise_and_a_call_to_the_app() {
    let app = App::plain();
    let gpu = app.lend().unwrap();
    let model = load(&gpu, &Source::demo()).unwrap();
    let (prompt, expected) = prose();
    let mut seen = 0;
    let result = written(&model, &prompt, || {
        seen += 1;
        if seen == 9 {
            app.device.destroy();
        }
    });
    assert!(matches!(result, Err(Error::DeviceLost { .. })), "{result:?} instead of an end of {expected}");
    assert!((9..40).contains(&seen), "{seen} tokens");
    assert!(matches!(load(&gpu, &tiny()), Err(Error::DeviceLost { .. })));
    assert!(matches!(ids(&model, &[1], &Generate::new()), Err(Error::DeviceLost { .. })));
    // A handle that has made nothing before it was lost, and one that is made after.
    let late = app.lend().map(drop);
    assert!(matches!(late, Err(Error::DeviceLost { .. })), "{late:?}");
    assert_eq!((app.errors(), app.losses()), (0, 1));
}

#[test]
fn a_loss_is_found_by_whoever_looks_first() {
    for look in [
        |gpu: &Gpu| load(gpu, &tiny()).map(drop),
        |gpu: &Gpu| gpu.settle(),
        |gpu: &Gpu| {
            let buffer = Buffer::new(gpu, "word", 4);
            block_on(Recorder::new(gpu).submit_and_read(&[(&buffer, 0, 4)]).wait("reading")).map(drop)
        },
    ] {
        let app = App::plain();
        let gpu = app.lend().unwrap();
        app.device.destroy();
        let found = look(&gpu);
        assert!(matches!(found, Err(Error::DeviceLost { .. })), "{found:?}");
        assert_eq!(app.errors(), 0);
    }
}

#[test]
fn a_device_with_too_little_is_refused_by_the_name_of_its_limits() {
    let refused = |change: &dyn Fn(&mut wgpu::Limits)| {
        let mut limits = wgpu::Limits::default();
        change(&mut limits);
        let app = App::with(App::adapter(), wgpu::Features::empty(), limits);
        app.lend().map(drop).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&|limits| limits.max_storage_buffers_per_shader_stage = 4),
        "device: found max_storage_buffers_per_shader_stage 4, expected at least 8"
    );
    assert_eq!(
        refused(&|limits| {
            limits.max_compute_workgroup_storage_size = 16_352;
            limits.max_compute_invocations_per_workgroup = 128;
        }),
        "device: found max_compute_workgroup_storage_size 16352, max_compute_invocations_per_workgroup 128, \
         expected at least 16384, 256"
    );
    // Small buffers are no reason to refuse a device, but one to refuse a model.
    let limits = wgpu::Limits { max_buffer_size: 1 << 12, ..Default::default() };
    let small = App::with(App::adapter(), wgpu::Features::empty(), limits);
    let error = load(&small.lend().unwrap(), &Source::demo()).map(drop).unwrap_err();
    assert!(matches!(error, Error::TooLarge { have: 4096, .. }), "{error}");
}

#[test]
fn what_headwise_wants_is_what_it_would_have_opened() {
    let adapter = App::adapter();
    let mine = wgpu::Limits::downlevel_defaults();
    let limits = Gpu::wanted_limits(&adapter, mine.clone());
    let expected = wgpu::Limits {
        max_storage_buffers_per_shader_stage: 8,
        max_compute_workgroup_storage_size: 16_384,
        max_storage_buffer_binding_size: adapter.limits().max_storage_buffer_binding_size,
        max_buffer_size: adapter.limits().max_buffer_size,
        ..mine
    };
    assert_eq!(limits, expected);
    let features = Gpu::wanted_features(&adapter);
    let app = App::with(adapter, features, limits);
    let (lent, opened) = (app.lend().unwrap(), block_on(Gpu::new(GpuOptions::new())).unwrap());
    assert!(opened.instance().is_some());
    let (lent, opened) = (lent.capabilities(), opened.capabilities());
    assert_eq!(lent.subgroups, opened.subgroups);
    assert_eq!((lent.shader_f16, lent.timestamps), (opened.shader_f16, opened.timestamps));
    assert_eq!((lent.max_binding, lent.max_buffer), (opened.max_binding, opened.max_buffer));
}

/// Variants that a driver refuses while they are measured are nobody's errors.
#[test]
fn kernels_are_measured_on_a_lent_device_too() {
    let app = App::plain();
    let options = GpuOptions::new().without_kernel_cache();
    let gpu = Gpu::from_wgpu(&app.adapter, &app.device, &app.queue, options).unwrap();
    let model = block_on(Model::load(&gpu, &tiny(), LoadOptions::new())).unwrap();
    assert!(gpu.kernels_to_remember().is_some());
    assert_eq!(ids(&model, &[1, 7, 42], &Generate::new().max_new(4)).unwrap().len(), 4);
    assert_eq!(app.errors(), 0);
}

/// Whoever asks for a device of headwise's own has headwise's handlers on it, as ever.
#[test]
fn an_error_on_a_device_of_headwise_counts_whoever_makes_it() {
    let gpu = plain_gpu();
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE;
    let wrong = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 16,
        usage,
        mapped_at_creation: false,
    });
    assert!(matches!(gpu.check("anything"), Err(Error::Gpu { .. })), "{wrong:?}");
}
