//! `convert`

use std::{
    fs,
    path::{Path, PathBuf},
};

use headwise::{ConvertOptions, MoaActivation, MoaGates, convert_moa};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::{
    command::{PROSE, fails, folder, json as run_json},
    files::*,
};

const VOCAB: usize = 11;
const WIDTH: usize = 6;
const EXPERTS: usize = 4;
const HEAD: usize = 5;
const HIDDEN: usize = 9;

/// A state dict as the repository saves it, with all that is in it twice or for nothing.
struct StateDict {
    dtype: Dtype,
    tensors: Tensors,
}

impl StateDict {
    fn new(dtype: Dtype, encoder: usize, decoder: usize, pre_norm: bool) -> Self {
        let mut dict = StateDict { dtype, tensors: Tensors::new() };
        for (stack, layers) in [("encoder", encoder), ("decoder", decoder)] {
            if layers == 0 {
                continue;
            }
            dict.add(&format!("{stack}.version"), &[1]);
            dict.add(&format!("{stack}.embed_positions._float_tensor"), &[1]);
            if pre_norm {
                dict.norm(&format!("{stack}.layer_norm"));
            }
            for layer in 0..layers {
                dict.layer(stack, &format!("{stack}.layers.{layer}"));
            }
        }
        dict.add("encoder.embed_tokens.weight", &[VOCAB, WIDTH]);
        if decoder > 0 {
            dict.copy("encoder.embed_tokens.weight", "decoder.embed_tokens.weight");
            dict.copy("encoder.embed_tokens.weight", "decoder.output_projection.weight");
        }
        dict
    }

    fn layer(&mut self, stack: &str, layer: &str) {
        let attentions: &[&str] = if stack == "encoder" { &["self"] } else { &["self", "encoder"] };
        for attention in attentions.iter().map(|kind| format!("{layer}.{kind}_attn")) {
            self.add(&format!("{attention}.q_proj.w_gate"), &[WIDTH, EXPERTS]);
            self.add(&format!("{attention}.q_proj.w_noise"), &[WIDTH, EXPERTS]);
            self.add(&format!("{attention}.q_proj.experts.w"), &[EXPERTS, WIDTH, HEAD]);
            self.add(&format!("{attention}.q_proj.output_experts.w"), &[EXPERTS, HEAD, WIDTH]);
            self.add(&format!("{attention}.k_proj.weight"), &[HEAD, WIDTH]);
            self.add(&format!("{attention}.v_proj.weight"), &[HEAD, WIDTH]);
            self.norm(&format!("{attention}_layer_norm"));
        }
        self.norm(&format!("{layer}.final_layer_norm"));
        let second = if stack == "encoder" { 3 } else { 2 };
        for (linear, index, shape) in [("fc1", 0, [HIDDEN, WIDTH]), ("fc2", second, [WIDTH, HIDDEN])] {
            for (part, shape) in [("weight", &shape[..]), ("bias", &shape[..1])] {
                self.add(&format!("{layer}.{linear}.{part}"), shape);
                self.copy(&format!("{layer}.{linear}.{part}"), &format!("{layer}.ffd.{index}.{part}"));
            }
        }
    }

    fn norm(&mut self, name: &str) {
        self.add(&format!("{name}.weight"), &[WIDTH]);
        self.add(&format!("{name}.bias"), &[WIDTH]);
    }

    fn add(&mut self, name: &str, shape: &[usize]) {
        self.tensors.insert(name.to_owned(), numbers(name, shape, self.dtype, 1));
    }

    fn copy(&mut self, from: &str, to: &str) {
        let tensor = self.tensors[from].clone();
        self.tensors.insert(to.to_owned(), tensor);
    }

    /// What a model folder holds of it.
    fn kept(&self) -> Tensors {
        let dropped = ["version", "_float_tensor", "w_noise"];
        let keep = |name: &str| {
            !name.contains(".ffd.")
                && !name.ends_with("output_projection.weight")
                && name != "decoder.embed_tokens.weight"
                && !dropped.iter().any(|end| name.ends_with(end))
        };
        let tensors = self.tensors.iter().filter(|(name, _)| keep(name));
        tensors.map(|(name, tensor)| (name.replace("encoder.embed", "embed"), tensor.clone())).collect()
    }

    fn prefixed(&self) -> Tensors {
        self.tensors.iter().map(|(name, tensor)| (format!("model.{name}"), tensor.clone())).collect()
    }

    /// Written to a file in a folder of its own: the file, and a path for the result.
    fn write(&self, test: &str) -> (PathBuf, PathBuf) {
        let folder = folder(&format!("convert-{test}"));
        let file = folder.join("moa.safetensors");
        write(&file, &self.tensors);
        (file, folder.join("out"))
    }
}

/// The config of a translation model with two layers in the encoder and one in the decoder.
fn config(dtype: &str) -> Value {
    json!({
        "model_type": "moa",
        "task": "translation",
        "vocab_size": VOCAB,
        "d_model": WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "num_experts": EXPERTS,
        "top_k": 3,
        "heads_per_expert": 1,
        "head_dim": HEAD,
        "ffn_dim": HIDDEN,
        "activation": "relu",
        "norm": "layer_norm",
        "norm_position": "pre",
        "norm_eps": 1e-5,
        "positions": "sinusoidal",
        "position_offset": 2,
        "max_positions": 1024,
        "scale_embedding": true,
        "tie_embeddings": true,
        "gate_weights": "softmax",
        "gate_eps": 1e-6,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "unk_token_id": 3,
        "decoder_start_token_id": 2,
        "torch_dtype": dtype,
    })
}

fn read_config(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap()
}

// -- what is written ----------------------------------------------------------------------------------------

#[test]
fn every_tensor_keeps_its_bytes_and_the_config_says_the_rest() {
    for (dtype, name) in DTYPES {
        let dict = StateDict::new(dtype, 2, 1, true);
        let (file, out) = dict.write(name);
        let mut seen = Vec::new();
        let options = ConvertOptions::new(3).progress(|done, total| seen.push((done, total)));
        let written = convert_moa(&file, &out, options).unwrap();

        let kept = dict.kept();
        assert_eq!(read(&out.join("model.safetensors")), kept);
        assert_eq!((read_config(&out), &written.config), (config(name), &config(name)));
        assert_eq!(file_names(&out), ["config.json", "model.safetensors"]);
        assert_eq!((&written.files, written.tensors), (&file_names(&out), kept.len()));
        let parameters: usize = kept.values().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
        assert_eq!(written.parameters, parameters as u64);
        assert!(written.notes[0].starts_with("4 tensors w_noise left out"), "{:?}", written.notes);
        let bytes: usize = kept.values().map(|(_, _, bytes)| bytes.len()).sum();
        assert_eq!((seen[0], seen[seen.len() - 1]), ((0, bytes as u64), (bytes as u64, bytes as u64)));
    }
}

#[test]
fn shards_and_the_name_of_a_wrapper_change_nothing() {
    let dict = StateDict::new(Dtype::F16, 2, 1, true);
    let (file, out) = dict.write("layouts");
    let room = out.parent().unwrap();
    write_shards(&room.join("shards"), &dict.tensors);
    write(&room.join("wrapped.safetensors"), &dict.prefixed());
    fs::create_dir(room.join("whole")).unwrap();
    fs::copy(&file, room.join("whole/model.safetensors")).unwrap();
    for (i, input) in ["shards", "wrapped.safetensors", "whole"].iter().enumerate() {
        // A folder that is there and empty is as good as none.
        let out = room.join(format!("out-{i}"));
        fs::create_dir(&out).unwrap();
        convert_moa(room.join(input), &out, ConvertOptions::new(3)).unwrap();
        assert_eq!(read(&out.join("model.safetensors")), dict.kept(), "{input}");
        assert_eq!(read_config(&out), config("float16"), "{input}");
    }
}

#[test]
fn types_may_differ_from_tensor_to_tensor() {
    let mut dict = StateDict::new(Dtype::BF16, 2, 1, true);
    for name in ["encoder.layer_norm.weight", "decoder.layers.0.encoder_attn.q_proj.w_gate"] {
        let shape = dict.tensors[name].1.clone();
        dict.tensors.insert(name.to_owned(), numbers(name, &shape, Dtype::F32, 2));
    }
    let (file, out) = dict.write("mixed");
    convert_moa(&file, &out, ConvertOptions::new(3)).unwrap();
    assert_eq!(read(&out.join("model.safetensors")), dict.kept());
    assert_eq!(read_config(&out)["torch_dtype"], "bfloat16");
}

#[test]
fn options_and_absent_norms_show_in_the_config() {
    let dict = StateDict::new(Dtype::F32, 1, 1, false);
    let (file, out) = dict.write("post-norm");
    let tokenizer = format!("{PROSE}/tokenizer.json");
    let options = ConvertOptions::new(1)
        .gates(MoaGates::Paper)
        .activation(MoaActivation::Gelu)
        .max_positions(77)
        .tokenizer(&tokenizer);
    let written = convert_moa(&file, &out, options).unwrap();
    let mut expected = config("float32");
    for (field, value) in [
        ("encoder_layers", json!(1)),
        ("top_k", 1.into()),
        ("activation", "gelu".into()),
        ("norm_position", "post".into()),
        ("max_positions", 77.into()),
        ("gate_weights", "softmax_renormalized".into()),
    ] {
        expected[field] = value;
    }
    assert_eq!(read_config(&out), expected);
    assert_eq!(read(&out.join("model.safetensors")), dict.kept());
    assert_eq!(written.files, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), fs::read(tokenizer).unwrap());
}

#[test]
fn what_lies_beside_the_weights_comes_along() {
    let (file, out) = StateDict::new(Dtype::F32, 1, 1, false).write("beside");
    let folder = file.with_file_name("state");
    fs::create_dir_all(&folder).unwrap();
    fs::rename(&file, folder.join("model.safetensors")).unwrap();
    let tokenizer = fs::read(format!("{PROSE}/tokenizer.json")).unwrap();
    fs::write(folder.join("tokenizer.json"), &tokenizer).unwrap();
    fs::write(folder.join("special_tokens_map.json"), "{}").unwrap();
    let written = convert_moa(&folder, &out, ConvertOptions::new(1)).unwrap();
    assert_eq!(
        written.files,
        ["config.json", "model.safetensors", "tokenizer.json", "special_tokens_map.json"]
    );
    assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), tokenizer);
    let (file, out) = (folder, out.with_file_name("broken-out"));
    fs::write(file.join("tokenizer.json"), "version https://git-lfs.github.com/spec/v1").unwrap();
    refused(convert_moa(&file, &out, ConvertOptions::new(1)), &out, &["tokenizer.json", "a Git LFS pointer"]);
}

#[test]
fn an_encoder_alone_is_no_translator() {
    let (file, out) = StateDict::new(Dtype::F32, 1, 0, false).write("encoder");
    let result = convert_moa(&file, &out, ConvertOptions::new(1));
    refused(result, &out, &[file.to_str().unwrap(), "decoder.layers.0."]);
}

// -- what is refused ----------------------------------------------------------------------------------------

/// Refuses an edited state dict with a message that names the file and has all `parts`.
#[track_caller]
fn refuses(edit: impl FnOnce(&mut Tensors), parts: &[&str]) {
    let mut dict = StateDict::new(Dtype::F32, 2, 1, true);
    edit(&mut dict.tensors);
    let (file, out) = dict.write(&format!("refused-{}", unique()));
    let result = convert_moa(&file, &out, ConvertOptions::new(3));
    refused(result, &out, &[&[file.to_str().unwrap()], parts].concat());
}

#[test]
fn tensors_that_contradict_each_other_are_both_named() {
    let reshape = |name: &'static str, shape: &'static [usize]| {
        move |tensors: &mut Tensors| _ = tensors.insert(name.into(), numbers(name, shape, Dtype::F32, 1))
    };
    let gate = "decoder.layers.0.encoder_attn.q_proj.w_gate";
    let spoil = |tensors: &mut Tensors| {
        tensors.get_mut(gate).unwrap().2[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    refuses(spoil, &[gate, "found NaN at element 2, expected finite numbers"]);
    refuses(
        reshape(gate, &[6, 5]),
        &[gate, "num_experts: found 5, expected 4", "encoder.layers.0.self_attn"],
    );
    let key = "encoder.layers.1.self_attn.k_proj.weight";
    refuses(
        reshape(key, &[4, 6]),
        &[key, "head_dim: found 4, expected 5", "encoder.layers.0.self_attn.q_proj"],
    );
    refuses(reshape(key, &[5, 6, 1]), &[key, "[5, 6, 1]", "its shape is [head_dim, d_model]"]);
    let fc2 = "encoder.layers.0.fc2.weight";
    refuses(reshape(fc2, &[9, 6]), &[fc2, "d_model: found 9, expected 6", "encoder.embed_tokens.weight"]);
    let tables = |tensors: &mut Tensors| {
        for part in ["encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection"] {
            tensors.insert(format!("{part}.weight"), numbers("table", &[3, 6], Dtype::F32, 1));
        }
    };
    refuses(tables, &["encoder.embed_tokens.weight", "rows: found 3, expected at least 4"]);
}

#[test]
fn embeddings_must_be_shared_and_copies_be_copies() {
    let spoil = |name: &'static str| move |tensors: &mut Tensors| tensors.get_mut(name).unwrap().2[5] ^= 1;
    let table = "encoder.embed_tokens.weight";
    for copy in ["decoder.embed_tokens.weight", "decoder.output_projection.weight"] {
        refuses(spoil(copy), &[copy, "other values in rows 0 to 10", table, "shared"]);
    }
    let copy = "encoder.layers.1.ffd.3.bias";
    refuses(spoil(copy), &[copy, "other values", "encoder.layers.1.fc2.bias"]);
    let narrow = |tensors: &mut Tensors| {
        let copy = "decoder.output_projection.weight";
        tensors.insert(copy.into(), numbers(copy, &[VOCAB, WIDTH], Dtype::F16, 1));
    };
    refuses(narrow, &["output_projection.weight\": found F16 [11, 6], expected F32 [11, 6]", table]);
}

#[test]
fn missing_and_unknown_tensors_are_named() {
    let remove = |name: &'static str| move |tensors: &mut Tensors| _ = tensors.remove(name).unwrap();
    for name in [
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "encoder.layers.0.fc1.bias",
        "decoder.layers.0.encoder_attn.q_proj.output_experts.w",
        "decoder.layer_norm.bias",
    ] {
        refuses(remove(name), &[name, "found none"]);
    }
    let end = "decoder.layer_norm.weight";
    refuses(remove(end), &[end, "found none", "encoder.layer_norm.weight"]);
    let add = |name: &'static str| {
        move |tensors: &mut Tensors| _ = tensors.insert(name.into(), numbers(name, &[6], Dtype::F32, 1))
    };
    for name in [
        "encoder.layers.0.self_attn.k_proj.bias",
        "decoder.layers.0.ffd.w_gate",
        "encoder.embed_positions.weight",
        "decoder.layers.00.fc1.bias",
        "lm_head.weight",
    ] {
        refuses(add(name), &[name, "found an unknown tensor"]);
    }
    refuses(add("encoder.layers.4000000000.fc1.bias"), &["layer: found 4000000000, expected at most 1023"]);
    refuses(add("encoder.layers.3.fc1.bias"), &["encoder.layers.2.self_attn.q_proj.w_gate", "found none"]);
    let name = "encoder.layers.0.fc1.bias";
    let whole = |tensors: &mut Tensors| _ = tensors.insert(name.into(), (Dtype::I32, vec![9], vec![0; 36]));
    refuses(whole, &[name, "dtype: found I32"]);
    refuses(|tensors| tensors.clear(), &["encoder.embed_tokens.weight", "found none"]);
}

#[test]
fn options_are_compared_with_the_model() {
    let (file, out) = StateDict::new(Dtype::F32, 1, 1, true).write("options");
    for top_k in [0, 5] {
        let found = format!("top-k: found {top_k}, expected from 1 to the model's 4 experts");
        refused(convert_moa(&file, &out, ConvertOptions::new(top_k)), &out, &[&found]);
    }
    let endless = ConvertOptions::new(2).max_positions(usize::MAX);
    refused(convert_moa(&file, &out, endless), &out, &["max-positions"]);
    for (tokenizer, part) in [(file.as_path(), "tokenizer: "), (Path::new("no/such.json"), "no/such.json: ")]
    {
        let options = ConvertOptions::new(2).tokenizer(tokenizer);
        refused(convert_moa(&file, &out, options), &out, &[tokenizer.to_str().unwrap(), part]);
    }
}

#[test]
fn pickles_are_not_opened() {
    let room = folder("convert-pickles");
    for name in ["a.pt", "b.PTH", "pytorch_model.bin", "c.ckpt"] {
        let file = room.join(name);
        fs::write(&file, "cos\nsystem").unwrap();
        let parts = [name, "pickle format is not supported", "headwise convert --help"];
        refused(convert_moa(&file, room.join("out"), ConvertOptions::new(1)), &room.join("out"), &parts);
    }
    let absent = room.join("absent.pt");
    refused(
        convert_moa(&absent, room.join("out"), ConvertOptions::new(1)),
        &room.join("out"),
        &["absent.pt: "],
    );
}

#[test]
fn nothing_is_overwritten_and_nothing_stays_after_an_error() {
    let (file, out) = StateDict::new(Dtype::F32, 2, 1, true).write("clean");
    // The file loses its end while it is read.
    let options = ConvertOptions::new(3).progress(cut(file.clone()));
    refused(convert_moa(&file, &out, options), &out, &["moa.safetensors", "the end of the file"]);
    let (file, out) = StateDict::new(Dtype::F32, 2, 1, true).write("replaced");
    let options = ConvertOptions::new(3).progress(replaced(file.clone()));
    refused(convert_moa(&file, &out, options), &out, &["moa.safetensors", "must not change"]);

    let (file, out) = StateDict::new(Dtype::F32, 2, 1, true).write("kept");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "1").unwrap();
    let error = convert_moa(&file, &out, ConvertOptions::new(3)).unwrap_err().to_string();
    assert!(error.contains("out: folder to write: found a folder that is not empty"), "{error}");
    assert_eq!(file_names(&out), ["mine"]);
    assert_eq!(file_names(out.parent().unwrap()), ["moa.safetensors", "out"]);
}

// -- the command --------------------------------------------------------------------------------------------

#[test]
fn the_command_converts_and_reports() {
    let dict = StateDict::new(Dtype::F16, 2, 1, true);
    let (file, out) = dict.write("command");
    let [file, shown] = [&file, &out].map(|path| path.to_str().unwrap());
    let args = ["convert", file, "--out", shown, "--top-k", "3", "--gate", "paper", "--json"];
    let report = run_json(&args);
    let mut expected = config("float16");
    expected["gate_weights"] = "softmax_renormalized".into();
    assert_eq!((&report["config"], &report["folder"]), (&expected, &shown.into()));
    assert_eq!(report["files"], json!(["config.json", "model.safetensors"]));
    assert_eq!(read(&out.join("model.safetensors")), dict.kept());
    fails(&args, &[shown, "not empty"]);

    let pickle = out.with_file_name("model.pt");
    fs::write(&pickle, "x").unwrap();
    let never = out.with_file_name("never");
    let [pickle, never] = [&pickle, &never].map(|path| path.to_str().unwrap());
    fails(&["convert", pickle, "--out", never, "--top-k", "1"], &[pickle, "headwise convert --help"]);
}
