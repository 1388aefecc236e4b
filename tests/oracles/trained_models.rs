//! The trained models of this repository against the programs that trained them.

use crate::{
    ids,
    reference::{jetmoe::read_safetensors, max_difference, moa::Moa},
    root,
};

#[test]
fn the_translator_agrees() {
    let folder = root().join("models/ui-en-de");
    let reference = read_safetensors(&folder.join("reference.safetensors"));
    let model = Moa::load(&folder);
    for sentence in 0..3 {
        let expected = |part: &str| &reference[&format!("{sentence}.{part}")];
        let source = ids(expected("source"));
        let difference = max_difference(&model.encode(&source).states, expected("encoder"));
        assert!(difference <= 1e-5, "sentence {sentence}: the encoder's output differs by {difference:e}");
        let output = model.decode(&source, &ids(expected("target")));
        // Of every sixteenth token.
        let logits: Vec<f64> = output.logits.into_iter().step_by(16).collect();
        let difference = max_difference(&logits, expected("logits"));
        assert!(difference <= 5e-5, "sentence {sentence}: logits differ by {difference:e}");
    }
}
