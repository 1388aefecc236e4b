//! JetMoE (Shen et al. 2024, arXiv 2404.07413) read from a Hugging Face folder and run in f64.
//!
//! ```text
//! h      = x + Attention(RMSNorm(x; 1e-6))
//! out    = h + MLP(RMSNorm(h; 1e-6))
//! logits = embedding · RMSNorm(out; ε of the config)
//! ```

use super::{
    embedding::embedding,
    norm_router::{Routes, norm_router},
    rms_norm::rms_norm,
    rope_cache::{RopeCache, rope_cache},
    routed_linear::{RoutedLinear, routed_linear},
    row_attention::{RowAttention, row_attention},
    sample::{argmax, argmax_gap},
};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// The original passes no epsilon to the norms inside a block, so they keep the class's default; only the
/// last norm uses the config's.
const BLOCK_EPSILON: f64 = 1e-6;

/// A whole model.
pub struct JetMoe {
    /// Width of the residual stream, D.
    pub width: usize,
    /// Experts a token keeps, k.
    pub top_k: usize,
    /// Heads of an attention expert, and of the keys and values, m.
    pub kv_heads: usize,
    /// Channels of a head, d.
    pub head_dim: usize,
    /// RoPE's θ.
    pub theta: f64,
    /// ε of the last norm.
    pub epsilon: f64,
    /// `[vocabulary, D]`, also the output head.
    pub embedding: Vec<f64>,
    /// `[D]`.
    pub norm: Vec<f64>,
    /// First to last.
    pub layers: Vec<Layer>,
}

/// One block.
pub struct Layer {
    /// Attention: W_q `[E, m·d, D]` and W_o `[E, D, m·d]`.
    pub attention: Experts,
    /// `[2·m·d, D]`, keys first.
    pub kv: Vec<f64>,
    /// MLP: W_i `[E, 2F, D]` and W_o `[E, D, F]`.
    pub mlp: Experts,
}

/// A norm, a router, and the two products it routes. The router's length, E·D, tells their inner widths.
pub struct Experts {
    /// `[D]`.
    pub norm: Vec<f64>,
    /// `[E, D]`.
    pub router: Vec<f64>,
    /// `[E, inner, D]`.
    pub input: Vec<f64>,
    /// `[E, D, inner]`, with half the inner width after SwiGLU.
    pub output: Vec<f64>,
    /// `[D]`.
    pub bias: Vec<f64>,
}

/// The keys and values of one sequence so far.
pub struct Cache {
    capacity: usize,
    length: usize,
    /// For each layer (keys, values), each `[capacity, m·d]`.
    pub layers: Vec<(Vec<f64>, Vec<f64>)>,
}

/// What a run returns.
pub struct Output {
    /// `[tokens, vocabulary]`.
    pub logits: Vec<f64>,
    /// `[tokens, D]`, behind the last norm.
    pub hidden: Vec<f64>,
    /// For each layer.
    pub routes: Vec<LayerRoutes>,
}

/// The experts of each token in one layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerRoutes {
    /// The head experts.
    pub attention: Routes,
    /// The MLP experts.
    pub mlp: Routes,
}

impl JetMoe {
    /// Reads `config.json` and `model.safetensors`, or the shards `model.safetensors.index.json` names.
    pub fn load(folder: &Path) -> JetMoe {
        let config = read_json(&folder.join("config.json"));
        let tensors = read_tensors(folder);
        let tensor = |name: &str| tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}")).clone();
        assert!(!tensors.contains_key("lm_head.weight"), "the output head must be the embedding");

        let layers: Vec<Layer> = (0..)
            .map(|i| format!("model.layers.{i}"))
            .take_while(|layer| tensors.contains_key(&format!("{layer}.input_layernorm.weight")))
            .map(|layer| Layer {
                attention: Experts {
                    norm: tensor(&format!("{layer}.input_layernorm.weight")),
                    router: tensor(&format!("{layer}.self_attention.experts.router.layer.weight")),
                    input: tensor(&format!("{layer}.self_attention.experts.input_linear.weight")),
                    output: tensor(&format!("{layer}.self_attention.experts.output_linear.weight")),
                    bias: tensor(&format!("{layer}.self_attention.experts.bias")),
                },
                kv: tensor(&format!("{layer}.self_attention.kv_proj.weight")),
                mlp: Experts {
                    norm: tensor(&format!("{layer}.post_attention_layernorm.weight")),
                    router: tensor(&format!("{layer}.mlp.router.layer.weight")),
                    input: tensor(&format!("{layer}.mlp.input_linear.weight")),
                    output: tensor(&format!("{layer}.mlp.output_linear.weight")),
                    bias: tensor(&format!("{layer}.mlp.bias")),
                },
            })
            .collect();
        let norm = tensor("model.norm.weight");
        let width = norm.len();
        let head_dim = field(&config, &["kv_channels", "head_dim"]).expect("kv_channels") as usize;
        let top_k =
            field(&config, &["num_experts_per_tok", "moe_top_k"]).expect("num_experts_per_tok") as usize;
        let theta = field(&config, &["rope_theta"])
            .or_else(|| field(&config["rope_parameters"], &["rope_theta"]))
            .unwrap_or(10000.0);
        JetMoe {
            width,
            top_k,
            kv_heads: layers[0].kv.len() / (2 * head_dim * width),
            head_dim,
            theta,
            epsilon: field(&config, &["rms_norm_eps", "layer_norm_epsilon"]).expect("rms_norm_eps"),
            embedding: tensor("model.embed_tokens.weight"),
            norm,
            layers,
        }
    }

    /// An empty cache for `capacity` positions.
    pub fn cache(&self, capacity: usize) -> Cache {
        let empty = vec![0.0; capacity * self.kv_heads * self.head_dim];
        Cache { capacity, length: 0, layers: vec![(empty.clone(), empty); self.layers.len()] }
    }

    /// Runs the ids that follow what the cache holds: a whole prompt, or one token.
    pub fn forward(&self, cache: &mut Cache, ids: &[u32]) -> Output {
        let positions: Vec<u32> = (cache.length..cache.length + ids.len()).map(|p| p as u32).collect();
        let sequences = vec![0; ids.len()];
        let capacity = cache.capacity;
        let mut x = embedding(&self.embedding, self.width, ids);
        let mut routes = Vec::new();
        for (layer, (keys, values)) in self.layers.iter().zip(&mut cache.layers) {
            let attention = self.attention(layer, &mut x, &positions, &sequences, capacity, (keys, values));
            let mlp = self.mlp(&layer.mlp, &mut x);
            routes.push(LayerRoutes { attention, mlp });
        }
        cache.length += ids.len();

        let hidden = rms_norm(&x, &self.norm, self.epsilon);
        Output { logits: linear(&self.embedding, self.width, &hidden), hidden, routes }
    }

    /// The logits of rows of the residual stream behind the last layer.
    pub fn output(&self, x: &[f64]) -> Vec<f64> {
        linear(&self.embedding, self.width, &rms_norm(x, &self.norm, self.epsilon))
    }

    /// The prompt's continuation by argmax, and the smallest gap between the two best logits on the way.
    pub fn greedy(&self, prompt: &[u32], new_tokens: usize) -> (Vec<u32>, f64) {
        let vocabulary = self.embedding.len() / self.width;
        let mut cache = self.cache(prompt.len() + new_tokens);
        let mut logits = self.forward(&mut cache, prompt).logits;
        let (mut ids, mut gap) = (Vec::new(), f64::INFINITY);
        for _ in 0..new_tokens {
            let last = &logits[logits.len() - vocabulary..];
            gap = gap.min(argmax_gap(last));
            ids.push(argmax(last));
            logits = self.forward(&mut cache, &ids[ids.len() - 1..]).logits;
        }
        (ids, gap)
    }

    /// x += Σ_s g_s · W_o\[e_s\] · attention(W_q\[e_s\] · xn) + bias.
    fn attention(
        &self,
        layer: &Layer,
        x: &mut Vec<f64>,
        positions: &[u32],
        sequences: &[u32],
        capacity: usize,
        (keys, values): (&mut [f64], &mut [f64]),
    ) -> Routes {
        let (k, m, d) = (self.top_k, self.kv_heads, self.head_dim);
        let step = norm_router(x, &layer.attention.norm, BLOCK_EPSILON, &layer.attention.router, k);
        let mut q = self.expert_input(&layer.attention, &step.normed, &step.routes, false);
        let kv = linear(&layer.kv, self.width, &step.normed);

        let rope = RopeCache {
            q_heads: k * m,
            kv_heads: m,
            head_dim: d,
            theta: self.theta,
            capacity,
            positions,
            sequences,
        };
        rope_cache(&rope, &mut q, &kv, keys, values);
        let rows =
            RowAttention { heads: k * m, kv_heads: m, group: 1, head_dim: d, capacity, positions, sequences };
        let out = row_attention(&rows, &q, keys, values);
        *x = self.expert_output(&layer.attention, &out, &step.routes, x);
        step.routes
    }

    /// x += Σ_s g_s · W_o\[e_s\] · swiglu(W_i\[e_s\] · xn) + bias.
    fn mlp(&self, mlp: &Experts, x: &mut Vec<f64>) -> Routes {
        let step = norm_router(x, &mlp.norm, BLOCK_EPSILON, &mlp.router, self.top_k);
        let hidden = self.expert_input(mlp, &step.normed, &step.routes, true);
        *x = self.expert_output(mlp, &hidden, &step.routes, x);
        step.routes
    }

    /// f(W\[e(t,s)\] · xn\[t\]) for each token t and slot s, `[tokens, k, inner]`.
    fn expert_input(&self, experts: &Experts, xn: &[f64], routes: &Routes, swiglu: bool) -> Vec<f64> {
        routed_linear(&RoutedLinear {
            weight: &experts.input,
            out_rows: experts.input.len() / experts.router.len(),
            in_width: self.width,
            experts: &routes.experts,
            gates: None,
            slots: 1,
            src: xn,
            src_div: self.top_k,
            bias: None,
            residual: None,
            swiglu,
        })
    }

    /// x\[t\] + bias + Σ_s g(t,s) · W\[e(t,s)\] · inner\[t,s\], `[tokens, D]`.
    fn expert_output(&self, experts: &Experts, inner: &[f64], routes: &Routes, x: &[f64]) -> Vec<f64> {
        routed_linear(&RoutedLinear {
            weight: &experts.output,
            out_rows: self.width,
            in_width: experts.output.len() / experts.router.len(),
            experts: &routes.experts,
            gates: Some(&routes.gates),
            slots: self.top_k,
            src: inner,
            src_div: 1,
            bias: Some(&experts.bias),
            residual: Some(x),
            swiglu: false,
        })
    }
}

/// W·x for each row of x `[rows, width]`: the routed linear map with one expert.
pub fn linear(weight: &[f64], width: usize, x: &[f64]) -> Vec<f64> {
    routed_linear(&RoutedLinear {
        weight,
        out_rows: weight.len() / width,
        in_width: width,
        experts: &vec![0; x.len() / width],
        gates: None,
        slots: 1,
        src: x,
        src_div: 1,
        bias: None,
        residual: None,
        swiglu: false,
    })
}

/// The first of the names the config has, as a number.
pub fn field(config: &Value, names: &[&str]) -> Option<f64> {
    names.iter().find_map(|name| config[name].as_f64())
}

/// A JSON file.
pub fn read_json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of a folder's weights: `model.safetensors`, or the shards that `model.safetensors.index.json` names.
pub fn weight_files(folder: &Path) -> Vec<PathBuf> {
    let index = folder.join("model.safetensors.index.json");
    let mut files = vec!["model.safetensors".to_owned()];
    if index.exists() {
        let index = read_json(&index);
        let map = index["weight_map"].as_object().expect("weight_map").values();
        files = map.map(|file| file.as_str().expect("a file name").to_owned()).collect();
        files.sort();
        files.dedup();
    }
    files.iter().map(|file| folder.join(file)).collect()
}

/// Every tensor of a folder, by name.
pub fn read_tensors(folder: &Path) -> HashMap<String, Vec<f64>> {
    weight_files(folder).iter().flat_map(|file| read_safetensors(file)).collect()
}

/// Every tensor of one file, by name, as f64 whatever it is stored as.
pub fn read_safetensors(path: &Path) -> HashMap<String, Vec<f64>> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let tensors = file.iter().map(|(name, view)| {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Dtype::F16 => data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64()).collect(),
            Dtype::BF16 => data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64()).collect(),
            Dtype::I32 => data.as_chunks().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
            Dtype::U32 => data.as_chunks().0.iter().map(|b| f64::from(u32::from_le_bytes(*b))).collect(),
            Dtype::U8 => data.iter().copied().map(f64::from).collect(),
            other => panic!("{}: {name} is {other}", path.display()),
        };
        (name.to_owned(), values)
    });
    tensors.collect()
}
