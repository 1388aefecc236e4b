//! What the tests of whole models share: loading, logits, comparing routes.
#![allow(dead_code)] // each test binary uses its own part

use std::path::Path;

use headwise::{
    Choice, Error, Gpu, GpuOptions, KernelChoice, LayerRoutes, LoadOptions, Logits, Model, Source, block_on,
};
use serde_json::Value;

use crate::reference::{max_difference, norm_router::Routes, widen};

/// Every shape of the hot kernels.
pub const SHAPES: [KernelChoice; 4] =
    [KernelChoice::Plain, KernelChoice::Broadcast, KernelChoice::Workgroup, KernelChoice::Subgroup];

/// Tokens whose kept and dropped scores are closer than this may be routed either way. None are here.
const ROUTE_MARGIN: f64 = 1e-4;

/// A model on a device with WebGPU's default limits.
pub fn try_load(kernels: KernelChoice, folder: &Path, options: LoadOptions<'_>) -> Result<Model, Error> {
    let gpu = GpuOptions::new().default_limits(true).kernels(kernels);
    let gpu = block_on(Gpu::new(gpu)).expect("these tests need a GPU adapter: scripts/setup vulkan");
    block_on(Model::load(&gpu, &Source::folder(folder), options))
}

/// A model of this repository.
pub fn load(kernels: KernelChoice, folder: &str) -> Model {
    let mut above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let root = above.find(|dir| dir.join("shaders").is_dir()).expect("the folder of the library");
    try_load(kernels, &root.join(folder), LoadOptions::new()).unwrap()
}

pub fn logits(model: &Model, ids: &[u32], step_tokens: usize) -> Logits {
    block_on(model.logits_in_steps(&[ids], step_tokens)).unwrap().remove(0)
}

/// The largest difference; NaN counts as infinite.
pub fn difference(found: &Logits, expected: &[f64]) -> f64 {
    max_difference(&widen(&found.values), expected)
}

/// All numbers of nested arrays, in order.
pub fn numbers(value: &Value) -> Vec<f64> {
    match value.as_array() {
        Some(values) => values.iter().flat_map(numbers).collect(),
        None => vec![value.as_f64().unwrap()],
    }
}

pub fn ids(values: &[f64]) -> Vec<u32> {
    values.iter().map(|&id| id as u32).collect()
}

/// Compares one router's choices with the expected ones: experts as sets, gates within 1e-5.
pub fn assert_routes(
    found: &Logits,
    router: impl Fn(&LayerRoutes) -> &[Choice],
    layer: usize,
    expected: &Routes,
) {
    let choices: Vec<Choice> =
        found.routes.iter().flat_map(|token| router(&token.layers[layer]).iter().copied()).collect();
    let experts: Vec<u32> = choices.iter().map(|choice| choice.expert).collect();
    let gates: Vec<f64> = choices.iter().map(|choice| f64::from(choice.gate)).collect();
    let matched = expected.compare(&experts, &gates, ROUTE_MARGIN).unwrap();
    assert_eq!(matched.skipped, 0);
    assert!(matched.gate_error < 1e-5, "layer {layer}: gates differ by {}", matched.gate_error);
}
