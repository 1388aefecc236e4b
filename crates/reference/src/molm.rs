//! MoLM, the language models of ModuleFormer (Shen et al. 2023, arXiv 2306.04640), read from a Hugging Face
//! folder and run in f64.
//!
//! ```text
//! h      = x + Attention(LN(x))                 stick-breaking; order comes from nothing else
//! out    = h + Σ_s g_s · W_2[e_s] · gelu_tanh(W_1[e_s] · LN(h))
//! logits = W_head · LN(out)
//! ```
//!
//! Both gates are the raw probabilities of the kept experts, so they sum to less than 1.

use super::{
    activations::Activation,
    embedding::embedding,
    head_mixture::{HeadMixture, Input, Kernel, KeysValues, Positions, transpose_each},
    jetmoe::{field, linear, read_json, read_tensors},
    layer_norm::layer_norm,
    moh_llama::add,
    norm_router::Routes,
    routed_linear::{RoutedLinear, routed_linear},
    router::{Net, Router, Select, Weight},
};
use serde_json::Value;
use std::{collections::HashMap, path::Path};

/// A whole model.
pub struct Molm {
    /// Width of the residual stream, D.
    pub width: usize,
    /// ε of every norm.
    pub epsilon: f64,
    /// `[vocabulary, D]`.
    pub embedding: Vec<f64>,
    /// First to last.
    pub layers: Vec<Layer>,
    /// The last.
    pub norm: Norm,
    /// W_head `[vocabulary, D]`.
    pub head: Vec<f64>,
}

/// Weight and bias of a layer norm, each `[D]`.
pub struct Norm(pub Vec<f64>, pub Vec<f64>);

/// One block.
pub struct Layer {
    /// Before the attention.
    pub attention_norm: Norm,
    /// The head experts.
    pub attention: HeadMixture,
    /// Before the MLP.
    pub mlp_norm: Norm,
    /// The MLP experts.
    pub mlp: ExpertMlp,
}

/// A mixture of MLPs.
pub struct ExpertMlp {
    /// Which of them a token takes.
    pub router: Router,
    /// W_1 `[E, F, D]`.
    pub input: Vec<f64>,
    /// W_2 `[E, D, F]`.
    pub output: Vec<f64>,
}

/// What a run returns.
pub struct Output {
    /// `[tokens, vocabulary]`.
    pub logits: Vec<f64>,
    /// For each layer the experts of its attention and of its MLP.
    pub routes: Vec<(Routes, Routes)>,
}

/// A folder's tensors, by name.
struct Tensors(HashMap<String, Vec<f64>>);

impl Tensors {
    fn get(&self, name: &str) -> Vec<f64> {
        self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}")).clone()
    }

    fn norm(&self, name: &str) -> Norm {
        Norm(self.get(&format!("{name}.weight")), self.get(&format!("{name}.bias")))
    }

    /// A top-k router; `gate` names its net.
    fn router(&self, gate: &str, experts: usize, top_k: usize) -> Router {
        Router {
            experts,
            shared: 0,
            groups: 1,
            net: Net::Mlp {
                input: self.get(&format!("{gate}.0.weight")),
                input_bias: Some(self.get(&format!("{gate}.0.bias"))),
                activation: Activation::Gelu,
                output: self.get(&format!("{gate}.3.weight")),
                output_bias: None,
            },
            select: Select::TopK(top_k),
            weight: Weight::SoftmaxAll,
            shared_weight: None,
            two_stage: None,
        }
    }

    /// Keys and values of the attention named so, with tensors or, without, the input itself.
    fn keys_values(&self, attention: &str) -> KeysValues {
        if !self.0.contains_key(&format!("{attention}.k_proj.weight")) {
            return KeysValues::Identity;
        }
        KeysValues::Projected {
            keys: self.get(&format!("{attention}.k_proj.weight")),
            key_bias: Some(self.get(&format!("{attention}.k_proj.bias"))),
            values: self.get(&format!("{attention}.v_proj.weight")),
            value_bias: Some(self.get(&format!("{attention}.v_proj.bias"))),
        }
    }
}

impl Molm {
    /// Reads `config.json` and the tensors; expert stacks are input-major in the file, `[E, in, out]`.
    pub fn load(folder: &Path) -> Molm {
        let config = read_json(&folder.join("config.json"));
        let tensors = Tensors(read_tensors(folder));
        assert_eq!(config["gate_type"], "mlp", "the router this reference reads");
        Molm {
            width: whole(&config, "n_embd"),
            epsilon: field(&config, &["layer_norm_epsilon"]).expect("layer_norm_epsilon"),
            embedding: tensors.get("transformer.wte.weight"),
            layers: (0..whole(&config, "n_layer")).map(|i| Layer::load(&config, &tensors, i)).collect(),
            norm: tensors.norm("transformer.ln_f"),
            head: tensors.get("lm_head.weight"),
        }
    }

    /// Runs a whole prompt.
    pub fn forward(&self, ids: &[u32]) -> Output {
        let norm = |x: &[f64], Norm(weight, bias): &Norm| layer_norm(x, weight, bias, self.epsilon);
        let mut x = embedding(&self.embedding, self.width, ids);
        let mut routes = Vec::new();
        for layer in &self.layers {
            let normed = norm(&x, &layer.attention_norm);
            let attention = layer.attention.forward(&Input { batch: 1, x: &normed, ..Input::default() });
            x = add(&x, &attention.y);
            let (mlp, mlp_routes) = layer.mlp.forward(&norm(&x, &layer.mlp_norm), self.width);
            x = add(&x, &mlp);
            routes.push((attention.routing.routes, mlp_routes));
        }
        Output { logits: linear(&self.head, self.width, &norm(&x, &self.norm)), routes }
    }
}

impl Layer {
    fn load(config: &Value, tensors: &Tensors, index: usize) -> Layer {
        let block = format!("transformer.h.{index}");
        let (width, heads) = (whole(config, "n_embd"), whole(config, "n_head"));
        let (inner, hidden) = (whole(config, "att_hidden"), whole(config, "ffd_hidden"));
        let stack = |name: &str, inputs, outputs| {
            transpose_each(&tensors.get(&format!("{block}.{name}")), inputs, outputs)
        };
        let router = |gate: &str, experts: &str, top_k: &str| {
            tensors.router(&format!("{block}.{gate}.w_gate"), whole(config, experts), whole(config, top_k))
        };
        Layer {
            attention_norm: tensors.norm(&format!("{block}.ln_1")),
            attention: HeadMixture {
                width,
                heads,
                head_dim: inner / heads,
                kv_heads: heads,
                group: 1,
                query_share: 1,
                router: router("attn.q_proj.gate", "n_att_experts", "k_att"),
                query: stack("attn.q_proj.experts.weight", width, inner),
                query_bias: None,
                kv: tensors.keys_values(&format!("{block}.attn")),
                positions: Positions::None,
                kernel: Kernel::StickBreaking,
                causal: true,
                padding_gates_zero: false,
                output: stack("attn.q_proj.output_experts.weight", inner, width),
                output_bias: None,
            },
            mlp_norm: tensors.norm(&format!("{block}.ln_2")),
            mlp: ExpertMlp {
                router: router("mlpf.gate", "n_mlp_experts", "k_mlp"),
                input: stack("mlpf.experts.weight", width, hidden),
                output: stack("mlpf.output_experts.weight", hidden, width),
            },
        }
    }
}

impl ExpertMlp {
    /// Σ_s g_s · W_2\[e_s\] · gelu_tanh(W_1\[e_s\] · x) for each row of x `[tokens, D]`, and the experts.
    pub fn forward(&self, x: &[f64], width: usize) -> (Vec<f64>, Routes) {
        let inner = self.input.len() / (self.router.experts * width);
        let routes = self.router.route(x, width, |_, _| panic!("an MLP has no queries")).routes;
        let input = RoutedLinear {
            weight: &self.input,
            out_rows: inner,
            in_width: width,
            experts: &routes.experts,
            gates: None,
            slots: 1,
            src: x,
            src_div: routes.top_k,
            bias: None,
            residual: None,
            swiglu: false,
        };
        let hidden = Activation::GeluTanh.apply(&routed_linear(&input));
        let y = routed_linear(&RoutedLinear {
            weight: &self.output,
            out_rows: width,
            in_width: inner,
            gates: Some(&routes.gates),
            slots: routes.top_k,
            src: &hidden,
            src_div: 1,
            ..input
        });
        (y, routes)
    }
}

/// A size of the config.
fn whole(config: &Value, name: &str) -> usize {
    field(config, &[name]).unwrap_or_else(|| panic!("no {name}")) as usize
}
