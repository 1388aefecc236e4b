//! The MoA models: the formulas written out.

use super::checkpoints::{folder, written};
use crate::{
    assert_same, noise,
    reference::{
        blocks::{Mlp, affine_rows},
        checkpoints::{SOURCE, TARGET, moa_config, with, write},
        head_mixture::{HeadMixture, Input},
        jetmoe::{linear, read_tensors},
        matvec, max_difference,
        moa::{Moa, sinusoid},
        moh_llama::add,
        softmax,
    },
};
use serde_json::{Value, json};

/// The tiny model with some fields replaced.
fn model(name: &str, fields: &Value) -> Moa {
    Moa::load(&written(name, &with(&moa_config(), fields)))
}

fn attend(layer: &HeadMixture, x: &[f64], memory: Option<&[f64]>) -> Vec<f64> {
    layer.forward(&Input { batch: 1, x, memory, ..Input::default() }).y
}

#[test]
fn positions_are_sines_then_cosines() {
    assert_same(&sinusoid(0, 6), &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    // Frequencies 1, 1/100, 1/10000.
    let angles = [3.0, 0.03, 0.0003];
    assert_same(&sinusoid(3, 6), &[angles.map(f64::sin), angles.map(f64::cos)].concat());
}

#[test]
fn the_input_is_the_scaled_embedding_and_the_position_from_the_offset_on() {
    for (name, scaled, offset) in [("moa-scaled", true, 0), ("moa-offset", false, 2)] {
        let fields = json!({"scale_embedding": scaled, "position_offset": offset});
        let model = model(name, &fields);
        let row = |id: usize| model.embedding[id * 20..][..20].to_vec();
        let scale = if scaled { 20f64.sqrt() } else { 1.0 };
        let scaled = |id: usize| row(id).iter().map(|x| scale * x).collect::<Vec<f64>>();
        let expected = [
            add(&scaled(9), &sinusoid(offset, 20)),
            add(&scaled(4), &sinusoid(offset + 1, 20)),
            add(&scaled(9), &sinusoid(offset + 2, 20)),
        ];
        assert_same(&model.embed(&[9, 4, 9]), &expected.concat());
    }
}

/// y = Σ_e p_e · Wo_e · o_e with all E experts of m heads, straight from the file's input-major tensors.
#[test]
fn all_experts_with_raw_gates_are_the_softmax_weighted_sum_of_all_heads() {
    let (width, experts, heads, d, tokens) = (20, 5, 2, 8, 4);
    let fields = json!({"gate_weights": "softmax", "top_k": experts, "heads_per_expert": heads});
    let folder = written("moa-all-experts", &with(&moa_config(), &fields));
    let tensors = read_tensors(&folder);
    let x = noise(11, tokens * width);
    let row = |t: usize| &x[t * width..][..width];
    for side in ["encoder", "decoder"] {
        let tensor = |name: &str| &tensors[&format!("{side}.layers.1.self_attn.{name}")];
        let (w_gate, wq) = (tensor("q_proj.w_gate"), tensor("q_proj.experts.w"));
        let wo = tensor("q_proj.output_experts.w");
        let keys = |t: usize| matvec(tensor("k_proj.weight"), row(t));
        let values = |t: usize| matvec(tensor("v_proj.weight"), row(t));
        let mut expected = vec![0.0; x.len()];
        for t in 0..tokens {
            let seen = if side == "encoder" { tokens } else { t + 1 };
            let z: Vec<f64> =
                (0..experts).map(|e| (0..width).map(|i| row(t)[i] * w_gate[i * experts + e]).sum()).collect();
            for (e, p) in softmax(&z).into_iter().enumerate() {
                let q: Vec<f64> = (0..heads * d)
                    .map(|c| (0..width).map(|i| row(t)[i] * wq[(e * width + i) * heads * d + c]).sum())
                    .collect();
                for head in 0..heads {
                    let score = |i: usize| {
                        (0..d).map(|c| q[head * d + c] * keys(i)[head * d + c]).sum::<f64>() / 8f64.sqrt()
                    };
                    let weights = softmax(&(0..seen).map(score).collect::<Vec<f64>>());
                    for c in head * d..(head + 1) * d {
                        let o: f64 = (0..seen).map(|i| weights[i] * values(i)[c]).sum();
                        for out in 0..width {
                            expected[t * width + out] += p * o * wo[(e * heads * d + c) * width + out];
                        }
                    }
                }
            }
        }
        let model = Moa::load(&folder);
        let stack = if side == "encoder" { &model.encoder } else { &model.decoder };
        assert_same(&attend(&stack.layers[1].attention.1, &x, None), &expected);
    }
}

#[test]
fn renormalising_all_experts_changes_nothing() {
    let raw = model("moa-raw", &json!({"gate_weights": "softmax", "top_k": 5}));
    let same = model("moa-renormalised", &json!({"top_k": 5, "gate_eps": 0.0}));
    let (raw, same) = (raw.decode(&SOURCE, &TARGET), same.decode(&SOURCE, &TARGET));
    assert_same(&raw.logits, &same.logits);

    let three = json!({"gate_weights": "softmax"});
    let raw = model("moa-raw-of-three", &three).decode(&SOURCE, &TARGET);
    let three = model("moa-renormalised-of-three", &json!({})).decode(&SOURCE, &TARGET);
    assert!(max_difference(&raw.logits, &three.logits) > 0.1, "of fewer experts it shows");
}

#[test]
fn post_norm_is_two_lines_and_pre_norm_two_others() {
    let one = json!({"encoder_layers": 1, "norm_position": "post"});
    let model_post = model("moa-post-formula", &one);
    let layer = &model_post.encoder.layers[0];
    let ((norm1, attention), (norm2, mlp)) = (&layer.attention, &layer.mlp);
    let x = model_post.embed(&SOURCE);
    let h = norm1.of(&add(&x, &attend(attention, &x, None)));
    let out = norm2.of(&add(&h, &mlp.of(&h)));
    assert_same(&model_post.encode(&SOURCE).states, &out);

    let model_pre = model("moa-pre-formula", &json!({"encoder_layers": 1}));
    let layer = &model_pre.encoder.layers[0];
    let ((norm1, attention), (norm2, mlp)) = (&layer.attention, &layer.mlp);
    let x = model_pre.embed(&SOURCE);
    let h = add(&x, &attend(attention, &norm1.of(&x), None));
    let out = add(&h, &mlp.of(&norm2.of(&h)));
    assert_same(&model_pre.encode(&SOURCE).states, &model_pre.encoder.norm.as_ref().unwrap().of(&out));
}

#[test]
fn a_decoder_layer_attends_to_itself_then_to_the_encoder() {
    for (name, post) in [("moa-decoder-post", true), ("moa-decoder-pre", false)] {
        let fields = json!({"decoder_layers": 1, "norm_position": if post { "post" } else { "pre" }});
        let model = model(name, &fields);
        let memory = model.encode(&SOURCE).states;
        let layer = &model.decoder.layers[0];
        let (cross_norm, cross) = layer.cross.as_ref().unwrap();
        let ((norm1, attention), (norm3, mlp)) = (&layer.attention, &layer.mlp);
        let mut x = model.embed(&TARGET);
        if post {
            x = norm1.of(&add(&x, &attend(attention, &x, None)));
            x = cross_norm.of(&add(&x, &attend(cross, &x, Some(&memory))));
            x = norm3.of(&add(&x, &mlp.of(&x)));
        } else {
            x = add(&x, &attend(attention, &norm1.of(&x), None));
            x = add(&x, &attend(cross, &cross_norm.of(&x), Some(&memory)));
            x = add(&x, &mlp.of(&norm3.of(&x)));
            x = model.decoder.norm.as_ref().unwrap().of(&x);
        }
        let output = model.decode(&SOURCE, &TARGET);
        assert_same(&output.logits, &linear(&model.embedding, 20, &x));
        assert_eq!(output.routes[0].cross.as_ref().unwrap().experts.len(), TARGET.len() * 3);
    }
}

#[test]
fn a_target_token_sees_the_whole_source_and_no_later_target() {
    let model = model("moa-causal", &json!({}));
    let whole = model.decode(&SOURCE, &TARGET).logits;
    assert_same(&model.decode(&SOURCE, &TARGET[..4]).logits, &whole[..4 * 53]);
    let mut source = SOURCE;
    source[6] = 10;
    assert!(max_difference(&model.decode(&source, &TARGET[..1]).logits, &whole[..53]) > 1e-3);
}

#[test]
fn attention_to_a_single_source_token_returns_its_value() {
    let model = model("moa-one-source", &json!({}));
    let memory = model.encode(&SOURCE[..1]).states;
    let (_, cross) = model.decoder.layers[0].cross.as_ref().unwrap();
    let x = noise(12, 3 * 20);
    let output = cross.forward(&Input { batch: 1, x: &x, memory: Some(&memory), ..Input::default() });
    let folder = folder("moa-one-source");
    let value = matvec(&read_tensors(&folder)["decoder.layers.0.encoder_attn.v_proj.weight"], &memory);
    let routes = output.routing.routes;
    let mut expected = vec![0.0; x.len()];
    for (slot, (&expert, gate)) in routes.experts.iter().zip(&routes.gates).enumerate() {
        let out = matvec(&cross.output[expert as usize * 20 * 8..][..20 * 8], &value);
        expected[slot / 3 * 20..][..20].iter_mut().zip(out).for_each(|(y, out)| *y += gate * out);
    }
    assert_same(&output.y, &expected);
}

#[test]
fn the_masked_model_is_the_encoder_under_the_embedding_and_a_bias() {
    for (name, norm_position) in [("moa-fill-formula-pre", "pre"), ("moa-fill-formula-post", "post")] {
        let fields = json!({"task": "fill_mask", "decoder_layers": 0, "norm_position": norm_position});
        let model = model(name, &fields);
        let encoded = model.encode(&SOURCE);
        let output = model.fill(&SOURCE);
        let bias = &read_tensors(&folder(name))["lm_head.bias"];
        assert_same(&output.logits, &affine_rows(&model.embedding, bias, &encoded.states));
        assert_eq!(output.routes, encoded.routes);
        assert!(output.routes.iter().all(|layer| layer.cross.is_none()));
    }
}

#[test]
fn the_mlp_has_the_activation_of_the_config() {
    let hidden = |activation: &str| -> Vec<f64> {
        let config = with(&moa_config(), &json!({"activation": activation}));
        let name = format!("moa-{activation}");
        // fc1 passes channel 0 on, fc2 returns it.
        write(&folder(&name), &config, |tensor, count| {
            let mut values = vec![0.0; count];
            values[0] =
                if tensor.ends_with("fc1.weight") || tensor.ends_with("fc2.weight") { 1.0 } else { 0.0 };
            values
        });
        let mlp: Mlp = Moa::load(&folder(&name)).encoder.layers[0].mlp.1.clone();
        let rows = [-1.0, 0.0, 1.0].map(|x| [vec![x], vec![0.5; 19]].concat()).concat();
        mlp.of(&rows).into_iter().step_by(20).collect()
    };
    assert_same(&hidden("relu"), &[0.0, 0.0, 1.0]);
    // Φ(1) = 0.841344746…
    assert_same(&hidden("gelu"), &[-0.15865525393145707, 0.0, 0.8413447460685429]);
}
