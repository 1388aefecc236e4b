//! The tokens that end a text, wherever a model's files name them.

use std::{fs, io::Write, path::PathBuf, process::Stdio};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use crate::support::*;

const ENDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/ends");
const VOCAB: usize = 272;
const HEAD: usize = 8;
const HIDDEN: usize = 16;
/// Which token follows which: `<|assistant|>` b `<|eot|>` d c `</s>`.
const NEXT: [(usize, usize); 5] = [(271, 260), (260, 269), (269, 262), (262, 261), (261, 2)];

/// A Llama whose token decides the next one: attention and MLP are zeros, the head has one 1 in a row.
fn write_weights(path: PathBuf) {
    let zeros = |shape: &[usize]| (shape.to_vec(), vec![0.0f32; shape.iter().product()]);
    let ones = || (vec![VOCAB], vec![1.0f32; VOCAB]);
    let mut table = zeros(&[VOCAB, VOCAB]);
    (0..VOCAB).for_each(|token| table.1[token * (VOCAB + 1)] = 1.0);
    let mut head = zeros(&[VOCAB, VOCAB]);
    NEXT.iter().for_each(|(token, next)| head.1[next * VOCAB + token] = 1.0);
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), table),
        ("lm_head.weight".to_owned(), head),
        ("model.norm.weight".to_owned(), ones()),
        (layer("input_layernorm"), ones()),
        (layer("post_attention_layernorm"), ones()),
        (layer("self_attn.q_proj"), zeros(&[HEAD, VOCAB])),
        (layer("self_attn.k_proj"), zeros(&[HEAD, VOCAB])),
        (layer("self_attn.v_proj"), zeros(&[HEAD, VOCAB])),
        (layer("self_attn.o_proj"), zeros(&[VOCAB, HEAD])),
        (layer("mlp.gate_proj"), zeros(&[HIDDEN, VOCAB])),
        (layer("mlp.up_proj"), zeros(&[HIDDEN, VOCAB])),
        (layer("mlp.down_proj"), zeros(&[VOCAB, HIDDEN])),
    ];
    let bytes = tensors.map(|(name, (shape, values))| {
        (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
    });
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &path).unwrap();
}

/// The model with `eos_token_id` in `config.json` and, if given, all of `generation_config.json`.
fn model(test: &str, eos: Value, generation: Option<&str>) -> PathBuf {
    let folder = folder(&format!("ends-{test}"));
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(format!("{ENDS}/{name}"), folder.join(name)).unwrap();
    }
    let mut config = read_json(&format!("{ENDS}/config.json"));
    config["eos_token_id"] = eos;
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    if let Some(text) = generation {
        fs::write(folder.join("generation_config.json"), text).unwrap();
    }
    write_weights(folder.join("model.safetensors"));
    folder
}

fn generate(folder: &str) -> Value {
    let args =
        ["generate", "--greedy", "--json", "--max-new", "5", "--model", folder, "<|user|>a<|assistant|>"];
    json(&args)
}

#[test]
fn all_that_any_file_names_end_a_text() {
    let published = fs::read_to_string(format!("{ENDS}/generation_config.json")).unwrap();
    let run_out = [260, 269, 262, 261, 2];
    // What transformers 5.24 stops at: the ids of the generation config where it has some, else those of the config.
    for (test, eos, generation, ids) in [
        ("both", json!(2), Some(published.as_str()), &run_out[..2]),
        ("only-there", json!(null), Some(&published), &run_out[..2]),
        ("absent", json!([2, 262]), None, &run_out[..3]),
        ("silent", json!(262), Some(r#"{"temperature": Infinity}"#), &run_out[..3]),
        ("other", json!(260), Some(r#"{"eos_token_id": [2.0]}"#), &run_out),
        ("beyond", json!([300, -1]), None, &run_out),
    ] {
        let folder = model(test, eos, generation);
        let report = generate(folder.to_str().unwrap());
        assert_eq!(report["ids"], json!(ids), "{test}");
        let stopped = if test == "beyond" { "max-new" } else { "stop" };
        assert!(report["stop_reason"].as_str().unwrap().starts_with(stopped), "{test}: {report}");
    }
    let folder = model("info", json!(2), Some(&published));
    let folder = folder.to_str().unwrap();
    assert_eq!(json(&["info", "--json", "--model", folder])["eos"], json!([2, 269]));
    assert!(stdout(&["info", "--model", folder]).contains("ends        at token 2 or 269\n"));
    fails(
        &["info", "--model", model("wrong", json!(2), Some(r#"{"eos_token_id": "x"}"#)).to_str().unwrap()],
        &["generation_config.json: eos_token_id: found \"x\", expected a token id"],
    );
}

#[test]
fn an_answer_ends_there_too_and_quantised_models_keep_the_file() {
    let published = fs::read_to_string(format!("{ENDS}/generation_config.json")).unwrap();
    let folder = model("chat", Value::Null, Some(&published));
    fs::write(folder.join("special_tokens_map.json"), "{}").unwrap();
    let out = folder.with_file_name("command-line-ends-chat-f16");
    let _ = fs::remove_dir_all(&out);
    stdout(&["quantize", folder.to_str().unwrap(), out.to_str().unwrap(), "--scheme", "f16"]);
    for folder in [&folder, &out] {
        let args = ["chat", "--greedy", "--max-new", "9", "-q", "--model", folder.to_str().unwrap()];
        let mut child = headwise(&args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"a\n").unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (found, error) = (text(output.stdout), text(output.stderr));
        assert_eq!((output.status.code(), found.trim()), (Some(0), "b"), "{error}");
        assert!(folder.join("special_tokens_map.json").exists());
    }
}
