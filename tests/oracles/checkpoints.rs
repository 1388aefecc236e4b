//! The random checkpoints, and through them that every layout is read whole.

use std::path::{Path, PathBuf};

use crate::{
    reference::{
        checkpoints::{SEED, SOURCE, TARGET, image, plan, uniform, variants, write_random},
        decoder_families::Decoder,
        jetmoe::{read_safetensors, read_tensors},
        moa::Moa,
        norm_router::Routes,
        vit::VitMoh,
    },
    root,
};
use serde_json::Value;

/// Where a test may write a folder of its own.
pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("oracles").join(name)
}

/// The folder so named, written with random values.
pub fn written(name: &str, config: &Value) -> PathBuf {
    let folder = folder(name);
    write_random(&folder, config, SEED);
    folder
}

/// The logits of some input, and every router's choices on the way.
fn run(folder: &Path, config: &Value) -> (Vec<f64>, Vec<Routes>) {
    match (config["model_type"].as_str().unwrap(), config["task"].as_str()) {
        ("moa", task) => {
            let model = Moa::load(folder);
            let translates = task == Some("translation");
            let output = if translates { model.decode(&SOURCE, &TARGET) } else { model.fill(&SOURCE) };
            let layers = output.routes.into_iter().chain(model.encode(&SOURCE).routes);
            let routes = layers.flat_map(|layer| [Some(layer.attention), layer.cross]).flatten();
            (output.logits, routes.collect())
        }
        ("vit" | "vit_moh", _) => {
            let model = VitMoh::load(folder);
            let output = model.forward(&model.pixels(&image()));
            (output.logits, output.routes)
        }
        _ => {
            let output = Decoder::load(folder).forward(1, &SOURCE);
            let routes = output.routes.into_iter().flat_map(|of| [Some(of.attention), of.values, of.mlp]);
            (output.logits, routes.flatten().collect())
        }
    }
}

#[test]
fn values_come_from_the_generator_of_the_fixtures() {
    let tensors = read_safetensors(&root().join("tests/fixtures/moa_attn_tiny/model.safetensors"));
    let mut names: Vec<&String> = tensors.keys().collect();
    names.sort();
    for (i, name) in names.into_iter().enumerate() {
        let scale = if name == "q_proj.w_gate" { 2.0 } else { 0.8 };
        for (value, a) in tensors[name].iter().zip(uniform(901, i)) {
            assert!((value - scale * a).abs() < 1e-7, "{name}: {value} is not {scale} · {a}");
        }
    }
}

#[test]
fn every_variant_is_read_whole_and_runs_at_a_size_near_1_without_near_ties() {
    for (name, config) in variants() {
        let folder = written(&format!("variant-{name}"), &config);
        let tensors = read_tensors(&folder);
        for (tensor, (shape, _)) in plan(&config) {
            assert_eq!(tensors[&tensor].len(), shape.iter().product::<usize>(), "{name}: {tensor}");
        }
        let (logits, routes) = run(&folder, &config);
        let size = (logits.iter().map(|z| z * z).sum::<f64>() / logits.len() as f64).sqrt();
        assert!((0.2..5.0).contains(&size), "{name}: logits of size {size}");
        let margin = routes.iter().flat_map(|routes| &routes.margins).copied().fold(f64::INFINITY, f64::min);
        assert!(margin > 0.01, "{name}: a near-tie of {margin}, which f32 may break otherwise");
    }
}
