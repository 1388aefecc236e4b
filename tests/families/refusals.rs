//! What the config readers of the newer families refuse, by file and field.

use headwise::{Generate, Image, KernelChoice, LoadOptions, Translate, block_on};
use serde_json::{Value, json};
use std::{ops::ControlFlow, path::PathBuf};

use crate::{
    models::try_load,
    reference::checkpoints::{
        SEED, bam_config, moa_config, switch_head_config, uoe_config, vit_config, with, write_random,
    },
};

/// A folder with the tensors of one config and, if given, another config.
fn folder(name: &str, config: &Value, edited: Option<&Value>) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("refused-families").join(name);
    write_random(&folder, config, SEED);
    if let Some(edited) = edited {
        std::fs::write(folder.join("config.json"), edited.to_string()).unwrap();
    }
    folder
}

#[test]
fn configs_that_want_something_else_are_refused() {
    let cases: Vec<(Value, Value, &str)> = vec![
        (
            moa_config(),
            json!({"task": "summarise"}),
            "task: found \"summarise\", expected translation or fill_mask",
        ),
        (moa_config(), json!({"top_k": 6}), "experts per token: found 6"),
        (moa_config(), json!({"gate_weights": "sigmoid"}), "gate_weights: found \"sigmoid\""),
        (moa_config(), json!({"norm_position": "middle"}), "norm_position"),
        (moa_config(), json!({"norm_position": "post"}), "layer_norm"),
        (moa_config(), json!({"num_experts": 4}), "w_gate"),
        (moa_config(), json!({"decoder_layers": 3}), "decoder.layers.2."),
        (moa_config(), json!({"d_model": 21}), "d_model: found 21, expected an even number"),
        (
            moa_config(),
            json!({"decoder_start_token_id": 53}),
            "decoder_start_token_id or bos_token_id: found 53",
        ),
        (
            moa_config(),
            json!({"eos_token_id": 60}),
            "eos_token_id: found 60, expected below vocab_size, which is 53",
        ),
        (moa_config(), json!({"eos_token_id": [2, 3]}), "eos_token_id: found 2 ids, expected one"),
        (
            moa_config(),
            json!({"position_offset": 2.5}),
            "position_offset: found 2.5, expected a whole number",
        ),
        (moa_config(), json!({"eos_token_id": null}), "eos_token_id: found no such field"),
        (moa_config(), json!({"activation": "silu"}), "activation: found \"silu\", expected relu or gelu"),
        (
            vit_config(),
            json!({"image_size": 13}),
            "image_size: found 13, expected a multiple of patch_size, 4",
        ),
        (vit_config(), json!({"num_channels": 2}), "num_channels: found 2"),
        (vit_config(), json!({"image_std": [0.0, 1.0, 1.0]}), "image_std"),
        (vit_config(), json!({"image_mean": [0.5]}), "image_mean"),
        (vit_config(), json!({"id2label": {"0": "cat", "2": "dog"}}), "id2label"),
        (vit_config(), json!({"moh": {"shared_heads": 3, "routed_heads": 3}}), "moh.routed_heads"),
        (vit_config(), json!({"image_size": 16}), "pos_embed"),
        (
            bam_config(),
            json!({"bam": {"experts": 3, "kv": "both", "mlp_top_k": 1, "mlp_gate": "softmax"}}),
            "bam.kv",
        ),
        (
            bam_config(),
            json!({"bam": {"experts": 2, "kv": "expert", "mlp_top_k": 1, "mlp_gate": "softmax"}}),
            "router",
        ),
        (bam_config(), json!({"intermediate_size": 0}), "intermediate_size: found 0, expected a width"),
        (bam_config(), json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (bam_config(), json!({"rope_parameters": {"rope_type": "llama3"}}), "rope_parameters.rope_type"),
        (bam_config(), json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (
            bam_config(),
            json!({"bam": {"experts": 3, "kv": "expert", "parallel_block": 1, "mlp_top_k": 1, "mlp_gate": "softmax"}}),
            "bam.parallel_block: found 1, expected true or false",
        ),
        (switch_head_config(), json!({"head_dim": 12}), "head size: found 12, expected a multiple of 8"),
        (switch_head_config(), json!({"num_experts_per_tok": 9}), "experts per token: found 9"),
        (switch_head_config(), json!({"rotary_percent": 1.5}), "rotary_percent"),
        (uoe_config(), json!({"heads_per_token": 99}), "heads_per_token: found 99"),
        (uoe_config(), json!({"hidden_act": "silu"}), "hidden_act: found \"silu\", expected relu or gelu"),
    ];
    for (index, (config, edit, says)) in cases.into_iter().enumerate() {
        let folder = folder(&format!("case-{index}"), &config, Some(&with(&config, &edit)));
        let message = match try_load(KernelChoice::Plain, &folder, LoadOptions::new()) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{edit} was accepted"),
        };
        assert!(message.contains(says), "{edit}: {message}");
        assert!(message.contains(&format!("case-{index}")), "names the file: {message}");
    }
}

/// The families without published configs take the same forms.
#[test]
fn what_scales_nothing_and_ends_nowhere_is_accepted() {
    for (name, config) in [("bam", bam_config()), ("switchhead", switch_head_config()), ("uoe", uoe_config())]
    {
        let folder =
            |case: &str, edit: &Value| folder(&format!("{name}-{case}"), &config, Some(&with(&config, edit)));
        let logits = |case: &str, edit: Value| {
            let model = try_load(KernelChoice::Plain, &folder(case, &edit), LoadOptions::new());
            let model = model.unwrap_or_else(|error| panic!("{name}, {edit}: {error}"));
            assert!(case == "plain" || model.info().eos.is_empty(), "{:?}", model.info().eos);
            block_on(model.logits(&[&[1, 5, 3]])).unwrap().remove(0).values
        };
        let plain = logits("plain", json!({}));
        let theta = &config["rope_theta"];
        let same = [
            logits("default", json!({"rope_scaling": {"rope_type": "default"}, "eos_token_id": 32000})),
            logits("old", json!({"rope_scaling": {"type": "default"}, "eos_token_id": -1})),
            logits(
                "new",
                json!({"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "rope_theta": null, "eos_token_id": null}),
            ),
        ];
        assert!(same.iter().all(|logits| *logits == plain), "{name}");
        let scaled = folder("scaled", &json!({"rope_scaling": {"type": "dynamic", "factor": 2}}));
        let refused = try_load(KernelChoice::Plain, &scaled, LoadOptions::new()).err().unwrap().to_string();
        assert!(refused.contains("rope_scaling.type = \"dynamic\" is not supported"), "{refused}");
    }
}

#[test]
fn a_table_of_positions_that_cannot_be_bound_is_refused_with_numbers() {
    let config = moa_config();
    let folder = folder("positions", &config, Some(&with(&config, &json!({"max_positions": 1 << 24}))));
    let refused = try_load(KernelChoice::Plain, &folder, LoadOptions::new()).err().unwrap().to_string();
    assert!(refused.contains(" needs 1.5 GiB"), "{refused}");
}

#[test]
fn a_model_refuses_the_tasks_it_is_not_for() {
    let load = |name: &str, config: &Value| {
        try_load(KernelChoice::Tuned, &folder(name, config, None), LoadOptions::new()).unwrap()
    };
    let translator = load("translator", &moa_config());
    let classifier = load("classifier", &vit_config());
    let writer = load("writer", &bam_config());
    let says = |result: Result<(), headwise::Error>, what: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    };
    let image = Image::new(2, 2, 1, vec![0; 4]).unwrap();
    let generate = |model: &headwise::Model| {
        block_on(model.generate_ids(&[&[1, 2]], &Generate::new(), |_| ControlFlow::Continue(()))).map(|_| ())
    };
    let wrong = "model: found one for the task";
    says(generate(&translator), wrong);
    says(generate(&classifier), wrong);
    says(block_on(translator.logits(&[&[1]])).map(|_| ()), wrong);
    says(block_on(classifier.routes(&[1])).map(|_| ()), wrong);
    says(block_on(writer.fill_ids(&[&[1]], 1)).map(|_| ()), wrong);
    says(block_on(writer.classify(std::slice::from_ref(&image), 1)).map(|_| ()), wrong);
    says(block_on(writer.translate_ids(&[&[1]], &Translate::new(), |_, _| {})).map(|_| ()), wrong);

    let translate = |ids: &[u32], options: Translate| {
        block_on(translator.translate_ids(&[ids], &options, |_, _| {})).map(|_| ())
    };
    says(translate(&[], Translate::new()), "no tokens");
    says(translate(&[1; 65], Translate::new()), "65 tokens");
    says(translate(&[53], Translate::new()), "token id: found 53");
    says(translate(&[1], Translate::new().beams(0)), "beams: found 0, expected 1 to 8");
    says(translate(&[1], Translate::new().beams(9)), "beams: found 9");
    says(translate(&[1], Translate::new().max_new(0)), "max new tokens");
    says(translate(&[1], Translate::new().length_penalty(f64::NAN)), "length penalty");
    says(block_on(classifier.classify(&[], 1)).map(|_| ()), "images: found none");
    says(block_on(classifier.classify(&[image], 4)).map(|_| ()), "top: found 4, expected 1 to 3");
    says(Image::new(2, 2, 2, vec![0; 8]).map(|_| ()), "image channels: found 2");
    says(Image::new(2, 2, 1, vec![0; 5]).map(|_| ()), "image bytes: found 5");
    says(Image::new(usize::MAX, 2, 1, vec![0; 5]).map(|_| ()), "image bytes");
}

#[test]
fn a_translation_that_is_cancelled_before_it_begins_is_empty() {
    let translator =
        try_load(KernelChoice::Tuned, &folder("cancelled", &moa_config(), None), LoadOptions::new()).unwrap();
    let cancel = headwise::Cancel::new();
    cancel.cancel();
    let result = block_on(translator.translate_ids(&[&[1]], &Translate::new().cancel(&cancel), |_, _| {}));
    let translation = result.unwrap().remove(0);
    assert_eq!((translation.ids, translation.source_ids), (vec![], vec![1]));
    assert_eq!(translation.stopped, headwise::StopReason::Cancelled);
}
