//! Vision transformers (Dosovitskiy et al. 2020, arXiv 2010.11929), plain or with the attention of MoH (Jin
//! et al. 2024, arXiv 2410.11842), read from a folder with timm's names and run in f64.
//!
//! ```text
//! x      = [cls, W_p·patch_1 + b_p, …, W_p·patch_N + b_p] + positions
//! h      = x + Attention(LN(x))                  every token sees every token
//! out    = h + W_2 · gelu(W_1·LN(h) + b_1) + b_2
//! logits = W_head · LN(out)[0] + b_head
//! ```

use super::{
    blocks::{Mlp, Norm, affine_rows, all_on},
    folder::{Folder, number, whole},
    head_mixture::{HeadMixture, Input, Kernel, KeysValues, Positions, split_columns},
    moh_llama::add,
    norm_router::Routes,
    router::{Net, Router, Select, Weight},
};
use serde_json::Value;
use std::path::Path;

/// A whole model.
pub struct VitMoh {
    /// Colours, C.
    pub channels: usize,
    /// Height and width of an image, S.
    pub image_size: usize,
    /// Height and width of a patch, P.
    pub patch_size: usize,
    /// Of each channel, what [`VitMoh::pixels`] takes off.
    pub mean: Vec<f64>,
    /// Of each channel, what it divides by.
    pub deviation: Vec<f64>,
    /// W_p `[D, C, P, P]`.
    pub patch: Vec<f64>,
    /// b_p `[D]`.
    pub patch_bias: Vec<f64>,
    /// `[D]`.
    pub class_token: Vec<f64>,
    /// `[1 + N, D]`.
    pub positions: Vec<f64>,
    /// First to last.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub norm: Norm,
    /// W_head `[labels, D]`.
    pub head: Vec<f64>,
    /// b_head `[labels]`.
    pub head_bias: Vec<f64>,
}

/// One block.
pub struct Layer {
    /// Before the attention.
    pub attention_norm: Norm,
    /// The heads.
    pub attention: HeadMixture,
    /// Before the MLP.
    pub mlp_norm: Norm,
    /// The MLP.
    pub mlp: Mlp,
}

/// What a run returns.
pub struct Output {
    /// `[labels]`.
    pub logits: Vec<f64>,
    /// For each layer the heads of each token (the class token first), the shared ones first; without MoH
    /// all of them, with gate 1.
    pub routes: Vec<Routes>,
    /// For each layer the gate of every head, 0 where dropped, `[1 + N, heads]`.
    pub head_gates: Vec<Vec<f64>>,
}

impl VitMoh {
    /// Reads `config.json` (with `moh`: `shared_heads` and `routed_heads`, for MoH) and the tensors.
    pub fn load(path: &Path) -> VitMoh {
        let mut folder = Folder::open(path);
        let config = folder.config.clone();
        let moh = config["moh"].is_object();
        assert_eq!(config["model_type"], if moh { "vit_moh" } else { "vit" });
        let epsilon = number(&config, "layer_norm_eps");
        let layer = |i: usize| Layer {
            attention_norm: folder.layer_norm(&format!("blocks.{i}.norm1"), epsilon),
            attention: attention(&mut folder, &format!("blocks.{i}.attn")),
            mlp_norm: folder.layer_norm(&format!("blocks.{i}.norm2"), epsilon),
            mlp: folder.mlp(&format!("blocks.{i}.mlp"), "hidden_act"),
        };
        let layers = (0..whole(&config, "num_hidden_layers")).map(layer).collect();
        let channel_values = |name: &str| -> Vec<f64> {
            let values = config[name].as_array().unwrap_or_else(|| panic!("no {name}"));
            values.iter().map(|value| value.as_f64().expect("a number")).collect()
        };
        let model = VitMoh {
            channels: whole(&config, "num_channels"),
            image_size: whole(&config, "image_size"),
            patch_size: whole(&config, "patch_size"),
            mean: channel_values("image_mean"),
            deviation: channel_values("image_std"),
            patch: folder.take("patch_embed.proj.weight"),
            patch_bias: folder.take("patch_embed.proj.bias"),
            class_token: folder.take("cls_token"),
            positions: folder.take("pos_embed"),
            layers,
            norm: folder.layer_norm("norm", epsilon),
            head: folder.take("head.weight"),
            head_bias: folder.take("head.bias"),
        };
        folder.close();
        model
    }

    /// (byte / 255 − mean) / deviation for an image `[C, S, S]` of bytes.
    pub fn pixels(&self, bytes: &[f64]) -> Vec<f64> {
        let plane = self.image_size * self.image_size;
        let pixel =
            |(i, byte): (usize, &f64)| (byte / 255.0 - self.mean[i / plane]) / self.deviation[i / plane];
        bytes.iter().enumerate().map(pixel).collect()
    }

    /// Runs one image `[C, S, S]` of normalised pixels.
    pub fn forward(&self, pixels: &[f64]) -> Output {
        let width = self.class_token.len();
        let patches = affine_rows(&self.patch, &self.patch_bias, &self.patches(pixels));
        let mut x = add(&[self.class_token.clone(), patches].concat(), &self.positions);
        let (mut routes, mut head_gates) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            let normed = layer.attention_norm.of(&x);
            let attention = layer.attention.forward(&Input { batch: 1, x: &normed, ..Input::default() });
            x = add(&x, &attention.y);
            x = add(&x, &layer.mlp.of(&layer.mlp_norm.of(&x)));
            head_gates.push(every_gate(&attention.routing.routes, layer.attention.router.experts));
            routes.push(attention.routing.routes);
        }
        let class = self.norm.of(&x[..width]);
        Output { logits: affine_rows(&self.head, &self.head_bias, &class), routes, head_gates }
    }

    /// The patches in row-major order of the grid, each `[C, P, P]`.
    pub fn patches(&self, pixels: &[f64]) -> Vec<f64> {
        let (channels, size, patch) = (self.channels, self.image_size, self.patch_size);
        assert_eq!(pixels.len(), channels * size * size, "pixels");
        let grid = size / patch;
        let mut patches = Vec::with_capacity(pixels.len());
        for (top, left) in (0..grid * grid).map(|p| (p / grid * patch, p % grid * patch)) {
            for (channel, row) in (0..channels * patch).map(|i| (i / patch, i % patch)) {
                patches.extend(&pixels[(channel * size + top + row) * size + left..][..patch]);
            }
        }
        patches
    }
}

/// The gate of every head, 0 where dropped, `[tokens, heads]`.
fn every_gate(routes: &Routes, heads: usize) -> Vec<f64> {
    let mut gates = vec![0.0; routes.experts.len() / routes.top_k * heads];
    for (slot, (&head, &gate)) in routes.experts.iter().zip(&routes.gates).enumerate() {
        gates[slot / routes.top_k * heads + head as usize] = gate;
    }
    gates
}

/// The attention named so: qkv `[3·h·d, D]` with bias, queries first, proj `[D, h·d]` with bias.
fn attention(folder: &mut Folder, name: &str) -> HeadMixture {
    let config = folder.config.clone();
    let (heads, head_dim) = (whole(&config, "num_attention_heads"), whole(&config, "head_dim"));
    let (width, inner) = (whole(&config, "hidden_size"), heads * head_dim);
    let (qkv, qkv_bias) =
        (folder.take(&format!("{name}.qkv.weight")), folder.take(&format!("{name}.qkv.bias")));
    let weight = |part: usize| qkv[part * inner * width..][..inner * width].to_vec();
    let bias = |part: usize| Some(qkv_bias[part * inner..][..inner].to_vec());
    HeadMixture {
        width,
        heads: 1,
        head_dim,
        kv_heads: heads,
        group: 1,
        query_share: 1,
        router: router(folder, name, &config["moh"], heads),
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
        output: split_columns(&folder.take(&format!("{name}.proj.weight")), inner, heads),
        output_bias: Some(folder.take(&format!("{name}.proj.bias"))),
    }
}

/// MoH's router: wg `[h − hs, D]` scores the routed heads, wg_1 `[hs, D]` weighs the shared ones, wg_0 `[2, D]`
/// shares out between the two; each present only where it has something to tell apart.
fn router(folder: &mut Folder, name: &str, moh: &Value, heads: usize) -> Router {
    if !moh.is_object() {
        return all_on(heads);
    }
    let (shared, routed) = (whole(moh, "shared_heads"), whole(moh, "routed_heads"));
    let mut tensor = |part: &str| folder.take_if_there(&format!("{name}.{part}.weight"));
    let net = tensor("wg").map_or(Net::None, |weight| Net::Linear { weight, bias: None });
    let (shared_weight, two_stage) = (tensor("wg_1"), tensor("wg_0"));
    assert_eq!(matches!(net, Net::None), shared == heads, "{name}.wg");
    assert!(shared < 2 || shared_weight.is_some(), "{name}.wg_1");
    assert_eq!(two_stage.is_some(), moh["two_stage"] == true && shared > 0 && routed > 0, "{name}.wg_0");
    Router {
        experts: heads,
        shared,
        groups: 1,
        net,
        select: Select::TopK(routed),
        weight: Weight::Renormalised { epsilon: 0.0, scale: routed as f64 },
        shared_weight,
        two_stage,
    }
}
