//! Embedding and output head in one table or two, for every family that ties them.

use std::path::{Path, PathBuf};

use headwise::{KernelChoice, LoadOptions, Model, block_on};
use serde_json::{Value, json};

use crate::{
    files::{Tensors, decode, encode, read, write_model},
    fixture,
    models::try_load,
    reference::{
        checkpoints::{
            SEED, SOURCE, TARGET, bam_config, moa_config, switch_head_config, uoe_config, with, write_random,
        },
        jetmoe::read_json,
    },
};

const HEAD: &str = "lm_head.weight";

/// The tied models: name, table, config, tensors without a head of its own.
fn tied() -> Vec<(&'static str, &'static str, Value, Tensors)> {
    let fill = json!({"task": "fill_mask", "decoder_layers": 0});
    let written = |name: &str, config: Value| {
        let folder = room(name).join("original");
        write_random(&folder, &config, SEED);
        folder
    };
    let folders = [
        ("jetmoe", "model.embed_tokens.weight", fixture("jetmoe_tiny")),
        ("molm", "transformer.wte.weight", fixture("molm_tiny")),
        ("moh-llama", "model.embed_tokens.weight", fixture("moh_llama_tiny")),
        ("moa", "embed_tokens.weight", written("moa", moa_config())),
        ("moa-fill", "embed_tokens.weight", written("moa-fill", with(&moa_config(), &fill))),
        ("bam", "model.embed_tokens.weight", written("bam", bam_config())),
        ("switchhead", "embed_tokens.weight", written("switchhead", switch_head_config())),
        ("uoe", "embed_tokens.weight", written("uoe", uoe_config())),
    ];
    let all = folders.into_iter().map(|(name, table, folder)| {
        let mut config = read_json(&folder.join("config.json"));
        if config["tie_embeddings"] != true {
            config["tie_word_embeddings"] = true.into();
        }
        let mut tensors = read(&folder.join("model.safetensors"));
        tensors.remove(HEAD);
        if let Some(bias) = tensors.get_mut("lm_head.bias") {
            // It would stay when the rest of a logit doubles.
            bias.2.fill(0);
        }
        (name, table, config, tensors)
    });
    all.collect()
}

fn room(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("tied").join(name)
}

fn load(name: &str, config: &Value, tensors: &Tensors) -> Model {
    let folder = room(name).join("edited");
    write_model(&folder, config, tensors);
    try_load(KernelChoice::Plain, &folder, LoadOptions::new()).unwrap_or_else(|error| panic!("{error}"))
}

fn logits(model: &Model) -> Vec<f32> {
    match model.info().task {
        "translate" => block_on(model.translation_logits(&SOURCE, &TARGET)).unwrap().target.values,
        _ => block_on(model.logits(&[&SOURCE])).unwrap().remove(0).values,
    }
}

#[test]
fn every_family_takes_a_tied_pair_as_the_files_have_it() {
    for (name, table, config, tensors) in tied() {
        let model = load(name, &config, &tensors);
        let (plain, bytes) = (logits(&model), model.info().weight_bytes(model.precision()));
        assert!(model.info().tied_head && model.info().notes.is_empty(), "{name}");

        // Once more under the head's name, or under that name only: the same model.
        let mut copied = tensors.clone();
        copied.insert(HEAD.to_owned(), tensors[table].clone());
        let mut head_alone = copied.clone();
        head_alone.remove(table);
        for tensors in [&copied, &head_alone] {
            let model = load(name, &config, tensors);
            assert!(logits(&model) == plain, "{name}");
            let info = model.info();
            assert!(info.tied_head && info.notes.is_empty(), "{name}: {:?}", info.notes);
            assert_eq!(info.weight_bytes(model.precision()), bytes, "{name}");
        }

        // Twice the values: twice the logits, to the bit.
        let doubled: Vec<f64> = decode(&tensors[table]).iter().map(|value| 2.0 * value).collect();
        let (dtype, shape, _) = &tensors[table];
        copied.insert(HEAD.to_owned(), (*dtype, shape.clone(), encode(&doubled, *dtype)));
        let model = load(name, &config, &copied);
        assert!(logits(&model).iter().zip(&plain).all(|(found, one)| *found == 2.0 * one), "{name}");
        let info = model.info();
        assert!(!info.tied_head && info.notes.len() == 1, "{name}");
        assert!(info.notes[0].contains(HEAD), "{name}: {:?}", info.notes);
        let table_bytes = 4 * (shape[0].next_multiple_of(4) * shape[1].next_multiple_of(8)) as u64;
        assert_eq!(info.weight_bytes(model.precision()), bytes + table_bytes, "{name}");
        assert_eq!(model.gpu().allocated_bytes(), info.weight_bytes(model.precision()), "{name}");
    }
}
