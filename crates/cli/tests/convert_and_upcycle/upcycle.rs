//! `upcycle`

use std::{
    fs,
    path::{Path, PathBuf},
};

use headwise::{Error, KvSharing, UpcycleOptions, WrittenModel, upcycle_bam};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::{
    command::{fails, folder, json as run_json},
    files::*,
};

const VOCAB: usize = 11;
const WIDTH: usize = 8;
const HIDDEN: usize = 6;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD: usize = 4;

/// A dense Llama of numbers.
fn config(tied: bool) -> Value {
    json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 5000, "rope_type": "default"},
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
    })
}

fn tensors(dtype: Dtype, tied: bool, seed: usize) -> Tensors {
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize]| {
        let tensor = numbers(&name, shape, dtype, seed);
        tensors.insert(name, tensor);
    };
    add("model.embed_tokens.weight".into(), &[VOCAB, WIDTH]);
    add("model.norm.weight".into(), &[WIDTH]);
    if !tied {
        add("lm_head.weight".into(), &[VOCAB, WIDTH]);
    }
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| add(format!("model.layers.{layer}.{name}.weight"), shape);
        add("input_layernorm", &[WIDTH]);
        add("post_attention_layernorm", &[WIDTH]);
        add("self_attn.q_proj", &[HEADS * HEAD, WIDTH]);
        add("self_attn.k_proj", &[KV_HEADS * HEAD, WIDTH]);
        add("self_attn.v_proj", &[KV_HEADS * HEAD, WIDTH]);
        add("self_attn.o_proj", &[WIDTH, HEADS * HEAD]);
        add("mlp.gate_proj", &[HIDDEN, WIDTH]);
        add("mlp.up_proj", &[HIDDEN, WIDTH]);
        add("mlp.down_proj", &[WIDTH, HIDDEN]);
    }
    tensors
}

/// Models in a folder of their own, with different numbers: their paths, and one for the result.
fn models(test: &str, dtype: Dtype, tied: bool, count: usize) -> (Vec<PathBuf>, PathBuf) {
    let room = folder(&format!("upcycle-{test}"));
    let paths: Vec<_> = (0..count).map(|i| room.join(format!("seed-{i}"))).collect();
    for (i, path) in paths.iter().enumerate() {
        write_model(path, &config(tied), &tensors(dtype, tied, i + 1));
    }
    (paths, room.join("out"))
}

/// What the mixture must hold, but for the MLP routers: from the description, with no look at the code.
fn expected(dtype: Dtype, tied: bool, count: usize, kv: KvSharing) -> Tensors {
    let seeds: Vec<Tensors> = (0..count).map(|i| tensors(dtype, tied, i + 1)).collect();
    let mut out = Tensors::new();
    let mean = |name: &str| {
        let values: Vec<_> = seeds.iter().map(|seed| decode(&seed[name])).collect();
        let mean: Vec<f64> = (0..values[0].len())
            .map(|i| values.iter().map(|values| values[i]).sum::<f64>() / count as f64)
            .collect();
        (dtype, seeds[0][name].1.clone(), encode(&mean, dtype))
    };
    let stack = |names: &[String], shape: &[usize]| {
        let parts = seeds.iter().flat_map(|seed| names.iter().map(|name| seed[name].2.clone()));
        (dtype, shape.to_vec(), parts.collect::<Vec<_>>().concat())
    };
    for name in ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"] {
        if name != "lm_head.weight" || !tied {
            out.insert(name.into(), mean(name));
        }
    }
    for layer in 0..LAYERS {
        let full = |name: &str| format!("model.layers.{layer}.{name}.weight");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            out.insert(full(norm), mean(&full(norm)));
        }
        let (q, kv_rows) = (HEADS * HEAD, KV_HEADS * HEAD);
        let router = (dtype, vec![count, WIDTH], encode(&vec![0.0; count * WIDTH], dtype));
        out.insert(full("self_attn.router"), router);
        let queries = stack(&[full("self_attn.q_proj")], &[count, q, WIDTH]);
        out.insert(full("self_attn.experts.q_proj"), queries);
        let outputs = stack(&[full("self_attn.o_proj")], &[count, WIDTH, q]);
        out.insert(full("self_attn.experts.o_proj"), outputs);
        for name in [full("self_attn.k_proj"), full("self_attn.v_proj")] {
            let tensor = match kv {
                KvSharing::Expert => stack(std::slice::from_ref(&name), &[count * kv_rows, WIDTH]),
                KvSharing::Shared => mean(&name),
                other => panic!("{other:?} has no oracle"),
            };
            out.insert(name, tensor);
        }
        let up = stack(&[full("mlp.gate_proj"), full("mlp.up_proj")], &[count, 2 * HIDDEN, WIDTH]);
        out.insert(full("mlp.experts.gate_up_proj"), up);
        out.insert(full("mlp.experts.down_proj"), stack(&[full("mlp.down_proj")], &[count, WIDTH, HIDDEN]));
    }
    out
}

fn expected_config(tied: bool, count: usize, kv: &str, dtype: &str) -> Value {
    json!({
        "model_type": "bam",
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "bam": {
            "experts": count, "kv": kv, "parallel_block": false, "mlp_top_k": 1, "mlp_gate": "softmax_topk",
        },
        "torch_dtype": dtype,
    })
}

/// Takes the MLP routers out of a mixture.
fn take_routers(tensors: &mut Tensors, dtype: Dtype, count: usize) -> Vec<f64> {
    let mut values = Vec::new();
    for layer in 0..LAYERS {
        let router = tensors.remove(&format!("model.layers.{layer}.mlp.router.weight")).unwrap();
        assert_eq!((router.0, &router.1), (dtype, &vec![count, WIDTH]));
        values.extend(decode(&router));
    }
    values
}

// -- what is written ----------------------------------------------------------------------------------------

#[test]
fn experts_are_stacked_in_order_and_the_rest_is_the_exact_mean() {
    for (i, (dtype, name)) in DTYPES.iter().enumerate() {
        for (kv, kv_name) in [(KvSharing::Expert, "expert"), (KvSharing::Shared, "shared")] {
            // Not every combination: tied with each kind of cache, two and three seeds with each type.
            let (tied, count) = ((i % 2 == 0) == (kv == KvSharing::Expert), 2 + i % 2);
            let (paths, out) = models(&format!("{name}-{kv_name}"), *dtype, tied, count);
            let written = upcycle_bam(&paths, &out, UpcycleOptions::new().kv(kv)).unwrap();
            let mut found = read(&out.join("model.safetensors"));
            assert_eq!(written.tensors, found.len());
            let parameters: usize = found.values().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
            assert_eq!(written.parameters, parameters as u64);

            let routers = take_routers(&mut found, *dtype, count);
            assert!(routers.iter().all(|v| v.abs() < 0.12), "{routers:?}");
            let spread = (routers.iter().map(|v| v * v).sum::<f64>() / routers.len() as f64).sqrt();
            assert!((0.01..0.03).contains(&spread), "{spread}");
            let expected = expected(*dtype, tied, count, kv);
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (name, tensor) in &expected {
                assert!(found[name] == *tensor, "{dtype}, {kv_name}: {name}");
            }
            let config = expected_config(tied, count, kv_name, name);
            assert_eq!(written.config, config);
            assert_eq!(
                serde_json::from_slice::<Value>(&fs::read(out.join("config.json")).unwrap()).unwrap(),
                config
            );
            assert_eq!(file_names(&out), ["config.json", "model.safetensors"]);
        }
    }
}

#[test]
fn the_router_seed_decides_every_byte() {
    let (paths, out) = models("seed", Dtype::F32, true, 2);
    let with = |seed, name: &str| {
        let out = out.with_file_name(name);
        upcycle_bam(&paths, &out, UpcycleOptions::new().router_seed(seed)).unwrap();
        fs::read(out.join("model.safetensors")).unwrap()
    };
    let (one, again, other) = (with(7, "one"), with(7, "again"), with(8, "other"));
    assert!(one == again && one != other);
}

#[test]
fn defaults_of_the_config_are_written_out_and_shards_are_read() {
    let (paths, out) = models("defaults", Dtype::F32, true, 2);
    // Of the same meaning as the first model's fields.
    let mut second = config(true);
    second["rope_parameters"] = Value::Null;
    second["rope_theta"] = json!(5000.0);
    second["hidden_act"] = "silu".into();
    fs::remove_dir_all(&paths[1]).unwrap();
    write_shards(&paths[1], &tensors(Dtype::F32, true, 2));
    fs::write(paths[1].join("config.json"), second.to_string()).unwrap();
    upcycle_bam(&paths, &out, UpcycleOptions::new()).unwrap();
    let mut found = read(&out.join("model.safetensors"));
    take_routers(&mut found, Dtype::F32, 2);
    assert_eq!(found, expected(Dtype::F32, true, 2, KvSharing::Expert));
}

#[test]
fn a_head_of_its_own_is_kept_though_the_configs_tie_it() {
    let upcycled = |says: bool| {
        let (paths, out) = models(&format!("head-{says}"), Dtype::F32, false, 2);
        paths.iter().for_each(|path| fs::write(path.join("config.json"), config(says).to_string()).unwrap());
        let written = upcycle_bam(&paths, &out, UpcycleOptions::new()).unwrap();
        (written.config, read(&out.join("model.safetensors")))
    };
    let (config, tensors) = upcycled(true);
    assert_eq!(config["tie_word_embeddings"], false);
    assert!((config, tensors) == upcycled(false));
}

#[test]
fn the_tokenizer_of_all_is_copied() {
    let (paths, out) = models("tokenizer", Dtype::F16, true, 2);
    let first = "{\"version\": \"1.0\", \"model\": {\"vocab\": {\"a\": 0}}}";
    fs::write(paths[0].join("tokenizer.json"), first).unwrap();
    // The same, laid out in another way.
    fs::write(paths[1].join("tokenizer.json"), first.replace(' ', "\n")).unwrap();
    let written = upcycle_bam(&paths, &out, UpcycleOptions::new()).unwrap();
    assert_eq!(fs::read_to_string(out.join("tokenizer.json")).unwrap(), first);
    assert_eq!(written.files, file_names(&out));
}

#[test]
fn side_files_of_the_first_model_are_copied_and_differences_noted() {
    let (paths, out) = models("side-files", Dtype::F16, true, 2);
    for (path, eos) in paths.iter().zip([2, 3]) {
        fs::write(path.join("generation_config.json"), format!("{{\"eos_token_id\": {eos}}}")).unwrap();
        fs::write(path.join("special_tokens_map.json"), "{}").unwrap();
    }
    let written = upcycle_bam(&paths, &out, UpcycleOptions::new()).unwrap();
    assert_eq!(fs::read_to_string(out.join("generation_config.json")).unwrap(), "{\"eos_token_id\": 2}");
    assert_eq!(
        written.files,
        ["config.json", "model.safetensors", "special_tokens_map.json", "generation_config.json"]
    );
    let differences: Vec<&String> = written.notes.iter().filter(|note| note.contains(" differs")).collect();
    assert!(
        differences.len() == 1 && differences[0].contains("seed-1/generation_config.json"),
        "{:?}",
        written.notes
    );
}

// -- what is refused ----------------------------------------------------------------------------------------

fn try_upcycle(paths: &[PathBuf], out: &Path) -> Result<WrittenModel, Error> {
    upcycle_bam(paths, out, UpcycleOptions::new())
}

#[test]
fn fewer_than_two_models_are_no_mixture() {
    let (paths, out) = models("few", Dtype::F32, true, 1);
    for count in [0, 1] {
        let found = format!("models: found {count}, expected 2 to 256 dense models");
        refused(try_upcycle(&paths[..count], &out), &out, &[&found]);
    }
    let many = vec![paths[0].clone(); 257];
    refused(try_upcycle(&many, &out), &out, &["models: found 257"]);
}

/// Refuses a second model with an edited config and edited tensors.
#[track_caller]
fn refuses(edit: impl FnOnce(&mut Value, &mut Tensors), parts: &[&str]) {
    let (paths, out) = models(&format!("refused-{}", unique()), Dtype::F32, false, 2);
    let (mut config, mut tensors) = (config(false), tensors(Dtype::F32, false, 2));
    edit(&mut config, &mut tensors);
    write_model(&paths[1], &config, &tensors);
    refused(try_upcycle(&paths, &out), &out, &[&["seed-1"], parts].concat());
}

#[test]
fn models_that_differ_are_named_with_both_values() {
    for (field, value, parts) in [
        ("rope_theta", json!(10_000.0), ["rope_theta: found 10000.0, expected 5000", "seed-0/config.json"]),
        ("rms_norm_eps", json!(1e-6), ["rms_norm_eps: found 1e-6, expected 0.00001", "seed-0/config.json"]),
        ("max_position_embeddings", json!(32), ["found 32, expected 64", "seed-0/config.json"]),
        ("bos_token_id", Value::Null, ["bos_token_id: found null, expected 1", "seed-0/config.json"]),
        ("eos_token_id", json!([2]), ["eos_token_id: found [2], expected [2,3]", "seed-0/config.json"]),
    ] {
        let edit = |config: &mut Value, _: &mut Tensors| {
            if field == "rope_theta" {
                config["rope_parameters"] = Value::Null;
            }
            config[field] = value;
        };
        refuses(edit, &parts);
    }
    let fewer_layers = |config: &mut Value, tensors: &mut Tensors| {
        config["num_hidden_layers"] = 1.into();
        tensors.retain(|name, _| !name.contains("layers.1."));
    };
    refuses(fewer_layers, &["num_hidden_layers: found 1, expected 2, as in", "seed-0/config.json"]);
    let tied = |config: &mut Value, tensors: &mut Tensors| {
        config["tie_word_embeddings"] = true.into();
        tensors.remove("lm_head.weight");
    };
    refuses(tied, &["tie_word_embeddings: found true, expected false"]);
    for name in ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"] {
        let spoil = |_: &mut Value, tensors: &mut Tensors| {
            tensors.get_mut(name).unwrap().2[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes());
        };
        refuses(
            spoil,
            &["seed-1/model.safetensors", name, "found inf at element 1, expected finite numbers"],
        );
    }
    let name = "model.layers.1.mlp.up_proj.weight";
    let narrow = |_: &mut Value, tensors: &mut Tensors| {
        tensors.insert(name.into(), numbers(name, &[HIDDEN, WIDTH], Dtype::BF16, 2));
    };
    refuses(
        narrow,
        &[name, "dtype: found BF16, expected F32, as tensor", "gate_proj", "seed-0/model.safetensors"],
    );
}

#[test]
fn models_that_are_no_dense_llamas_are_refused() {
    // Its rows are too short to be quantised, so the tensors are those of a model that is not.
    let quantized = json!({"version": 1, "scheme": "q4", "group": 32, "tensors": {}});
    let field = "headwise_quantization";
    refuses(
        |config, _| config[field] = quantized.clone(),
        &[field, "is not supported", "before they are quantised"],
    );
    let name = "model.layers.0.self_attn.q_proj.bias";
    let bias = |_: &mut Value, tensors: &mut Tensors| {
        tensors.insert(name.into(), numbers(name, &[16], Dtype::F32, 2));
    };
    refuses(bias, &[name, "found an unknown tensor"]);
    refuses(|config, _| config["attention_bias"] = true.into(), &["attention_bias"]);
    refuses(|config, _| config["rope_scaling"] = json!({"type": "linear"}), &["rope_scaling"]);
    let moh = json!({"shared": 1, "routed": 2, "router": "query_norm"});
    refuses(|config, _| config["moh"] = moh, &["the family moh-llama is not supported", "`moh`"]);
    refuses(|config, _| config["model_type"] = "gpt2".into(), &["model_type", "gpt2"]);
    refuses(|config, _| config["intermediate_size"] = 7.into(), &["mlp.gate_proj.weight", "shape"]);
    refuses(|_, tensors| _ = tensors.remove("model.norm.weight"), &["model.norm.weight", "found none"]);

    let (mut paths, out) = models("jetmoe", Dtype::F32, false, 2);
    paths[1] = crate::command::TINY.into();
    refused(
        try_upcycle(&paths, &out),
        &out,
        &["jetmoe_tiny/config.json", "the family jetmoe is not supported"],
    );
    paths[1] = out.with_file_name("absent");
    refused(try_upcycle(&paths, &out), &out, &["absent/config.json"]);
}

#[test]
fn tokenizers_that_differ_are_named_with_the_place() {
    let (paths, out) = models("tokenizers", Dtype::F32, true, 2);
    let write = |i: usize, json: &str| fs::write(paths[i].join("tokenizer.json"), json).unwrap();
    write(0, r#"{"model": {"vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}}"#);
    refused(
        try_upcycle(&paths, &out),
        &out,
        &["seed-1/tokenizer.json: tokenizer: found no file", "seed-0/tokenizer.json"],
    );
    for (json, part) in [
        (
            r#"{"model": {"vocab": {"a": 0, "b": 2}, "merges": [["a", "b"]]}}"#,
            "tokenizer.model.vocab.b: found 2, expected 1",
        ),
        (
            r#"{"model": {"vocab": {"a": 0, "b": 1}, "merges": [["a", "c"]]}}"#,
            "tokenizer.model.merges[0][1]: found \"c\", expected \"b\"",
        ),
        (
            r#"{"model": {"vocab": {"a": 0, "b": 1}, "merges": []}}"#,
            "merges: found a list of 0, expected a list of 1",
        ),
        (
            r#"{"model": {"vocab": {"a": 0, "b": 1, "c": 2}, "merges": [["a", "b"]]}}"#,
            "vocab.c: found 2, expected null",
        ),
        ("{", "seed-1/tokenizer.json: JSON"),
    ] {
        write(1, json);
        refused(try_upcycle(&paths, &out), &out, &["seed-1/tokenizer.json", part]);
    }
}

#[test]
fn nothing_is_overwritten_and_nothing_stays_after_an_error() {
    let (paths, out) = models("clean", Dtype::F32, false, 2);
    // The second model loses its end while it is read.
    let options = UpcycleOptions::new().progress(cut(paths[1].join("model.safetensors")));
    refused(upcycle_bam(&paths, &out, options), &out, &["seed-1/model.safetensors", "the end of the file"]);
    let (paths, out) = models("replaced", Dtype::F32, false, 2);
    let options = UpcycleOptions::new().progress(replaced(paths[1].join("model.safetensors")));
    refused(upcycle_bam(&paths, &out, options), &out, &["seed-1/model.safetensors", "must not change"]);

    let (paths, _) = models("kept", Dtype::F32, false, 2);
    let error = try_upcycle(&paths, &paths[0]).unwrap_err().to_string();
    assert!(error.contains("seed-0: folder to write: found a folder that is not empty"), "{error}");
    assert_eq!(file_names(&paths[0]), ["config.json", "model.safetensors"]);
}

// -- the command --------------------------------------------------------------------------------------------

#[test]
fn the_command_upcycles_and_reports() {
    let (paths, out) = models("command", Dtype::F16, true, 2);
    let [a, b, shown] = [&paths[0], &paths[1], &out].map(|path| path.to_str().unwrap());
    let options = ["--out", shown, "--kv", "shared", "--router-seed", "3", "--json"];
    let args = [&["upcycle", "--method", "bam", a, b][..], &options].concat();
    let report = run_json(&args);
    assert_eq!(report["config"], expected_config(true, 2, "shared", "float16"));
    assert_eq!(report["files"], json!(["config.json", "model.safetensors"]));
    let mut found = read(&out.join("model.safetensors"));
    take_routers(&mut found, Dtype::F16, 2);
    assert_eq!(found, expected(Dtype::F16, true, 2, KvSharing::Shared));
    fails(&args, &[shown, "not empty"]);
}
