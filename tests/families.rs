//! The promise: every family computes what its original implementation computes, through the same layers.
//!
//! JetMoE has its own file, `conformance.rs`, with the trained model.

#[path = "support/files.rs"]
#[allow(dead_code)] // each test binary uses its own part
mod files;
mod models;
use headwise_reference as reference;

mod families {
    mod heads;
    mod random;
    mod refusals;
    mod statistics;
    mod steered;
    mod texts;
    mod tied;
    mod trained;
    mod upcycled;
}

use std::{ops::ControlFlow, path::Path};

use headwise::{Generate, KernelChoice, LoadOptions, Logits, Precision, Score, block_on};
use models::{SHAPES, assert_routes, difference, ids, logits, numbers, try_load};
use reference::{
    jetmoe::read_json, losses, max_difference, moh_llama::MohLlama, molm::Molm, token_logprob::token_logprob,
    widen,
};
use serde_json::Value;

/// Token by token, the most that run as few rows, the least that run in tiles, and all at once.
const STEPS: [usize; 4] = [1, 4, 5, 64];

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load(kernels: KernelChoice, name: &str) -> headwise::Model {
    try_load(kernels, &fixture(name), LoadOptions::new()).unwrap()
}

/// The ids that a fixture's outputs belong to.
fn prompt_of(name: &str) -> Vec<u32> {
    ids(&numbers(&read_json(&fixture(name).join("expected.json"))["ids"]))
}

/// Logits of the fixture's ids in every kernel shape and step size, within 2e-4; returns one of them.
fn assert_logits(name: &str) -> Logits {
    let expected = read_json(&fixture(name).join("expected.json"));
    let (prompt, wanted) = (prompt_of(name), numbers(&expected["logits"]));
    for kernels in SHAPES {
        let model = load(kernels, name);
        for step_tokens in STEPS {
            let worst = difference(&logits(&model, &prompt, step_tokens), &wanted);
            assert!(worst < 2e-4, "{name}, {kernels:?}, steps of {step_tokens}: logits differ by {worst}");
        }
        let scored = block_on(model.score_ids(&[&prompt], &Score::new())).unwrap().remove(0);
        let before_last = &wanted[..wanted.len() - wanted.len() / prompt.len()];
        let logprobs = token_logprob(before_last, &prompt[1..]);
        let worst = max_difference(&widen(&scored.logprobs), &logprobs);
        assert!(worst < 2e-4, "{name}, {kernels:?}: log-probabilities differ by {worst}");
    }
    logits(&load(KernelChoice::Plain, name), &prompt, 64)
}

#[test]
fn molm_matches_moduleformer_with_and_without_key_value_projections() {
    for name in ["molm_tiny", "molm_tiny_2head"] {
        let found = assert_logits(name);
        let prompt = prompt_of(name);
        for (layer, (attention, mlp)) in Molm::load(&fixture(name)).forward(&prompt).routes.iter().enumerate()
        {
            assert_routes(&found, |routes| &routes.attention, layer, attention);
            assert_routes(&found, |routes| &routes.mlp, layer, mlp);
        }
    }
}

#[test]
fn moh_llama_matches_the_original_and_keeps_its_heads() {
    let found = assert_logits("moh_llama_tiny");
    let expected = read_json(&fixture("moh_llama_tiny").join("expected.json"));
    for layer in 0..2 {
        for (token, heads) in expected["routed_heads"][layer].as_array().unwrap().iter().enumerate() {
            let chosen = &found.routes[token].layers[layer];
            let mut experts: Vec<u32> = chosen.attention.iter().map(|choice| choice.expert).collect();
            experts.sort_unstable();
            // Four heads are always on; the others are the routed ones.
            let mut wanted = vec![0, 1, 2, 3];
            wanted.extend(ids(&numbers(heads)));
            wanted.sort_unstable();
            assert_eq!(experts, wanted, "layer {layer}, token {token}");
            assert!(chosen.attention.iter().all(|choice| choice.gate == 1.0));
            assert!(chosen.mlp.is_empty(), "the MLP is dense");
        }
    }
}

/// A copy of a fixture with another config.
fn with_config(name: &str, copy: &str, edit: impl FnOnce(&mut Value)) -> std::path::PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(copy);
    std::fs::create_dir_all(&folder).unwrap();
    let mut config = read_json(&fixture(name).join("config.json"));
    edit(&mut config);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(fixture(name).join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    folder
}

fn without_moh(config: &mut Value) {
    config.as_object_mut().unwrap().remove("moh");
}

#[test]
fn a_dense_llama_is_the_mixture_with_one_expert() {
    let dense = with_config("moh_llama_tiny", "dense-llama", without_moh);
    let prompt = prompt_of("moh_llama_tiny");
    let expected = MohLlama::load(&dense).forward(&prompt).logits;
    let all_on = with_config("moh_llama_tiny", "all-heads-on", |config| {
        config["moh"]["routed"] = 4.into();
    });
    for kernels in SHAPES {
        for folder in [&dense, &all_on] {
            let model = try_load(kernels, folder, LoadOptions::new()).unwrap();
            for step_tokens in STEPS {
                let worst = difference(&logits(&model, &prompt, step_tokens), &expected);
                assert!(worst < 2e-4, "{folder:?}, {kernels:?}, steps of {step_tokens}: {worst}");
            }
        }
    }
    let model = try_load(KernelChoice::Plain, &dense, LoadOptions::new()).unwrap();
    assert_eq!(model.info().family, "llama");
    // Without a router there is nothing to read back.
    let used = block_on(model.expert_use(&prompt)).unwrap();
    assert!(used.iter().all(|layer| layer.routers().count() == 0), "{used:?}");
}

#[test]
fn generating_equals_the_argmax_of_the_logits_for_every_family() {
    for name in ["molm_tiny", "molm_tiny_2head", "moh_llama_tiny"] {
        let model = load(KernelChoice::Tuned, name);
        let prompt = prompt_of(name);
        let options = Generate::new().greedy().max_new(12).with_routes();
        let generated =
            block_on(model.generate_ids(&[&prompt], &options, |_| ControlFlow::Continue(()))).unwrap();
        let whole: Vec<u32> = prompt.iter().chain(&generated.ids[0]).copied().collect();
        let logits = logits(&model, &whole, 64);
        for (step, &id) in generated.ids[0].iter().enumerate() {
            let row = (prompt.len() + step - 1) * logits.vocab;
            let best = reference::sample::argmax(&reference::widen(&logits.values[row..row + logits.vocab]));
            assert_eq!(id, best, "{name}, new token {step}");
        }
    }
}

#[test]
fn f16_storage_changes_logits_by_less_than_its_rounding_could() {
    for name in ["molm_tiny_2head", "moh_llama_tiny"] {
        let prompt = prompt_of(name);
        let at = |precision| {
            let options = LoadOptions::new().precision(precision);
            logits(&try_load(KernelChoice::Plain, &fixture(name), options).unwrap(), &prompt[..4], 64)
        };
        let (wide, narrow) = (at(Precision::F32), at(Precision::F16));
        let wide: Vec<f64> = reference::widen(&wide.values);
        let scale = wide.iter().fold(0.0, |most: f64, z| most.max(z.abs()));
        assert!(difference(&narrow, &wide) < 2e-2 * scale, "{name}");
    }
}

/// The message for a fixture with an edited config.
fn refusal(name: &str, case: &str, edit: impl FnOnce(&mut Value)) -> String {
    let folder = with_config(name, &format!("refused-{case}"), edit);
    let message = match try_load(KernelChoice::Plain, &folder, LoadOptions::new()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{case} was accepted"),
    };
    assert!(message.contains("refused-"), "names the file: {message}");
    message
}

#[test]
fn configs_that_want_something_else_are_refused_by_field() {
    let set = |field: &'static str, value: Value| move |config: &mut Value| config[field] = value;
    for (name, field, value, says) in [
        ("molm_tiny", "att_func", "softmax".into(), "att_func"),
        ("molm_tiny", "gate_type", "gmm".into(), "gate_type"),
        ("molm_tiny", "k_att", 6.into(), "experts per token"),
        ("molm_tiny", "n_mlp_experts", 7.into(), "mlpf"),
        ("molm_tiny", "n_head", 3.into(), "att_hidden"),
        ("molm_tiny", "n_layer", 3.into(), "transformer.h.2."),
        ("molm_tiny", "n_layer", 1.into(), "transformer.h.1."),
        ("molm_tiny", "gating_size", 9.into(), "w_gate.0.weight"),
        ("moh_llama_tiny", "rope_scaling", serde_json::json!({"type": "linear"}), "rope_scaling"),
        ("moh_llama_tiny", "attention_bias", true.into(), "attention_bias"),
        ("moh_llama_tiny", "num_key_value_heads", 3.into(), "num_key_value_heads"),
        ("moh_llama_tiny", "intermediate_size", 41.into(), "gate_proj"),
        ("moh_llama_tiny", "model_type", "mamba".into(), "mamba"),
    ] {
        let message = refusal(name, &format!("{field}-{}", value.to_string().len()), set(field, value));
        assert!(message.contains(says), "{field}: {message}");
    }
    let message = refusal("moh_llama_tiny", "moh", |config| config["moh"]["routed"] = 5.into());
    assert!(message.contains("moh.routed"), "{message}");
}

/// What says nothing, in the forms that published configs have: in every family the logits stay those of the fixture.
#[test]
fn what_a_config_may_say_without_a_difference() {
    let number = |config: &Value, name: &str| config[name].as_u64().map(|n| n as f64);
    for name in ["jetmoe_tiny", "molm_tiny", "moh_llama_tiny"] {
        let plain = read_json(&fixture(name).join("config.json"));
        let theta = plain.get("rope_theta").cloned().unwrap_or(10000.0.into());
        let layers = if name == "molm_tiny" { "n_layer" } else { "num_hidden_layers" };
        let mut edits: Vec<Value> = vec![
            serde_json::json!({"rope_scaling": {"rope_type": "default"}}),
            serde_json::json!({"rope_scaling": {"type": "default", "rope_theta": theta}}),
            serde_json::json!({"rope_scaling": {}}),
            serde_json::json!({"rope_scaling": null, "head_dim": null, "quantization_config": null, "auto_map": null}),
            serde_json::json!({"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "rope_theta": null}),
            serde_json::json!({"eos_token_id": 32000, "bos_token_id": -1}),
            serde_json::json!({"eos_token_id": [2.0, 32000]}),
        ];
        edits.push(
            serde_json::json!({layers: number(&plain, layers), "vocab_size": number(&plain, "vocab_size")}),
        );
        for (index, edit) in edits.iter().enumerate() {
            let folder = with_config(name, &format!("same-{name}-{index}"), |config| {
                config.as_object_mut().unwrap().extend(edit.as_object().unwrap().clone());
            });
            let model = try_load(KernelChoice::Plain, &folder, LoadOptions::new());
            let model = model.unwrap_or_else(|error| panic!("{edit}: {error}"));
            let expected = numbers(&read_json(&fixture(name).join("expected.json"))["logits"]);
            let worst = difference(&logits(&model, &prompt_of(name), 64), &expected);
            assert!(worst < 2e-4, "{name}, {edit}: {worst}");
            let eos: &[u32] = if index == 6 { &[2] } else { &[] };
            assert!(index < 5 || index == 7 || model.info().eos == eos, "{:?}", model.info().eos);
        }
    }
}

#[test]
fn expert_use_is_the_load_and_entropy_of_the_routes() {
    let model = load(KernelChoice::Tuned, "molm_tiny");
    // Longer than one step, so that pieces are put together.
    let text: Vec<u32> = (0..600).map(|i| (i * i * 7 + 3 * i) % 53).collect();
    let expected = Molm::load(&fixture("molm_tiny")).forward(&text).routes;
    let found = block_on(model.expert_use(&text)).unwrap();
    for (found, (attention, mlp)) in found.iter().zip(&expected) {
        for (found, routes, experts) in [(&found.attention, attention, 5), (&found.mlp, mlp, 6)] {
            let found = found.as_ref().unwrap();
            let load = losses::load(routes, experts);
            let importance = losses::importance(routes, experts);
            let close = |found: &[f64], expected: &[f64]| {
                // A near-tie in 600 tokens may move one choice from an expert to another.
                assert!(reference::max_difference(found, &losses::shares(expected)) < 2.0 / 600.0);
            };
            close(&found.load, &load);
            close(&found.importance, &importance);
            assert!((found.entropy - losses::entropy(&load)).abs() < 1e-2);
            assert!((found.importance_cv - losses::importance_cv(&importance)).abs() < 1e-2);
        }
    }
}
