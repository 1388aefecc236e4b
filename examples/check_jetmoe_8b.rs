//! Compares a downloaded JetMoE-8B with the logits and the texts that transformers' own tests expect of it.
//!
//! `cargo run --release --example check_jetmoe_8b -- FOLDER`, or `jetmoe/jetmoe-8b` to fetch it (17 GB)
//!
//! The expectations are in `examples/jetmoe_8b.json`; a second argument names another file of that form.

use std::{error::Error, ops::ControlFlow, path::Path, process::ExitCode};

use headwise::{Generate, Gpu, GpuOptions, Hub, LoadOptions, Model, Source, block_on};
use serde::Deserialize;

/// What a model is expected to compute.
#[derive(Deserialize)]
pub(crate) struct Expected {
    /// The tokens whose logits are compared.
    pub(crate) ids: Vec<u32>,
    /// The mean of each token's logits.
    pub(crate) logit_means: Numbers,
    /// The first logits of the first token.
    pub(crate) logit_slice: Numbers,
    /// Texts continued with the likeliest tokens.
    pub(crate) greedy: Vec<Greedy>,
}

/// Numbers, and how far from them is near enough: `tolerance · (1 + |value|)`.
#[derive(Deserialize)]
pub(crate) struct Numbers {
    pub(crate) values: Vec<f64>,
    pub(crate) tolerance: f64,
}

/// Prompts that run side by side, and each with its continuation.
#[derive(Deserialize)]
pub(crate) struct Greedy {
    pub(crate) prompts: Vec<String>,
    pub(crate) max_new: usize,
    pub(crate) texts: Vec<String>,
}

/// Says where the model differs from what is expected of it; nothing where it does not.
pub(crate) fn differences(model: &Model, expected: &Expected) -> headwise::Result<Vec<String>> {
    let logits = block_on(model.logits(&[&expected.ids]))?.remove(0);
    let mean = |row: &[f32]| row.iter().map(|&value| f64::from(value)).sum::<f64>() / row.len() as f64;
    let means: Vec<f64> = logits.values.chunks(logits.vocab).map(mean).collect();
    let first: Vec<f64> = logits.values[..logits.vocab].iter().map(|&value| f64::from(value)).collect();
    let slice = &first[..expected.logit_slice.values.len().min(first.len())];

    let mut differences = compare("mean of the logits of token", &means, &expected.logit_means);
    differences.extend(compare("first token's logit", slice, &expected.logit_slice));
    for greedy in &expected.greedy {
        differences.extend(compare_texts(model, greedy)?);
    }
    Ok(differences)
}

fn compare(what: &str, found: &[f64], expected: &Numbers) -> Vec<String> {
    let (wanted, tolerance) = (&expected.values, expected.tolerance);
    if found.len() != wanted.len() {
        return vec![format!("{what}: found {} of them, expected {}", found.len(), wanted.len())];
    }
    let differs = |(index, (found, wanted)): (usize, (&f64, &f64))| {
        // Written so that a NaN differs.
        let near = (found - wanted).abs() <= tolerance * (1.0 + wanted.abs());
        (!near).then(|| format!("{what} {index}: found {found:.4}, expected {wanted:.4} within {tolerance}"))
    };
    found.iter().zip(wanted).enumerate().filter_map(differs).collect()
}

fn compare_texts(model: &Model, greedy: &Greedy) -> headwise::Result<Vec<String>> {
    let tokenizer = model.tokenizer()?;
    let prompts = greedy.prompts.iter().map(|text| tokenizer.encode(text)).collect::<Result<Vec<_>, _>>()?;
    let batch: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let options = Generate::new().greedy().max_new(greedy.max_new);
    let written = block_on(model.generate_ids(&batch, &options, |_| ControlFlow::Continue(())))?;

    let mut differences = Vec::new();
    for ((prompt, new), wanted) in prompts.iter().zip(&written.ids).zip(&greedy.texts) {
        let found = tokenizer.decode(&[&prompt[..], new].concat())?;
        if found != *wanted {
            differences.push(format!("text of {}: found {found:?}, expected {wanted:?}", batch.len()));
        }
    }
    Ok(differences)
}

fn run() -> Result<Vec<String>, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().ok_or("usage: check_jetmoe_8b FOLDER|OWNER/NAME [EXPECTED.json]")?;
    let file = arguments
        .next()
        .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/examples/jetmoe_8b.json").to_owned());
    let expected: Expected = serde_json::from_slice(&std::fs::read(&file)?)?;
    let folder = match Path::new(&name).is_dir() {
        true => name.into(),
        false => Hub::from_env()?.look(&name.parse()?)?.download(|_, _| {})?,
    };
    let gpu = block_on(Gpu::new(GpuOptions::new()))?;
    let model = block_on(Model::load(&gpu, &Source::folder(folder), LoadOptions::new()))?;
    Ok(differences(&model, &expected)?)
}

fn main() -> ExitCode {
    match run() {
        Ok(differences) if differences.is_empty() => {
            println!("the same logits and texts");
            ExitCode::SUCCESS
        }
        Ok(differences) => {
            println!("{}", differences.join("\n"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
