//! The trained masked model and the trained classifiers against the program that trained them.

use crate::{
    ids,
    reference::{jetmoe::read_safetensors, max_difference, moa::Moa, vit::VitMoh},
    root,
};

#[test]
fn the_masked_model_agrees_and_so_do_its_routes() {
    let folder = root().join("models/ui-fill");
    let reference = read_safetensors(&folder.join("reference.safetensors"));
    let model = Moa::load(&folder);
    for sentence in 0..3 {
        let expected = |part: &str| &reference[&format!("{sentence}.{part}")];
        let output = model.fill(&ids(expected("ids")));
        // Of every sixteenth token.
        let logits: Vec<f64> = output.logits.into_iter().step_by(16).collect();
        let difference = max_difference(&logits, expected("logits"));
        assert!(difference <= 1e-4, "sentence {sentence}: logits differ by {difference:e}");
        let (experts, gates) = (ids(expected("routes")), expected("gates"));
        for (layer, routes) in output.routes.iter().enumerate() {
            let count = routes.attention.experts.len();
            let part = layer * count..(layer + 1) * count;
            let found = routes.attention.compare(&experts[part.clone()], &gates[part], 1e-5).unwrap();
            assert!(found.gate_error <= 1e-5, "layer {layer}: gates differ by {:e}", found.gate_error);
            assert!(found.skipped <= 1, "layer {layer}: {} near-ties", found.skipped);
        }
    }
}

#[test]
fn the_classifier_agrees_and_so_do_its_gates() {
    let folder = root().join("models/fashion");
    let reference = read_safetensors(&folder.join("reference.safetensors"));
    let image = |i: usize| &reference["images"][i * 28 * 28..][..28 * 28];
    for (folder, logits) in [(folder.clone(), "logits"), (folder.join("dense"), "dense.logits")] {
        let model = VitMoh::load(&folder);
        for (i, expected) in reference[logits].chunks_exact(10).take(16).enumerate() {
            let difference = max_difference(&model.forward(&model.pixels(image(i))).logits, expected);
            assert!(difference <= 5e-5, "image {i}: {logits} differ by {difference:e}");
        }
    }

    // Head gates [layers, 4 images, tokens, heads]; a near-tie may go either way.
    let model = VitMoh::load(&folder);
    for i in 0..4 {
        let output = model.forward(&model.pixels(image(i)));
        for (layer, gates) in output.head_gates.iter().enumerate() {
            let expected = &reference["head_gates"][(layer * 4 + i) * gates.len()..][..gates.len()];
            for (token, margin) in output.routes[layer].margins.iter().enumerate() {
                let row = token * 8..(token + 1) * 8;
                let difference = max_difference(&gates[row.clone()], &expected[row]);
                assert!(difference <= 1e-5 || *margin < 1e-5, "image {i}, layer {layer}, token {token}");
            }
        }
    }
}
