//! What q8 and q4 cost on text that the prose model was not trained on: bits per character, and how many routes change.
//!
//! `HEADWISE_TEST_SCALE=10 cargo test --release --test quantized held_out -- --nocapture` prints them for ten times as
//! much text; docs/quantization.md has such a run.

use std::path::Path;

use headwise::{KernelChoice, LayerRoutes, LoadOptions, Logits, Model, Precision, block_on};

use crate::{command::read_json, models::try_load};

/// Characters of a window: about 200 tokens, within the model's context of 256.
const WINDOW: usize = 500;

/// Some windows of each kind of text, as token ids.
fn windows(model: &Model) -> Vec<Vec<u32>> {
    let scale = std::env::var("HEADWISE_TEST_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let texts = read_json(&format!("{}/heldout.json", crate::command::PROSE));
    let mut windows = Vec::new();
    for text in texts.as_object().unwrap().values() {
        let chars: Vec<char> = text.as_str().unwrap().chars().collect();
        for window in chars.chunks(WINDOW).take(4 * scale) {
            let mut ids = model.tokenizer().unwrap().encode(&window.iter().collect::<String>()).unwrap();
            ids.truncate(256);
            windows.push(ids);
        }
    }
    windows
}

/// Σ −log₂ p of each token after the first.
fn bits(logits: &Logits, ids: &[u32]) -> f64 {
    let rows = logits.values.chunks_exact(logits.vocab).zip(&ids[1..]);
    rows.map(|(row, &next)| {
        let most = row.iter().fold(f64::NEG_INFINITY, |most, &z| most.max(f64::from(z)));
        let sum: f64 = row.iter().map(|&z| (f64::from(z) - most).exp()).sum();
        (sum.ln() + most - f64::from(row[next as usize])) / std::f64::consts::LN_2
    })
    .sum()
}

/// Routers' choices for a token that are another set of experts, and choices in all.
fn changed(found: &Logits, wanted: &Logits) -> (usize, usize) {
    let sets = |layer: &LayerRoutes| -> Vec<Vec<u32>> {
        let routers = [&layer.attention, &layer.mlp];
        let set = |choices: &Vec<headwise::Choice>| {
            let mut experts: Vec<u32> = choices.iter().map(|choice| choice.expert).collect();
            experts.sort_unstable();
            experts
        };
        routers.map(set).to_vec()
    };
    let layers = |logits: &Logits| -> Vec<Vec<u32>> {
        logits.routes.iter().flat_map(|token| token.layers.iter().flat_map(sets)).collect()
    };
    let (found, wanted) = (layers(found), layers(wanted));
    assert_eq!(found.len(), wanted.len());
    (found.iter().zip(&wanted).filter(|(found, wanted)| found != wanted).count(), wanted.len())
}

#[test]
fn held_out_text_costs_little_more_bits_in_q8_and_q4() {
    cost_little_more(&[
        (KernelChoice::Tuned, Precision::Q8, 0.005),
        (KernelChoice::Tuned, Precision::Q4, 0.03),
    ]);
}

/// As much as with products in f32.
#[test]
fn held_out_text_costs_little_more_bits_in_rounded_products() {
    cost_little_more(&[
        (KernelChoice::F16, Precision::F16, 0.005),
        (KernelChoice::Packed, Precision::Q8, 0.005),
        (KernelChoice::Packed, Precision::Q4, 0.03),
    ]);
}

/// Bits of the prose model against those of f16 with products in f32, and the share more that each case may need.
fn cost_little_more(cases: &[(KernelChoice, Precision, f64)]) {
    let folder = Path::new(crate::command::PROSE);
    let load =
        |kernels, precision| try_load(kernels, folder, LoadOptions::new().precision(precision)).unwrap();
    let model = load(KernelChoice::Tuned, Precision::F16);
    let windows = windows(&model);
    let read = |model: &Model| -> Vec<Logits> {
        windows.iter().map(|ids| block_on(model.logits(&[ids])).unwrap().remove(0)).collect()
    };
    let cost = |logits: &[Logits]| -> f64 { logits.iter().zip(&windows).map(|(l, ids)| bits(l, ids)).sum() };
    let decoded = |ids: &Vec<u32>| model.tokenizer().unwrap().decode(&ids[1..]).unwrap().chars().count();
    let characters: usize = windows.iter().map(decoded).sum();

    let wanted = read(&model);
    let exact = cost(&wanted);
    println!("{characters} characters in f16: {:.4} bits each", exact / characters as f64);
    for &(kernels, precision, most) in cases {
        let found = read(&load(kernels, precision));
        let more = cost(&found) / exact - 1.0;
        let pairs = found.iter().zip(&wanted).map(|(found, wanted)| changed(found, wanted));
        let (other, all) = pairs.fold((0, 0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
        println!(
            "{precision:?}, {kernels:?}: {:.4} bits, {:+.3} %; {other} of {all} choices of experts changed, {:.2} %",
            cost(&found) / characters as f64,
            100.0 * more,
            100.0 * other as f64 / all as f64
        );
        assert!(more.abs() < most, "{precision:?}, {kernels:?}: {more}");
        // A shift that a bound on the bits would not see: most tokens still go where they went.
        assert!(other * 4 < all, "{precision:?}, {kernels:?}: {other} of {all} choices of experts changed");
    }
}
