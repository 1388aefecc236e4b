//! The promise: the same input gives the same bits, nothing leaks, and what goes wrong comes back as an error.

#[path = "reliability/broken_numbers.rs"]
mod broken_numbers;
#[path = "reliability/hosts.rs"]
mod hosts;
#[path = "reliability/long_prompts.rs"]
mod long_prompts;
#[path = "reliability/own_device.rs"]
mod own_device;
#[path = "reliability/sessions.rs"]
mod sessions;
#[path = "reliability/spans.rs"]
mod spans;
#[path = "reliability/streams.rs"]
mod streams;
#[path = "reliability/types.rs"]
mod types;

use std::{
    io,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use headwise::{
    CachePrecision, Cancel, Error, Generate, Gpu, GpuOptions, KernelChoice, LoadOptions, Model, ModelFiles,
    Precision, ReadAt, Source, StopReason, block_on, internal::ForTests,
};

fn gpu(options: GpuOptions) -> Gpu {
    block_on(Gpu::new(options)).expect("these tests need a GPU adapter: scripts/setup vulkan")
}

fn plain_gpu() -> Gpu {
    gpu(GpuOptions::new().kernels(KernelChoice::Tuned).default_limits(true))
}

fn tiny() -> Source {
    Source::folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jetmoe_tiny"))
}

fn load(gpu: &Gpu, source: &Source) -> Result<Model, Error> {
    block_on(Model::load(gpu, source, LoadOptions::new()))
}

fn ids(model: &Model, prompt: &[u32], options: &Generate) -> Result<Vec<u32>, Error> {
    let generation = block_on(model.generate_ids(&[prompt], options, |_| ControlFlow::Continue(())))?;
    Ok(generation.ids[0].clone())
}

/// Weights that are saved anew while they are read are no model; the next load reads what is there then.
#[test]
fn a_model_of_two_versions_is_refused() {
    let gpu = plain_gpu();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reliability-two-versions");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jetmoe_tiny");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(name), folder.join(name)).unwrap();
    }
    let weights = folder.join("model.safetensors");
    let source = Source::folder(&folder);
    let mut saved = false;
    let save = |done: u64, _| {
        if done > 0 && !std::mem::replace(&mut saved, true) {
            std::fs::write(&weights, std::fs::read(&weights).unwrap()).unwrap();
        }
    };
    let result = block_on(Model::load(&gpu, &source, LoadOptions::new().progress(save)));
    let error = result.map(drop).unwrap_err().to_string();
    assert!(error.contains("model.safetensors: version: found another one"), "{error}");
    load(&gpu, &source).unwrap();
}

/// The tiny model, read by a program; its weights are saved anew whenever `saved` counts up.
struct Given {
    config: Arc<[u8]>,
    weights: Arc<[u8]>,
    saved: Arc<AtomicU64>,
}

struct GivenWeights(Arc<[u8]>, u64);

impl ModelFiles for Given {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn ReadAt + '_>>> {
        Ok(match name {
            "config.json" => Some(Box::new(&self.config)),
            "model.safetensors" => {
                Some(Box::new(GivenWeights(self.weights.clone(), self.saved.load(Ordering::Relaxed))))
            }
            _ => None,
        })
    }
}

impl ReadAt for GivenWeights {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn version(&self) -> u64 {
        self.1
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let some = into.len().div_ceil(2);
        (&self.0[..]).read_at(offset, &mut into[..some])
    }
}

/// Wherever its files are, a model is the same; files that a program gives are of one version, too.
#[test]
fn a_model_that_a_program_reads_is_the_same_and_of_one_version() {
    let gpu = plain_gpu();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jetmoe_tiny");
    let read = |name: &str| -> Arc<[u8]> { std::fs::read(folder.join(name)).unwrap().into() };
    let files = ["config.json", "model.safetensors"].map(|name| (name, read(name)));
    let [(_, config), (_, weights)] = files.clone();
    let saved = Arc::new(AtomicU64::new(0));
    let given = Source::of("given", Given { config, weights, saved: saved.clone() });
    let logits = |source: &Source| {
        let model = load(&gpu, source).unwrap();
        block_on(model.logits(&[&[3, 1, 4, 1, 5]])).unwrap().remove(0).values
    };
    let expected = logits(&tiny());
    assert!(logits(&Source::memory("memory", files)) == expected);
    assert!(logits(&given) == expected);
    let opened = move |name: &str| match name {
        "config.json" | "model.safetensors" => std::fs::read(folder.join(name)).map(Some),
        _ => Ok(None),
    };
    assert!(logits(&Source::of("assets", opened)) == expected);

    let save = |done: u64, _| {
        if done > 0 {
            saved.fetch_add(1, Ordering::Relaxed);
        }
    };
    let result = block_on(Model::load(&gpu, &given, LoadOptions::new().progress(save)));
    let error = result.map(drop).unwrap_err().to_string();
    assert!(error.starts_with("given/model.safetensors: version: found another one"), "{error}");
    assert!(logits(&given) == expected);
}

#[test]
fn twenty_repeats_give_the_same_bits() {
    for kernels in
        [KernelChoice::Plain, KernelChoice::Broadcast, KernelChoice::Workgroup, KernelChoice::Subgroup]
    {
        let gpu = gpu(GpuOptions::new().default_limits(true).kernels(kernels));
        let model = load(&gpu, &tiny()).unwrap();
        let prompt: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 101).collect();
        let sampled = Generate::new().temperature(1.0).top_p(0.9).seed(7).max_new(16);
        let run = || {
            let logits = block_on(model.logits(&[&prompt])).unwrap().remove(0);
            let bits: Vec<u32> = logits.values.iter().map(|value| value.to_bits()).collect();
            let gates: Vec<u32> = logits
                .routes
                .iter()
                .flat_map(|token| &token.layers)
                .flat_map(|layer| layer.attention.iter().chain(&layer.mlp))
                .map(|choice| choice.gate.to_bits())
                .collect();
            (bits, gates, ids(&model, &prompt, &sampled).unwrap())
        };
        let first = run();
        for repeat in 1..20 {
            assert!(run() == first, "{kernels:?}: repeat {repeat} differs");
        }
    }
}

#[test]
fn warming_up_compiles_what_a_generation_needs_and_leaves_nothing_else() {
    let (gpu, other) = (plain_gpu(), plain_gpu());
    let cold = load(&other, &tiny()).unwrap();
    let warm = block_on(Model::load(&gpu, &tiny(), LoadOptions::new().warm_up(true))).unwrap();
    gpu.settle().unwrap();
    other.settle().unwrap();
    assert_eq!(gpu.allocated_bytes(), other.allocated_bytes());
    let compiled = gpu.compiled_pipelines();
    let prompt: Vec<u32> = (0..16).collect();
    for options in [Generate::new().seed(3), Generate::new().greedy()] {
        let options = options.max_new(8);
        assert_eq!(ids(&warm, &prompt, &options).unwrap(), ids(&cold, &prompt, &options).unwrap());
    }
    assert_eq!(gpu.compiled_pipelines(), compiled);
    assert_eq!(other.compiled_pipelines(), compiled);
}

#[test]
fn a_seed_decides_the_text() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    let text =
        |seed| ids(&model, &[1, 7, 42], &Generate::new().temperature(2.0).top_k(None).seed(seed).max_new(24));
    assert_eq!(text(3).unwrap(), text(3).unwrap());
    assert_ne!(text(3).unwrap(), text(4).unwrap());
    // The high half counts too.
    assert_ne!(text(3).unwrap(), text(3 + (1 << 32)).unwrap());
}

#[test]
fn loading_generating_and_dropping_thirty_times_leaves_no_memory_behind() {
    let gpu = plain_gpu();
    let device_bytes = || {
        gpu.settle().unwrap();
        gpu.device().generate_allocator_report().map(|report| report.total_allocated_bytes)
    };
    let round = || {
        let model = load(&gpu, &Source::demo()).unwrap();
        ids(&model, &[1, 2, 3], &Generate::new().with_routes().max_new(4)).unwrap();
    };
    round(); // the first keeps its compiled pipelines
    let (ours, device) = (gpu.allocated_bytes(), device_bytes());
    assert_eq!(ours, 0, "headwise's own account");
    assert!(device.is_some(), "the backend reports no allocations: nothing to measure");
    for _ in 0..30 {
        round();
    }
    assert_eq!(gpu.allocated_bytes(), ours);
    assert_eq!(device_bytes(), device, "the device's account");
}

#[test]
fn a_device_lost_in_the_middle_of_a_generation_is_an_error_and_a_fresh_load_works() {
    let lost = plain_gpu();
    let model = load(&lost, &tiny()).unwrap();
    let mut seen = 0;
    let options = Generate::new().greedy().max_new(40);
    let result = block_on(model.generate_ids(&[&[1, 7, 42]], &options, |_| {
        seen += 1;
        if seen == 5 {
            lost.destroy();
        }
        ControlFlow::Continue(())
    }));
    assert!(matches!(result, Err(Error::DeviceLost { .. })), "{result:?}");
    assert!((5..40).contains(&seen), "{seen} tokens");
    // Everything on the lost device keeps failing with the same error.
    assert!(matches!(load(&lost, &tiny()), Err(Error::DeviceLost { .. })));
    assert!(matches!(block_on(model.logits(&[&[1]])), Err(Error::DeviceLost { .. })));

    let model = load(&plain_gpu(), &tiny()).unwrap();
    assert_eq!(ids(&model, &[1, 7, 42], &options).unwrap().len(), 40);
}

#[test]
fn cancelling_ends_a_generation_with_what_it_has() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    let cancel = Cancel::new();
    let options = Generate::new().greedy().max_new(60).cancel(&cancel);
    let mut seen = Vec::new();
    let generation = block_on(model.generate_ids(&[&[1, 7, 42]], &options, |token| {
        seen.push(token.id);
        if seen.len() == 3 {
            cancel.cancel();
        }
        ControlFlow::Continue(())
    }))
    .unwrap();
    assert_eq!(seen.len(), 3);
    assert_eq!(generation.stopped, [StopReason::Cancelled]);
    assert_eq!(generation.ids[0][..3], seen);

    let broken =
        block_on(model.generate_ids(&[&[1, 7, 42]], &Generate::new().greedy(), |_| ControlFlow::Break(())));
    assert_eq!(broken.unwrap().stopped, [StopReason::Cancelled]);
}

#[test]
fn generation_ends_at_the_limit_the_stop_token_and_the_context() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    let prompt = [1, 7, 42];
    for routes in [false, true] {
        let run = |options: Generate| {
            let options = if routes { options.with_routes() } else { options };
            let mut told = 0;
            let mut routed = 0;
            let result = block_on(model.generate_ids(&[&prompt], &options.greedy(), |token| {
                told += usize::from(!token.prompt);
                routed += usize::from(!token.prompt && token.routes.is_some());
                ControlFlow::Continue(())
            }));
            let generation = result.unwrap();
            assert_eq!(told, generation.ids[0].len(), "every token is told once");
            (generation.ids[0].clone(), generation.stopped[0], routed)
        };
        let (free, why, routed) = run(Generate::new().max_new(10));
        assert_eq!((free.len(), why), (10, StopReason::MaxNew));
        assert_eq!(routed, if routes { 10 } else { 0 });

        let stop = free[6];
        let first = free.iter().position(|&id| id == stop).unwrap();
        let (stopped, why, _) = run(Generate::new().max_new(10).stop_at([stop]));
        assert_eq!((stopped.as_slice(), why), (&free[..=first], StopReason::StopToken));

        // 64 positions: 3 of the prompt, then tokens up to the end of the context.
        let (full, why, routed) = run(Generate::new().max_new(1000));
        assert_eq!((full.len(), why), (61, StopReason::Context));
        assert_eq!(routed, if routes { 61 } else { 0 });

        assert_eq!(run(Generate::new().max_new(0)), (Vec::new(), StopReason::MaxNew, 0));
    }
}

#[test]
fn a_batch_of_unequal_prompts_fills_each_context() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    let long: Vec<u32> = (0..60).collect();
    let prompts: [&[u32]; 2] = [&long, &[5, 6]];
    let options = Generate::new().greedy().max_new(1000);
    let batch = block_on(model.generate_ids(&prompts, &options, |_| ControlFlow::Continue(()))).unwrap();
    for (prompt, found) in prompts.iter().zip(&batch.ids) {
        assert_eq!(prompt.len() + found.len(), 64);
        assert_eq!(*found, ids(&model, prompt, &options).unwrap());
    }
}

/// The message of an argument error.
fn refusal(result: Result<Vec<u32>, Error>) -> String {
    match result {
        Err(error @ Error::Argument { .. }) => error.to_string(),
        other => panic!("expected an argument error, got {other:?}"),
    }
}

#[test]
fn bad_arguments_are_named() {
    let model = load(&plain_gpu(), &tiny()).unwrap();
    let options = Generate::new();
    let long: Vec<u32> = vec![1; 65];
    for (prompt, expected) in [
        (&[][..], "prompt: found no tokens, expected at least one token"),
        (&long, "prompt: found 65 tokens, expected at most the model's 64"),
        (&[1, 101], "token id: found 101, expected below the vocabulary size 101"),
    ] {
        assert_eq!(refusal(ids(&model, prompt, &options)), expected);
    }
    for (options, name) in [
        (Generate::new().temperature(-1.0), "temperature"),
        (Generate::new().temperature(f32::NAN), "temperature"),
        (Generate::new().temperature(f32::INFINITY), "temperature"),
        (Generate::new().top_k(0), "top-k"),
        (Generate::new().top_p(0.0), "top-p"),
        (Generate::new().top_p(1.5), "top-p"),
        (Generate::new().top_p(f32::NAN), "top-p"),
    ] {
        let message = refusal(ids(&model, &[1], &options));
        assert!(message.starts_with(name), "{message}");
    }
    // The model still works.
    assert_eq!(ids(&model, &[1], &Generate::new().max_new(2)).unwrap().len(), 2);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_allocated() {
    let gpu = gpu(GpuOptions::new().kernels(KernelChoice::Tuned).memory_limit(1 << 20));
    match load(&gpu, &Source::demo()) {
        Err(Error::TooLarge { need, have, .. }) => {
            let planned = block_on(headwise::ModelInfo::read(&Source::demo())).unwrap();
            assert_eq!(need, planned.weight_bytes(Precision::F16));
            assert_eq!(have, 1 << 20);
        }
        other => panic!("expected TooLarge, got {:?}", other.map(|_| "a model")),
    }
    assert_eq!(gpu.allocated_bytes(), 0);
}

#[test]
fn a_context_that_a_software_adapter_would_get_wrong_is_refused() {
    let gpu = plain_gpu();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("very-long-context");
    std::fs::create_dir_all(&folder).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jetmoe_tiny");
    let config = std::fs::read_to_string(fixture.join("config.json")).unwrap().replace(": 64,", ": 20000,");
    std::fs::write(folder.join("config.json"), config).unwrap();
    std::fs::copy(fixture.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    let model = load(&gpu, &Source::folder(&folder)).unwrap();
    assert_eq!(model.info().context, 20_000);
    let result = ids(&model, &[1], &Generate::new().max_new(16_000));
    if gpu.capabilities().software {
        assert_eq!(refusal(result), "context: found 16001, expected at most 12288 on a software adapter");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_plan_is_what_is_allocated() {
    for precision in [Precision::F32, Precision::F16] {
        let gpu = plain_gpu();
        let options = LoadOptions::new().precision(precision);
        let model = block_on(Model::load(&gpu, &Source::demo(), options)).unwrap();
        assert_eq!(gpu.allocated_bytes(), model.info().weight_bytes(precision));
    }
}

#[test]
fn a_decoded_token_takes_at_most_seven_dispatches_per_layer_and_one_pass() {
    let model = load(&plain_gpu(), &Source::demo()).unwrap();
    let counters = |max_new| {
        let options = Generate::new().greedy().max_new(max_new);
        block_on(model.generate_ids(&[&[1, 2, 3]], &options, |_| ControlFlow::Continue(()))).unwrap().counters
    };
    let (short, long) = (counters(10), counters(30));
    let tokens = 20;
    assert_eq!(long.passes - short.passes, tokens);
    let per_token = (long.dispatches - short.dispatches) as f64 / tokens as f64;
    // Embedding, final norm, output head and argmax come once.
    let per_layer = (per_token - 4.0) / f64::from(model.info().layers);
    assert!(per_layer <= 7.0, "{per_layer} dispatches per layer and token");
    assert_eq!(per_layer.fract(), 0.0, "{per_token} dispatches per token");
}

#[test]
fn f32_and_f16_storage_write_the_same_text() {
    let text = |precision| {
        let options = LoadOptions::new().precision(precision);
        let model = block_on(Model::load(&plain_gpu(), &Source::demo(), options)).unwrap();
        ids(&model, &[1, 200, 30], &Generate::new().greedy().max_new(16)).unwrap()
    };
    // The file is f16, so f32 holds the same numbers.
    assert_eq!(text(Precision::F32), text(Precision::F16));
}

/// The fixture with room for 1,000 positions. The caller removes the folder.
fn tiny_with_a_long_context(name: &str) -> std::path::PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jetmoe_tiny");
    let config = std::fs::read_to_string(fixture.join("config.json")).unwrap().replace(": 64,", ": 1000,");
    std::fs::write(folder.join("config.json"), config).unwrap();
    std::fs::copy(fixture.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    folder
}

/// Alone, a short prompt's cache starts with one page and grows; beside a long prompt there is room from the start. Both
/// stay below the keys that are split.
#[test]
fn a_cache_that_grew_gives_the_same_bits() {
    let folder = tiny_with_a_long_context("a-cache-that-grew");
    for cache in [CachePrecision::F32, CachePrecision::F16] {
        let options = LoadOptions::new().cache_precision(cache);
        let model = block_on(Model::load(&plain_gpu(), &Source::folder(&folder), options)).unwrap();
        let long: Vec<u32> = (0..130).map(|i| (i * 37 + 11) % 101).collect();
        let run = |prompts: &[&[u32]], count: usize| {
            let mut gates = Vec::new();
            let options = Generate::new().greedy().stop_at([]).with_routes().max_new(count);
            let generation = block_on(model.generate_ids(prompts, &options, |token| {
                if token.sequence == 0 && !token.prompt {
                    let routes = token.routes.iter().flat_map(|routes| &routes.layers);
                    let choices = routes.flat_map(|layer| layer.attention.iter().chain(&layer.mlp));
                    gates.extend(choices.map(|choice| choice.gate.to_bits()));
                }
                ControlFlow::Continue(())
            }));
            (generation.unwrap().ids[0].clone(), gates)
        };
        let ungrown = run(&[&long[..10], &long], 110);
        assert_eq!((ungrown.0.len(), ungrown.1.is_empty()), (110, false));
        assert!(run(&[&long[..10]], 110) == ungrown, "{cache:?}: the grown cache differs");
        assert!(run(&[&long[..10], &long[5..20]], 110) == ungrown, "{cache:?}: the grown batch differs");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Bytes on the GPU beyond the weights when the `at`-th token is told, of a generation of at most `max_new`.
fn bytes_at(gpu: &Gpu, model: &Model, at: usize, max_new: usize) -> u64 {
    let weights = gpu.allocated_bytes();
    let (mut seen, mut bytes) = (0, 0);
    let options = Generate::new().greedy().stop_at([]).max_new(max_new);
    block_on(model.generate_ids(&[&[1, 7, 42]], &options, |_| {
        seen += 1;
        if seen == at {
            bytes = gpu.allocated_bytes() - weights;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }))
    .unwrap();
    bytes
}

#[test]
fn a_cache_takes_the_pages_it_needs_not_the_whole_context() {
    let folder = tiny_with_a_long_context("pages");
    for (cache, bytes) in [(CachePrecision::F32, 4), (CachePrecision::F16, 2)] {
        let gpu = plain_gpu();
        let options = LoadOptions::new().cache_precision(cache);
        let model = block_on(Model::load(&gpu, &Source::folder(&folder), options)).unwrap();
        let of_token = model.info().cache_bytes(cache);
        assert_eq!(of_token, model.info().cache_bytes_per_token / 4 * bytes);
        // The same layout, so the same scratch, and all buffers for readbacks: only what has been written differs.
        let [one, two, four] = [20, 80, 200].map(|at| bytes_at(&gpu, &model, at, 900));
        // One table of (cos, sin) for half of a head's channels.
        let angles = 8 * u64::from(model.info().attention.head_dim / 2);
        assert_eq!(two - one, 64 * (of_token + angles), "{cache:?}: from 64 to 128 positions");
        assert_eq!(four - two, 128 * (of_token + angles), "{cache:?}: from 128 to 256 positions");
        // With all pages, 903 positions would take more than the whole session does.
        assert!(one < 903 * of_token, "{cache:?}: {one} bytes, {of_token} a token");
        // Nothing is left of any of it.
        gpu.settle().unwrap();
        drop(model);
        assert_eq!(gpu.allocated_bytes(), 0);
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_cache_that_cannot_grow_is_an_error_after_the_text_so_far() {
    let folder = tiny_with_a_long_context("no-room-to-grow");
    let free = plain_gpu();
    let model = load(&free, &Source::folder(&folder)).unwrap();
    // Room for the first page and not for the second.
    let limit = free.allocated_bytes() + bytes_at(&free, &model, 1, 900);
    let gpu = gpu(GpuOptions::new().kernels(KernelChoice::Tuned).default_limits(true).memory_limit(limit));
    let model = load(&gpu, &Source::folder(&folder)).unwrap();
    let mut told = Vec::new();
    let options = Generate::new().greedy().stop_at([]).max_new(900);
    let result = block_on(model.generate_ids(&[&[1, 7, 42]], &options, |token| {
        told.push(token.id);
        ControlFlow::Continue(())
    }));
    match result {
        Err(Error::TooLarge { what, .. }) => assert_eq!(what, "growing the cache from 64 to 128 positions"),
        other => panic!("expected TooLarge, got {other:?}"),
    }
    // 64 positions are read; the last of them chose one more token.
    assert_eq!(told.len(), 64 - 3 + 1);
    // The model still works.
    assert_eq!(ids(&model, &[1, 7, 42], &Generate::new().greedy().max_new(20)).unwrap(), told[..20]);
    std::fs::remove_dir_all(folder).unwrap();
}

/// Twice the rounding of f16, 2⁻¹¹, in keys and values, through all layers.
#[test]
fn a_cache_of_f16_changes_logits_by_less_than_5e_3() {
    let prompt: Vec<u32> = (0..60).map(|i| (i * 37 + 11) % 101).collect();
    for kernels in [KernelChoice::Plain, KernelChoice::Broadcast] {
        let gpu = gpu(GpuOptions::new().default_limits(true).kernels(kernels));
        let logits = |cache| {
            let options = LoadOptions::new().cache_precision(cache);
            let model = block_on(Model::load(&gpu, &tiny(), options)).unwrap();
            block_on(model.logits(&[&prompt])).unwrap().remove(0).values
        };
        let (exact, half) = (logits(CachePrecision::F32), logits(CachePrecision::F16));
        assert_ne!(exact, half, "f16 rounds");
        let largest = exact.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        for (exact, half) in exact.iter().zip(half) {
            assert!((exact - half).abs() <= 5e-3 * largest, "{half} instead of {exact}, {largest} at most");
        }
    }
}
