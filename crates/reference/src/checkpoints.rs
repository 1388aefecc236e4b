//! Folders for the families without published weights: tiny configs, the tensors a config calls for, and random
//! values for them, drawn so that activations stay near 1 in size.

use super::folder::whole;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

/// With this seed, no variant's routes have a margin below 0.01 on the inputs below.
pub const SEED: u64 = 12;
/// A prompt, or the source of a translation.
pub const SOURCE: [u32; 7] = [5, 17, 2, 40, 5, 33, 9];
/// The target of a translation.
pub const TARGET: [u32; 6] = [1, 30, 52, 8, 8, 21];

/// An image of bytes for [`vit_config`].
pub fn image() -> Vec<f64> {
    (0..3 * 12 * 12).map(|i| f64::from(i * i * 11 % 256)).collect()
}

/// How a tensor's values are drawn, from a uniform in \[−0.5, 0.5).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Draw {
    /// The weight of a norm: 1 + 0.5·a.
    Norm,
    /// 0.2·a.
    Bias,
    /// An embedding that is multiplied by this much when read: 2·a over it.
    Embedding(f64),
    /// A matrix of so many inputs: a·√(12 / inputs), so that each output has the variance of an input.
    Matrix(usize),
    /// The same twice as large, so that routers decide.
    Router(usize),
}

impl Draw {
    fn of(self, a: f64) -> f64 {
        match self {
            Draw::Norm => 1.0 + 0.5 * a,
            Draw::Bias => 0.2 * a,
            Draw::Embedding(scale) => 2.0 * a / scale,
            Draw::Matrix(inputs) => a * (12.0 / inputs as f64).sqrt(),
            Draw::Router(inputs) => 2.0 * a * (12.0 / inputs as f64).sqrt(),
        }
    }
}

/// Shape and kind of every tensor of a folder, by name.
pub type Plan = BTreeMap<String, (Vec<usize>, Draw)>;

/// Writes `config.json` and `model.safetensors` with random values: tensor i in the order of the names takes
/// them from `uniform(seed, i)`, as the fixtures do.
pub fn write_random(folder: &Path, config: &Value, seed: u64) {
    let plan = plan(config);
    write(folder, config, |name, count| {
        let place = plan.keys().position(|other| other == name).expect("in the plan");
        uniform(seed, place).take(count).map(|a| plan[name].1.of(a)).collect()
    });
}

/// a = ⌊s / 2⁸⌋ / 2²⁴ − 0.5 for s ← 1664525·s + 1013904223 mod 2³², from s = seed + i on.
pub fn uniform(seed: u64, i: usize) -> impl Iterator<Item = f64> {
    let step = |s: &u32| Some(s.wrapping_mul(1664525).wrapping_add(1013904223));
    let states = std::iter::successors(Some(seed.wrapping_add(i as u64) as u32), step).skip(1);
    states.map(|s| f64::from(s >> 8) / f64::from(1 << 24) - 0.5)
}

/// Writes `config.json` and, in f32, the values that `values(name, how many)` gives for each tensor of its plan.
pub fn write(folder: &Path, config: &Value, values: impl Fn(&str, usize) -> Vec<f64>) {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = plan(config)
        .into_iter()
        .map(|(name, (shape, _))| {
            let count = shape.iter().product();
            let values = values(&name, count);
            assert_eq!(values.len(), count, "{name} {shape:?}");
            let bytes = values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("as many bytes as the shape says"))
    });
    fs::create_dir_all(folder).expect("a folder to write to");
    fs::write(folder.join("config.json"), config.to_string()).expect("config.json");
    let file = safetensors::serialize(views, None).expect("a safetensors file");
    fs::write(folder.join("model.safetensors"), file).expect("model.safetensors");
}

/// The tensors that a config calls for.
pub fn plan(config: &Value) -> Plan {
    let mut plan = Plan::new();
    match config["model_type"].as_str() {
        Some("moa") => moa(config, &mut plan),
        Some("vit" | "vit_moh") => vit(config, &mut plan),
        Some("bam") => bam(config, &mut plan),
        Some("switchhead") => plain(config, &mut plan, switch_head),
        Some("uoe") => plain(config, &mut plan, uoe),
        other => panic!("model_type is {other:?}"),
    }
    plan
}

fn add(plan: &mut Plan, name: impl Into<String>, shape: &[usize], draw: Draw) {
    plan.insert(name.into(), (shape.to_vec(), draw));
}

fn add_norm(plan: &mut Plan, name: &str, width: usize) {
    add(plan, format!("{name}.weight"), &[width], Draw::Norm);
    add(plan, format!("{name}.bias"), &[width], Draw::Bias);
}

fn add_affine(plan: &mut Plan, name: &str, outputs: usize, inputs: usize) {
    add(plan, format!("{name}.weight"), &[outputs, inputs], Draw::Matrix(inputs));
    add(plan, format!("{name}.bias"), &[outputs], Draw::Bias);
}

fn add_mlp(plan: &mut Plan, name: &str, width: usize, hidden: usize) {
    add_affine(plan, &format!("{name}.fc1"), hidden, width);
    add_affine(plan, &format!("{name}.fc2"), width, hidden);
}

fn moa(config: &Value, plan: &mut Plan) {
    let (vocabulary, width) = (whole(config, "vocab_size"), whole(config, "d_model"));
    let scale = if config["scale_embedding"] == true { (width as f64).sqrt() } else { 1.0 };
    add(plan, "embed_tokens.weight", &[vocabulary, width], Draw::Embedding(scale));
    if config["task"] == "fill_mask" {
        add(plan, "lm_head.bias", &[vocabulary], Draw::Bias);
    }
    let layers = |side: &str| config[format!("{side}_layers")].as_u64().unwrap_or(0);
    for side in ["encoder", "decoder"].into_iter().filter(|side| layers(side) > 0) {
        for layer in (0..layers(side)).map(|i| format!("{side}.layers.{i}")) {
            moa_attention(config, plan, &layer, "self_attn");
            if side == "decoder" {
                moa_attention(config, plan, &layer, "encoder_attn");
            }
            add_mlp(plan, &layer, width, whole(config, "ffn_dim"));
            add_norm(plan, &format!("{layer}.final_layer_norm"), width);
        }
        if config["norm_position"] != "post" {
            add_norm(plan, &format!("{side}.layer_norm"), width);
        }
    }
}

fn moa_attention(config: &Value, plan: &mut Plan, layer: &str, part: &str) {
    let (width, experts) = (whole(config, "d_model"), whole(config, "num_experts"));
    let inner = config["heads_per_expert"].as_u64().unwrap_or(1) as usize * whole(config, "head_dim");
    let name = |tensor: &str| format!("{layer}.{part}.{tensor}");
    add(plan, name("q_proj.w_gate"), &[width, experts], Draw::Router(width));
    add(plan, name("q_proj.experts.w"), &[experts, width, inner], Draw::Matrix(width));
    add(plan, name("q_proj.output_experts.w"), &[experts, inner, width], Draw::Matrix(inner));
    add(plan, name("k_proj.weight"), &[inner, width], Draw::Matrix(width));
    add(plan, name("v_proj.weight"), &[inner, width], Draw::Matrix(width));
    add_norm(plan, &format!("{layer}.{part}_layer_norm"), width);
}

fn vit(config: &Value, plan: &mut Plan) {
    let (width, channels) = (whole(config, "hidden_size"), whole(config, "num_channels"));
    let (size, patch) = (whole(config, "image_size"), whole(config, "patch_size"));
    let (heads, patches) = (whole(config, "num_attention_heads"), (size / patch) * (size / patch));
    let inner = heads * whole(config, "head_dim");
    let labels = config["id2label"].as_object().expect("id2label").len();
    add(plan, "cls_token", &[1, 1, width], Draw::Embedding(1.0));
    add(plan, "pos_embed", &[1, 1 + patches, width], Draw::Embedding(1.0));
    let inputs = channels * patch * patch;
    add(plan, "patch_embed.proj.weight", &[width, channels, patch, patch], Draw::Matrix(inputs));
    add(plan, "patch_embed.proj.bias", &[width], Draw::Bias);
    for block in (0..whole(config, "num_hidden_layers")).map(|i| format!("blocks.{i}")) {
        add_norm(plan, &format!("{block}.norm1"), width);
        add_affine(plan, &format!("{block}.attn.qkv"), 3 * inner, width);
        add_affine(plan, &format!("{block}.attn.proj"), width, inner);
        add_norm(plan, &format!("{block}.norm2"), width);
        add_mlp(plan, &format!("{block}.mlp"), width, whole(config, "intermediate_size"));

        let moh = &config["moh"];
        if moh.is_object() {
            let (shared, routed) = (whole(moh, "shared_heads"), whole(moh, "routed_heads"));
            let mut router = |name: &str, rows: usize, there: bool| {
                if there {
                    add(plan, format!("{block}.attn.{name}.weight"), &[rows, width], Draw::Router(width));
                }
            };
            router("wg", heads - shared, shared < heads);
            router("wg_0", 2, moh["two_stage"] == true && shared > 0 && routed > 0);
            router("wg_1", shared, shared > 0);
        }
    }
    add_norm(plan, "norm", width);
    add_affine(plan, "head", labels, width);
}

fn bam(config: &Value, plan: &mut Plan) {
    let (vocabulary, width) = (whole(config, "vocab_size"), whole(config, "hidden_size"));
    let (modules, head_dim) = (whole(&config["bam"], "experts"), whole(config, "head_dim"));
    let inner = whole(config, "num_attention_heads") * head_dim;
    let own = if config["bam"]["kv"] == "expert" { modules } else { 1 };
    let kv = own * whole(config, "num_key_value_heads") * head_dim;
    let hidden = whole(config, "intermediate_size");
    add(plan, "model.embed_tokens.weight", &[vocabulary, width], Draw::Embedding(1.0));
    add(plan, "model.norm.weight", &[width], Draw::Norm);
    if config["tie_word_embeddings"] != true {
        add(plan, "lm_head.weight", &[vocabulary, width], Draw::Matrix(width));
    }
    for layer in (0..whole(config, "num_hidden_layers")).map(|i| format!("model.layers.{i}")) {
        let mut weight =
            |part: &str, shape: &[usize], draw| add(plan, format!("{layer}.{part}.weight"), shape, draw);
        weight("input_layernorm", &[width], Draw::Norm);
        if config["bam"]["parallel_block"] != true {
            weight("post_attention_layernorm", &[width], Draw::Norm);
        }
        weight("self_attn.router", &[modules, width], Draw::Router(width));
        weight("self_attn.experts.q_proj", &[modules, inner, width], Draw::Matrix(width));
        weight("self_attn.experts.o_proj", &[modules, width, inner], Draw::Matrix(inner));
        weight("self_attn.k_proj", &[kv, width], Draw::Matrix(width));
        weight("self_attn.v_proj", &[kv, width], Draw::Matrix(width));
        weight("mlp.router", &[modules, width], Draw::Router(width));
        weight("mlp.experts.gate_up_proj", &[modules, 2 * hidden, width], Draw::Matrix(width));
        weight("mlp.experts.down_proj", &[modules, width, hidden], Draw::Matrix(hidden));
    }
}

fn plain(config: &Value, plan: &mut Plan, attention: fn(&Value, &mut Plan, &str)) {
    let (vocabulary, width) = (whole(config, "vocab_size"), whole(config, "hidden_size"));
    add(plan, "embed_tokens.weight", &[vocabulary, width], Draw::Embedding(1.0));
    add_norm(plan, "norm", width);
    if config["tie_word_embeddings"] != true {
        add(plan, "lm_head.weight", &[vocabulary, width], Draw::Matrix(width));
    }
    for layer in (0..whole(config, "num_hidden_layers")).map(|i| format!("layers.{i}")) {
        add_norm(plan, &format!("{layer}.norm1"), width);
        attention(config, plan, &format!("{layer}.attention"));
        add_norm(plan, &format!("{layer}.norm2"), width);
        add_mlp(plan, &format!("{layer}.ffn"), width, whole(config, "intermediate_size"));
    }
}

fn switch_head(config: &Value, plan: &mut Plan, name: &str) {
    let (width, head_dim) = (whole(config, "hidden_size"), whole(config, "head_dim"));
    let heads = whole(config, "num_attention_heads");
    let experts = heads * whole(config, "num_experts");
    let mut tensor = |part: &str, shape: &[usize], draw| add(plan, format!("{name}.{part}"), shape, draw);
    tensor("q.weight", &[heads * head_dim, width], Draw::Matrix(width));
    tensor("k.weight", &[heads * head_dim, width], Draw::Matrix(width));
    tensor("v", &[experts, width, head_dim], Draw::Matrix(width));
    tensor("o", &[experts, head_dim, width], Draw::Matrix(head_dim));
    tensor("sel_v", &[experts, width], Draw::Router(width));
    tensor("sel_o", &[experts, width], Draw::Router(width));
}

fn uoe(config: &Value, plan: &mut Plan, name: &str) {
    let (width, heads) = (whole(config, "hidden_size"), whole(config, "num_attention_heads"));
    let inner = heads * whole(config, "head_dim");
    add(plan, format!("{name}.gate.weight"), &[heads, width], Draw::Router(width));
    add(plan, format!("{name}.gate.bias"), &[heads], Draw::Bias);
    for part in ["q_proj", "k_proj", "v_proj"] {
        add_affine(plan, &format!("{name}.{part}"), inner, width);
    }
    add(plan, format!("{name}.o_proj.weight"), &[width, inner], Draw::Matrix(inner));
    add(plan, format!("{name}.o_proj.bias"), &[heads, width], Draw::Bias);
}

/// `config` with some fields replaced.
pub fn with(config: &Value, fields: &Value) -> Value {
    let mut config = config.clone();
    for (name, value) in fields.as_object().expect("an object") {
        config[name] = value.clone();
    }
    config
}

/// A tiny MoA translator: pre-norm, renormalised gates, one head an expert.
pub fn moa_config() -> Value {
    json!({
        "model_type": "moa", "task": "translation", "source_language": "en", "target_language": "de",
        "vocab_size": 53, "d_model": 20, "encoder_layers": 2, "decoder_layers": 2, "num_experts": 5,
        "top_k": 3, "heads_per_expert": 1, "head_dim": 8, "ffn_dim": 28, "activation": "relu",
        "norm": "layer_norm", "norm_position": "pre", "norm_eps": 1e-5, "positions": "sinusoidal",
        "max_positions": 64, "position_offset": 0, "scale_embedding": true, "tie_embeddings": true,
        "gate_weights": "softmax_renormalized", "gate_eps": 1e-6, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "unk_token_id": 3, "mask_token_id": 4,
    })
}

/// A tiny vision transformer of three colours, 3×3 patches, with MoH: 2 heads shared, 2 of 3 others kept.
pub fn vit_config() -> Value {
    json!({
        "model_type": "vit_moh", "image_size": 12, "patch_size": 4, "num_channels": 3, "hidden_size": 20,
        "num_hidden_layers": 2, "num_attention_heads": 5, "head_dim": 8, "intermediate_size": 28,
        "hidden_act": "gelu", "layer_norm_eps": 1e-6,
        "moh": {"shared_heads": 2, "routed_heads": 2, "two_stage": true},
        "image_mean": [0.4, 0.6, 0.5], "image_std": [0.3, 0.2, 0.4],
        "id2label": {"0": "cat", "1": "dog", "2": "emu"},
    })
}

/// A tiny BAM of 3 modules with their own keys and values, blocks in sequence.
pub fn bam_config() -> Value {
    json!({
        "model_type": "bam", "vocab_size": 53, "hidden_size": 20, "intermediate_size": 28,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64,
        "tie_word_embeddings": false, "hidden_act": "silu",
        "bam": {"experts": 3, "kv": "expert", "parallel_block": false, "mlp_top_k": 1,
                "mlp_gate": "softmax_topk"},
    })
}

/// A tiny SwitchHead: 2 of 3 experts inside each of 3 heads.
pub fn switch_head_config() -> Value {
    json!({
        "model_type": "switchhead", "vocab_size": 53, "hidden_size": 20, "intermediate_size": 28,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_experts": 3, "num_experts_per_tok": 2,
        "head_dim": 8, "hidden_act": "relu", "layer_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rotary_percent": 0.5, "max_position_embeddings": 64, "tie_word_embeddings": false,
    })
}

/// A tiny UoE: 2 of 4 heads for each token.
pub fn uoe_config() -> Value {
    json!({
        "model_type": "uoe", "vocab_size": 53, "hidden_size": 20, "intermediate_size": 28,
        "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8, "hidden_act": "gelu",
        "layer_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64,
        "tie_word_embeddings": false,
    })
}

/// Every variant of every family, by a name that suits a folder.
pub fn variants() -> Vec<(&'static str, Value)> {
    let (moa, vit, bam, switch_head, uoe) =
        (moa_config(), vit_config(), bam_config(), switch_head_config(), uoe_config());
    let bam_with = |fields: Value| json!({"bam": with(&bam["bam"], &fields)});
    let moh = |shared: usize, routed: usize| {
        let heads = json!({"shared_heads": shared, "routed_heads": routed});
        json!({"moh": with(&vit["moh"], &heads)})
    };
    let fill = json!({"task": "fill_mask", "decoder_layers": 0});
    let mut plain_vit = with(&vit, &json!({"model_type": "vit"}));
    plain_vit.as_object_mut().expect("an object").remove("moh");
    vec![
        ("moa-pre", moa.clone()),
        ("moa-post", with(&moa, &json!({"norm_position": "post"}))),
        ("moa-raw-gates", with(&moa, &json!({"gate_weights": "softmax"}))),
        (
            "moa-post-raw-gates",
            with(
                &moa,
                &json!({"norm_position": "post", "gate_weights": "softmax", "top_k": 5, "position_offset": 1}),
            ),
        ),
        (
            "moa-two-heads",
            with(&moa, &json!({"heads_per_expert": 2, "activation": "gelu", "scale_embedding": false})),
        ),
        ("moa-fill-pre", with(&moa, &fill)),
        ("moa-fill-post", with(&with(&moa, &fill), &json!({"norm_position": "post", "activation": "gelu"}))),
        ("moa-fill-raw-gates", with(&with(&moa, &fill), &json!({"gate_weights": "softmax", "top_k": 1}))),
        ("vit", plain_vit),
        ("vit-moh", vit.clone()),
        ("vit-moh-one-shared", with(&vit, &moh(1, 3))),
        ("vit-moh-all-shared", with(&vit, &moh(5, 0))),
        ("vit-moh-none-shared", with(&vit, &moh(0, 2))),
        ("bam", bam.clone()),
        ("bam-tied", with(&bam, &json!({"tie_word_embeddings": true}))),
        ("bam-shared-kv", with(&bam, &bam_with(json!({"kv": "shared"})))),
        ("bam-parallel", with(&bam, &bam_with(json!({"parallel_block": true, "mlp_gate": "softmax"})))),
        (
            "bam-parallel-shared-kv",
            with(&bam, &bam_with(json!({"parallel_block": true, "kv": "shared", "mlp_top_k": 2}))),
        ),
        ("switchhead", switch_head.clone()),
        (
            "switchhead-one-expert",
            with(
                &switch_head,
                &json!({"num_experts": 1, "num_experts_per_tok": 1, "tie_word_embeddings": true}),
            ),
        ),
        ("uoe", uoe.clone()),
        ("uoe-one-head", with(&uoe, &json!({"heads_per_token": 1, "tie_word_embeddings": true}))),
        ("uoe-all-heads", with(&uoe, &json!({"heads_per_token": 4}))),
    ]
}
