use super::*;
use serde_json::{Value, json};

/// The config of jetmoe/jetmoe-8b.
const JETMOE_8B: &str = r#"{
    "activation_function": "silu", "architectures": ["JetMoEForCausalLM"], "model_type": "jetmoe",
    "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 2048, "num_layers": 24, "num_hidden_layers": 24,
    "kv_channels": 128, "num_key_value_heads": 16, "num_attention_heads": 32, "ffn_hidden_size": 5632,
    "moe_num_experts": 8, "moe_top_k": 2, "n_positions": 4096, "rms_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5, "rope_theta": 10000, "rotary_percent": 1.0, "glu": true,
    "tie_word_embeddings": true, "vocab_size": 32000, "length_penalty": 1.0, "use_cache": true
}"#;

/// The config with some fields set; `null` removes one.
fn edited(edits: Value) -> Value {
    let mut config: Value = serde_json::from_str(JETMOE_8B).unwrap();
    for (name, value) in edits.as_object().unwrap() {
        config[name] = value.clone();
        if value.is_null() {
            config.as_object_mut().unwrap().remove(name);
        }
    }
    config
}

fn parse(edits: Value) -> Result<Config> {
    Config::read(&Fields::parse(edited(edits).to_string().as_bytes(), "m/config.json")?)
}

#[test]
fn the_published_config_is_read() {
    let expected = Config {
        file: "m/config.json".into(),
        vocab: 32000,
        width: 2048,
        layers: 24,
        kv_heads: 16,
        head_dim: 128,
        active: 2,
        mlp_experts: Some(8),
        mlp_width: Some(5632),
        context: 4096,
        final_norm_eps: 1e-5,
        rope_theta: 10000.0,
        tied: true,
    };
    assert_eq!(parse(json!({})).unwrap(), expected);
    // Extras of re-uploads.
    let extras =
        json!({"bias": true, "initializer_range": 0.01, "torch_dtype": "bfloat16", "rope_scaling": null});
    assert_eq!(parse(extras).unwrap(), expected);
}

#[test]
fn the_names_of_newer_and_older_tools_mean_the_same() {
    let published = parse(json!({})).unwrap();
    let newer = json!({
        "ffn_hidden_size": null, "intermediate_size": 5632, "moe_num_experts": null, "num_local_experts": 8,
        "moe_top_k": null, "num_experts_per_tok": 2, "n_positions": null, "max_position_embeddings": 4096,
        "kv_channels": null, "head_dim": 128, "rope_theta": null, "num_layers": null,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1},
        "layer_norm_epsilon": null, "activation_function": null, "hidden_act": "silu", "tie_word_embeddings": null
    });
    assert_eq!(parse(newer).unwrap(), published);
    // The chat model counts its KV heads in `n_head`.
    let chat = json!({
        "hidden_size": null, "n_embd": 2048, "num_layers": null, "num_hidden_layers": null, "n_layer": 24,
        "num_key_value_heads": null, "num_attention_heads": null, "n_head": 16, "rms_norm_eps": null,
        "rope_theta": null
    });
    assert_eq!(parse(chat).unwrap(), published);
    assert_eq!(parse(json!({"n_head": 32})).unwrap(), published);
}

#[test]
fn contradictions_and_absurdities_are_refused_by_name() {
    let cases = [
        (json!({"n_layer": 12}), "num_hidden_layers and n_layer: found 24 and 12"),
        (json!({"n_embd": 1024}), "hidden_size and n_embd: found 2048 and 1024"),
        (json!({"layer_norm_epsilon": 1e-6}), "rms_norm_eps and layer_norm_epsilon: found"),
        (json!({"rope_parameters": {"rope_theta": 5e5}}), "rope_theta and rope_parameters.rope_theta: found"),
        (json!({"num_attention_heads": 16}), "num_attention_heads: found 16, expected 32"),
        (json!({"num_key_value_heads": 8}), "num_attention_heads: found 32, expected 16"),
        (json!({"n_head": 8}), "n_head: found 8, expected num_key_value_heads, 16, or 32"),
        (json!({"num_key_value_heads": null}), "num_key_value_heads or n_head: found no such field"),
        (
            json!({"num_layers": null, "num_hidden_layers": null}),
            "num_hidden_layers or num_layers or n_layer",
        ),
        (
            json!({"moe_top_k": 9, "num_attention_heads": null}),
            "moe_top_k: found 9, expected at most moe_num",
        ),
        (json!({"moe_top_k": 0}), "moe_top_k or num_experts_per_tok|moe_top_k: found 0"),
        (json!({"kv_channels": 6}), "kv_channels: found 6, expected a multiple of 4"),
        (json!({"kv_channels": 256}), "kv_channels: found 256"),
        (json!({"vocab_size": 1u64 << 40}), "vocab_size: found 1099511627776"),
        (json!({"hidden_size": -1}), "hidden_size: found -1"),
        (json!({"num_layers": null, "num_hidden_layers": 5000}), "num_hidden_layers: found 5000"),
        (json!({"moe_num_experts": 257}), "moe_num_experts: found 257"),
        (json!({"rms_norm_eps": 0, "layer_norm_epsilon": null}), "rms_norm_eps: found 0"),
        (json!({"rope_theta": "10000"}), "rope_theta: found \"10000\""),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings: found 1"),
        (
            json!({"hidden_act": "gelu", "activation_function": null}),
            "hidden_act = \"gelu\" is not supported",
        ),
        (json!({"rotary_percent": 0.5}), "rotary_percent = 0.5 is not supported"),
        (json!({"glu": false}), "glu = false is not supported"),
        (json!({"rope_scaling": {"type": "linear", "factor": 2}}), "rope_scaling.type = \"linear\" is not"),
        (json!({"rope_scaling": {"factor": 2}}), "rope_scaling is not supported"),
    ];
    for (edits, part) in cases {
        let error = parse(edits.clone()).expect_err(&edits.to_string()).to_string();
        let fits = part.split('|').any(|part| error.contains(part));
        assert!(error.starts_with("m/config.json: ") && fits, "{error} for {edits} should say {part}");
    }
}

/// Comparing config and tensors.
#[cfg(not(target_arch = "wasm32"))]
mod shapes {
    use super::*;
    use crate::{
        models::Blueprint,
        weights::{Source, testing::file},
    };

    const SMALL: &str = r#"{"model_type": "jetmoe", "vocab_size": 5, "hidden_size": 8, "num_hidden_layers": 2,
        "num_key_value_heads": 1, "kv_channels": 4, "moe_top_k": 2, "moe_num_experts": 3, "ffn_hidden_size": 6,
        "n_positions": 16, "rms_norm_eps": 1e-5}"#;
    const SMALL_EXPERTS: Experts = Experts { attention: 2, mlp: 3, hidden: 6 };

    const EMBEDDING: &str = "model.embed_tokens.weight";
    const LM_HEAD: &str = "lm_head.weight";
    const QUERY: &str = "model.layers.0.self_attention.experts.input_linear.weight";
    const MLP_OUT: &str = "model.layers.0.mlp.output_linear.weight";
    /// The tensors of a layer, as transformers' modelling code makes them.
    const LAYER: [(&str, &[usize]); 11] = [
        ("input_layernorm.weight", &[8]),
        ("self_attention.experts.router.layer.weight", &[2, 8]),
        ("self_attention.experts.input_linear.weight", &[2, 4, 8]),
        ("self_attention.kv_proj.weight", &[8, 8]),
        ("self_attention.experts.output_linear.weight", &[2, 8, 4]),
        ("self_attention.experts.bias", &[8]),
        ("post_attention_layernorm.weight", &[8]),
        ("mlp.router.layer.weight", &[3, 8]),
        ("mlp.input_linear.weight", &[3, 12, 8]),
        ("mlp.output_linear.weight", &[3, 8, 6]),
        ("mlp.bias", &[8]),
    ];

    type Tensors = Vec<(String, Vec<usize>)>;

    /// The small model's tensors but the embedding.
    fn small() -> Tensors {
        let layers = (0..2).flat_map(|index| {
            LAYER.iter().map(move |(name, shape)| (format!("model.layers.{index}.{name}"), shape.to_vec()))
        });
        layers.chain([("model.norm.weight".into(), vec![8])]).collect()
    }

    /// Compares the small config, with a text replaced, with the small tensors, edited.
    fn compare(replace: (&str, &str), edit: impl FnOnce(&mut Tensors)) -> Result<Experts> {
        let mut tensors = small();
        tensors.insert(0, (EMBEDDING.into(), vec![5, 8]));
        edit(&mut tensors);
        let tensors = tensors.iter().map(|(name, shape)| {
            let bytes = vec![0; 2 * shape.iter().product::<usize>()];
            (name.as_str(), "BF16", shape.as_slice(), bytes)
        });
        let bytes = file(&tensors.collect::<Vec<_>>());
        let source = Source::memory("m", vec![("model.safetensors", bytes)]);
        let json = SMALL.replace(replace.0, replace.1);
        let fields = Fields::parse(json.as_bytes(), "m/config.json")?;
        let checkpoint = pollster::block_on(Checkpoint::open(&source))?;
        let blueprint = Blueprint::checked(read(&fields)?(&checkpoint)?, &checkpoint, fields.file())?;
        let BlockSpec { attention, mlp, .. } = &blueprint.spec.stack.blocks[0];
        let (experts, hidden) = mlp.map_or((0, 0), |mlp| (mlp.experts(), mlp.hidden));
        Ok(Experts { attention: attention.experts(), mlp: experts, hidden })
    }

    fn shape<'a>(tensors: &'a mut Tensors, name: &str) -> &'a mut Vec<usize> {
        &mut tensors.iter_mut().find(|t| t.0 == name).unwrap().1
    }

    #[test]
    fn tensors_decide_what_the_config_leaves_open() {
        assert_eq!(compare(("", ""), |_| {}).unwrap(), SMALL_EXPERTS);
        assert_eq!(
            compare((r#""moe_num_experts": 3, "ffn_hidden_size": 6,"#, ""), |_| {}).unwrap(),
            SMALL_EXPERTS
        );
        // A copy of the tied embedding, and buffers that old tools save.
        let extra = compare(("", ""), |t| {
            t.push((LM_HEAD.into(), vec![5, 8]));
            t.push(("model.layers.0.self_attention.rotary_emb.inv_freq".into(), vec![2]));
        });
        assert_eq!(extra.unwrap(), SMALL_EXPERTS);
        let untied = ("\"n_positions\"", "\"tie_word_embeddings\": false, \"n_positions\"");
        compare(untied, |t| t.push((LM_HEAD.into(), vec![5, 8]))).unwrap();
        let error = compare(untied, |_| {}).unwrap_err().to_string();
        assert!(error.contains(LM_HEAD) && error.contains("m/config.json"), "{error}");
    }

    #[test]
    fn a_width_of_0_says_that_there_is_no_mlp() {
        let none = ("size\": 6", "size\": 0");
        let without = |t: &mut Tensors| t.retain(|t| !t.0.contains("mlp") && !t.0.contains("post_attention"));
        assert_eq!(compare(none, without).unwrap(), Experts { attention: 2, mlp: 0, hidden: 0 });
        let error = compare(none, |_| {}).unwrap_err().to_string();
        assert!(error.contains("model.layers.0.") && error.contains("found an unknown tensor"), "{error}");
        let error = compare(("", ""), without).unwrap_err().to_string();
        assert!(error.contains(MLP_OUT) && error.contains("found none"), "{error}");
    }

    #[test]
    fn contradictions_name_the_tensor_and_the_config() {
        for (from, to, parts) in [
            ("\"vocab_size\": 5", "\"vocab_size\": 6", [EMBEDDING, "found [5, 8], expected [6, 8]"]),
            ("\"hidden_size\": 8", "\"hidden_size\": 9", [QUERY, "found [2, 4, 8], expected [any, 4, 9]"]),
            ("heads\": 1", "heads\": 2", [QUERY, "expected [any, 8, 8]"]),
            ("kv_channels\": 4", "kv_channels\": 8", [QUERY, "expected [any, 8, 8]"]),
            ("experts\": 3", "experts\": 2", [MLP_OUT, "found [3, 8, 6], expected [2, 8, 6]"]),
            ("size\": 6", "size\": 7", [MLP_OUT, "expected [3, 8, 7]: moe_num_experts"]),
            ("layers\": 2", "layers\": 3", ["model.layers.2.", "found none"]),
            ("layers\": 2", "layers\": 1", ["model.layers.1.", "found an unknown tensor, expected only"]),
            (
                "top_k\": 2",
                "top_k\": 3",
                ["moe_top_k: found 3", "at most the 2 experts of model.layers.0.self"],
            ),
        ] {
            let error = compare((from, to), |_| {}).expect_err(to).to_string();
            let named = error.contains("m/config.json") && parts.iter().all(|part| error.contains(part));
            assert!(named, "{error} for {to} should say {parts:?}");
        }
    }

    #[test]
    fn every_tensor_must_be_there_with_its_shape_and_none_besides() {
        let names: Vec<String> = small().into_iter().map(|t| t.0).collect();
        assert_eq!(names.len(), 1 + 2 * 11);
        for name in &names {
            let error = compare(("", ""), |t| t.retain(|t| t.0 != *name)).expect_err(name).to_string();
            assert!(error.contains(name) && error.contains("found none"), "{error}");
            let error = compare(("", ""), |t| shape(t, name).push(1)).expect_err(name).to_string();
            assert!(error.contains("m/model.safetensors: tensor") && error.contains(name), "{error}");
            for at in 0..2 {
                let change = |t: &mut Tensors| {
                    let shape = shape(t, name);
                    let at = at % shape.len();
                    shape[at] += 1;
                };
                // Of layer 0 a larger number of experts is a number like any other, until another tensor differs.
                let error = compare(("", ""), change).expect_err(name).to_string();
                assert!(error.starts_with("m/model.safetensors: tensor \"model."), "{error}");
            }
        }
        let error = compare(("", ""), |t| t.push(("model.extra".into(), vec![1]))).unwrap_err().to_string();
        assert!(error.contains("tensor \"model.extra\": found an unknown tensor"), "{error}");
    }

    #[test]
    fn empty_and_enormous_expert_stacks_are_refused() {
        for experts in [0, 257] {
            let error = compare(("", ""), |t| {
                t.iter_mut().filter(|t| t.0.contains("self_attention.experts") && t.1.len() > 1).for_each(
                    |t| {
                        t.1[0] = experts;
                    },
                );
            });
            let error = error.unwrap_err().to_string();
            assert!(error.starts_with("m/model.safetensors: tensor"), "{error}");
        }
    }
}
