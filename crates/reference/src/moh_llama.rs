//! Llama (Touvron et al. 2023, arXiv 2302.13971) and MoH-LLaMA3 (Jin et al. 2024, arXiv 2410.11842) read from
//! a Hugging Face folder and run in f64. The two differ in one thing: MoH keeps the first heads and, of the
//! rest, those whose query is longest.
//!
//! ```text
//! h      = x + Attention(RMSNorm(x))
//! out    = h + W_down · (silu(W_gate · n) ⊙ W_up · n),  n = RMSNorm(h)
//! logits = W_head · RMSNorm(out)
//! ```

use super::{
    embedding::embedding,
    head_mixture::{HeadMixture, Input, Kernel, KeysValues, Positions, split_columns},
    jetmoe::{field, linear, read_json, read_tensors},
    norm_router::Routes,
    rms_norm::rms_norm,
    router::{Net, Router, Select, Weight},
    swiglu::swiglu,
};
use std::path::Path;

/// A whole model.
pub struct MohLlama {
    /// Width of the residual stream, D.
    pub width: usize,
    /// ε of every norm.
    pub epsilon: f64,
    /// `[vocabulary, D]`.
    pub embedding: Vec<f64>,
    /// First to last.
    pub layers: Vec<Layer>,
    /// `[D]`.
    pub norm: Vec<f64>,
    /// W_head `[vocabulary, D]`: the embedding again where the folder has no other.
    pub head: Vec<f64>,
}

/// One block.
pub struct Layer {
    /// `[D]`.
    pub attention_norm: Vec<f64>,
    /// The heads.
    pub attention: HeadMixture,
    /// `[D]`.
    pub mlp_norm: Vec<f64>,
    /// W_gate over W_up `[2F, D]`.
    pub gate_up: Vec<f64>,
    /// W_down `[D, F]`.
    pub down: Vec<f64>,
}

/// What a run returns.
pub struct Output {
    /// `[tokens, vocabulary]`.
    pub logits: Vec<f64>,
    /// For each layer the heads of each token, the shared ones first.
    pub routes: Vec<Routes>,
}

/// Which heads of an attention module run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// All of them, H.
    pub all: usize,
    /// The first, always on; H for a plain Llama.
    pub shared: usize,
    /// Of the rest, those with the longest queries.
    pub routed: usize,
}

/// Llama's attention with H heads of d channels over C key and value heads: Wq `[H·d, D]`, Wk and Wv `[C·d,
/// D]`, Wo `[D, H·d]`.
pub fn attention(
    heads: Heads,
    head_dim: usize,
    theta: f64,
    [query, keys, values, output]: [Vec<f64>; 4],
) -> HeadMixture {
    let width = query.len() / (heads.all * head_dim);
    let kv_heads = keys.len() / (head_dim * width);
    HeadMixture {
        width,
        heads: 1,
        head_dim,
        kv_heads,
        group: heads.all / kv_heads,
        query_share: 1,
        router: Router {
            experts: heads.all,
            shared: heads.shared,
            groups: 1,
            net: Net::QueryNorm,
            select: Select::TopK(heads.routed),
            weight: Weight::Const(1.0),
            shared_weight: None,
            two_stage: None,
        },
        query,
        query_bias: None,
        kv: KeysValues::Projected { keys, key_bias: None, values, value_bias: None },
        positions: Positions::Rope { theta, fraction: 1.0 },
        kernel: Kernel::Softmax,
        causal: true,
        padding_gates_zero: false,
        output: split_columns(&output, heads.all * head_dim, heads.all),
        output_bias: None,
    }
}

impl MohLlama {
    /// Reads `config.json` (with `moh`: `shared` and `routed` heads, for MoH) and the tensors of Llama's
    /// names.
    pub fn load(folder: &Path) -> MohLlama {
        let config = read_json(&folder.join("config.json"));
        let tensors = read_tensors(folder);
        let tensor = |name: &str| tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}")).clone();
        let whole = |name: &str| field(&config, &[name]).unwrap_or_else(|| panic!("no {name}")) as usize;

        let all = whole("num_attention_heads");
        let moh = |name: &str| field(&config["moh"], &[name]).expect(name) as usize;
        let heads = match config["moh"].is_object() {
            true => Heads { all, shared: moh("shared"), routed: moh("routed") },
            false => Heads { all, shared: all, routed: 0 },
        };
        let head_dim = field(&config, &["head_dim"]).map_or(whole("hidden_size") / all, |d| d as usize);
        let theta = field(&config, &["rope_theta"]).unwrap_or(10000.0);
        let layer = |i: usize| {
            let name = |name: &str| format!("model.layers.{i}.{name}.weight");
            let matrices = ["q_proj", "k_proj", "v_proj", "o_proj"];
            let matrices = matrices.map(|matrix| tensor(&name(&format!("self_attn.{matrix}"))));
            Layer {
                attention_norm: tensor(&name("input_layernorm")),
                attention: attention(heads, head_dim, theta, matrices),
                mlp_norm: tensor(&name("post_attention_layernorm")),
                gate_up: [tensor(&name("mlp.gate_proj")), tensor(&name("mlp.up_proj"))].concat(),
                down: tensor(&name("mlp.down_proj")),
            }
        };
        let embedding = tensor("model.embed_tokens.weight");
        MohLlama {
            width: whole("hidden_size"),
            epsilon: field(&config, &["rms_norm_eps"]).expect("rms_norm_eps"),
            layers: (0..whole("num_hidden_layers")).map(layer).collect(),
            norm: tensor("model.norm.weight"),
            head: tensors.get("lm_head.weight").unwrap_or(&embedding).clone(),
            embedding,
        }
    }

    /// Runs a whole prompt.
    pub fn forward(&self, ids: &[u32]) -> Output {
        let mut x = embedding(&self.embedding, self.width, ids);
        let mut routes = Vec::new();
        for layer in &self.layers {
            let normed = rms_norm(&x, &layer.attention_norm, self.epsilon);
            let attention = layer.attention.forward(&Input { batch: 1, x: &normed, ..Input::default() });
            x = add(&x, &attention.y);
            x = add(&x, &layer.mlp(&rms_norm(&x, &layer.mlp_norm, self.epsilon), self.width));
            routes.push(attention.routing.routes);
        }
        Output { logits: linear(&self.head, self.width, &rms_norm(&x, &self.norm, self.epsilon)), routes }
    }
}

impl Layer {
    /// W_down · (silu(W_gate·x) ⊙ W_up·x) for each row of x `[rows, width]`.
    pub fn mlp(&self, x: &[f64], width: usize) -> Vec<f64> {
        let inner = self.down.len() / width;
        linear(&self.down, inner, &swiglu(&linear(&self.gate_up, width, x), inner))
    }
}

/// a + b.
pub fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    assert_eq!(a.len(), b.len(), "add: lengths");
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
