//! `headwise quantize`

use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use headwise::{Precision, QuantizeOptions, internal::pack_rows, quantize};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::{
    command::{PROSE, TINY, fails, fails_with, folder, headwise, json as run_json, read_json, run, stdout},
    files::{assert_clean, cut, decode, file_names, read, refused, write_model, write_shards},
    reference::quantize::Scheme,
};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A copy of a small model to spoil: JetMoE with widths of 32, in f32.
fn small(test: &str) -> (PathBuf, PathBuf) {
    let room = folder(&format!("quantize-{test}"));
    let (model, out) = (room.join("model"), room.join("out"));
    let (config, tensors) = small_model();
    write_model(&model, &config, &tensors);
    (model, out)
}

fn small_model() -> (Value, crate::files::Tensors) {
    let config = json!({
        "model_type": "jetmoe", "vocab_size": 5, "hidden_size": 32, "num_hidden_layers": 1,
        "num_key_value_heads": 1, "kv_channels": 32, "moe_top_k": 1, "moe_num_experts": 2,
        "ffn_hidden_size": 64, "n_positions": 8, "rms_norm_eps": 1e-5, "torch_dtype": "float32"
    });
    let shapes: [(&str, &[usize]); 13] = [
        ("model.embed_tokens.weight", &[5, 32]),
        ("model.norm.weight", &[32]),
        ("model.layers.0.input_layernorm.weight", &[32]),
        ("model.layers.0.self_attention.kv_proj.weight", &[64, 32]),
        ("model.layers.0.self_attention.experts.router.layer.weight", &[2, 32]),
        ("model.layers.0.self_attention.experts.input_linear.weight", &[2, 32, 32]),
        ("model.layers.0.self_attention.experts.output_linear.weight", &[2, 32, 32]),
        ("model.layers.0.self_attention.experts.bias", &[32]),
        ("model.layers.0.post_attention_layernorm.weight", &[32]),
        ("model.layers.0.mlp.router.layer.weight", &[2, 32]),
        ("model.layers.0.mlp.input_linear.weight", &[2, 128, 32]),
        ("model.layers.0.mlp.output_linear.weight", &[2, 32, 64]),
        ("model.layers.0.mlp.bias", &[32]),
    ];
    let tensor = |(name, shape): &(&str, &[usize])| {
        ((*name).to_owned(), crate::files::numbers(name, shape, Dtype::F32, 1))
    };
    (config, shapes.iter().map(tensor).collect())
}

const QUANTIZED: [&str; 5] = [
    "model.layers.0.self_attention.kv_proj.weight",
    "model.layers.0.self_attention.experts.input_linear.weight",
    "model.layers.0.self_attention.experts.output_linear.weight",
    "model.layers.0.mlp.input_linear.weight",
    "model.layers.0.mlp.output_linear.weight",
];

/// Every tensor and the whole config, from the original's own.
#[test]
fn the_folder_is_exactly_what_the_documentation_says() {
    for (name, precision, scheme) in [("q8", Precision::Q8, Scheme::Q8), ("q4", Precision::Q4, Scheme::Q4)] {
        let (model, out) = small(&format!("exact-{name}"));
        fs::write(model.join("tokenizer_config.json"), "{\"a\":1}").unwrap();
        fs::write(model.join("notes.txt"), "no").unwrap();
        let report = run_json(&["quantize", text(&model), text(&out), "--scheme", name, "--json"]);
        let (mut config, tensors) = small_model();
        config["headwise_quantization"] = json!({"version": 1, "scheme": name, "group": 32, "tensors": {}});
        let mut found = read(&out.join("model.safetensors"));
        for quantized in QUANTIZED {
            let (_, shape, _) = &tensors[quantized];
            config["headwise_quantization"]["tensors"][quantized] = shape.clone().into();
            let inputs = *shape.last().unwrap();
            let values: Vec<f32> = decode(&tensors[quantized]).iter().map(|&value| value as f32).collect();
            let mut bytes = Vec::new();
            pack_rows(precision, inputs, &values, &mut bytes).unwrap();
            let expected = vec![values.len() / inputs, scheme.row_bytes(inputs) / 4];
            assert_eq!(found.remove(&format!("{quantized}.{name}")), Some((Dtype::U32, expected, bytes)));
        }
        for (name, tensor) in tensors.iter().filter(|(name, _)| !QUANTIZED.contains(&name.as_str())) {
            let expected = match name.as_str() {
                "model.embed_tokens.weight" => {
                    let halves = decode(tensor).into_iter().flat_map(|v| f16::from_f64(v).to_le_bytes());
                    (Dtype::F16, tensor.1.clone(), halves.collect())
                }
                _ => tensor.clone(),
            };
            assert_eq!(found.remove(name), Some(expected), "{name}");
        }
        assert!(found.is_empty(), "{:?}", found.keys());
        assert_eq!(read_json(text(&out.join("config.json"))), config);
        assert_eq!(file_names(&out), ["config.json", "model.safetensors", "tokenizer_config.json"]);
        assert_eq!(fs::read(out.join("tokenizer_config.json")).unwrap(), b"{\"a\":1}");
        let note = "f16: model.embed_tokens.weight; the embedding table is the output head too";
        assert_eq!(report["notes"], json!([note]));
        assert_eq!(report["tensors"], 13);
        let parameters: usize = tensors.values().map(|tensor| tensor.1.iter().product::<usize>()).sum();
        assert_eq!(report["parameters"], parameters);
        assert_eq!(report["config"], config);
    }
}

#[test]
fn f16_keeps_names_and_layouts_and_converts_matrices_alone() {
    let (model, out) = small("f16");
    stdout(&["quantize", text(&model), text(&out), "--scheme", "f16"]);
    let (mut config, tensors) = small_model();
    config["torch_dtype"] = "float16".into();
    assert_eq!(read_json(text(&out.join("config.json"))), config);
    let found = read(&out.join("model.safetensors"));
    assert_eq!(found.len(), tensors.len());
    for (name, tensor) in &tensors {
        let matrix = QUANTIZED.contains(&name.as_str()) || name.contains("embed");
        let dtype = if matrix { Dtype::F16 } else { Dtype::F32 };
        assert_eq!((found[name].0, &found[name].1), (dtype, &tensor.1), "{name}");
        assert_eq!(decode(&found[name]), decode(tensor), "{name}: eighths, which f16 has");
    }
}

#[test]
fn shards_are_read_as_one_file_is() {
    let (model, out) = small("shards");
    let (config, tensors) = small_model();
    let shards = model.with_file_name("shards");
    write_shards(&shards, &tensors);
    fs::write(shards.join("config.json"), config.to_string()).unwrap();
    quantize(&model, &out, QuantizeOptions::new(Precision::Q4)).unwrap();
    let other = model.with_file_name("from-shards");
    quantize(&shards, &other, QuantizeOptions::new(Precision::Q4)).unwrap();
    let bytes = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert!(bytes(&out) == bytes(&other));
}

/// `info` and every command that generates read a quantised folder; it has one precision.
#[test]
fn commands_load_a_quantized_folder() {
    let out = folder("quantize-prose").join("out");
    let table = stdout(&["quantize", PROSE, text(&out), "--scheme", "q4", "--quiet"]);
    assert!(table.contains("tokenizer.json") && table.contains("10,021,824"), "{table}");
    let info = stdout(&["info", "--model", text(&out)]);
    for part in [
        "memory",
        "q4 ",
        "(default)",
        "f16: model.embed_tokens.weight, of which the first is the output head too",
    ] {
        assert!(info.contains(part), "no {part:?} in {info}");
    }
    assert!(!info.contains("q8"), "{info}");
    let ids = |model: &str, more: &[&str]| {
        let args = [
            &["generate", "--model", model, "--ids", "1,306,4", "--max-new", "6", "--greedy", "--print-ids"],
            more,
        ]
        .concat();
        stdout(&args)
    };
    assert_eq!(ids(text(&out), &[]), ids(PROSE, &["--precision", "q4"]));
    assert_eq!(ids(text(&out), &["--precision", "q4"]), ids(text(&out), &[]));
    fails_with(
        &["generate", "x", "--model", text(&out), "--precision", "f16"],
        "error: precision: found f16, expected q4, as the files are quantised\n",
    );
    fails(&["info", "--model", text(&out), "--precision", "q8", "--memory-limit", "1GiB"], &["expected q4"]);
    fails(
        &["quantize", text(&out), text(&out.with_file_name("again")), "--scheme", "q8"],
        &["config.json: headwise_quantization is not supported", "in q4 already"],
    );
    assert_clean(&out.with_file_name("again"));
}

#[test]
fn info_says_what_stays_f16() {
    let info = stdout(&["info"]);
    let kept = "f16 with q8 and q4: model.embed_tokens.weight, of which the first is the output head too";
    assert!(info.contains(kept), "{info}");
    let json = run_json(&["info", "--json"]);
    assert_eq!(
        (&json["kept_f16"], &json["quantized"]),
        (&json!(["model.embed_tokens.weight"]), &json!(false))
    );
    let names: Vec<&str> =
        json["memory"].as_array().unwrap().iter().map(|m| m["precision"].as_str().unwrap()).collect();
    assert_eq!(names, ["f32", "f16", "q8", "q4"]);
    let tiny = stdout(&["info", "--model", TINY]);
    assert!(tiny.contains(" more"), "{tiny}");
}

/// What happens to the input while it is read, after its first bytes were.
#[test]
fn one_version_of_the_input_is_read_or_none() {
    fn weights(model: &Path) -> PathBuf {
        model.join("model.safetensors")
    }
    fn rewrite(path: &Path, bytes: &[u8]) {
        // In place, and the time of the last change as it was.
        let time = fs::metadata(path).unwrap().modified().unwrap();
        fs::write(path, bytes).unwrap();
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }
    fn replace(path: &Path, bytes: &[u8]) {
        fs::write(path.with_extension("new"), bytes).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }
    fn other(path: &Path) -> Vec<u8> {
        let mut bytes = fs::read(path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes
    }
    type Change = fn(&Path);
    let changes: [(&str, Change, &str); 9] = [
        ("replaced", |m| replace(&weights(m), &other(&weights(m))), "model.safetensors"),
        (
            "replaced-by-the-same",
            |m| replace(&weights(m), &fs::read(weights(m)).unwrap()),
            "model.safetensors",
        ),
        ("rewritten", |m| rewrite(&weights(m), &other(&weights(m))), "model.safetensors"),
        ("removed", |m| fs::remove_file(weights(m)).unwrap(), "model.safetensors"),
        (
            "longer",
            |m| fs::write(weights(m), [other(&weights(m)), vec![0]].concat()).unwrap(),
            "model.safetensors",
        ),
        ("cut", |m| fs::write(weights(m), &other(&weights(m))[..9000]).unwrap(), "model.safetensors"),
        ("config", |m| rewrite(&m.join("config.json"), b"{}"), "config.json"),
        // Files that are read last.
        ("side", |m| rewrite(&m.join("generation_config.json"), b"{  }"), "generation_config.json"),
        (
            "side-removed",
            |m| fs::remove_file(m.join("generation_config.json")).unwrap(),
            "generation_config.json",
        ),
    ];
    let tried = changes.len();
    for (name, change, file) in changes {
        let (model, out) = small(&format!("changes-{name}"));
        fs::write(model.join("generation_config.json"), "{}").unwrap();
        let mut change = Some(change);
        let progress = |done: u64, _| {
            if let Some(change) = change.take_if(|_| done > 0) {
                change(&model);
            }
        };
        let result = quantize(&model, &out, QuantizeOptions::new(Precision::Q4).progress(progress));
        refused(result, &out, &[file]);
    }
    println!("{tried} inputs that change");
}

/// Ctrl-C while a gigabyte of zeros is written.
#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_folder() {
    use std::process::Command;
    let (model, out) = small("interrupted");
    let (mut config, _) = small_model();
    let rows = 8 << 20;
    config["vocab_size"] = rows.into();
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(model.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let (mut longer, mut end) = (serde_json::Map::new(), 0);
    for (name, mut tensor) in header {
        if name.contains("embed") {
            tensor["shape"][0] = rows.into();
        }
        let shape = tensor["shape"].as_array().unwrap();
        let start = end;
        end += 4 * shape.iter().map(|n| n.as_u64().unwrap()).product::<u64>();
        tensor["data_offsets"] = json!([start, end]);
        longer.insert(name, tensor);
    }
    let header = Value::Object(longer).to_string();
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    fs::write(model.join("model.safetensors"), &start).unwrap();
    // The rest takes no room on the disk.
    let file = fs::File::options().write(true).open(model.join("model.safetensors")).unwrap();
    file.set_len(start.len() as u64 + end).unwrap();

    let mut child = headwise(&["quantize", text(&model), text(&out), "--scheme", "q8"]).spawn().unwrap();
    let partial = out.with_file_name(".out.partial");
    while fs::read_dir(&partial).map_or(0, Iterator::count) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "ended before it was interrupted");
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_clean(&out);
}

#[test]
fn what_cannot_be_quantized_is_refused_and_leaves_nothing() {
    let q4 = || QuantizeOptions::new(Precision::Q4);
    let spoiled = |test: &str, name: &str, value: f32| {
        let (model, out) = small(test);
        let (config, mut tensors) = small_model();
        tensors.get_mut(name).unwrap().2[400..404].copy_from_slice(&value.to_le_bytes());
        write_model(&model, &config, &tensors);
        (model, out)
    };
    for (test, value, parts) in [
        ("nan", f32::NAN, ["kv_proj.weight\": found NaN", "at element 100, expected finite numbers"]),
        ("huge", 1e9, ["kv_proj.weight\": found 1000000000", "with scales in f16"]),
    ] {
        let (model, out) = spoiled(test, QUANTIZED[0], value);
        refused(quantize(&model, &out, q4()), &out, &parts);
    }
    let (model, out) = spoiled("kept", "model.embed_tokens.weight", 7e4);
    refused(quantize(&model, &out, q4()), &out, &["embed_tokens.weight\": found 70000", "below 65520"]);
    let (model, out) = small("cut");
    let cut = cut(model.join("model.safetensors"));
    refused(quantize(&model, &out, q4().progress(cut)), &out, &["model.safetensors: ", "found the end"]);
    let (model, out) = small("cancelled");
    let cancel = headwise::Cancel::new();
    let stop = |done, _| {
        if done > 0 {
            cancel.cancel()
        }
    };
    refused(quantize(&model, &out, q4().progress(stop).cancel(&cancel)), &out, &["cancelled"]);
    let (model, out) = small("scheme");
    refused(
        quantize(&model, &out, QuantizeOptions::new(Precision::F32)),
        &out,
        &["scheme: found f32, expected q8, q4 or f16"],
    );
    refused(quantize(model.join("no"), &out, q4()), &out, &["no/config.json"]);
    fs::write(model.join("config.json"), "{\"model_type\": \"gpt2\"}").unwrap();
    refused(quantize(&model, &out, q4()), &out, &["gpt2"]);

    let (model, out) = small("full");
    fs::create_dir_all(out.join("x")).unwrap();
    fails(&["quantize", text(&model), text(&out), "--scheme", "q4"], &["found a folder that is not empty"]);
    let (code, stdout, stderr) =
        run(&mut headwise(&["quantize", text(&model), text(&out), "--scheme", "q5"]));
    assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
    assert!(stderr.contains("q8, q4, f16"), "{stderr}");
}
