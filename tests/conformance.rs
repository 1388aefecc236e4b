//! The promise: a model computes what its original implementation computes, whatever the kernels' shape, however
//! the tokens are cut into steps, and whoever shares the batch.

#[path = "conformance/choices.rs"]
mod choices;
#[path = "conformance/edits.rs"]
mod edits;
#[path = "support/files.rs"]
#[allow(dead_code)] // each test binary uses its own part
mod files;
mod models;
#[path = "conformance/traces.rs"]
mod traces;
use headwise_reference as reference;
#[path = "conformance/scores.rs"]
mod scores;
#[path = "conformance/tables_and_shards.rs"]
mod tables_and_shards;

use std::{collections::HashMap, ops::ControlFlow, path::Path};

use headwise::{Generate, KernelChoice, LoadOptions, Logits, Model, Run, SessionOptions, block_on};
use models::{SHAPES, assert_routes, difference, ids, load, logits, numbers, try_load};
use reference::{jetmoe, max_difference, norm_router::Routes, widen};

fn tiny(kernels: KernelChoice) -> Model {
    load(kernels, "tests/fixtures/jetmoe_tiny")
}

fn prose(kernels: KernelChoice) -> Model {
    load(kernels, "models/prose")
}

/// The routes of a file, which has no margins: no token may be skipped.
fn routes_of(experts: &[f64], gates: &[f64], top_k: usize) -> Routes {
    let margins = vec![f64::INFINITY; experts.len() / top_k];
    Routes { top_k, experts: ids(experts), gates: gates.to_vec(), margins }
}

#[test]
fn tiny_jetmoe_matches_transformers_in_every_variant_and_step_size() {
    let expected = jetmoe::read_json(Path::new("tests/fixtures/jetmoe_tiny/expected.json"));
    let prompt = ids(&numbers(&expected["ids"]));
    let wanted = numbers(&expected["logits"]);
    for kernels in SHAPES {
        let model = tiny(kernels);
        // 1 decodes token by token, 4 is the most that runs as few rows, 5 the least that runs in tiles.
        for step_tokens in [1, 3, 4, 5, 64] {
            let found = logits(&model, &prompt, step_tokens);
            let worst = difference(&found, &wanted);
            println!("{kernels:?}, steps of {step_tokens}: logits differ by {worst:.1e}");
            assert!(worst < 2e-4);
            for layer in 0..2 {
                let experts = numbers(&expected["attn_route_idx"][layer]);
                let gates = numbers(&expected["attn_route_gate"][layer]);
                assert_routes(&found, |routes| &routes.attention, layer, &routes_of(&experts, &gates, 2));
            }
        }
    }
}

#[test]
fn tiny_jetmoe_routes_its_mlps_as_the_f64_reference_does() {
    let expected = jetmoe::read_json(Path::new("tests/fixtures/jetmoe_tiny/expected.json"));
    let prompt = ids(&numbers(&expected["ids"]));
    let reference = jetmoe::JetMoe::load(Path::new("tests/fixtures/jetmoe_tiny"));
    let output = reference.forward(&mut reference.cache(prompt.len()), &prompt);
    let found = logits(&tiny(KernelChoice::Plain), &prompt, 64);
    for (layer, routes) in output.routes.iter().enumerate() {
        assert_routes(&found, |routes| &routes.attention, layer, &routes.attention);
        assert_routes(&found, |routes| &routes.mlp, layer, &routes.mlp);
    }
}

/// The prompts of the prose model whose logits are in its reference.
const PROSE_LOGITS: [usize; 2] = [0, 3];

/// The tensors of `reference.safetensors` whose names start with `prompt.`, that prefix removed.
fn prose_prompt(tensors: &HashMap<String, Vec<f64>>, prompt: usize) -> impl Fn(&str) -> Vec<f64> + '_ {
    move |name| tensors[&format!("{prompt}.{name}")].clone()
}

#[test]
fn prose_matches_transformers() {
    let tensors = jetmoe::read_safetensors(Path::new("models/prose/reference.safetensors"));
    for kernels in SHAPES {
        let model = prose(kernels);
        for prompt in 0..7 {
            let expected = prose_prompt(&tensors, prompt);
            let found = logits(&model, &ids(&expected("ids")), 64);
            if PROSE_LOGITS.contains(&prompt) {
                let worst = difference(&found, &expected("logits"));
                println!("{kernels:?}, prompt {prompt}: logits differ by {worst:.1e}");
                assert!(worst < 2e-3);
            }
            for layer in 0..5 {
                let routes = |kind: &str| {
                    let tensor = |name: &str| expected(&format!("layers.{layer}.{kind}.{name}"));
                    routes_of(&tensor("experts"), &tensor("gates"), 2)
                };
                assert_routes(&found, |routes| &routes.attention, layer, &routes("attention"));
                assert_routes(&found, |routes| &routes.mlp, layer, &routes("mlp"));
            }
        }
    }
}

#[test]
fn prose_writes_what_transformers_writes() {
    let tensors = jetmoe::read_safetensors(Path::new("models/prose/reference.safetensors"));
    let texts = jetmoe::read_json(Path::new("models/prose/reference.json"));
    let model = prose(KernelChoice::Tuned);
    let greedy = Generate::new().greedy().max_new(48);
    for prompt in 0..7 {
        let expected = prose_prompt(&tensors, prompt);
        let reference = &texts["prompts"][prompt];
        let mut text = String::new();
        let generation = block_on(model.generate(reference["text"].as_str().unwrap(), &greedy, |token| {
            text += &token.text;
            ControlFlow::Continue(())
        }));
        assert_eq!(generation.unwrap().ids, [ids(&expected("greedy"))], "prompt {prompt}");
        assert_eq!(text, reference["greedy"].as_str().unwrap(), "prompt {prompt}");
    }
}

#[test]
fn a_batch_writes_what_each_prompt_writes_alone() {
    let tensors = jetmoe::read_safetensors(Path::new("models/prose/reference.safetensors"));
    let model = prose(KernelChoice::Tuned);
    let prompts: Vec<Vec<u32>> = (0..7).map(|prompt| ids(&prose_prompt(&tensors, prompt)("ids"))).collect();
    let expected: Vec<Vec<u32>> =
        (0..7).map(|prompt| ids(&prose_prompt(&tensors, prompt)("greedy"))).collect();
    let greedy = Generate::new().greedy().max_new(48);
    // Two run the kernels for few rows, seven the tiled ones; lengths differ in both.
    for size in [2, 7] {
        let batch: Vec<&[u32]> = prompts[..size].iter().map(Vec::as_slice).collect();
        let generation = block_on(model.generate_ids(&batch, &greedy, |_| ControlFlow::Continue(())));
        assert_eq!(generation.unwrap().ids, expected[..size], "batch of {size}");
    }
}

#[test]
fn a_batch_has_the_logits_and_routes_of_its_members() {
    let model = tiny(KernelChoice::Plain);
    let sequences: [&[u32]; 3] = [&[1, 7, 42, 99, 3], &[58], &[0, 13, 77, 21, 5, 58, 58]];
    for step_tokens in [1, 4, 64] {
        let together = block_on(model.logits_in_steps(&sequences, step_tokens)).unwrap();
        for (sequence, together) in sequences.iter().zip(together) {
            let alone = logits(&model, sequence, 64);
            let worst = difference(&together, &widen(&alone.values));
            assert!(worst < 2e-4, "steps of {step_tokens}: {worst}");
            let experts = |logits: &Logits| -> Vec<Vec<u32>> {
                let layers = logits.routes.iter().flat_map(|token| &token.layers);
                layers.map(|layer| layer.attention.iter().map(|choice| choice.expert).collect()).collect()
            };
            assert_eq!(experts(&together), experts(&alone), "steps of {step_tokens}");
        }
    }
}

#[test]
fn a_saved_sequence_holds_the_keys_and_values_of_the_reference_in_the_documented_order() {
    let prompt: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 101).collect();
    let reference = jetmoe::JetMoe::load(Path::new("tests/fixtures/jetmoe_tiny"));
    let mut cache = reference.cache(prompt.len());
    reference.forward(&mut cache, &prompt);
    // Layer by layer keys, then values, position by position; two heads of eight channels have no padding.
    let expected: Vec<f64> =
        cache.layers.iter().flat_map(|(keys, values)| keys.iter().chain(values).copied()).collect();
    for kernels in SHAPES {
        let model = tiny(kernels);
        let mut session = model.session(SessionOptions::new().sequences(2)).unwrap();
        session.forward(&[Run::ids(1, &prompt)]).unwrap();
        let saved = block_on(session.save(1)).unwrap();
        let (header, numbers) = saved.split_at(40);
        let of = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((&header[..8], of(8), of(12)), (&b"headwise"[..], 1, 40));
        // f32, both weights and cache.
        assert_eq!([of(24), of(28)], [0, 0]);
        let found: Vec<f64> = numbers
            .chunks_exact(4)
            .map(|word| f64::from(f32::from_le_bytes(word.try_into().unwrap())))
            .collect();
        assert_eq!(found.len(), expected.len());
        let worst = max_difference(&found, &expected);
        assert!(worst < 2e-4, "{kernels:?}: {worst}");
    }
}

#[test]
fn few_sequences_decode_to_the_same_bits_together_and_alone() {
    let model = tiny(KernelChoice::Plain);
    let sequences: [&[u32]; 2] = [&[1, 7, 42, 99], &[58, 3, 5, 20]];
    let together = block_on(model.logits_in_steps(&sequences, 1)).unwrap();
    for (sequence, together) in sequences.iter().zip(together) {
        assert_eq!(together.values, logits(&model, sequence, 1).values);
    }
}

#[test]
fn a_prompt_longer_than_one_step_continues_like_the_reference() {
    // 600 tokens of a 1,024-token cache cross the prefill step of 512 and the 256-key splits of decoding; the
    // tiny model's own context is too short, so its config is rewritten with a longer one.
    let fixture = Path::new("tests/fixtures/jetmoe_tiny");
    let folder = tempdir("long-context");
    let mut config = jetmoe::read_json(&fixture.join("config.json"));
    for field in ["max_position_embeddings", "n_positions"] {
        config[field] = 1024.into();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(fixture.join("model.safetensors"), folder.join("model.safetensors")).unwrap();

    let prompt: Vec<u32> = (0..600).map(|i| (i * i * 31 + 7 * i + 3) % 101).collect();
    let reference = jetmoe::JetMoe::load(&folder);
    let (expected, margin) = reference.greedy(&prompt, 8);
    assert!(margin > 1e-3, "the reference itself is undecided: {margin}");
    for kernels in SHAPES {
        let model = try_load(kernels, &folder, LoadOptions::new()).unwrap();
        for options in [Generate::new(), Generate::new().with_routes()] {
            let options = options.greedy().max_new(8);
            let found = block_on(model.generate_ids(&[&prompt], &options, |_| ControlFlow::Continue(())));
            assert_eq!(found.unwrap().ids, std::slice::from_ref(&expected), "{kernels:?}");
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

fn tempdir(name: &str) -> std::path::PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
