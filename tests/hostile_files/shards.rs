//! A checkpoint in several files, and the index that names them.

use super::build::{Folder, INDEX, Model, refused};
use headwise::fuzzing::check_source;
use headwise::{Error, Source};
use serde_json::{Value, json};

/// The small model in two shards.
fn sharded() -> (Value, [Vec<u8>; 2]) {
    let mut halves = [Model::small(), Model::small()];
    halves[0].tensors.truncate(5);
    halves[1].tensors.drain(..5);
    let mut map = serde_json::Map::new();
    for (half, name) in halves.iter().zip(["1.safetensors", "2.safetensors"]) {
        map.extend(half.tensors.iter().map(|t| (t.0.clone(), json!(name))));
    }
    (json!({"metadata": {"total_size": 1}, "weight_map": map}), halves.map(|half| half.weights()))
}

fn check_sharded(index: &str, shards: &[Vec<u8>; 2]) -> Result<(), Error> {
    let files = [("1.safetensors", &shards[0]), ("2.safetensors", &shards[1])];
    let mut files: Vec<_> = files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
    files.push(("config.json".into(), Model::small().config()));
    files.push(("model.safetensors.index.json".into(), index.into()));
    check_source(&Source::memory("m", files))
}

#[test]
fn an_index_must_agree_with_its_files() {
    let (index, shards) = sharded();
    check_sharded(&index.to_string(), &shards).unwrap();
    let with = |edit: &dyn Fn(&mut Value)| {
        let mut index = index.clone();
        edit(&mut index["weight_map"]);
        check_sharded(&index.to_string(), &shards)
    };
    let (first, last) = ("model.embed_tokens.weight", "model.layers.0.mlp.bias");
    refused(
        with(&|map| map[first] = json!("2.safetensors")),
        &[INDEX, first, "2.safetensors", "1.safetensors"],
    );
    refused(with(&|map| map["ghost"] = json!("1.safetensors")), &[INDEX, "\"ghost\"", "no such tensor"]);
    refused(with(&|map| map[last] = json!("3.safetensors")), &["m/3.safetensors", "not found"]);
    // What is not listed is not there, and the model misses it.
    let unlisted = with(&|map| drop(map.as_object_mut().unwrap().remove(last)));
    refused(unlisted, &["m/1.safetensors … m/2.safetensors: tensor", last, "found none"]);

    let same = [shards[0].clone(), shards[0].clone()];
    let missed = "model.layers.0.self_attention.experts.input_linear.weight";
    for _ in 0..5 {
        // The same tensor in every run.
        let parts = [INDEX, missed, "no such tensor in any file, expected it in 2.safetensors"];
        refused(check_sharded(&index.to_string(), &same), &parts);
    }
    // Of equal keys the last counts.
    let (here, there) = (format!("\"{first}\":\"1.safetensors\""), format!("\"{first}\":\"2.safetensors\""));
    let text = index.to_string();
    assert!(text.contains(&here), "{text}");
    check_sharded(&text.replacen(&here, &format!("{there},{here}"), 1), &shards).unwrap();
    refused(
        check_sharded(&text.replacen(&here, &format!("{here},{there}"), 1), &shards),
        &[INDEX, first, "it in 2.safetensors, as this index says"],
    );
    let cut = [shards[0].clone(), shards[1][..shards[1].len() - 1].to_vec()];
    refused(
        check_sharded(&index.to_string(), &cut),
        &["m/2.safetensors: tensor \"model.layers.0.mlp.bias\""],
    );
}

#[test]
fn an_index_cannot_name_files_outside_the_folder() {
    // Files that would be good, if only they were inside.
    let outer = Folder::new("outside").with("good.safetensors", Model::small().weights());
    let inner = outer.0.join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(inner.join("config.json"), Model::small().config()).unwrap();
    let absolute = outer.0.join("good.safetensors").display().to_string();
    for name in [
        "../good.safetensors",
        "..\\good.safetensors",
        "./../good.safetensors",
        "inner/../../good.safetensors",
        "%2e%2e%2fgood.safetensors",
        "good.safetensors\0",
        "https://example.com/good.safetensors",
        "C:good.safetensors",
        "..",
        ".",
        "",
        "/good.safetensors",
        "./",
        "inner//good.safetensors",
        &absolute,
    ] {
        let map: serde_json::Map<_, _> =
            Model::small().tensors.iter().map(|t| (t.0.clone(), json!(name))).collect();
        let index = json!({"weight_map": map}).to_string();
        std::fs::write(inner.join("model.safetensors.index.json"), &index).unwrap();
        refused(check_source(&Source::folder(&inner)), &[INDEX, "weight_map, tensor", "plain file name"]);
        refused(check_sharded(&index, &sharded().1), &[INDEX, "weight_map, tensor", "plain file name"]);
    }
}

#[test]
fn text_that_is_not_an_index_is_refused() {
    let (index, shards) = sharded();
    for number in ["NaN", "-Infinity", "1e400000", "99999999999999999999999"] {
        let text = index.to_string().replace("\"total_size\":1", &format!("\"total_size\":{number}"));
        let read = check_sharded(&text, &shards);
        match number {
            "1e400000" => refused(read, &[INDEX, "JSON: found number out of range"]),
            _ => read.unwrap(),
        }
    }
    let deep = format!("{{\"weight_map\":{}", "[".repeat(200_000));
    let wide = format!("{{\"metadata\":[{}0],\"weight_map\":{{}}}}", "0,".repeat(600_000));
    let map = "expected an object that maps each tensor to its file";
    for (text, parts) in [
        ("", ["found an empty file", "expected JSON"]),
        ("{}", ["weight_map: found no such field", map]),
        ("{\"weight_map\":null}", ["weight_map: found no such field", map]),
        ("[]", ["JSON: found a text that begins with \"[]\"", "expected a JSON object"]),
        (r#"{"weight_map":[]}"#, ["weight_map: found a list of 0", map]),
        (r#"{"metadata":{"total_size":1}}"#, ["weight_map: found no such field", map]),
        (r#"{"weight_map":{"a":1}}"#, ["weight_map, tensor \"a\": found 1", "expected the name of its file"]),
        (r#"{"weight_map":{"a":null}}"#, ["weight_map, tensor \"a\": found null", "the name of its file"]),
        ("{\"weight_map\":{}}", ["weight_map: found no tensors", "expected at least one"]),
        (r#"{"error":"Repository not found"}"#, ["a server's answer", "\"Repository not found\""]),
        (&deep, ["JSON: found recursion limit exceeded", "expected a JSON object"]),
        (&wide, ["JSON: found more than 524288 values", "a file of a model"]),
    ] {
        refused(check_sharded(text, &shards), &[INDEX, parts[0], parts[1]]);
    }
    let many: serde_json::Map<_, _> = (0..70_000).map(|i| (i.to_string(), json!("1.safetensors"))).collect();
    refused(
        check_sharded(&json!({"weight_map": many}).to_string(), &shards),
        &[INDEX, "weight_map: found 70000 tensors, expected at most 65536"],
    );
    let files: serde_json::Map<_, _> =
        (0..1000).map(|i| (i.to_string(), json!(format!("{i}.safetensors")))).collect();
    refused(check_sharded(&json!({"weight_map": files}).to_string(), &shards), &[INDEX, "1000 files"]);
    let text = index.to_string();
    for end in (1..text.len()).step_by(7) {
        refused(check_sharded(&text[..end], &shards), &[INDEX, "JSON"]);
    }
}
