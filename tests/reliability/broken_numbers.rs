//! Finite weights whose products are not: every task says so, and chooses nothing.

use std::{fs, ops::ControlFlow, path::PathBuf};

use headwise::{Embed, Error, Generate, Image, LoadOptions, Model, Score, Source, Translate, block_on};
use headwise_reference::jetmoe::weight_files;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::plain_gpu;

/// A shipped model with the weights of this norm so large that what it scales overflows.
fn overflowing(test: &str, model: &str, norm: &str) -> (PathBuf, Model) {
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(model);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("overflowing-{test}"));
    fs::create_dir_all(&folder).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        let _ = fs::copy(from.join(file), folder.join(file));
    }
    let files: Vec<Vec<u8>> = weight_files(&from).iter().map(|file| fs::read(file).unwrap()).collect();
    let files: Vec<SafeTensors> =
        files.iter().map(|bytes| SafeTensors::deserialize(bytes).unwrap()).collect();
    let found = files.iter().find_map(|file| file.tensor(norm).ok()).unwrap();
    let width = found.shape().to_vec();
    let large: Vec<u8> = (0..width[0]).flat_map(|_| 3e38f32.to_le_bytes()).collect();
    let tensors = files.iter().flat_map(SafeTensors::tensors).map(|(name, tensor)| match name == norm {
        true => (name, TensorView::new(Dtype::F32, width.clone(), &large).unwrap()),
        false => (name, tensor),
    });
    safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors")).unwrap();
    let loaded = block_on(Model::load(&plain_gpu(), &Source::folder(&folder), LoadOptions::new()));
    (folder, loaded.unwrap())
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) {
    match result {
        Err(error @ Error::NotFinite { .. }) => {
            let message = error.to_string();
            assert!(message.contains("expected finite numbers"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_text_is_written_from_numbers_that_are_none() {
    let (folder, model) = overflowing("text", "models/prose", "model.norm.weight");
    refused(block_on(model.logits(&[&[1, 2, 3]])));
    refused(block_on(model.score_ids(&[&[1, 2, 3]], &Score::new())));
    refused(block_on(model.embed_ids(&[&[1, 2, 3]], &Embed::new())));
    for options in [Generate::new().greedy(), Generate::new(), Generate::new().top_k(None).top_p(1.0)] {
        for options in [options.clone(), options.with_routes()] {
            let mut told = 0;
            let result = block_on(model.generate_ids(&[&[1, 2, 3]], &options, |token| {
                told += usize::from(!token.prompt);
                ControlFlow::Continue(())
            }));
            refused(result);
            assert_eq!(told, 0);
        }
    }
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn no_routes_are_counted_from_numbers_that_are_none() {
    let (folder, model) = overflowing("routes", "models/prose", "model.layers.4.input_layernorm.weight");
    refused(block_on(model.routes(&[1, 2, 3])));
    refused(block_on(model.expert_use(&[1, 2, 3])));
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn no_class_is_named_from_numbers_that_are_none() {
    let (folder, model) = overflowing("classes", "models/fashion", "norm.weight");
    refused(block_on(
        model.classify(&[Image::new(28, 28, 1, (0..784u32).map(|i| i as u8).collect()).unwrap()], 3),
    ));
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn no_mask_is_filled_from_numbers_that_are_none() {
    let (folder, model) = overflowing("masks", "models/ui-fill", "encoder.layers.3.final_layer_norm.weight");
    let mask = model.info().mask.unwrap();
    refused(block_on(model.fill_ids(&[&[5, mask, 7]], 3)));
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn nothing_is_translated_to_numbers_that_are_none() {
    let norm = "decoder.layers.2.final_layer_norm.weight";
    let (folder, model) = overflowing("translations", "models/ui-en-de", norm);
    for beams in [1, 4] {
        refused(block_on(model.translate_ids(&[&[5, 6, 7]], &Translate::new().beams(beams), |_, _| {})));
    }
    refused(block_on(model.translation_logits(&[5, 6, 7], &[1, 2])));
    fs::remove_dir_all(folder).unwrap();
}
