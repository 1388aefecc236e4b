//! BAM, SwitchHead and UoE as whole models: upcycled from a dense one, and their formulas written out.

use super::checkpoints::{folder, written};
use crate::{
    assert_same, ids, noise, numbers,
    reference::{
        activations::gelu,
        blocks::all_on,
        checkpoints::{SOURCE, TARGET, bam_config, switch_head_config, uoe_config, with, write},
        decoder_families::{Attention, Decoder, LayerMlp},
        dot,
        embedding::embedding,
        head_mixture::{HeadMixture, KeysValues},
        jetmoe::{linear, read_json, read_tensors},
        matvec, max_difference,
        moh_llama::{Heads, MohLlama, add, attention},
        rope_cache::rope,
        router::{Net, Router, Weight},
        softmax,
        swiglu::swiglu,
    },
    root,
};
use serde_json::{Value, json};
use std::path::Path;

fn bam(fields: &Value) -> Value {
    with(&bam_config(), &json!({"bam": with(&bam_config()["bam"], fields)}))
}

fn load(name: &str, config: &Value) -> Decoder {
    Decoder::load(&written(name, config))
}

fn mixture(attention: &Attention) -> &HeadMixture {
    match attention {
        Attention::Mixture(layer) => layer,
        Attention::Selective(_) => panic!("a mixture"),
    }
}

fn mixture_mut(attention: &mut Attention) -> &mut HeadMixture {
    match attention {
        Attention::Mixture(layer) => layer,
        Attention::Selective(_) => panic!("a mixture"),
    }
}

/// BAM's beginning: N copies of a dense Llama, with routers of their own.
fn upcycled(name: &str, dense: &Path, modules: usize, kv: &str) -> Decoder {
    let of = read_json(&dense.join("config.json"));
    let heads = of["num_attention_heads"].as_u64().unwrap();
    let mut config = json!({
        "model_type": "bam", "head_dim": of["hidden_size"].as_u64().unwrap() / heads,
        "bam": {"experts": modules, "kv": kv, "parallel_block": false, "mlp_top_k": 2,
                "mlp_gate": "softmax_topk"},
    });
    for field in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
    ] {
        config[field] = of[field].clone();
    }
    config["tie_word_embeddings"] = false.into();
    let tensors = read_tensors(dense);
    write(&folder(name), &config, |name, count| {
        let tensor = |name: String| tensors.get(&name).unwrap_or_else(|| panic!("no {name}")).clone();
        let own = match name.split_once("mlp.experts.gate_up_proj") {
            Some((layer, _)) => {
                ["gate", "up"].map(|part| tensor(format!("{layer}mlp.{part}_proj.weight"))).concat()
            }
            None if name.ends_with("router.weight") => noise(31, count),
            None => tensor(name.replace("experts.", "")),
        };
        own.repeat(count / own.len())
    });
    Decoder::load(&folder(name))
}

#[test]
fn bam_of_equal_models_is_the_model() {
    let dense = root().join("tests/fixtures/moh_llama_tiny");
    let ids = ids(&numbers(&read_json(&dense.join("expected.json"))["ids"]));
    let mut llama = MohLlama::load(&dense);
    for layer in &mut llama.layers {
        layer.attention.router = all_on(layer.attention.router.experts);
    }
    let expected = llama.forward(&ids).logits;
    for kv in ["expert", "shared"] {
        let output = upcycled(&format!("bam-upcycled-{kv}"), &dense, 3, kv).forward(1, &ids);
        assert_same(&output.logits, &expected);
        assert!(output.routes.iter().all(|layer| layer.attention.top_k == 3));
        assert!(output.routes.iter().all(|layer| layer.mlp.as_ref().unwrap().top_k == 2));
    }
}

/// Module i of a BAM layer by itself, as Llama's attention.
fn module(layer: &HeadMixture, i: usize) -> HeadMixture {
    let (heads, kv_heads, d, width) = (4, 2, 8, 20);
    let part = |tensor: &[f64], rows: usize| -> Vec<f64> {
        let modules = tensor.len() / (rows * width);
        tensor[i % modules * rows * width..][..rows * width].to_vec()
    };
    let KeysValues::Projected { keys, values, .. } = &layer.kv else { panic!("projected") };
    let matrices = [
        part(&layer.query, heads * d),
        part(keys, kv_heads * d),
        part(values, kv_heads * d),
        part(&layer.output, heads * d),
    ];
    attention(Heads { all: heads, shared: heads, routed: 0 }, d, 10000.0, matrices)
}

/// One layer of BAM by its modules, its MLPs one by one, sequential and parallel, keys of each and shared.
#[test]
fn a_bam_layer_is_the_weighted_sum_of_its_modules_and_its_best_mlp() {
    for (parallel, kv) in [(false, "expert"), (true, "shared"), (true, "expert")] {
        for gate in ["softmax_topk", "softmax"] {
            let fields = json!({"parallel_block": parallel, "kv": kv, "mlp_gate": gate});
            let config = with(&bam(&fields), &json!({"num_hidden_layers": 1}));
            let name = format!("bam-layer-{parallel}-{kv}-{gate}");
            let model = load(&name, &config);
            let tensors = read_tensors(&folder(&name));
            let tensor = |name: &str| &tensors[&format!("model.layers.0.{name}.weight")];
            let layer = &model.layers[0];

            let x = embedding(&model.embedding, 20, &SOURCE);
            let normed = layer.attention_norm.of(&x);
            let parts: Vec<Vec<f64>> = (0..3)
                .map(|i| {
                    Attention::Mixture(Box::new(module(mixture(&layer.attention), i))).forward(1, &normed).0
                })
                .collect();
            let mut h = x.clone();
            for (t, row) in normed.chunks_exact(20).enumerate() {
                for (i, p) in softmax(&matvec(tensor("self_attn.router"), row)).into_iter().enumerate() {
                    (t * 20..(t + 1) * 20).for_each(|c| h[c] += p * parts[i][c]);
                }
            }
            let normed = match &layer.mlp_norm {
                Some(norm) => norm.of(&h),
                None => normed,
            };
            assert_eq!(layer.mlp_norm.is_none(), parallel);
            for (t, row) in normed.chunks_exact(20).enumerate() {
                let p = softmax(&matvec(tensor("mlp.router"), row));
                let best = (0..3).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap();
                let gate = if gate == "softmax" { p[best] } else { 1.0 };
                let gate_up = &tensor("mlp.experts.gate_up_proj")[best * 56 * 20..][..56 * 20];
                let down = &tensor("mlp.experts.down_proj")[best * 20 * 28..][..20 * 28];
                let y = matvec(down, &swiglu(&matvec(gate_up, row), 28));
                y.iter().enumerate().for_each(|(c, y)| h[t * 20 + c] += gate * y);
            }
            let logits = linear(&tensors["lm_head.weight"], 20, &model.norm.of(&h));
            assert_same(&model.forward(1, &SOURCE).logits, &logits);
        }
    }
}

#[test]
fn bam_under_a_uniform_router_is_the_mean_of_its_modules() {
    let mut model = load("bam-uniform", &bam(&json!({})));
    let x = noise(32, 5 * 20);
    let layer = mixture_mut(&mut model.layers[0].attention);
    layer.router.net = Net::None;
    let modules: Vec<HeadMixture> = (0..3).map(|i| module(layer, i)).collect();
    let mut mean = vec![0.0; x.len()];
    for module in modules {
        let y = Attention::Mixture(Box::new(module)).forward(1, &x).0;
        mean.iter_mut().zip(y).for_each(|(mean, y)| *mean += y / 3.0);
    }
    assert_same(&model.layers[0].attention.forward(1, &x).0, &mean);
}

#[test]
fn keys_of_each_module_that_are_equal_are_shared_keys() {
    let shared = load("bam-shared", &bam(&json!({"kv": "shared"})));
    let mut copied = load("bam-shared-again", &bam(&json!({"kv": "shared"})));
    for layer in &mut copied.layers {
        let layer = mixture_mut(&mut layer.attention);
        layer.kv_heads *= 3;
        let KeysValues::Projected { keys, values, .. } = &mut layer.kv else { panic!("projected") };
        (*keys, *values) = (keys.repeat(3), values.repeat(3));
    }
    assert_same(&copied.forward(1, &SOURCE).logits, &shared.forward(1, &SOURCE).logits);
}

#[test]
fn mlp_gates_of_all_experts_need_no_renormalising() {
    let logits = |gate: &str| {
        let config = bam(&json!({"mlp_top_k": 3, "mlp_gate": gate}));
        load(&format!("bam-mlp-{gate}"), &config).forward(1, &SOURCE).logits
    };
    assert_same(&logits("softmax"), &logits("softmax_topk"));
}

#[test]
fn a_tied_head_is_the_embedding() {
    for (name, config) in [("bam", bam_config()), ("switchhead", switch_head_config()), ("uoe", uoe_config())]
    {
        let tied = written(&format!("{name}-tied"), &with(&config, &json!({"tie_word_embeddings": true})));
        let mut tensors = read_tensors(&tied);
        let embedding = tensors.keys().find(|name| name.ends_with("embed_tokens.weight")).unwrap().clone();
        tensors.insert("lm_head.weight".to_owned(), tensors[&embedding].clone());
        let untied = folder(&format!("{name}-untied"));
        write(&untied, &config, |name, _| tensors[name].clone());
        let logits = |folder| Decoder::load(folder).forward(1, &SOURCE).logits;
        assert_same(&logits(&tied), &logits(&untied));
    }
}

#[test]
fn bam_and_switch_head_look_back_alone_and_each_sequence_by_itself() {
    for (name, config) in [("bam-causal", bam_config()), ("switchhead-causal", switch_head_config())] {
        let model = load(name, &config);
        let whole = model.forward(1, &SOURCE[..6]).logits;
        assert_same(&model.forward(1, &SOURCE[..4]).logits, &whole[..4 * 53]);
        let both = model.forward(2, &[&SOURCE[..6], &TARGET[..]].concat()).logits;
        assert_same(&both, &[whole, model.forward(1, &TARGET).logits].concat());
    }
}

/// SwitchHead's attention in loops over the file's input-major tensors, half of each head rotated.
fn switch_head_by_hand(
    tensors: impl Fn(&str) -> Vec<f64>,
    experts: usize,
    top_k: usize,
    x: &[f64],
) -> Vec<f64> {
    let (width, heads, d) = (20, 3, 8);
    let [q, k, v, o, sel_v, sel_o] = ["q.weight", "k.weight", "v", "o", "sel_v", "sel_o"].map(tensors);
    let row = |t: usize| &x[t * width..][..width];
    let turned = |weight: &[f64], h: usize, t: usize| -> Vec<f64> {
        let mut head = matvec(&weight[h * d * width..][..d * width], row(t));
        rope(&mut head[..d / 2], t as u32, 10000.0);
        head
    };
    let gates = |sel: &[f64], h: usize, t: usize| -> Vec<f64> {
        let s = matvec(&sel[h * experts * width..][..experts * width], row(t));
        let kept = |e: usize| s.iter().filter(|&&other| other > s[e]).count() < top_k;
        (0..experts).map(|e| if kept(e) { 1.0 / (1.0 + (-s[e]).exp()) } else { 0.0 }).collect()
    };
    let mut y = vec![0.0; x.len()];
    for h in 0..heads {
        let value = |t: usize, c: usize| -> f64 {
            let of_expert = |(e, gate): (usize, &f64)| {
                gate * (0..width).map(|i| row(t)[i] * v[((h * experts + e) * width + i) * d + c]).sum::<f64>()
            };
            gates(&sel_v, h, t).iter().enumerate().map(of_expert).sum()
        };
        for t in 0..x.len() / width {
            let query = turned(&q, h, t);
            let score = |i: usize| dot(&query, &turned(&k, h, i)) / 8f64.sqrt();
            let weights = softmax(&(0..=t).map(score).collect::<Vec<f64>>());
            for c in 0..d {
                let mixed: f64 = (0..=t).map(|i| weights[i] * value(i, c)).sum();
                for (e, gate) in gates(&sel_o, h, t).into_iter().enumerate() {
                    let out = &o[((h * experts + e) * d + c) * width..][..width];
                    y[t * width..][..width].iter_mut().zip(out).for_each(|(y, o)| *y += gate * mixed * o);
                }
            }
        }
    }
    y
}

#[test]
fn switch_head_is_the_formula_of_its_file() {
    for (experts, top_k) in [(3, 2), (1, 1)] {
        let fields = json!({"num_experts": experts, "num_experts_per_tok": top_k});
        let name = format!("switchhead-formula-{experts}");
        let model = load(&name, &with(&switch_head_config(), &fields));
        let tensors = read_tensors(&folder(&name));
        let x = noise(33, 5 * 20);
        let tensor = |part: &str| tensors[&format!("layers.1.attention.{part}")].clone();
        let (y, routes) = model.layers[1].attention.forward(1, &x);
        assert_same(&y, &switch_head_by_hand(tensor, experts, top_k, &x));
        assert_eq!(routes.attention.top_k, 3 * top_k);
        assert_eq!(routes.values.unwrap().top_k, 3 * top_k);
    }
}

/// With one expert a head's values and outputs are dense, each under a sigmoid.
#[test]
fn switch_head_of_one_expert_is_dense_attention_under_sigmoids() {
    let fields = json!({"num_experts": 1, "num_experts_per_tok": 1});
    let mut model = load("switchhead-one", &with(&switch_head_config(), &fields));
    let x = noise(34, 5 * 20);
    let gated = mixture(&model.layers[0].attention).clone();
    let KeysValues::MixedValues { keys, router, values } = &gated.kv else { panic!("mixed") };
    // The gates on constant tokens are constant, so that they leave the attention as factors of each head.
    let constant = x[..20].repeat(5);
    let sigmoids =
        |router: &Router| router.route(&constant[..20], 20, |_, _| panic!("no queries")).routes.gates;
    let (value_gates, output_gates) = (sigmoids(router), sigmoids(&gated.router));
    let scaled: Vec<f64> = gated
        .output
        .chunks_exact(20 * 8)
        .zip(value_gates.iter().zip(&output_gates))
        .flat_map(|(head, (v, o))| head.iter().map(move |w| w * v * o))
        .collect();
    let dense = HeadMixture {
        router: all_on(3),
        kv: KeysValues::Projected {
            keys: keys.clone(),
            key_bias: None,
            values: values.clone(),
            value_bias: None,
        },
        output: scaled,
        ..gated.clone()
    };
    let of = |layer: HeadMixture| Attention::Mixture(Box::new(layer)).forward(1, &constant).0;
    assert_same(&of(gated.clone()), &of(dense.clone()));

    // Gates of 1 give dense attention on any tokens.
    let layer = mixture_mut(&mut model.layers[0].attention);
    layer.router.weight = Weight::Const(1.0);
    let KeysValues::MixedValues { router, .. } = &mut layer.kv else { panic!("mixed") };
    router.weight = Weight::Const(1.0);
    let plain = HeadMixture { output: gated.output.clone(), ..dense };
    let expected = Attention::Mixture(Box::new(plain)).forward(1, &x).0;
    assert_same(&model.layers[0].attention.forward(1, &x).0, &expected);
}

#[test]
fn uoe_with_every_head_for_every_token_is_dense_attention() {
    let config = with(&uoe_config(), &json!({"heads_per_token": 4}));
    let model = load("uoe-all", &config);
    let mut dense = load("uoe-all-again", &config);
    let tensors = read_tensors(&folder("uoe-all"));
    for (i, layer) in dense.layers.iter_mut().enumerate() {
        let tensor = |part: &str| tensors[&format!("layers.{i}.attention.{part}")].clone();
        let matrices = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|part| tensor(&format!("{part}.weight")));
        let mut attention = attention(Heads { all: 4, shared: 4, routed: 0 }, 8, 10000.0, matrices);
        attention.query_bias = Some(tensor("q_proj.bias"));
        let KeysValues::Projected { key_bias, value_bias, .. } = &mut attention.kv else {
            panic!("projected")
        };
        (*key_bias, *value_bias) = (Some(tensor("k_proj.bias")), Some(tensor("v_proj.bias")));
        let biases = tensor("o_proj.bias");
        attention.output_bias =
            Some(biases.chunks_exact(20).fold(vec![0.0; 20], |sum, bias| add(&sum, bias)));
        layer.attention = Attention::Mixture(Box::new(attention));
    }
    let ids = [&SOURCE[..6], &TARGET[..]].concat();
    let output = model.forward(2, &ids);
    assert_same(&output.logits, &dense.forward(2, &ids).logits);
    assert!(output.routes.iter().flat_map(|layer| &layer.places).all(|places| *places == [0, 1, 2, 3, 4, 5]));
}

#[test]
fn uoe_keeps_half_of_the_heads_unless_told() {
    let half = load("uoe-half", &uoe_config()).forward(1, &SOURCE);
    let two = load("uoe-two", &with(&uoe_config(), &json!({"heads_per_token": 2}))).forward(1, &SOURCE);
    assert_eq!(half.logits, two.logits);
    for layer in &half.routes {
        assert_eq!(layer.attention.top_k, 2);
        // A head takes at least the tokens that want it, and every head as many as the busiest.
        let wants =
            |token: usize, head: usize| layer.attention.experts[2 * token..][..2].contains(&(head as u32));
        let wanted =
            |head: usize| (0..SOURCE.len()).filter(|&token| wants(token, head)).collect::<Vec<usize>>();
        let busiest = (0..4).map(|head| wanted(head).len()).max().unwrap();
        for (head, places) in layer.places.iter().enumerate() {
            assert_eq!(places.len(), busiest);
            assert!(wanted(head).iter().all(|token| places.contains(token)));
        }
    }
}

#[test]
fn uoe_has_no_next_token_form() {
    let model = load("uoe-future", &uoe_config());
    let whole = model.forward(1, &SOURCE).logits;
    let prefix =
        (1..SOURCE.len()).map(|n| max_difference(&model.forward(1, &SOURCE[..n]).logits, &whole[..n * 53]));
    assert!(prefix.fold(0.0, f64::max) > 1e-3);
}

#[test]
fn dense_mlps_have_the_activation_of_the_config() {
    for (config, activation) in [(switch_head_config(), "relu"), (uoe_config(), "gelu")] {
        assert_eq!(config["hidden_act"], activation);
        let model = load(&format!("mlp-{activation}"), &config);
        let LayerMlp::Dense(mlp) = &model.layers[0].mlp else { panic!("dense") };
        let x = noise(35, 20);
        let hidden = add(&matvec(&mlp.input, &x), &mlp.input_bias);
        let f = |x: f64| if activation == "relu" { x.max(0.0) } else { gelu(x) };
        let hidden: Vec<f64> = hidden.into_iter().map(f).collect();
        assert_same(&mlp.of(&x), &add(&matvec(&mlp.output, &hidden), &mlp.output_bias));
    }
}
