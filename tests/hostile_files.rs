//! Files are hostile: whatever is in a model folder, headwise answers with a model or with an error that names
//! the file and the place. It does not panic, does not allocate more than the file justifies, and does not leave
//! the folder.
#![cfg(not(target_arch = "wasm32"))]

#[path = "hostile_files/build.rs"]
mod build;
#[path = "hostile_files/header.rs"]
mod header;
#[path = "hostile_files/quantized.rs"]
mod quantized;
#[path = "hostile_files/random.rs"]
mod random;
#[path = "hostile_files/shards.rs"]
mod shards;
#[cfg(feature = "chat")]
#[path = "hostile_files/side_files.rs"]
mod side_files;
#[path = "hostile_files/sources.rs"]
mod sources;
#[cfg(feature = "tokenizer")]
#[path = "hostile_files/tokenizer.rs"]
mod tokenizer;

use build::{CONFIG, Folder, Model, WEIGHTS, refused};
use headwise::Source;
use headwise::fuzzing::{check_checkpoint, check_source};
use serde_json::json;
use std::path::Path;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

// -- the file as a whole -----------------------------------------------------------------------------

#[test]
fn what_is_whole_is_accepted() {
    Model::small().check().unwrap();
    check_source(&Source::folder(Path::new(FIXTURES).join("jetmoe_tiny"))).unwrap();
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let (weights, config) = (Model::small().weights(), Model::small().config());
    for end in 0..weights.len() {
        refused(check_checkpoint(&weights[..end], &config), &[WEIGHTS]);
    }
    for end in 0..config.len() {
        refused(check_checkpoint(&weights, &config[..end]), &[CONFIG, "JSON"]);
    }
    refused(check_checkpoint(&[&weights[..], &[0]].concat(), &config), &[WEIGHTS, "file length"]);
    let folder = Folder::new("cut").with("config.json", &config);
    for end in [0, 7, 8, 9, 500, weights.len() - 1] {
        std::fs::write(folder.0.join("model.safetensors"), &weights[..end]).unwrap();
        refused(folder.check(), &[WEIGHTS]);
    }
}

#[test]
fn absent_files_are_named() {
    let folder = Folder::new("absent");
    refused(folder.check(), &["config.json"]);
    let folder = folder.with("config.json", Model::small().config());
    refused(folder.check(), &["weights: found neither file", "model.safetensors.index.json"]);
    refused(check_source(&Source::folder("/no/such/folder")), &["/no/such/folder/config.json"]);
}

#[test]
fn folders_and_endless_devices_are_not_files() {
    let folder = Folder::new("special").with("config.json", Model::small().config());
    std::fs::create_dir(folder.0.join("model.safetensors")).unwrap();
    refused(folder.check(), &["model.safetensors: file type", "regular file"]);
    #[cfg(unix)]
    {
        std::fs::remove_dir(folder.0.join("model.safetensors")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.0.join("model.safetensors")).unwrap();
        refused(folder.check(), &["model.safetensors: file type", "regular file"]);
    }
}

// -- the tensors -------------------------------------------------------------------------------------

#[test]
fn tensors_that_are_missing_extra_or_misshaped_are_refused() {
    for at in 0..Model::small().tensors.len() {
        let mut missing = Model::small();
        let (name, ..) = missing.tensors.remove(at);
        refused(missing.check(), &[WEIGHTS.trim_end(), &name, "found none"]);
        let mut flat = Model::small();
        let shape = &mut flat.tensors[at].2;
        *shape = vec![shape.iter().product(), 1];
        refused(flat.check(), &[WEIGHTS, &name, "shape: found ["]);
    }
    for name in [
        "model.layers.1.mlp.bias",
        "lm_head.bias",
        "model.layers.0.self_attention.inv_freq",
        "model.layers.00.mlp.bias",
        "",
    ] {
        let mut extra = Model::small();
        extra.tensors.push((name.to_owned(), "F16".into(), vec![4], vec![0; 8]));
        refused(extra.check(), &[WEIGHTS, &format!("tensor {name:?}"), "unknown tensor"]);
    }
    let mut head = Model::small();
    head.tensors.push(("lm_head.weight".into(), "F16".into(), vec![3, 5], vec![0; 30]));
    refused(head.check(), &[WEIGHTS, "lm_head.weight", "found [3, 5], expected [3, 4]"]);
}

#[test]
fn numbers_that_are_not_finite_are_refused_in_every_tensor() {
    let bits = |dtype: &str| match dtype {
        "F32" => [0x7fc0_0000_u32, 0xff80_0001, 0x7f80_0000, 0xff80_0000],
        "F16" => [0x7e00, 0xfc01, 0x7c00, 0xfc00],
        _ => [0x7fc0, 0xff81, 0x7f80, 0xff80],
    };
    for at in 0..Model::small().tensors.len() {
        for (dtype, size) in [("F32", 4), ("F16", 2), ("BF16", 2)] {
            for (bits, shown) in bits(dtype).into_iter().zip(["NaN", "NaN", "inf", "-inf"]) {
                let mut model = Model::small();
                let (name, stored, _, bytes) = &mut model.tensors[at];
                let name = name.clone();
                *stored = dtype.to_owned();
                bytes.resize(bytes.len() / 2 * size, 0);
                bytes[3 * size..4 * size].copy_from_slice(&bits.to_le_bytes()[..size]);
                let found = format!("tensor {name:?}: found {shown} at element 3, expected finite numbers");
                refused(model.check(), &[WEIGHTS, &found]);
            }
        }
    }
}

#[test]
fn empty_tensors_may_lie_at_one_place() {
    let mut model = Model::small();
    for name in ["a.num_batches_tracked", "b.num_batches_tracked"] {
        model.tensors.insert(3, (name.to_owned(), "I64".into(), vec![0], vec![]));
    }
    model.check().unwrap();
}

#[test]
fn values_beyond_f16_are_refused_with_the_way_out() {
    let mut model = Model::small();
    let (_, dtype, _, bytes) = model.tensor("mlp.bias");
    *dtype = "BF16".to_owned();
    bytes[2..4].copy_from_slice(&0x7f7f_u16.to_le_bytes());
    refused(model.check(), &[WEIGHTS, "mlp.bias", "3389", "--precision f32"]);
}

// -- the config --------------------------------------------------------------------------------------

#[test]
fn configs_that_contradict_themselves_or_the_tensors_are_refused() {
    for (field, value, parts) in [
        ("moe_top_k", json!(3), [CONFIG, "moe_top_k: found 3, expected at most moe_num_experts, which is 2"]),
        ("moe_top_k", json!(u64::MAX), [CONFIG, "moe_top_k"]),
        ("num_local_experts", json!(3), [CONFIG, "moe_num_experts and num_local_experts: found 2 and 3"]),
        ("num_attention_heads", json!(2), [CONFIG, "num_attention_heads: found 2, expected 1"]),
        ("n_layer", json!(2), [CONFIG, "num_hidden_layers and n_layer"]),
        (
            "num_hidden_layers",
            json!(2),
            [WEIGHTS.trim_end(), "model.layers.1.input_layernorm.weight\": found none"],
        ),
        ("num_hidden_layers", json!(0), [CONFIG, "num_hidden_layers: found 0"]),
        ("num_hidden_layers", json!(1e18), [CONFIG, "num_hidden_layers"]),
        ("hidden_size", json!(8), [WEIGHTS, "found [2, 4, 4], expected [any, 4, 8]"]),
        ("vocab_size", json!(4), [WEIGHTS, "embed_tokens.weight\", shape: found [3, 4], expected [4, 4]"]),
        ("num_key_value_heads", json!(2), [WEIGHTS, "expected [any, 8, 4]"]),
        ("kv_channels", json!(128), [WEIGHTS, "expected [any, 128, 4]"]),
        ("ffn_hidden_size", json!(3), [WEIGHTS, "expected [2, 4, 3]"]),
        ("moe_num_experts", json!(4), [WEIGHTS, "expected [4, 4, 2]"]),
        ("tie_word_embeddings", json!(false), [WEIGHTS.trim_end(), "lm_head.weight\": found none"]),
        ("quantization_config", json!({"bits": 4}), [CONFIG, "quantization_config is not supported"]),
        ("model_type", json!("gpt2"), [CONFIG, "model_type = \"gpt2\" is not supported"]),
        ("model_type", json!(null), [CONFIG, "model_type: found no such field"]),
        ("hidden_act", json!("relu"), [CONFIG, "hidden_act = \"relu\" is not supported"]),
        ("rope_theta", json!(-1), [CONFIG, "rope_theta: found -1"]),
        ("rms_norm_eps", json!("1e-5"), [CONFIG, "rms_norm_eps: found \"1e-5\""]),
        ("vocab_size", json!([3]), [CONFIG, "vocab_size: found a list"]),
    ] {
        let mut model = Model::small();
        model.config[field] = value;
        refused(model.check(), &parts);
    }
}

#[test]
fn text_that_is_not_a_config_is_refused() {
    let weights = Model::small().weights();
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
    let long = format!("{{\"a\":\"{}\"}}", "a".repeat(1 << 20));
    for config in ["", "[]", "nul", "{\"a\":}", "{} x", &deep, "{\"vocab_size\":1e999}"] {
        refused(check_checkpoint(&weights, config.as_bytes()), &[CONFIG, "JSON"]);
    }
    refused(check_checkpoint(&weights, b"{\"model_type\":\"\xff\"}"), &[CONFIG, "JSON"]);
    refused(check_checkpoint(&weights, long.as_bytes()), &[CONFIG, "file length", "1.0 MiB"]);
    refused(check_checkpoint(&weights, b"{}"), &[CONFIG, "model_type"]);
}

// -- the folder of hostile files ---------------------------------------------------------------------

/// Each folder in `tests/fixtures/hostile` holds a model and, in `message.txt`, what its refusal must say, one
/// part a line. A file that once did harm gets a folder there.
#[test]
fn every_hostile_folder_is_refused() {
    let mut count = 0;
    for entry in std::fs::read_dir(Path::new(FIXTURES).join("hostile")).unwrap() {
        let folder = entry.unwrap().path();
        let message = std::fs::read_to_string(folder.join("message.txt")).unwrap();
        refused(check_source(&Source::folder(&folder)), &message.lines().collect::<Vec<_>>());
        count += 1;
    }
    assert!(count >= 8, "{count} folders");
}
