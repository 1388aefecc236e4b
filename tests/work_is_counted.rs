//! The promise: the counters of a generation are exact. The oracle is arithmetic over the shapes in the file's header.

use std::{fs, ops::ControlFlow, path::Path};

use headwise::{
    Counters, Generate, Gpu, GpuOptions, KernelChoice, LoadOptions, Model, Precision, Source, block_on,
};
use serde_json::Value;

/// What the tiny JetMoE's config says.
const EXPERTS: u64 = 4;
const ACTIVE: u64 = 2;
const LAYERS: u64 = 2;
const WIDTH: u64 = 32;
/// Floats of a position's keys, and of its values.
const KEYS: u64 = 2 * 8;

const PROMPT: [u32; 12] = [1, 7, 42, 3, 99, 12, 5, 64, 8, 21, 33, 2];

fn tiny() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jetmoe_tiny").display().to_string()
}

fn model(kernels: KernelChoice, precision: Precision) -> Model {
    let options = GpuOptions::new().default_limits(true).kernels(kernels);
    let gpu = block_on(Gpu::new(options)).expect("these tests need a GPU adapter: scripts/setup vulkan");
    block_on(Model::load(&gpu, &Source::folder(tiny()), LoadOptions::new().precision(precision))).unwrap()
}

fn counters(model: &Model, prompt: &[u32], max_new: usize) -> Counters {
    let options = Generate::new().greedy().stop_at([]).max_new(max_new);
    block_on(model.generate_ids(&[prompt], &options, |_| ControlFlow::Continue(()))).unwrap().counters
}

/// Elements of the routed matrices in all experts, of the dense matrices and of the routers, from the file's header. Every
/// width is a multiple of 8, so rows have no padding.
fn elements() -> [u64; 3] {
    let bytes = fs::read(format!("{}/model.safetensors", tiny())).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut sums = [0; 3];
    for (name, tensor) in header.as_object().unwrap() {
        let shape: Vec<u64> = match tensor["shape"].as_array() {
            Some(shape) => shape.iter().map(|n| n.as_u64().unwrap()).collect(),
            None => continue, // the file's metadata
        };
        let kind = match shape.len() {
            3 => 0,
            2 if name.contains("router") => 2,
            // The embedding table is the output head, too.
            2 => 1,
            _ => continue, // norms and biases
        };
        sums[kind] += shape.iter().product::<u64>();
    }
    sums
}

fn variants() -> impl Iterator<Item = (KernelChoice, Precision, u64)> {
    [KernelChoice::Plain, KernelChoice::Broadcast, KernelChoice::Workgroup, KernelChoice::Subgroup]
        .into_iter()
        .flat_map(|kernels| [(kernels, Precision::F32, 4), (kernels, Precision::F16, 2)])
}

#[test]
fn a_decoded_token_needs_its_own_experts_and_all_keys_before_it() {
    let [routed, dense, routers] = elements();
    for (kernels, precision, size) in variants() {
        let model = model(kernels, precision);
        let (before, after) = (counters(&model, &PROMPT[..3], 9), counters(&model, &PROMPT[..3], 10));
        let weights = size * (routed / EXPERTS * ACTIVE + dense + WIDTH) + 4 * routers;
        assert_eq!(after.weight_bytes - before.weight_bytes, weights, "{kernels:?} {precision:?}");
        // Three of the prompt and eight that were fed before this one are read; its own position is written, and read by
        // nobody: attention takes it from where it was computed.
        let cache = LAYERS * 4 * 2 * KEYS * (11 + 1);
        assert_eq!(after.bytes - before.bytes, weights + cache, "{kernels:?} {precision:?}");
        // Each weight that is a factor, then q·k and weight·v of both heads of both experts.
        let macs = routed / EXPERTS * ACTIVE + dense + routers + LAYERS * ACTIVE * 2 * KEYS * 12;
        assert_eq!(after.macs - before.macs, macs, "{kernels:?} {precision:?}");
    }
}

#[test]
fn a_prompt_needs_each_expert_and_each_key_once() {
    let [routed, dense, routers] = elements();
    for (kernels, precision, size) in variants() {
        let tokens = PROMPT.len() as u64;
        let found = counters(&model(kernels, precision), &PROMPT, 1);
        let weights = size * (routed + dense + tokens * WIDTH) + 4 * routers;
        assert_eq!(found.weight_bytes, weights, "{kernels:?} {precision:?}");
        let cache = LAYERS * 4 * 2 * KEYS * (tokens + tokens);
        assert_eq!(found.bytes, weights + cache, "{kernels:?} {precision:?}");
    }
}
