//! The promise: `examples/check_jetmoe_8b.rs` passes a model that computes what is expected of it, and names each
//! number and text that differs. JetMoE-8B is too large for a test; its expectations have the form of these.
#![cfg(all(feature = "hub", feature = "tokenizer"))]

#[allow(dead_code)] // its `main` runs elsewhere
#[path = "../examples/check_jetmoe_8b.rs"]
mod check;

use std::{
    fs,
    path::{Path, PathBuf},
};

use check::{Expected, Greedy, Numbers, differences};
use headwise::{Gpu, GpuOptions, KernelChoice, LoadOptions, Model, Source, block_on};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jetmoe_tiny");
const PROSE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/prose");

fn load(folder: &Path) -> Model {
    let gpu = block_on(Gpu::new(GpuOptions::new().kernels(KernelChoice::Tuned)))
        .expect("this needs a GPU adapter: scripts/setup vulkan");
    block_on(Model::load(&gpu, &Source::folder(folder), LoadOptions::new())).unwrap()
}

fn read_json(path: String) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What the original's logits, `[ids, vocab]`, say of the means and of the first token, as transformers' tests cut them.
fn from_logits(ids: &[u32], logits: &[Vec<f64>], greedy: Vec<Greedy>) -> Expected {
    let mean = |row: &Vec<f64>| row.iter().sum::<f64>() / row.len() as f64;
    Expected {
        ids: ids.to_vec(),
        logit_means: Numbers { values: logits.iter().map(mean).collect(), tolerance: 2e-4 },
        logit_slice: Numbers { values: logits[0][..30].to_vec(), tolerance: 2e-4 },
        greedy,
    }
}

/// The tiny fixture with a tokenizer of one word for each id.
fn tiny() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("check-jetmoe-tiny");
    fs::create_dir_all(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(format!("{TINY}/{file}"), folder.join(file)).unwrap();
    }
    let vocab: serde_json::Map<String, Value> = (0..101).map(|id| (format!("w{id}"), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

/// The likeliest next word after each of some prefixes of the fixture's ids, by the original's logits.
fn tiny_expected() -> Expected {
    let file = read_json(format!("{TINY}/expected.json"));
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let ids: Vec<u32> = numbers(&file["ids"]).iter().map(|&id| id as u32).collect();
    let logits: Vec<Vec<f64>> = file["logits"].as_array().unwrap().iter().map(numbers).collect();
    let words = |ids: &[u32]| ids.iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ");
    let continued = |length: usize| {
        let row = &logits[length - 1];
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        (words(&ids[..length]), words(&[&ids[..length], &[best as u32]].concat()))
    };
    let greedy = |lengths: &[usize]| {
        let (prompts, texts) = lengths.iter().map(|&length| continued(length)).unzip();
        Greedy { prompts, max_new: 1, texts }
    };
    from_logits(&ids, &logits, vec![greedy(&[12]), greedy(&[12, 5, 9])])
}

#[test]
fn the_tiny_model_passes_and_what_differs_is_named() {
    let model = load(&tiny());
    let check = |change: &dyn Fn(&mut Expected)| {
        let mut expected = tiny_expected();
        change(&mut expected);
        differences(&model, &expected).unwrap()
    };
    assert_eq!(check(&|_| {}), Vec::<String>::new());

    let one = |change: &dyn Fn(&mut Expected), parts: &[&str]| {
        let found = check(change);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(parts.iter().all(|part| found[0].contains(part)), "{found:?}");
    };
    one(&|expected| expected.logit_means.values[7] += 1e-3, &["mean of the logits of token 7: found "]);
    one(&|expected| expected.logit_slice.values[29] -= 1e-3, &["first token's logit 29: found "]);
    one(&|expected| expected.logit_slice.values[3] = f64::NAN, &["first token's logit 3", "expected NaN"]);
    one(&|expected| expected.greedy[0].texts[0] += "!", &["text of 1: found \"w", "!\""]);
    one(&|expected| expected.greedy[1].texts[2] = "w1".to_owned(), &["text of 3: found", "expected \"w1\""]);
    one(&|expected| expected.logit_means.values.truncate(11), &["found 12 of them, expected 11"]);
    one(&|expected| expected.logit_slice.values.resize(102, 0.0), &["found 101 of them, expected 102"]);
    // Other ids: every mean but none of the texts.
    let found = check(&|expected| expected.ids.iter_mut().for_each(|id| *id = (*id + 1) % 101));
    assert!(found.len() > 12 && found.iter().all(|line| !line.starts_with("text")), "{found:?}");
}

#[test]
fn the_prose_model_passes_with_the_texts_of_transformers() {
    let bytes = fs::read(format!("{PROSE}/reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<u32> {
        let words = reference.tensor(name).unwrap().data().as_chunks().0.iter();
        words.map(|&word| u32::from_le_bytes(word)).collect()
    };
    let logits: Vec<f64> =
        words("3.logits").into_iter().map(|word| f64::from(f32::from_bits(word))).collect();
    let logits: Vec<Vec<f64>> = logits.chunks(4096).map(<[f64]>::to_vec).collect();

    let texts = read_json(format!("{PROSE}/reference.json"));
    let greedy = |indices: &[usize]| {
        let text = |index: &usize, field: &str| texts["prompts"][*index][field].as_str().unwrap().to_owned();
        let prompts = indices.iter().map(|index| text(index, "text")).collect();
        let texts = indices.iter().map(|index| text(index, "text") + &text(index, "greedy")).collect();
        Greedy { prompts, max_new: 48, texts }
    };
    let mut expected = from_logits(&words("3.ids"), &logits, vec![greedy(&[4]), greedy(&[2, 0])]);
    let model = load(Path::new(PROSE));
    assert_eq!(differences(&model, &expected).unwrap(), Vec::<String>::new());
    expected.greedy[1].texts.swap(0, 1);
    assert_eq!(differences(&model, &expected).unwrap().len(), 2);
}

#[test]
fn the_expectations_of_jetmoe_8b_are_read() {
    let bytes = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/jetmoe_8b.json")).unwrap();
    let expected: Expected = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((expected.ids.len(), expected.logit_means.values.len()), (8, 8));
    assert_eq!(expected.logit_slice.values.len(), 30);
    assert!(expected.greedy.iter().all(|greedy| greedy.prompts.len() == greedy.texts.len()));
    assert_eq!(expected.greedy.iter().map(|greedy| greedy.prompts.len()).sum::<usize>(), 3);
}
