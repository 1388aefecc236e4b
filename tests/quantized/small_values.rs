//! Numbers so small that f16 does not have them, as values or as scales.

use std::path::PathBuf;

use headwise::{Error, KernelChoice, LoadOptions, Precision, QuantizeOptions, quantize};
use safetensors::Dtype;

use crate::{
    command::{TINY, fails, folder, stdout},
    files::{decode, encode, read, refused, unique, write_model},
    models::{difference, logits, try_load},
    reference::jetmoe::{JetMoe, read_json},
};

const TABLE: &str = "model.embed_tokens.weight";
const KEYS: &str = "model.layers.0.self_attention.kv_proj.weight";
const QUERY: &str = "model.layers.1.self_attention.experts.input_linear.weight";
const ALL: [Precision; 3] = [Precision::F16, Precision::Q8, Precision::Q4];

/// The tiny JetMoE in bf16, with the values of `name` that `chosen` names by their place scaled.
fn scaled(name: &str, scale: f64, chosen: impl Fn(usize) -> bool) -> PathBuf {
    let model = folder(&format!("small-values-{}", unique())).join("model");
    let tiny = PathBuf::from(TINY);
    let mut tensors = read(&tiny.join("model.safetensors"));
    for (other, tensor) in &mut tensors {
        let mut values = decode(tensor);
        for (_, value) in values.iter_mut().enumerate().filter(|(at, _)| other == name && chosen(*at)) {
            *value *= scale;
        }
        *tensor = (Dtype::BF16, tensor.1.clone(), encode(&values, Dtype::BF16));
    }
    write_model(&model, &read_json(&tiny.join("config.json")), &tensors);
    model
}

fn load(model: &std::path::Path, precision: Precision) -> Result<headwise::Model, Error> {
    try_load(KernelChoice::Plain, model, LoadOptions::new().precision(precision))
}

#[test]
fn a_tensor_that_f16_would_lose_is_refused_by_name_and_f32_keeps_it() {
    // The table stays f16 with q8 and q4.
    for (name, scale, schemes) in
        [(TABLE, 1e-7, &ALL[..]), (KEYS, 1e-7, &ALL), (QUERY, 1e-6, &ALL[..1]), (QUERY, 1e-30, &ALL)]
    {
        let model = scaled(name, scale, |_| true);
        for &scheme in schemes {
            let stored = if name == TABLE { "f16" } else { scheme.name() };
            let parts = [
                "model.safetensors: tensor",
                name,
                &format!("found values so small that {stored}"),
                "% of their root mean square",
                "`--precision f32` keeps them",
            ];
            let error =
                load(&model, scheme).err().unwrap_or_else(|| panic!("{name} in {scheme:?}")).to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
            let out = model.with_file_name("out");
            refused(quantize(&model, &out, QuantizeOptions::new(scheme)), &out, &parts);
        }
        let ids = [1, 5, 9, 17, 33, 2, 60, 50, 7];
        let oracle = JetMoe::load(&model);
        let expected = oracle.forward(&mut oracle.cache(ids.len()), &ids).logits;
        let found = logits(&load(&model, Precision::F32).unwrap(), &ids, 64);
        let largest = expected.iter().fold(0.0, |most: f64, z| most.max(z.abs()));
        assert!(difference(&found, &expected) < 2e-4 * largest.min(1.0), "{name}");
    }
    let model = scaled(TABLE, 1e-7, |_| true);
    let (path, args) = (model.to_str().unwrap(), ["generate", "--ids", "1,2", "--max-new", "1", "--model"]);
    fails(&[&args[..], &[path]].concat(), &[TABLE, "`--precision f32` keeps them"]);
    stdout(&[&args[..], &[path, "--precision", "f32"]].concat());
}

#[test]
fn small_values_that_do_not_matter_are_no_reason_to_refuse() {
    // Nine rows of ten, or nine values of ten, as pruning and weight decay leave them.
    for (name, chosen) in [(TABLE, (|at| at / 32 % 10 > 0) as fn(usize) -> bool), (KEYS, |at| at % 10 > 0)] {
        let model = scaled(name, 1e-7, chosen);
        for scheme in ALL {
            load(&model, scheme).unwrap_or_else(|error| panic!("{error}"));
        }
    }
    // Above what f16 has in full, and somewhat below.
    for scale in [1.0, 1e-2, 1e-3] {
        for scheme in ALL {
            load(&scaled(KEYS, scale, |_| true), scheme).unwrap_or_else(|error| panic!("{scale}: {error}"));
        }
    }
}
