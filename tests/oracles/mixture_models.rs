//! Layers and models against the outputs of their original implementations.

use crate::{
    assert_same, ids, numbers,
    reference::{
        head_mixture::{
            HeadMixture, Input, Kernel, KeysValues, Output, Positions, split_columns, transpose_each,
        },
        jetmoe::{read_json, read_safetensors},
        losses, max_difference,
        moh_llama::MohLlama,
        molm::Molm,
        router::{Net, Router, Select, Weight},
    },
    root,
};
use serde_json::Value;

type Tensors = std::collections::HashMap<String, Vec<f64>>;

/// `expected.json` and the tensors of a fixture.
fn fixture(name: &str) -> (Value, Tensors) {
    let folder = root().join("tests/fixtures").join(name);
    (read_json(&folder.join("expected.json")), read_safetensors(&folder.join("model.safetensors")))
}

/// `moa_attn_tiny`: D = 12, E = 7 heads of 6 channels over one key head, k = 3.
fn moa(tensors: &Tensors) -> HeadMixture {
    let (width, experts, head_dim) = (12, 7, 6);
    HeadMixture {
        width,
        heads: 1,
        head_dim,
        kv_heads: 1,
        group: 1,
        query_share: 1,
        router: Router {
            experts,
            shared: 0,
            groups: 1,
            net: Net::Linear {
                weight: transpose_each(&tensors["q_proj.w_gate"], width, experts),
                bias: None,
            },
            select: Select::TopK(3),
            weight: Weight::SoftmaxAll,
            shared_weight: None,
            two_stage: None,
        },
        query: transpose_each(&tensors["q_proj.experts.w"], width, head_dim),
        query_bias: None,
        kv: KeysValues::Projected {
            keys: tensors["k_proj.weight"].clone(),
            key_bias: None,
            values: tensors["v_proj.weight"].clone(),
            value_bias: None,
        },
        positions: Positions::None,
        kernel: Kernel::Softmax,
        causal: true,
        padding_gates_zero: true,
        output: transpose_each(&tensors["q_proj.output_experts.w"], head_dim, width),
        output_bias: None,
    }
}

/// The second sequence of `moa_attn_tiny` ends in two padding tokens.
fn moa_padding(expected: &Value) -> Vec<bool> {
    let rows = expected["bidir_pad"]["pad"].as_array().unwrap();
    rows.iter().flat_map(|row| row.as_array().unwrap()).map(|padding| padding.as_bool().unwrap()).collect()
}

/// 0.5 · importance CV + 0.01 · switch balance + 0.001 · router z, as the fixture was made.
fn moa_losses(output: &Output, padding: Option<&[bool]>) -> f64 {
    let (scores, routes) = (&output.routing.scores, &output.routing.routes);
    let mass = losses::probability_mass(&losses::probabilities(scores, 7, padding), 7);
    0.5 * losses::importance_cv(&losses::importance(routes, 7))
        + 0.01 * losses::switch_balance(&mass, &losses::load(routes, 7))
        + 0.001 * losses::router_z(scores, 7)
}

#[test]
fn moa_agrees_with_the_original() {
    let (expected, tensors) = fixture("moa_attn_tiny");
    let x = numbers(&expected["x"]);
    let compare = |case: &str, output: Output, padding: Option<&[bool]>| {
        let difference = max_difference(&output.y, &numbers(&expected[case]["y"]));
        assert!(difference <= 1e-6, "{case}: {difference:e}");
        let difference = max_difference(&[moa_losses(&output, padding)], &numbers(&expected[case]["aux"]));
        assert!(difference <= 1e-6, "{case}: losses differ by {difference:e}");
    };
    let input = Input { batch: 2, x: &x, ..Input::default() };
    compare("causal_nopad", moa(&tensors).forward(&input), None);

    let padding = moa_padding(&expected);
    let bidirectional = HeadMixture { causal: false, ..moa(&tensors) };
    let output = bidirectional.forward(&Input { padding: Some(&padding), ..input });
    assert!(output.y[10 * 12..].iter().all(|&y| y == 0.0), "the rows of padding");
    compare("bidir_pad", output, Some(&padding));
}

/// A case of `moh_attn_tiny`: D = 20, 6 heads of 4 channels, so that the heads together are wider than the
/// input.
fn moh(tensors: &Tensors, case: &str, shared: usize, routed: usize) -> HeadMixture {
    let (width, heads, head_dim) = (20, 6, 4);
    let tensor = |name: &str| tensors.get(&format!("{case}.{name}")).cloned();
    let (qkv, qkv_bias) = (tensor("qkv.weight").unwrap(), tensor("qkv.bias").unwrap());
    let weight = |part: usize| qkv[part * heads * head_dim * width..][..heads * head_dim * width].to_vec();
    let bias = |part: usize| Some(qkv_bias[part * heads * head_dim..][..heads * head_dim].to_vec());
    HeadMixture {
        width,
        heads: 1,
        head_dim,
        kv_heads: heads,
        group: 1,
        query_share: 1,
        router: Router {
            experts: heads,
            shared,
            groups: 1,
            net: tensor("wg.weight").map_or(Net::None, |weight| Net::Linear { weight, bias: None }),
            select: Select::TopK(routed),
            weight: Weight::Renormalised { epsilon: 0.0, scale: routed as f64 },
            shared_weight: tensor("wg_1.weight"),
            two_stage: tensor("wg_0.weight"),
        },
        query: weight(0),
        query_bias: bias(0),
        kv: KeysValues::Projected {
            keys: weight(1),
            key_bias: bias(1),
            values: weight(2),
            value_bias: bias(2),
        },
        positions: Positions::None,
        kernel: Kernel::Softmax,
        causal: false,
        padding_gates_zero: false,
        output: split_columns(&tensor("proj.weight").unwrap(), heads * head_dim, heads),
        output_bias: tensor("proj.bias"),
    }
}

#[test]
fn moh_agrees_with_the_original() {
    let (expected, tensors) = fixture("moh_attn_tiny");
    let x = numbers(&expected["x"]);
    for (case, shared, routed) in
        [("shared2_routed2", 2, 2), ("shared0_routed3", 0, 3), ("shared6_routed0", 6, 0)]
    {
        let layer = moh(&tensors, case, shared, routed);
        let output = layer.forward(&Input { batch: 2, x: &x, ..Input::default() });
        let difference = max_difference(&output.y, &numbers(&expected["cases"][case]["y"]));
        assert!(difference <= 1e-6, "{case}: {difference:e}");
    }
}

#[test]
fn molm_agrees_with_the_original() {
    for name in ["molm_tiny", "molm_tiny_2head"] {
        let folder = root().join("tests/fixtures").join(name);
        let expected = read_json(&folder.join("expected.json"));
        let output = Molm::load(&folder).forward(&ids(&numbers(&expected["ids"])));
        let difference = max_difference(&output.logits, &numbers(&expected["logits"]));
        assert!(difference <= 1e-5, "{name}: logits differ by {difference:e}");
    }
}

#[test]
fn llama_is_moh_with_every_head_on() {
    let folder = root().join("tests/fixtures/moh_llama_tiny");
    let run = |shared, routed| {
        let mut model = MohLlama::load(&folder);
        for layer in &mut model.layers {
            layer.attention.router.shared = shared;
            layer.attention.router.select = Select::TopK(routed);
        }
        model.forward(&[1, 5, 9, 60, 2]).logits
    };
    assert_same(&run(8, 0), &run(4, 4));
    assert_same(&run(8, 0), &run(0, 8));
    assert!(max_difference(&run(8, 0), &run(4, 2)) > 0.1, "routing shows");
}

#[test]
fn moh_llama_agrees_with_the_original() {
    let folder = root().join("tests/fixtures/moh_llama_tiny");
    let expected = read_json(&folder.join("expected.json"));
    let output = MohLlama::load(&folder).forward(&ids(&numbers(&expected["ids"])));
    let difference = max_difference(&output.logits, &numbers(&expected["logits"]));
    assert!(difference <= 1e-5, "logits differ by {difference:e}");

    for (layer, routes) in output.routes.iter().enumerate() {
        let routed = ids(&numbers(&expected["routed_heads"][layer]));
        for (token, routed) in routed.chunks_exact(2).enumerate() {
            let heads = &routes.experts[token * routes.top_k..][..routes.top_k];
            assert_eq!(heads[..4], [0, 1, 2, 3], "layer {layer}, token {token}: the shared heads");
            let mut found = heads[4..].to_vec();
            found.sort();
            assert_eq!(found, routed, "layer {layer}, token {token}");
        }
    }
}
