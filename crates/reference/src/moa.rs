//! MoA (Zhang et al. 2022, arXiv 2210.05144) as the paper has it: an encoder-decoder whose attention modules
//! are mixtures of heads, or the encoder alone as a masked language model; read from a folder, run in f64.
//!
//! ```text
//! x      = s · embedding[id] + P(offset + place)       s = √D or 1
//! P(p)   = [sin(p·f_0), …, cos(p·f_0), …],  f_i = 10000^(−i / (D/2 − 1)),  i < D/2
//! x      = x + f(LN(x))                                pre;   post: x = LN(x + f(x))
//!          f: attention; in the decoder attention to the encoder's output; W_2 · act(W_1·x + b_1) + b_2
//! out    = LN(x)                                       pre;   post: x
//! logits = embedding · out                             the masked model: + b
//! ```

use super::{
    blocks::{Mlp, Norm, linear_router},
    embedding::embedding,
    folder::{Folder, number, whole},
    head_mixture::{HeadMixture, Input, Kernel, KeysValues, Positions, transpose_each},
    jetmoe::linear,
    moh_llama::add,
    norm_router::Routes,
    router::{Select, Weight},
};
use std::path::Path;

/// A whole model.
pub struct Moa {
    /// Width of the residual stream, D.
    pub width: usize,
    /// s.
    pub embedding_scale: f64,
    /// Where positions begin.
    pub position_offset: usize,
    /// `[vocabulary, D]`, also the output head.
    pub embedding: Vec<f64>,
    /// Reads the source.
    pub encoder: Stack,
    /// Writes the target; no layers in the masked model.
    pub decoder: Stack,
    /// b `[vocabulary]`, in the masked model.
    pub head_bias: Option<Vec<f64>>,
}

/// Layers, and the norm after the last: none in a post-norm model.
pub struct Stack {
    /// First to last.
    pub layers: Vec<Layer>,
    /// After the last.
    pub norm: Option<Norm>,
}

/// One layer: its parts with their norms, in the order they run.
pub struct Layer {
    /// Whether a norm stands behind its part's sum, rather than before its part.
    pub post_norm: bool,
    /// Tokens among themselves.
    pub attention: (Norm, HeadMixture),
    /// The decoder's tokens to the encoder's output.
    pub cross: Option<(Norm, HeadMixture)>,
    /// The MLP.
    pub mlp: (Norm, Mlp),
}

/// The heads of each token in one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerRoutes {
    /// Of the attention among themselves.
    pub attention: Routes,
    /// Of the attention to the encoder's output, in a decoder.
    pub cross: Option<Routes>,
}

/// What the encoder returns.
pub struct Encoded {
    /// `[tokens, D]`.
    pub states: Vec<f64>,
    /// For each layer of the encoder.
    pub routes: Vec<LayerRoutes>,
}

/// What a whole run returns.
pub struct Output {
    /// `[tokens, vocabulary]`.
    pub logits: Vec<f64>,
    /// For each layer of the stack that the logits come from: the decoder's, or the masked model's.
    pub routes: Vec<LayerRoutes>,
}

impl Moa {
    /// Reads `config.json` and the tensors; expert stacks are input-major in the file, `[E, in, out]`.
    pub fn load(path: &Path) -> Moa {
        let mut folder = Folder::open(path);
        let config = folder.config.clone();
        assert_eq!(config["model_type"], "moa");
        let width = whole(&config, "d_model");
        let fills = config["task"] == "fill_mask";
        let model = Moa {
            width,
            embedding_scale: if config["scale_embedding"] == true { (width as f64).sqrt() } else { 1.0 },
            position_offset: config["position_offset"].as_u64().unwrap_or(0) as usize,
            embedding: folder.take("embed_tokens.weight"),
            encoder: Stack::load(&mut folder, "encoder", whole(&config, "encoder_layers")),
            decoder: match config["decoder_layers"].as_u64() {
                None | Some(0) => Stack { layers: Vec::new(), norm: None },
                Some(layers) => Stack::load(&mut folder, "decoder", layers as usize),
            },
            head_bias: fills.then(|| folder.take("lm_head.bias")),
        };
        folder.close();
        model
    }

    /// The encoder's output for a whole source.
    pub fn encode(&self, ids: &[u32]) -> Encoded {
        let (states, routes) = self.encoder.forward(self.embed(ids), None);
        Encoded { states, routes }
    }

    /// The logits of every target token, each seeing the whole source and the target up to itself.
    pub fn decode(&self, source: &[u32], target: &[u32]) -> Output {
        let memory = self.encode(source).states;
        let (states, routes) = self.decoder.forward(self.embed(target), Some(&memory));
        Output { logits: linear(&self.embedding, self.width, &states), routes }
    }

    /// The logits of every token, each seeing all.
    pub fn fill(&self, ids: &[u32]) -> Output {
        let Encoded { states, routes } = self.encode(ids);
        let bias = self.head_bias.as_ref().expect("a masked language model");
        let logits = linear(&self.embedding, self.width, &states);
        Output { logits: add(&logits, &bias.repeat(ids.len())), routes }
    }

    /// s · embedding\[id\] + P(offset + place).
    pub fn embed(&self, ids: &[u32]) -> Vec<f64> {
        let rows = embedding(&self.embedding, self.width, ids);
        let scaled: Vec<f64> = rows.iter().map(|x| self.embedding_scale * x).collect();
        let places = self.position_offset..self.position_offset + ids.len();
        add(&scaled, &places.flat_map(|place| sinusoid(place, self.width)).collect::<Vec<f64>>())
    }
}

/// P(p) `[width]`.
pub fn sinusoid(position: usize, width: usize) -> Vec<f64> {
    let half = width / 2;
    let angle = |i: usize| position as f64 * 10000f64.powf(-(i as f64) / (half - 1) as f64);
    (0..half).map(|i| angle(i).sin()).chain((0..half).map(|i| angle(i).cos())).collect()
}

impl Stack {
    fn load(folder: &mut Folder, side: &str, layers: usize) -> Stack {
        let epsilon = number(&folder.config, "norm_eps");
        let post_norm = folder.config["norm_position"] == "post";
        let decodes = side == "decoder";
        let layer = |i: usize| {
            let name = |part: &str| format!("{side}.layers.{i}.{part}");
            let mut attention = |part: &str, causal: bool| {
                let norm = folder.layer_norm(&name(&format!("{part}_layer_norm")), epsilon);
                (norm, attention(folder, &name(part), causal))
            };
            Layer {
                post_norm,
                attention: attention("self_attn", decodes),
                cross: decodes.then(|| attention("encoder_attn", false)),
                mlp: (
                    folder.layer_norm(&name("final_layer_norm"), epsilon),
                    folder.mlp(&format!("{side}.layers.{i}"), "activation"),
                ),
            }
        };
        let layers = (0..layers).map(layer).collect();
        let norm = (!post_norm).then(|| folder.layer_norm(&format!("{side}.layer_norm"), epsilon));
        Stack { layers, norm }
    }

    fn forward(&self, mut x: Vec<f64>, memory: Option<&[f64]>) -> (Vec<f64>, Vec<LayerRoutes>) {
        let mut routes = Vec::new();
        for layer in &self.layers {
            routes.push(layer.forward(&mut x, memory));
        }
        (self.norm.as_ref().map_or(x.clone(), |norm| norm.of(&x)), routes)
    }
}

impl Layer {
    fn forward(&self, x: &mut Vec<f64>, memory: Option<&[f64]>) -> LayerRoutes {
        let mut mix = |(norm, mixture): &(Norm, HeadMixture), memory| {
            let mut routes = Routes::default();
            *x = self.residual(norm, x, |x| {
                let output = mixture.forward(&Input { batch: 1, x, memory, ..Input::default() });
                routes = output.routing.routes;
                output.y
            });
            routes
        };
        let attention = mix(&self.attention, None);
        let cross = self.cross.as_ref().map(|cross| mix(cross, memory));
        *x = self.residual(&self.mlp.0, x, |x| self.mlp.1.of(x));
        LayerRoutes { attention, cross }
    }

    /// x + f(LN(x)), or LN(x + f(x)).
    fn residual(&self, norm: &Norm, x: &[f64], f: impl FnOnce(&[f64]) -> Vec<f64>) -> Vec<f64> {
        match self.post_norm {
            true => norm.of(&add(x, &f(x))),
            false => add(x, &f(&norm.of(x))),
        }
    }
}

/// The mixture of heads named so: w_gate `[D, E]`, experts `[E, D, m·d]`, output experts `[E, m·d, D]`, keys
/// and values `[m·d, D]`.
fn attention(folder: &mut Folder, name: &str, causal: bool) -> HeadMixture {
    let config = folder.config.clone();
    let (width, experts) = (whole(&config, "d_model"), whole(&config, "num_experts"));
    let (heads, head_dim) =
        (config["heads_per_expert"].as_u64().unwrap_or(1) as usize, whole(&config, "head_dim"));
    let mut turned = |part: &str, inputs, outputs| {
        transpose_each(&folder.take(&format!("{name}.q_proj.{part}")), inputs, outputs)
    };
    let gate = turned("w_gate", width, experts);
    let query = turned("experts.w", width, heads * head_dim);
    let output = turned("output_experts.w", heads * head_dim, width);
    let rule = match config["gate_weights"].as_str() {
        Some("softmax") => Weight::SoftmaxAll,
        Some("softmax_renormalized") => {
            Weight::Renormalised { epsilon: number(&config, "gate_eps"), scale: 1.0 }
        }
        other => panic!("gate_weights is {other:?}"),
    };
    HeadMixture {
        width,
        heads,
        head_dim,
        kv_heads: heads,
        group: 1,
        query_share: 1,
        router: linear_router(gate, experts, Select::TopK(whole(&config, "top_k")), rule),
        query,
        query_bias: None,
        kv: KeysValues::Projected {
            keys: folder.take(&format!("{name}.k_proj.weight")),
            key_bias: None,
            values: folder.take(&format!("{name}.v_proj.weight")),
            value_bias: None,
        },
        positions: Positions::None,
        kernel: Kernel::Softmax,
        causal,
        padding_gates_zero: true,
        output,
        output_bias: None,
    }
}
