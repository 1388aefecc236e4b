//! Language models that differ in their blocks alone, read from a folder and run in f64: BAM (Zhang et al.
//! 2024, arXiv 2408.08274), SwitchHead (Csordás et al. 2023, arXiv 2312.07987), UoE (Yang et al. 2025, arXiv
//! 2503.02495).
//!
//! ```text
//! h      = x + Attention(norm(x)),  out = h + MLP(norm(h))      one after the other
//! out    = x + Attention(norm(x)) + MLP(norm(x))                parallel
//! logits = W_head · norm(out)
//! ```
//!
//! | | Attention | MLP | norm |
//! |---|---|---|---|
//! | BAM | Σ_i softmax(Wr·x)_i · GQA_i(x) over all modules i | the same with top-k gated MLPs | RMS |
//! | SwitchHead | dense queries and keys, values and outputs mixed inside each head | dense | Layer |
//! | UoE | [`SelectiveHeads`] | dense | Layer |

use super::{
    blocks::{ExpertMlp, Mlp, Norm, all_on, linear_router},
    embedding::embedding,
    folder::{Folder, number, whole},
    head_mixture::{HeadMixture, Input, Kernel, KeysValues, Positions, split_columns, transpose_each},
    jetmoe::linear,
    moh_llama::add,
    norm_router::Routes,
    router::{Router, Select, Weight, affine},
    selective_heads::SelectiveHeads,
    softmax,
};
use std::path::Path;

/// A whole model.
pub struct Decoder {
    /// Width of the residual stream, D.
    pub width: usize,
    /// `[vocabulary, D]`.
    pub embedding: Vec<f64>,
    /// First to last.
    pub layers: Vec<Layer>,
    /// The last.
    pub norm: Norm,
    /// W_head `[vocabulary, D]`: the embedding again where the config ties them.
    pub head: Vec<f64>,
}

/// One block.
pub struct Layer {
    /// Before the attention.
    pub attention_norm: Norm,
    /// The heads.
    pub attention: Attention,
    /// Before the MLP; absent: the block is parallel.
    pub mlp_norm: Option<Norm>,
    /// The MLP.
    pub mlp: LayerMlp,
}

/// The attention of a block.
pub enum Attention {
    /// BAM, SwitchHead.
    Mixture(Box<HeadMixture>),
    /// UoE.
    Selective(SelectiveHeads),
}

/// The MLP of a block.
pub enum LayerMlp {
    /// SwitchHead, UoE.
    Dense(Mlp),
    /// BAM.
    Experts(ExpertMlp),
}

/// What a run returns.
pub struct Output {
    /// `[batch, tokens, vocabulary]`.
    pub logits: Vec<f64>,
    /// For each layer.
    pub routes: Vec<LayerRoutes>,
}

/// The experts of each token in one layer, tokens in the order of the ids.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerRoutes {
    /// BAM: the modules, all of them. SwitchHead: the output experts h·E + e, k for each head h. UoE: the k
    /// heads that score the token above 0 with their probabilities, which weigh nothing.
    pub attention: Routes,
    /// SwitchHead: the value experts h·E + e.
    pub values: Option<Routes>,
    /// BAM: the MLP experts.
    pub mlp: Option<Routes>,
    /// UoE: the places in its sequence that each head takes, for each sequence and in it each head.
    pub places: Vec<Vec<usize>>,
}

impl Decoder {
    /// Reads `config.json`, whose `model_type` tells the family, and the tensors.
    pub fn load(path: &Path) -> Decoder {
        let mut folder = Folder::open(path);
        let config = folder.config.clone();
        let (bam, prefix, epsilon) = match config["model_type"].as_str() {
            Some("bam") => (true, "model.", number(&config, "rms_norm_eps")),
            Some("switchhead" | "uoe") => (false, "", number(&config, "layer_norm_eps")),
            other => panic!("model_type is {other:?}"),
        };
        let layer = |i: usize| match config["model_type"].as_str() {
            Some("bam") => bam_layer(&mut folder, &format!("model.layers.{i}"), epsilon),
            Some("switchhead") => plain_layer(&mut folder, &format!("layers.{i}"), epsilon, switch_head),
            _ => plain_layer(&mut folder, &format!("layers.{i}"), epsilon, selective),
        };
        let layers = (0..whole(&config, "num_hidden_layers")).map(layer).collect();
        let embedding = folder.take(&format!("{prefix}embed_tokens.weight"));
        let model = Decoder {
            width: whole(&config, "hidden_size"),
            layers,
            norm: match bam {
                true => folder.rms_norm("model.norm", epsilon),
                false => folder.layer_norm("norm", epsilon),
            },
            head: match config["tie_word_embeddings"] == true {
                true => embedding.clone(),
                false => folder.take("lm_head.weight"),
            },
            embedding,
        };
        folder.close();
        model
    }

    /// Runs `batch` whole sequences of one length, ids `[batch, tokens]`.
    pub fn forward(&self, batch: usize, ids: &[u32]) -> Output {
        let mut x = embedding(&self.embedding, self.width, ids);
        let mut routes = Vec::new();
        for layer in &self.layers {
            let normed = layer.attention_norm.of(&x);
            let (attention, mut found) = layer.attention.forward(batch, &normed);
            x = add(&x, &attention);
            let normed = layer.mlp_norm.as_ref().map_or(normed, |norm| norm.of(&x));
            let (mlp, mlp_routes) = layer.mlp.forward(&normed, self.width);
            x = add(&x, &mlp);
            found.mlp = mlp_routes;
            routes.push(found);
        }
        Output { logits: linear(&self.head, self.width, &self.norm.of(&x)), routes }
    }
}

impl Attention {
    /// y and the routes, for x `[batch, tokens, D]`.
    pub fn forward(&self, batch: usize, x: &[f64]) -> (Vec<f64>, LayerRoutes) {
        match self {
            Attention::Mixture(layer) => {
                let output = layer.forward(&Input { batch, x, ..Input::default() });
                let values = output.value_routing.map(|routing| routing.routes);
                let attention = output.routing.routes;
                (output.y, LayerRoutes { attention, values, ..LayerRoutes::default() })
            }
            Attention::Selective(layer) => {
                let output = layer.forward(batch, x);
                let routes = LayerRoutes {
                    attention: wanted(layer, x),
                    places: output.places,
                    ..LayerRoutes::default()
                };
                (output.y, routes)
            }
        }
    }
}

impl LayerMlp {
    fn forward(&self, x: &[f64], width: usize) -> (Vec<f64>, Option<Routes>) {
        match self {
            LayerMlp::Dense(mlp) => (mlp.of(x), None),
            LayerMlp::Experts(mlp) => {
                let (y, routes) = mlp.of(x, width);
                (y, Some(routes))
            }
        }
    }
}

/// The k best heads of each token, by p = softmax(Wg·x + bg).
fn wanted(layer: &SelectiveHeads, x: &[f64]) -> Routes {
    let mut routes = Routes { top_k: layer.top_k, ..Routes::default() };
    for x in x.chunks_exact(layer.width) {
        let z = affine(&layer.gate, Some(&layer.gate_bias), x);
        let (p, (kept, margin)) = (softmax(&z), Select::TopK(layer.top_k).of(&z));
        routes.experts.extend(kept.iter().map(|&head| head as u32));
        routes.gates.extend(kept.iter().map(|&head| p[head]));
        routes.margins.push(margin);
    }
    routes
}

/// BAM: q experts `[N, H·d, D]`, o experts `[N, D, H·d]`, keys and values `[N·C·d, D]` of each module or
/// `[C·d, D]` of all, MLP experts `[N, 2F, D]` (gate over up) and `[N, D, F]`.
fn bam_layer(folder: &mut Folder, name: &str, epsilon: f64) -> Layer {
    let config = folder.config.clone();
    let bam = &config["bam"];
    let modules = whole(bam, "experts");
    let (heads, kv_heads) = (whole(&config, "num_attention_heads"), whole(&config, "num_key_value_heads"));
    let own = match bam["kv"].as_str() {
        Some("expert") => true,
        Some("shared") => false,
        other => panic!("bam.kv is {other:?}"),
    };
    let rule = match bam["mlp_gate"].as_str() {
        Some("softmax_topk") => Weight::SoftmaxKept,
        Some("softmax") => Weight::SoftmaxAll,
        other => panic!("bam.mlp_gate is {other:?}"),
    };
    let parallel = bam["parallel_block"] == true;
    let attention_norm = folder.rms_norm(&format!("{name}.input_layernorm"), epsilon);
    let mlp_norm = (!parallel).then(|| folder.rms_norm(&format!("{name}.post_attention_layernorm"), epsilon));
    let mut tensor = |part: &str| folder.take(&format!("{name}.{part}.weight"));
    let attention = HeadMixture {
        width: whole(&config, "hidden_size"),
        heads,
        head_dim: whole(&config, "head_dim"),
        kv_heads: if own { modules * kv_heads } else { kv_heads },
        group: heads / kv_heads,
        query_share: 1,
        router: linear_router(tensor("self_attn.router"), modules, Select::All, Weight::SoftmaxAll),
        query: tensor("self_attn.experts.q_proj"),
        query_bias: None,
        kv: KeysValues::Projected {
            keys: tensor("self_attn.k_proj"),
            key_bias: None,
            values: tensor("self_attn.v_proj"),
            value_bias: None,
        },
        positions: Positions::Rope { theta: number(&config, "rope_theta"), fraction: 1.0 },
        kernel: Kernel::Softmax,
        causal: true,
        padding_gates_zero: false,
        output: tensor("self_attn.experts.o_proj"),
        output_bias: None,
    };
    let mlp = ExpertMlp {
        router: linear_router(tensor("mlp.router"), modules, Select::TopK(whole(bam, "mlp_top_k")), rule),
        gate_up: tensor("mlp.experts.gate_up_proj"),
        down: tensor("mlp.experts.down_proj"),
    };
    Layer {
        attention_norm,
        attention: Attention::Mixture(Box::new(attention)),
        mlp_norm,
        mlp: LayerMlp::Experts(mlp),
    }
}

/// A sequential block with layer norms and a dense MLP.
fn plain_layer(
    folder: &mut Folder,
    name: &str,
    epsilon: f64,
    attention: fn(&mut Folder, &str) -> Attention,
) -> Layer {
    Layer {
        attention_norm: folder.layer_norm(&format!("{name}.norm1"), epsilon),
        attention: attention(folder, &format!("{name}.attention")),
        mlp_norm: Some(folder.layer_norm(&format!("{name}.norm2"), epsilon)),
        mlp: LayerMlp::Dense(folder.mlp(&format!("{name}.ffn"), "hidden_act")),
    }
}

/// SwitchHead: q and k `[H·d, D]`, v `[H·E, D, d]` and o `[H·E, d, D]` input-major, selections `[H·E, D]`.
fn switch_head(folder: &mut Folder, name: &str) -> Attention {
    let config = folder.config.clone();
    let (width, head_dim) = (whole(&config, "hidden_size"), whole(&config, "head_dim"));
    let (heads, experts) = (whole(&config, "num_attention_heads"), whole(&config, "num_experts"));
    let mut tensor = |part: &str| folder.take(&format!("{name}.{part}"));
    let kept = Select::TopK(whole(&config, "num_experts_per_tok"));
    let router = |weight: Vec<f64>| Router {
        groups: heads,
        ..linear_router(weight, heads * experts, kept, Weight::Sigmoid)
    };
    Attention::Mixture(Box::new(HeadMixture {
        width,
        heads: 1,
        head_dim,
        kv_heads: heads,
        group: experts,
        query_share: experts,
        router: router(tensor("sel_o")),
        query: tensor("q.weight"),
        query_bias: None,
        kv: KeysValues::MixedValues {
            keys: tensor("k.weight"),
            router: router(tensor("sel_v")),
            values: transpose_each(&tensor("v"), width, head_dim),
        },
        positions: Positions::Rope {
            theta: number(&config, "rope_theta"),
            fraction: number(&config, "rotary_percent"),
        },
        kernel: Kernel::Softmax,
        causal: true,
        padding_gates_zero: false,
        output: transpose_each(&tensor("o"), head_dim, width),
        output_bias: None,
    }))
}

/// UoE, third version of the code: gate `[h, D]`, projections `[h·d, D]`, o `[D, h·d]`, each with biases, o's
/// `[h, D]`.
fn selective(folder: &mut Folder, name: &str) -> Attention {
    let config = folder.config.clone();
    let (width, head_dim) = (whole(&config, "hidden_size"), whole(&config, "head_dim"));
    let heads = whole(&config, "num_attention_heads");
    let mut tensor = |part: &str| folder.take(&format!("{name}.{part}"));
    let [query, keys, values, output] =
        ["q_proj", "k_proj", "v_proj", "o_proj"].map(|part| tensor(&format!("{part}.weight")));
    let [query_bias, key_bias, value_bias, output_bias] =
        ["q_proj", "k_proj", "v_proj", "o_proj"].map(|part| tensor(&format!("{part}.bias")));
    let output = split_columns(&output, heads * head_dim, heads);
    let head = |h: usize| {
        let part = |tensor: &[f64]| tensor[h * tensor.len() / heads..][..tensor.len() / heads].to_vec();
        HeadMixture {
            width,
            heads: 1,
            head_dim,
            kv_heads: 1,
            group: 1,
            query_share: 1,
            router: all_on(1),
            query: part(&query),
            query_bias: Some(part(&query_bias)),
            kv: KeysValues::Projected {
                keys: part(&keys),
                key_bias: Some(part(&key_bias)),
                values: part(&values),
                value_bias: Some(part(&value_bias)),
            },
            positions: Positions::Rope { theta: number(&config, "rope_theta"), fraction: 1.0 },
            kernel: Kernel::Softmax,
            causal: true,
            padding_gates_zero: false,
            output: part(&output),
            output_bias: Some(part(&output_bias)),
        }
    };
    Attention::Selective(SelectiveHeads {
        width,
        top_k: config["heads_per_token"].as_u64().map_or(heads / 2, |k| k as usize),
        capacity: 1.0,
        epsilon: 1e-8,
        limit: None,
        heads: (0..heads).map(head).collect(),
        gate: tensor("gate.weight"),
        gate_bias: tensor("gate.bias"),
    })
}
