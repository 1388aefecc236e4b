//! The promise: a model computes what its original implementation computes.

mod reference;

use std::{ops::ControlFlow, path::Path};

use headwise::{Generate, Gpu, GpuOptions, KernelChoice, LoadOptions, Logits, Model, Source};

const SHAPES: [KernelChoice; 3] = [KernelChoice::Plain, KernelChoice::Workgroup, KernelChoice::Subgroup];

fn gpu(kernels: KernelChoice) -> Gpu {
    let options = GpuOptions::new().default_limits(true).kernels(kernels);
    pollster::block_on(Gpu::new(options)).expect("these tests need a GPU adapter; `scripts/setup vulkan` installs one")
}

fn load(gpu: &Gpu, folder: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    pollster::block_on(Model::load(gpu, &Source::folder(folder), LoadOptions::new())).unwrap()
}

fn logits(model: &Model, ids: &[u32], step: usize) -> Logits {
    pollster::block_on(model.logits_in_steps(&[ids], step)).unwrap().remove(0)
}

/// The largest difference; NaN counts as infinite.
fn largest_difference(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).abs());
    differences.fold(0.0, |most, d| if d.is_nan() { f64::INFINITY } else { most.max(d) })
}

#[test]
fn jetmoe_tiny_matches_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jetmoe_tiny");
    let expected = reference::jetmoe::read_json(&folder.join("expected.json"));
    let ids: Vec<u32> = expected["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let wanted: Vec<f64> = expected["logits"].as_array().unwrap().iter()
        .flat_map(|row| row.as_array().unwrap().iter().map(|z| z.as_f64().unwrap())).collect();
    for shape in SHAPES {
        let model = load(&gpu(shape), "tests/fixtures/jetmoe_tiny");
        for step in [1, 3, 5, 64] {
            let found = logits(&model, &ids, step);
            let difference = largest_difference(&found.values, &wanted);
            println!("{shape:?} step {step}: {difference:e}");
            assert!(difference < 2e-4, "{shape:?}, steps of {step}: {difference}");
        }
    }
}

#[test]
fn prose_greedy() {
    let expected = reference::jetmoe::read_json(Path::new("models/prose/reference.json"));
    let gpu = gpu(KernelChoice::Auto);
    let model = load(&gpu, "models/prose");
    for prompt in expected["prompts"].as_array().unwrap() {
        let start = std::time::Instant::now();
        let mut text = String::new();
        let g = pollster::block_on(model.generate(prompt["text"].as_str().unwrap(), &Generate::new().greedy().max_new(48), |t| {
            text.push_str(&t.text);
            ControlFlow::Continue(())
        })).unwrap();
        println!("{text} {:?} {:?}", start.elapsed(), g.counters);
        assert_eq!(text, prompt["greedy"].as_str().unwrap());
    }
}
