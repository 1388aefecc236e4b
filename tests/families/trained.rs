//! The trained models of this repository against the programs that trained them.

use headwise::{Edits, Image, LoadOptions, Logits, Model, Translate, block_on};
use serde_json::Value;
use std::path::{Path, PathBuf};

use crate::{
    models::{SHAPES, ids, logits, numbers, try_load},
    reference::{
        jetmoe::{read_json, read_safetensors},
        max_difference, softmax,
    },
};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

fn load(name: &str) -> Model {
    try_load(headwise::KernelChoice::Tuned, &folder(name), LoadOptions::new()).unwrap()
}

fn id_lists(value: &Value) -> Vec<Vec<u32>> {
    value.as_array().unwrap().iter().map(|list| ids(&numbers(list))).collect()
}

/// The logits of every sixteenth token, which is what large vocabularies have in their references.
fn sixteenth(logits: &Logits) -> Vec<f64> {
    logits.values.iter().step_by(16).map(|&value| value.into()).collect()
}

#[test]
fn the_translator_has_the_reference_logits() {
    let reference = read_safetensors(&folder("ui-en-de").join("reference.safetensors"));
    for shape in SHAPES {
        let model = try_load(shape, &folder("ui-en-de"), LoadOptions::new()).unwrap();
        for sentence in 0..3 {
            let part = |name: &str| &reference[&format!("{sentence}.{name}")];
            let (source, target) = (ids(part("source")), ids(part("target")));
            let found = block_on(model.translation_logits(&source, &target)).unwrap();
            let worst = max_difference(&sixteenth(&found.target), part("logits"));
            assert!(worst < 2e-3, "{shape:?}, sentence {sentence}: logits differ by {worst}");
        }
    }
}

/// Translates the first sources of the held-out set; returns how many are the reference's.
fn same(model: &Model, texts: usize, beams: usize, expected: &str) -> usize {
    let reference = read_json(&folder("ui-en-de").join("reference.json"));
    let texts: Vec<&str> = reference["test"].as_array().unwrap()[..texts]
        .iter()
        .map(|pair| pair["en"].as_str().unwrap())
        .collect();
    let found = block_on(model.translate(&texts, &Translate::new().beams(beams), |_, _| {})).unwrap();
    let expected = id_lists(&reference[expected]);
    found.iter().zip(expected).filter(|(found, expected)| found.ids == *expected).count()
}

#[test]
fn greedy_and_beam_translations_are_the_references() {
    let model = load("ui-en-de");
    // A near-tie may fall otherwise in f32: 99 in 100 are asked for.
    let greedy = same(&model, 100, 1, "greedy_ids");
    assert!(greedy >= 99, "greedy: {greedy} of 100 are the same");
    let beam = same(&model, 50, 4, "beam4_ids");
    assert!(beam >= 49, "beam 4: {beam} of 50 are the same");
}

#[test]
fn a_batch_of_translations_equals_its_members() {
    let model = load("ui-en-de");
    let texts = ["Save changes before closing?", "Delete", "", "The file could not be opened."];
    for beams in [1, 4] {
        let options = Translate::new().beams(beams).with_routes();
        let together = block_on(model.translate(&texts, &options, |_, _| {})).unwrap();
        for (text, together) in texts.iter().zip(&together) {
            let alone = block_on(model.translate(&[text], &options.clone().batch(1), |_, _| {})).unwrap();
            assert_eq!(alone[0].ids, together.ids, "{text}, {beams} beams");
            assert_eq!(together.routes.len(), together.ids.len());
            assert_eq!(together.source_routes.len(), together.source_ids.len());
        }
    }
}

#[test]
fn the_mask_filler_has_the_reference_logits_and_candidates() {
    let reference = read_safetensors(&folder("ui-fill").join("reference.safetensors"));
    for shape in SHAPES {
        let model = try_load(shape, &folder("ui-fill"), LoadOptions::new()).unwrap();
        let texts: Vec<Vec<u32>> = (0..3).map(|text| ids(&reference[&format!("{text}.ids")])).collect();
        let sequences: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        for (text, found) in block_on(model.logits(&sequences)).unwrap().iter().enumerate() {
            let worst = max_difference(&sixteenth(found), &reference[&format!("{text}.logits")]);
            assert!(worst < 2e-3, "{shape:?}, text {text}: logits differ by {worst}");
        }
    }
}

/// The texts of a folder under `models/heads`, with logits of all of their tokens or of some.
fn texts_with_logits(folder: &Path) -> Vec<(Vec<u32>, Vec<usize>, Vec<f64>)> {
    let reference = read_safetensors(&folder.join("reference.safetensors"));
    let text = |number| {
        let part = |name: &str| reference.get(&format!("{number}.{name}"));
        let text = ids(part("ids")?);
        let rows = part("rows").map_or((0..text.len()).collect(), |rows| {
            ids(rows).into_iter().map(|row| row as usize).collect()
        });
        Some((text, rows, part("logits")?.clone()))
    };
    (0..).map_while(text).collect()
}

/// The models of `models/heads` and their families.
const HEADS: [(&str, &str); 3] = [("copier", "llama"), ("copier-moa", "jetmoe"), ("reactions", "albert")];

#[test]
fn models_to_look_into_have_the_reference_logits() {
    for (name, family) in HEADS {
        let folder = folder("heads").join(name);
        let texts = texts_with_logits(&folder);
        assert!(texts.len() > 1);
        for shape in SHAPES {
            let model = try_load(shape, &folder, LoadOptions::new()).unwrap();
            assert_eq!(model.info().family, family);
            let writes = model.info().task == "generate";
            for (number, (text, rows, expected)) in texts.iter().enumerate() {
                for step_tokens in [1, 5, 64].into_iter().filter(|&tokens| writes || tokens == 64) {
                    let found = logits(&model, text, step_tokens.max(if writes { 0 } else { text.len() }));
                    let found: Vec<f64> = rows
                        .iter()
                        .flat_map(|row| &found.values[row * found.vocab..(row + 1) * found.vocab])
                        .map(|&value| value.into())
                        .collect();
                    let worst = max_difference(&found, expected);
                    assert!(worst < 1e-3, "{name}, {shape:?}, text {number}: logits differ by {worst}");
                }
            }
        }
    }
}

/// rxnmapper's tokens of its reactions, special ones included.
#[test]
fn reactions_are_cut_as_the_original_cuts_them() {
    let folder = folder("heads").join("reactions");
    let model = load("heads/reactions");
    let lines = std::fs::read_to_string(folder.join("reactions.jsonl")).unwrap();
    let texts = texts_with_logits(&folder);
    assert_eq!(lines.lines().count(), texts.len());
    for (line, (expected, ..)) in lines.lines().zip(texts) {
        let row: Value = serde_json::from_str(line).unwrap();
        assert_eq!(model.encode(row["text"].as_str().unwrap()).unwrap(), expected, "{}", row["text"]);
    }
}

#[test]
fn a_masked_atom_is_what_the_original_says() {
    let filled = &read_json(&folder("heads/reactions").join("reference.json"))["filled"];
    let found = block_on(load("heads/reactions").fill(filled["text"].as_str().unwrap(), 3)).unwrap();
    let expected = filled["tokens"].as_array().unwrap().iter().zip(numbers(&filled["probabilities"]));
    for (candidate, (token, probability)) in found.masks[0].candidates.iter().zip(expected) {
        assert_eq!(candidate.text, token.as_str().unwrap());
        assert!((f64::from(candidate.probability) - probability).abs() < 1e-4, "{candidate:?}");
    }
}

/// What the config of `reactions` may not say.
#[test]
fn albert_refuses_what_is_another_model() {
    let from = folder("heads").join("reactions");
    for (field, value, says) in [
        ("num_hidden_groups", 2.into(), "num_hidden_groups"),
        ("inner_group_num", 2.into(), "inner_group_num"),
        ("hidden_act", "relu".into(), "hidden_act"),
        (
            "embedding_size",
            257.into(),
            "embedding_size: found 257, expected at most hidden_size, which is 256",
        ),
        ("embedding_size", 64.into(), "word_embeddings"),
        ("type_vocab_size", 3.into(), "token_type_embeddings"),
        ("mask_token_id", 591.into(), "mask_token_id: found 591"),
        ("mask_token_id", Value::Null, "mask_token_id: found no such field"),
        ("num_attention_heads", 7.into(), "num_attention_heads"),
    ] {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("albert-{field}-{value}"));
        std::fs::create_dir_all(&to).unwrap();
        std::fs::copy(from.join("model.safetensors"), to.join("model.safetensors")).unwrap();
        let mut config = read_json(&from.join("config.json"));
        config[field] = value;
        std::fs::write(to.join("config.json"), config.to_string()).unwrap();
        let Err(error) = try_load(headwise::KernelChoice::Plain, &to, LoadOptions::new()) else {
            panic!("{field} was accepted");
        };
        assert!(error.to_string().contains(says), "{field}: {error}");
    }
}

#[test]
fn a_model_of_attention_alone_has_no_mlp() {
    for (name, experts) in [("copier", 1), ("copier-moa", 8)] {
        let model = load(&format!("heads/{name}"));
        let info = model.info();
        assert_eq!((info.mlp.experts, info.mlp.active, info.mlp.hidden), (0, 0, 0), "{name}");
        assert_eq!(info.attention.experts, experts, "{name}");
        let Err(error) = model.edited(&Edits::new().with("L0E0:off".parse().unwrap())) else {
            panic!("{name}: an expert of no MLP");
        };
        assert!(error.to_string().contains("without an MLP"), "{name}: {error}");
    }
}

#[test]
fn classifiers_have_the_reference_probabilities() {
    for (name, reference, logits, side) in [
        ("fashion", "fashion", "logits", 28),
        ("fashion/dense", "fashion", "dense.logits", 28),
        ("heads/far-patch", "heads/far-patch", "logits", 32),
    ] {
        let reference = read_safetensors(&folder(reference).join("reference.safetensors"));
        let images: Vec<Image> = reference["images"]
            .chunks(side * side)
            .map(|bytes| Image::new(side, side, 1, bytes.iter().map(|&byte| byte as u8).collect()).unwrap())
            .collect();
        let classes = reference[logits].len() / images.len();
        for shape in SHAPES {
            let model = try_load(shape, &folder(name), LoadOptions::new()).unwrap();
            let found = block_on(model.classify(&images, classes)).unwrap();
            for (found, logits) in found.iter().zip(reference[logits].chunks(classes)) {
                let mut by_class = vec![0.0; classes];
                for class in &found.classes {
                    by_class[class.id as usize] = f64::from(class.probability);
                }
                let worst = max_difference(&by_class, &softmax(logits));
                assert!(worst < 1e-4, "{name}, {shape:?}: probabilities differ by {worst}");
            }
        }
    }
}

/// Its rows of attention are for the methods to find; here, that it is a model.
#[test]
fn the_planted_model_loads() {
    let model = load("heads/planted");
    let image = Image::new(32, 32, 1, vec![0; 32 * 32]).unwrap();
    let found = block_on(model.classify(&[image], 2)).unwrap();
    let sum: f32 = found[0].classes.iter().map(|class| class.probability).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{found:?}");
}
