//! The vision transformers: the parts written out, and the identities of MoH's gates.

use super::checkpoints::{folder, written};
use crate::{
    assert_same, noise,
    reference::{
        activations::gelu,
        blocks::affine_rows,
        checkpoints::{plan, vit_config, with, write},
        dot,
        head_mixture::Input,
        jetmoe::read_tensors,
        matvec,
        moh_llama::add,
        softmax,
        vit::VitMoh,
    },
};
use serde_json::{Value, json};
use std::path::Path;

const WIDTH: usize = 20;
const HEADS: usize = 5;
const D: usize = 8;
/// The class token and 3×3 patches.
const TOKENS: usize = 10;

fn pixels() -> Vec<f64> {
    noise(21, 3 * 12 * 12)
}

fn moh(shared: usize, routed: usize) -> Value {
    let heads = json!({"shared_heads": shared, "routed_heads": routed, "two_stage": true});
    with(&vit_config(), &json!({"moh": heads}))
}

/// The same model without MoH.
fn plain() -> Value {
    let mut config = with(&vit_config(), &json!({"model_type": "vit"}));
    config.as_object_mut().unwrap().remove("moh");
    config
}

/// The tensors of one folder under another config, with zeros for those the folder has not.
fn copied(name: &str, from: &Path, config: &Value) -> VitMoh {
    let tensors = read_tensors(from);
    let value = |name: &str, count| tensors.get(name).cloned().unwrap_or(vec![0.0; count]);
    write(&folder(name), config, value);
    VitMoh::load(&folder(name))
}

#[test]
fn patches_are_the_grids_in_row_major_order() {
    let model = VitMoh::load(&written("vit-patches", &vit_config()));
    let image: Vec<f64> = (0..3 * 12 * 12).map(f64::from).collect();
    let patches = model.patches(&image);
    let expected = |patch: usize| -> Vec<f64> {
        let (top, left) = (patch / 3 * 4, patch % 3 * 4);
        let mut values = Vec::new();
        for channel in 0..3 {
            for row in 0..4 {
                for column in 0..4 {
                    values.push((channel * 144 + (top + row) * 12 + left + column) as f64);
                }
            }
        }
        values
    };
    assert_same(&patches, &(0..9).flat_map(expected).collect::<Vec<f64>>());
}

#[test]
fn bytes_are_normalised_by_channel() {
    let model = VitMoh::load(&written("vit-pixels", &vit_config()));
    let mut bytes = vec![255.0; 2 * 144];
    bytes[0] = 0.0;
    let pixels = model.pixels(&bytes);
    assert_same(&[pixels[0], pixels[1], pixels[144]], &[-0.4 / 0.3, 0.6 / 0.3, 0.4 / 0.2]);
}

/// A whole plain model of one layer, from the file's tensors.
#[test]
fn a_plain_vit_is_the_formula() {
    let config = with(&plain(), &json!({"num_hidden_layers": 1}));
    let path = written("vit-formula", &config);
    let tensors = read_tensors(&path);
    let tensor = |name: &str| &tensors[name][..];
    let affine = |name: &str, x: &[f64]| -> Vec<f64> {
        let y = matvec(tensor(&format!("{name}.weight")), x);
        y.iter().zip(tensor(&format!("{name}.bias"))).map(|(y, b)| y + b).collect()
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / WIDTH as f64;
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / WIDTH as f64;
        let parts = tensor(&format!("{name}.weight")).iter().zip(tensor(&format!("{name}.bias")));
        x.iter().zip(parts).map(|(x, (w, b))| (x - mean) / (variance + 1e-6).sqrt() * w + b).collect()
    };
    let model = VitMoh::load(&path);
    let pixels = pixels();
    let mut x: Vec<Vec<f64>> = vec![tensor("cls_token").to_vec()];
    x.extend(model.patches(&pixels).chunks_exact(48).map(|patch| affine("patch_embed.proj", patch)));
    for (row, position) in x.iter_mut().zip(tensor("pos_embed").chunks_exact(WIDTH)) {
        row.iter_mut().zip(position).for_each(|(x, p)| *x += p);
    }
    let qkv: Vec<Vec<f64>> =
        x.iter().map(|row| affine("blocks.0.attn.qkv", &norm("blocks.0.norm1", row))).collect();
    let part = |t: usize, part: usize, head: usize| &qkv[t][(part * HEADS + head) * D..][..D];
    for (t, row) in x.iter_mut().enumerate() {
        let mut heads = Vec::new();
        for head in 0..HEADS {
            let score = |i: usize| dot(part(t, 0, head), part(i, 1, head)) / 8f64.sqrt();
            let weights = softmax(&(0..TOKENS).map(score).collect::<Vec<f64>>());
            heads.extend((0..D).map(|c| (0..TOKENS).map(|i| weights[i] * part(i, 2, head)[c]).sum::<f64>()));
        }
        row.iter_mut().zip(affine("blocks.0.attn.proj", &heads)).for_each(|(x, y)| *x += y);
        let hidden = affine("blocks.0.mlp.fc1", &norm("blocks.0.norm2", row));
        let hidden: Vec<f64> = hidden.into_iter().map(gelu).collect();
        row.iter_mut().zip(affine("blocks.0.mlp.fc2", &hidden)).for_each(|(x, y)| *x += y);
    }
    let output = model.forward(&pixels);
    assert_same(&output.logits, &affine("head", &norm("norm", &x[0])));
    assert_eq!(output.head_gates, [vec![1.0; TOKENS * HEADS]]);
}

#[test]
fn routers_of_zeros_that_keep_every_head_are_plain_attention() {
    let from = written("vit-plain", &plain());
    let expected = VitMoh::load(&from).forward(&pixels()).logits;
    for (shared, routed) in [(5, 0), (2, 3), (1, 4), (0, 5)] {
        let output = copied(&format!("vit-zeros-{shared}"), &from, &moh(shared, routed)).forward(&pixels());
        assert_same(&output.logits, &expected);
        output.head_gates.iter().for_each(|gates| assert_same(gates, &[1.0; TOKENS * HEADS]));
    }
}

#[test]
fn without_a_routing_stage_heads_weigh_by_the_shared_softmax() {
    let path = written("vit-all-shared", &moh(5, 0));
    let tensors = read_tensors(&path);
    assert!(!tensors.keys().any(|name| name.contains("wg.") || name.contains("wg_0.")));
    let model = VitMoh::load(&path);
    let x = noise(22, 4 * WIDTH);
    let layer = &model.layers[1].attention;
    let gates = layer.forward(&Input { batch: 1, x: &x, ..Input::default() }).routing.routes.gates;
    let weigh =
        |x: &[f64]| softmax(&matvec(&tensors["blocks.1.attn.wg_1.weight"], x)).into_iter().map(|p| 5.0 * p);
    assert_same(&gates, &x.chunks_exact(WIDTH).flat_map(weigh).collect::<Vec<f64>>());
}

/// The gates of the first layer by the formula: 2·α_0·hs·p_shared, then 2·α_1·kr·p / Σ_kept p.
#[test]
fn two_stages_share_out_between_shared_and_routed_heads() {
    for (shared, routed) in [(2, 2), (2, 1), (1, 3)] {
        let path = written(&format!("vit-two-stages-{routed}"), &moh(shared, routed));
        let tensors = read_tensors(&path);
        let model = VitMoh::load(&path);
        let output = model.forward(&pixels());
        let patches = affine_rows(&model.patch, &model.patch_bias, &model.patches(&pixels()));
        let x = add(&[model.class_token.clone(), patches].concat(), &model.positions);
        let normed = model.layers[0].attention_norm.of(&x);
        for (t, x) in normed.chunks_exact(WIDTH).enumerate() {
            let softmax_of =
                |name: &str| softmax(&matvec(&tensors[&format!("blocks.0.attn.{name}.weight")], x));
            let (alpha, p) = (softmax_of("wg_0"), softmax_of("wg"));
            let kept = |e: usize| p.iter().filter(|&&other| other > p[e]).count() < routed;
            let sum: f64 = (0..p.len()).filter(|&e| kept(e)).map(|e| p[e]).sum();
            let shared_gates = softmax_of("wg_1").into_iter().map(|p| 2.0 * alpha[0] * shared as f64 * p);
            let gate = |e: usize| if kept(e) { 2.0 * alpha[1] * routed as f64 * p[e] / sum } else { 0.0 };
            let expected: Vec<f64> = shared_gates.chain((0..p.len()).map(gate)).collect();
            assert_same(&output.head_gates[0][t * HEADS..][..HEADS], &expected);
        }
        for (gates, routes) in output.head_gates.iter().zip(&output.routes) {
            assert_eq!(routes.top_k, shared + routed);
            assert_eq!(gates.iter().filter(|&&gate| gate > 0.0).count(), TOKENS * (shared + routed));
        }
    }
}

#[test]
fn the_router_tensors_are_those_with_something_to_tell_apart() {
    let routers = |shared, routed| -> Vec<String> {
        let of_block = |name: String| name.strip_prefix("blocks.0.attn.wg").map(str::to_owned);
        plan(&moh(shared, routed)).into_keys().filter_map(of_block).collect()
    };
    assert_eq!(routers(2, 2), [".weight", "_0.weight", "_1.weight"]);
    assert_eq!(routers(0, 2), [".weight"]);
    assert_eq!(routers(5, 0), ["_1.weight"]);
}
