//! Numbers so small that f16 does not have them, as values or as scales.

use std::path::{Path, PathBuf};

use headwise::{Error, KernelChoice, LoadOptions, Precision, QuantizeOptions, quantize};
use safetensors::Dtype;

use crate::{
    command::{TINY, fails, folder, stdout},
    files::{decode, encode, read, refused, unique, write_model},
    models::{difference, logits, try_load},
    reference::{
        jetmoe::{JetMoe, read_json},
        moh_llama::MohLlama,
    },
};

/// A Llama whose norms see a token's embedding and nothing else.
const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/moh_llama_tiny");
const TABLE: &str = "model.embed_tokens.weight";
const KEYS: &str = "model.layers.0.self_attention.kv_proj.weight";
const QUERY: &str = "model.layers.1.self_attention.experts.input_linear.weight";
const ALL: [Precision; 3] = [Precision::F16, Precision::Q8, Precision::Q4];

/// The width of the tiny models, and so of every row of [`TABLE`] and [`KEYS`].
const WIDTH: usize = 32;

/// The tiny JetMoE in bf16, with the values of `name` that `chosen` names by their place scaled.
fn scaled(name: &str, scale: f64, chosen: impl Fn(usize) -> bool) -> PathBuf {
    changed(TINY, name, |at, value| if chosen(at) { value * scale } else { value })
}

/// A model in bf16, with each value of `name` made of its place and what it is.
fn changed(base: &str, name: &str, change: impl Fn(usize, f64) -> f64) -> PathBuf {
    let model = folder(&format!("small-values-{}", unique())).join("model");
    let base = PathBuf::from(base);
    let mut tensors = read(&base.join("model.safetensors"));
    for (other, tensor) in &mut tensors {
        let mut values = decode(tensor);
        for (at, value) in values.iter_mut().enumerate().filter(|_| other == name) {
            *value = change(at, *value);
        }
        *tensor = (Dtype::BF16, tensor.1.clone(), encode(&values, Dtype::BF16));
    }
    write_model(&model, &read_json(&base.join("config.json")), &tensors);
    model
}

fn load(model: &Path, precision: Precision) -> Result<headwise::Model, Error> {
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

/// The Llama with a changed table, and norms that make any row large again.
fn llama(change: impl Fn(usize, f64) -> f64) -> PathBuf {
    let model = changed(LLAMA, TABLE, change);
    let path = model.join("config.json");
    let mut config = read_json(&path);
    config["rms_norm_eps"] = 1e-12.into();
    std::fs::write(&path, config.to_string()).unwrap();
    model
}

/// The reference's logits in f64, of the Llama as it is and with its table rounded to f16.
fn logits_before_and_after(model: &Path, ids: &[u32]) -> [Vec<f64>; 2] {
    let mut tensors = read(&model.join("model.safetensors"));
    let table = tensors.iter_mut().find(|(name, _)| name.as_str() == TABLE).unwrap().1;
    let rounded = decode(&(Dtype::F16, table.1.clone(), encode(&decode(table), Dtype::F16)));
    *table = (Dtype::F32, table.1.clone(), encode(&rounded, Dtype::F32));
    let after = model.with_file_name("rounded");
    write_model(&after, &read_json(&model.join("config.json")), &tensors);
    [model, &after].map(|model| MohLlama::load(model).forward(ids).logits)
}

#[test]
fn one_ordinary_row_hides_no_lost_ones() {
    let ids = [1, 5, 9, 17, 33, 2, 60, 50, 7];
    // One trained token, and all others small; then a tenth of the rows as they were, and all but seven.
    type Change = fn(usize, f64) -> f64;
    let tables: [(&str, Change); 4] = [
        ("60 of 61 rows", |at, value| if at < WIDTH { 1.0 } else { value * 1e-7 }),
        ("60 of 61 rows", |at, value| if at < WIDTH { 1.0 } else { value * 1e-6 }),
        ("54 of 61 rows", |at, value| if !(at / WIDTH).is_multiple_of(10) { value * 1e-7 } else { value }),
        ("7 of 61 rows", |at, value| if (5..12).contains(&(at / WIDTH)) { value * 1e-7 } else { value }),
    ];
    for (rows, change) in tables {
        let model = llama(change);
        let [before, after] = logits_before_and_after(&model, &ids);
        let largest = before.iter().fold(0.0, |most: f64, z| most.max(z.abs()));
        let lost = before.iter().zip(&after).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
        assert!(lost > 2e-3 * largest, "{rows}: {lost} of {largest}");
        let parts = [TABLE, "values so small that f16 loses", rows, "`--precision f32` keeps them"];
        for scheme in ALL {
            let error = load(&model, scheme).err().unwrap_or_else(|| panic!("{rows}")).to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
        let found = logits(&load(&model, Precision::F32).unwrap(), &ids, 64);
        assert!(difference(&found, &before) < 2e-4 * largest.min(1.0), "{rows}");
    }
    // A matrix that is quantised: 1 of 16 rows as they were.
    let model = scaled(KEYS, 1e-8, |at| !(at / WIDTH).is_multiple_of(16));
    for scheme in ALL {
        let error = load(&model, scheme).err().unwrap_or_else(|| panic!("{scheme:?}")).to_string();
        assert!(error.contains(KEYS) && error.contains(scheme.name()), "{error}");
    }
}

#[test]
fn small_values_that_do_not_matter_are_no_reason_to_refuse() {
    // A row of 17 (padding, dead outputs) or nine values of ten, as pruning and weight decay leave them.
    let row = |at: usize| at / WIDTH % 17 == 4;
    for (name, chosen) in [(TABLE, row as fn(usize) -> bool), (KEYS, row), (KEYS, |at| at % 10 > 0)] {
        let model = scaled(name, 1e-7, chosen);
        for scheme in ALL {
            load(&model, scheme).unwrap_or_else(|error| panic!("{error}"));
        }
    }
    // A text without such tokens has the logits that it had, but for roundings to f16.
    let model = llama(|at, value| if at / WIDTH % 21 == 4 { value * 1e-7 } else { value });
    let ids = [1, 5, 9, 17, 33, 2, 60, 50, 7];
    let [before, after] = logits_before_and_after(&model, &ids);
    assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 1e-2 * a.abs().max(1.0)));
    for scheme in ALL {
        load(&model, scheme).unwrap_or_else(|error| panic!("{error}"));
    }
    // Most rows zero, as pruning leaves them.
    for scheme in ALL {
        load(&scaled(TABLE, 0.0, |at| at / WIDTH > 8), scheme).unwrap_or_else(|error| panic!("{error}"));
    }
    // Above what f16 has in full, and somewhat below.
    for scale in [1.0, 1e-2, 1e-3] {
        for scheme in ALL {
            load(&scaled(KEYS, scale, |_| true), scheme).unwrap_or_else(|error| panic!("{scale}: {error}"));
        }
    }
}
