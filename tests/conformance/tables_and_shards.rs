//! Checkpoints as people have them: embedding and output head in one table or two, tensors in shards whose index says
//! more or less than they hold.

use std::{fs, path::PathBuf};

use headwise::{KernelChoice, LoadOptions, Model};
use serde_json::{Value, json};

use crate::{
    files::{Tensors, read, write, write_model},
    models::{difference, ids, logits, numbers, try_load},
    reference::jetmoe::read_json,
};

const TABLE: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn parts(name: &str) -> (Value, Tensors) {
    (read_json(&fixture(name).join("config.json")), read(&fixture(name).join("model.safetensors")))
}

/// A model whose logits are those that transformers 5.24 computed for a fixture.
#[track_caller]
fn computes(model: &Model, name: &str) {
    let expected = read_json(&fixture(name).join("expected.json"));
    let found = logits(model, &ids(&numbers(&expected["ids"])), 64);
    let worst = difference(&found, &numbers(&expected["logits"]));
    assert!(worst < 2e-4, "logits differ by {worst}");
}

fn load(folder: &std::path::Path) -> Result<Model, headwise::Error> {
    try_load(KernelChoice::Plain, folder, LoadOptions::new())
}

fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("tables-and-shards").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn written(name: &str, config: &Value, tensors: &Tensors) -> Model {
    let folder = folder(name);
    write_model(&folder, config, tensors);
    load(&folder).unwrap()
}

#[test]
fn a_head_with_other_values_than_the_embedding_is_used_though_the_config_ties_them() {
    let (mut config, tensors) = parts("jetmoe_two_tables");
    let bytes =
        |tensors: &Tensors| 4 * tensors.values().map(|t| t.1.iter().product::<usize>() as u64).sum::<u64>();
    for tied in [json!(true), Value::Null] {
        config["tie_word_embeddings"] = tied;
        let model = written("other-head", &config, &tensors);
        computes(&model, "jetmoe_two_tables");
        let info = model.info();
        let note = "the output head is lm_head.weight, as transformers has it, though config.json ties it to the \
                    embeddings";
        assert_eq!((info.tied_head, &info.notes[..]), (false, &[note.to_owned()][..]));
        assert_eq!(4 * info.parameters, bytes(&tensors));
        assert_eq!(info.kept_f16[..2], [TABLE.to_owned(), HEAD.to_owned()]);
    }
    config["tie_word_embeddings"] = false.into();
    let model = written("untied", &config, &tensors);
    computes(&model, "jetmoe_two_tables");
    assert!(model.info().notes.is_empty());
}

#[test]
fn a_tied_pair_is_one_table_by_either_name_or_both() {
    let (config, tied) = parts("jetmoe_tiny");
    let plain = written("one-table", &config, &tied);
    let mut both = tied.clone();
    both.insert(HEAD.to_owned(), tied[TABLE].clone());
    let mut head = both.clone();
    head.remove(TABLE);
    for (name, tensors) in [("both", both), ("head-alone", head)] {
        let model = written(name, &config, &tensors);
        computes(&model, "jetmoe_tiny");
        let (info, plain) = (model.info(), plain.info());
        assert!(info.tied_head && info.notes.is_empty(), "{name}: {:?}", info.notes);
        let precision = model.precision();
        assert_eq!(
            (info.parameters, info.weight_bytes(precision)),
            (plain.parameters, plain.weight_bytes(precision))
        );
    }
    let mut neither = tied.clone();
    neither.remove(TABLE);
    write_model(&folder("neither"), &config, &neither);
    let error =
        load(&PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("tables-and-shards/neither")).err().unwrap();
    assert!(error.to_string().contains("tensor \"model.embed_tokens.weight\": found none"), "{error}");
}

/// A fixture in two shards, of which the first also has `extra`, and an index that says what `edit` makes of it.
fn sharded(name: &str, edit: impl FnOnce(&mut serde_json::Map<String, Value>), extra: &Tensors) -> PathBuf {
    let folder = folder(name);
    let (config, tensors) = parts("jetmoe_tiny");
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let (first, second): (Tensors, Tensors) =
        tensors.into_iter().partition(|(name, _)| !name.contains("layers.1."));
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let mut map = serde_json::Map::new();
    map.extend(first.keys().map(|name| (name.clone(), json!(one))));
    map.extend(second.keys().map(|name| (name.clone(), json!(two))));
    edit(&mut map);
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    let first = first.into_iter().chain(extra.clone()).collect();
    for (file, tensors) in [(one, first), (two, second)] {
        let listed =
            map.values().filter_map(Value::as_str).find(|listed| listed.ends_with(file)).unwrap_or(file);
        fs::create_dir_all(folder.join(listed).parent().unwrap()).unwrap();
        write(&folder.join(listed), &tensors);
    }
    folder
}

/// Puts `before` in front of every file's name, or of every other one's.
fn spelled(before: &'static str, every: usize) -> impl FnOnce(&mut serde_json::Map<String, Value>) {
    move |map| {
        for (_, file) in map.iter_mut().step_by(every) {
            *file = format!("{before}{}", file.as_str().unwrap()).into();
        }
    }
}

#[test]
fn shards_have_the_logits_of_the_whole_file_however_the_index_is_written() {
    let none = Tensors::new();
    let extra =
        |name: &str| Tensors::from([(name.to_owned(), parts("jetmoe_tiny").1["model.norm.weight"].clone())]);
    let absent = |name: &'static str| {
        move |map: &mut serde_json::Map<String, Value>| {
            map.insert(name.into(), json!("model-00002-of-00002.safetensors"));
        }
    };
    let frequencies = "model.layers.0.self_attention.rotary_emb.inv_freq";
    for folder in [
        sharded("plain", |_| {}, &none),
        sharded("dot-slash", spelled("./", 1), &none),
        sharded("two-spellings", spelled("././", 2), &none),
        sharded("sub-folder", spelled("weights/", 1), &none),
        sharded("absent-head", absent(HEAD), &none),
        sharded("absent-buffer", absent(frequencies), &none),
        sharded(
            "buffer",
            |map| _ = map.insert(frequencies.into(), json!("model-00001-of-00002.safetensors")),
            &extra(frequencies),
        ),
    ] {
        let model = load(&folder).unwrap_or_else(|error| panic!("{error}"));
        computes(&model, "jetmoe_tiny");
        assert!(model.info().notes.is_empty(), "{folder:?}");
    }
    // Whatever it is that the index does not list: a tensor nobody knows, or one that another file has.
    for name in ["mtp.fc.weight", HEAD] {
        let model = load(&sharded("unlisted", |_| {}, &extra(name))).unwrap();
        computes(&model, "jetmoe_tiny");
        let note = format!("tensor {name:?} is left out: the index does not list it");
        assert_eq!(model.info().notes, [note]);
    }
    let copy = Tensors::from([(
        "model.layers.1.mlp.bias".to_owned(),
        parts("jetmoe_tiny").1["model.norm.weight"].clone(),
    )]);
    computes(&load(&sharded("a-second-copy", |_| {}, &copy)).unwrap(), "jetmoe_tiny");
    // The whole file is read first, as transformers does: an index may be left of another checkpoint.
    let both = sharded("both", |map| map.retain(|name, _| name.contains("norm")), &none);
    fs::copy(fixture("jetmoe_tiny").join("model.safetensors"), both.join("model.safetensors")).unwrap();
    computes(&load(&both).unwrap(), "jetmoe_tiny");
}
