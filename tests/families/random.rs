//! Families without published checkpoints, on random weights: the GPU against their f64 oracles.

use headwise::{Image, KernelChoice, LoadOptions, Model, block_on};
use serde_json::Value;
use std::path::PathBuf;

use crate::{
    models::{SHAPES, assert_routes, difference, try_load},
    reference::{
        checkpoints::{SEED, SOURCE, TARGET, image, uniform, variants, write_random},
        decoder_families::{self, Decoder},
        max_difference,
        moa::{self, Moa},
        softmax,
        vit::VitMoh,
        widen,
    },
};

/// The variants of one `model_type`, each written to a folder.
fn folders(kind: &str) -> Vec<(&'static str, Value, PathBuf)> {
    let of_kind =
        variants().into_iter().filter(|(_, config)| config["model_type"].as_str().unwrap().starts_with(kind));
    let written = of_kind.map(|(name, config)| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("families").join(name);
        write_random(&folder, &config, SEED);
        (name, config, folder)
    });
    let found: Vec<_> = written.collect();
    assert!(!found.is_empty(), "no variants of {kind}");
    found
}

fn models(folder: &std::path::Path) -> impl Iterator<Item = (KernelChoice, Model)> {
    SHAPES.into_iter().map(move |shape| (shape, try_load(shape, folder, LoadOptions::new()).unwrap()))
}

fn close(name: &str, shape: KernelChoice, worst: f64) {
    println!("{name}, {shape:?}: logits differ by {worst:.1e}");
    assert!(worst < 2e-4, "{name}, {shape:?}: logits differ by {worst}");
}

#[test]
fn moa_translates_and_fills_as_its_oracle_does() {
    for (name, config, folder) in folders("moa") {
        let oracle = Moa::load(&folder);
        for (shape, model) in models(&folder) {
            if config["task"] == "fill_mask" {
                let expected = oracle.fill(&SOURCE);
                let found = block_on(model.logits(&[&SOURCE])).unwrap().remove(0);
                close(name, shape, difference(&found, &expected.logits));
                for (layer, routes) in expected.routes.iter().enumerate() {
                    assert_routes(&found, |routes| &routes.attention, layer, &routes.attention);
                }
                continue;
            }
            let expected = oracle.decode(&SOURCE, &TARGET);
            let found = block_on(model.translation_logits(&SOURCE, &TARGET)).unwrap();
            close(name, shape, difference(&found.target, &expected.logits));
            for (layer, moa::LayerRoutes { attention, cross }) in expected.routes.iter().enumerate() {
                assert_routes(&found.target, |routes| &routes.attention, layer, attention);
                assert_routes(&found.target, |routes| &routes.cross, layer, cross.as_ref().unwrap());
            }
            let mut read = headwise::Logits::default();
            read.routes = found.source_routes;
            for (layer, routes) in oracle.encode(&SOURCE).routes.iter().enumerate() {
                assert_routes(&read, |routes| &routes.attention, layer, &routes.attention);
            }
        }
    }
}

/// [`image`] as an image of interleaved bytes.
fn interleaved() -> Image {
    let (planes, area) = (image(), 12 * 12);
    let pixels = (0..area).flat_map(|at| (0..3).map(move |c| (c, at)));
    Image::new(12, 12, 3, pixels.map(|(c, at)| planes[c * area + at] as u8).collect()).unwrap()
}

#[test]
fn vision_transformers_classify_as_their_oracle_does() {
    for (name, config, folder) in folders("vit") {
        let oracle = VitMoh::load(&folder);
        let expected = oracle.forward(&oracle.pixels(&image()));
        let probabilities = softmax(&expected.logits);
        let routed = config["model_type"] == "vit_moh";
        for (shape, model) in models(&folder) {
            // Alone, and in a batch of unlike images.
            let blank = Image::new(12, 12, 1, vec![77; 144]).unwrap();
            let images = [interleaved(), blank.clone(), interleaved(), blank];
            for (index, count) in [(0, 1), (0, 4), (2, 4)] {
                let found = block_on(model.classify(&images[..count], probabilities.len())).unwrap();
                let mut by_class = vec![0.0; probabilities.len()];
                for class in &found[index].classes {
                    by_class[class.id as usize] = f64::from(class.probability);
                }
                close(name, shape, max_difference(&by_class, &probabilities));
                if !routed {
                    continue;
                }
                let routes = found[index].routes.clone();
                let mut found = headwise::Logits::default();
                found.routes = routes;
                for (layer, routes) in expected.routes.iter().enumerate() {
                    assert_routes(&found, |routes| &routes.attention, layer, routes);
                }
            }
        }
    }
}

/// Compares a model with an oracle on whole texts and token by token.
fn decoder_agrees(name: &str, folder: &std::path::Path) {
    let expected = Decoder::load(folder).forward(1, &SOURCE);
    for (shape, model) in models(folder) {
        for step_tokens in [1, 4, 5, 64] {
            let found = block_on(model.logits_in_steps(&[&SOURCE], step_tokens)).unwrap().remove(0);
            close(name, shape, difference(&found, &expected.logits));
            for (layer, routes) in expected.routes.iter().enumerate() {
                let decoder_families::LayerRoutes { attention, values, mlp, .. } = routes;
                assert_routes(&found, |routes| &routes.attention, layer, attention);
                if let Some(values) = values {
                    assert_routes(&found, |routes| &routes.values, layer, values);
                }
                if let Some(mlp) = mlp {
                    assert_routes(&found, |routes| &routes.mlp, layer, mlp);
                }
            }
        }
    }
}

#[test]
fn bam_computes_what_its_oracle_does() {
    for (name, _, folder) in folders("bam") {
        decoder_agrees(name, &folder);
    }
}

#[test]
fn switch_head_computes_what_its_oracle_does() {
    for (name, _, folder) in folders("switchhead") {
        decoder_agrees(name, &folder);
    }
}

#[test]
fn uoe_cuts_whole_sequences_as_its_oracle_does_and_does_not_generate() {
    for (name, config, folder) in folders("uoe") {
        // Another text of the same length in the batch changes what heads take.
        let other: Vec<u32> = uniform(3, 0).take(SOURCE.len()).map(|a| ((a + 0.5) * 50.0) as u32).collect();
        let both: Vec<u32> = SOURCE.iter().chain(&other).copied().collect();
        let heads = config["num_attention_heads"].as_u64().unwrap() as usize;
        let oracle = Decoder::load(&folder);
        for (shape, model) in models(&folder) {
            for (batch, ids) in [(1, &SOURCE[..]), (2, &both[..])] {
                let expected = oracle.forward(batch, ids);
                let sequences: Vec<&[u32]> = ids.chunks(SOURCE.len()).collect();
                let found = block_on(model.logits(&sequences)).unwrap();
                let logits: Vec<f64> = found.iter().flat_map(|found| widen(&found.values)).collect();
                close(name, shape, max_difference(&logits, &expected.logits));
                for (layer, routes) in expected.routes.iter().enumerate() {
                    for (part, places) in routes.places.iter().enumerate() {
                        let (sequence, head) = (part / heads, (part % heads) as u32);
                        let takes = |token: &usize| {
                            let chosen = &found[sequence].routes[*token].layers[layer].attention;
                            chosen.iter().any(|choice| choice.expert == head)
                        };
                        let taken: Vec<usize> = (0..SOURCE.len()).filter(takes).collect();
                        assert_eq!(taken, *places, "{name}, layer {layer}, sequence {sequence}, head {head}");
                    }
                }
            }
            let refused = block_on(model.generate_ids(&[&SOURCE], &headwise::Generate::new(), |_| {
                std::ops::ControlFlow::Continue(())
            }));
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("'uoe'") && message.contains("no next-token form"), "{message}");
        }
    }
}
