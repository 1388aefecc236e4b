//! JetMoE in burn's tensor operations.
//!
//! ```text
//! h      = x + Attention(RMSNorm(x; 1e-6))
//! out    = h + MLP(RMSNorm(h; 1e-6))
//! logits = embedding · RMSNorm(out; ε of the config)
//! ```

use burn::{
    prelude::*,
    tensor::{DType, activation, module::attention, ops::AttentionModuleOptions},
};
use std::{fs, path::Path};

use super::{
    Outcome,
    weights::{Config, Weights},
};

/// ε of the norms inside a block.
const BLOCK_EPSILON: f64 = 1e-6;

/// How the experts' products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Gathers the chosen experts' weights of a token on the device: no readback. For one token.
    Gather,
    /// Reads the chosen experts back, sorts the rows by expert, and multiplies each expert's rows.
    ByExpert,
    /// Multiplies every row with every expert and keeps what was chosen: no readback.
    All,
}

pub struct JetMoe {
    config: Config,
    dtype: DType,
    device: Device,
    /// How prompts and single tokens are routed.
    pub prefill: Routing,
    pub decode: Routing,
    /// `[vocabulary, D]`, also the output head.
    embedding: Tensor<2>,
    norm: Tensor<1>,
    layers: Vec<Layer>,
    /// cos and sin of every position, `[context, 1, d]`, each half of the channels the same.
    cos: Tensor<3>,
    sin: Tensor<3>,
}

struct Layer {
    attention: Experts,
    /// `[2·m·d, D]`, keys first.
    kv: Tensor<2>,
    mlp: Experts,
}

/// A norm, a router, and the two products it routes.
struct Experts {
    norm: Tensor<1>,
    /// `[E, D]`
    router: Tensor<2>,
    /// `[E, inner, D]`
    input: Tensor<3>,
    /// `[E, D, inner]`, with half the inner width after SwiGLU
    output: Tensor<3>,
    bias: Tensor<1>,
}

/// Keys and values `[1, m, capacity, d]` of each layer.
pub struct Cache {
    length: usize,
    layers: Vec<Option<(Tensor<4>, Tensor<4>)>>,
}

/// The experts of each row, and what `ByExpert` needs of them on the host.
struct Routes {
    /// `[rows, k]`
    experts: Tensor<2, Int>,
    gates: Tensor<2>,
    sorted: Option<Sorted>,
}

/// Assignments (row and slot) sorted by expert.
struct Sorted {
    /// Assignments of each expert.
    counts: Vec<usize>,
    /// The row of each sorted assignment.
    rows: Tensor<1, Int>,
    /// The assignment at each sorted place, and the place of each assignment.
    order: Tensor<1, Int>,
    inverse: Tensor<1, Int>,
}

impl JetMoe {
    pub fn load(
        folder: &Path,
        device: &Device,
        dtype: DType,
        prefill: Routing,
        decode: Routing,
    ) -> Outcome<Self> {
        let config = Config::read(folder)?;
        let bytes = fs::read(folder.join("model.safetensors"))?;
        let file = safetensors::SafeTensors::deserialize(&bytes)?;
        let weights = Weights { file, device, dtype };
        let experts = |norm: &str, part: &str, bias: &str| -> Outcome<Experts> {
            Ok(Experts {
                norm: weights.get_f32(norm)?,
                router: weights.get_f32(&format!("{part}.router.layer.weight"))?,
                input: weights.get(&format!("{part}.input_linear.weight"))?,
                output: weights.get(&format!("{part}.output_linear.weight"))?,
                bias: weights.get_f32(bias)?,
            })
        };
        let layers = (0..config.num_hidden_layers).map(|i| -> Outcome<Layer> {
            let l = format!("model.layers.{i}");
            let (heads, mlp) = (format!("{l}.self_attention.experts"), format!("{l}.mlp"));
            Ok(Layer {
                attention: experts(&format!("{l}.input_layernorm.weight"), &heads, &format!("{heads}.bias"))?,
                kv: weights.get(&format!("{l}.self_attention.kv_proj.weight"))?,
                mlp: experts(&format!("{l}.post_attention_layernorm.weight"), &mlp, &format!("{mlp}.bias"))?,
            })
        });
        let layers = layers.collect::<Outcome<_>>()?;
        let (cos, sin) = rope_tables(&config, device);
        Ok(Self {
            embedding: weights.get("model.embed_tokens.weight")?,
            norm: weights.get_f32("model.norm.weight")?,
            layers,
            cos,
            sin,
            dtype,
            device: device.clone(),
            prefill,
            decode,
            config,
        })
    }

    /// An empty cache for `capacity` positions.
    pub fn cache(&self, capacity: usize) -> Cache {
        let empty = || {
            let shape = [1, self.config.num_key_value_heads, capacity, self.config.kv_channels];
            Tensor::zeros(shape, (&self.device, self.dtype))
        };
        Cache { length: 0, layers: self.layers.iter().map(|_| Some((empty(), empty()))).collect() }
    }

    /// The likeliest token after `ids`, which follow what the cache holds. It stays on the device.
    pub fn next(&self, cache: &mut Cache, ids: Tensor<1, Int>) -> Tensor<1, Int> {
        let [rows] = ids.dims();
        let routing = if rows == 1 { self.decode } else { self.prefill };
        // The stream between the layers is f32.
        let mut x: Tensor<2> = self.embedding.clone().select(0, ids).cast(DType::F32);
        for (layer, kv) in self.layers.iter().zip(&mut cache.layers) {
            x = self.attention(layer, x, kv, cache.length, routing);
            x = self.mlp(&layer.mlp, x, routing);
        }
        cache.length += rows;
        let last = rms_norm(x.slice([rows - 1..rows]), &self.norm, self.config.rms_norm_eps);
        let logits = last.cast(self.dtype).matmul(self.embedding.clone().transpose());
        logits.argmax(1).reshape([1])
    }

    fn attention(
        &self,
        layer: &Layer,
        x: Tensor<2>,
        kv: &mut Option<(Tensor<4>, Tensor<4>)>,
        start: usize,
        routing: Routing,
    ) -> Tensor<2> {
        let (k, m, d) =
            (self.config.num_experts_per_tok, self.config.num_key_value_heads, self.config.kv_channels);
        let [rows, _] = x.dims();
        let end = start + rows;
        let experts = &layer.attention;
        let xn = rms_norm(x.clone(), &experts.norm, BLOCK_EPSILON);
        let routes = experts.route(xn.clone(), k, routing);
        let xn = xn.cast(self.dtype);
        let q = experts.input(xn.clone(), &routes, routing); // [rows, k, m·d]
        let new = xn.matmul(layer.kv.clone().transpose());

        let (cos, sin) = (self.cos.clone().slice([start..end]), self.sin.clone().slice([start..end]));
        let q = rope(q.reshape([rows, k * m, d]), &cos, &sin).cast(self.dtype);
        let new_k =
            rope(new.clone().slice(s![.., 0..m * d]).reshape([rows, m, d]), &cos, &sin).cast(self.dtype);
        let new_v = new.slice(s![.., m * d..2 * m * d]).reshape([rows, m, d]);

        // Taken out of the cache so that it is written in place.
        let (keys, values) = kv.take().expect("a layer's cache is put back");
        let keys = keys.slice_assign(s![.., .., start..end, ..], new_k.swap_dims(0, 1).unsqueeze());
        let values = values.slice_assign(s![.., .., start..end, ..], new_v.swap_dims(0, 1).unsqueeze());
        let seen_k = keys.clone().slice(s![.., .., 0..end, ..]);
        let seen_v = values.clone().slice(s![.., .., 0..end, ..]);
        *kv = Some((keys, values));

        // The k rows of a token that share a KV head are queries of that head.
        let q = q.reshape([rows, k, m, d]).permute([2, 0, 1, 3]).reshape([1, m, rows * k, d]);
        let mask = (rows > 1).then(|| self.mask(rows, k, start, m));
        let out = attention(q, seen_k, seen_v, mask, None, AttentionModuleOptions::default());
        let out = out.reshape([m, rows, k, d]).permute([1, 2, 0, 3]).reshape([rows, k, m * d]);
        x + experts.output(out, &routes, routing)
    }

    /// True where a query may not look, `[1, m, rows·k, keys]`.
    fn mask(&self, rows: usize, k: usize, start: usize, m: usize) -> Tensor<4, Bool> {
        let keys = start + rows;
        let position = Tensor::<1, Int>::arange(start as i64..keys as i64, &self.device);
        let query = position.reshape([rows, 1]).repeat_dim(1, k).reshape([rows * k, 1]);
        let key = Tensor::<1, Int>::arange(0..keys as i64, &self.device).reshape([1, keys]);
        let hidden = key.expand([rows * k, keys]).greater(query.expand([rows * k, keys]));
        hidden.reshape([1, 1, rows * k, keys]).expand([1, m, rows * k, keys])
    }

    fn mlp(&self, experts: &Experts, x: Tensor<2>, routing: Routing) -> Tensor<2> {
        let xn = rms_norm(x.clone(), &experts.norm, BLOCK_EPSILON);
        let routes = experts.route(xn.clone(), self.config.num_experts_per_tok, routing);
        x + experts.mlp(xn.cast(self.dtype), &routes, routing)
    }
}

impl Experts {
    /// The k best experts of each row, and the softmax of their scores.
    fn route(&self, xn: Tensor<2>, k: usize, routing: Routing) -> Routes {
        let (scores, experts) = xn.matmul(self.router.clone().transpose()).topk_with_indices(k, 1);
        let gates = activation::softmax(scores, 1);
        let sorted = (routing == Routing::ByExpert).then(|| self.sort(&experts));
        Routes { experts, gates, sorted }
    }

    /// Reads the choice back and sorts it.
    fn sort(&self, experts: &Tensor<2, Int>) -> Sorted {
        let [_, k] = experts.dims();
        let device = experts.device();
        let chosen: Vec<usize> =
            experts.clone().into_data().iter::<i64>().map(|expert| expert as usize).collect();
        let [count, _] = self.router.dims();
        let mut order: Vec<i64> = (0..chosen.len() as i64).collect();
        order.sort_by_key(|&assignment| chosen[assignment as usize]);
        let mut inverse = vec![0i64; order.len()];
        for (place, &assignment) in order.iter().enumerate() {
            inverse[assignment as usize] = place as i64;
        }
        let counts = (0..count).map(|expert| chosen.iter().filter(|&&e| e == expert).count()).collect();
        let rows: Vec<i64> = order.iter().map(|assignment| assignment / k as i64).collect();
        let ints = |values: Vec<i64>| {
            let length = values.len();
            Tensor::from_data(TensorData::new(values, [length]), &device)
        };
        Sorted { counts, rows: ints(rows), order: ints(order), inverse: ints(inverse) }
    }

    /// W_i\[e\] · x for each row and slot, `[rows, k, inner]`.
    fn input(&self, x: Tensor<2>, routes: &Routes, routing: Routing) -> Tensor<3> {
        let [rows, width] = x.dims();
        let [_, k] = routes.experts.dims();
        let [count, inner, _] = self.input.dims();
        match routing {
            Routing::Gather => {
                let chosen = self.input.clone().select(0, routes.experts.clone().reshape([k]));
                x.reshape([1, 1, width]).matmul(chosen.swap_dims(1, 2)).reshape([1, k, inner])
            }
            Routing::ByExpert => {
                let sorted = routes.sorted.as_ref().expect("sorted");
                let y = by_expert(&self.input, x.select(0, sorted.rows.clone()), &sorted.counts);
                y.select(0, sorted.inverse.clone()).reshape([rows, k, inner])
            }
            Routing::All => {
                let y = x.unsqueeze::<3>().matmul(self.input.clone().swap_dims(1, 2)); // [E, rows, inner]
                let index = routes.experts.clone().reshape([rows, k, 1]).expand([rows, k, inner]);
                debug_assert_eq!(y.dims(), [count, rows, inner]);
                y.swap_dims(0, 1).gather(1, index)
            }
        }
    }

    /// Σ_s g_s · W_o\[e_s\] · inner_s + bias, in f32, `[rows, D]`.
    fn output(&self, inner: Tensor<3>, routes: &Routes, routing: Routing) -> Tensor<2> {
        let [rows, k, width] = inner.dims();
        let [_, out, _] = self.output.dims();
        let y = match routing {
            Routing::Gather => {
                let chosen = self.output.clone().select(0, routes.experts.clone().reshape([k]));
                inner.reshape([k, 1, width]).matmul(chosen.swap_dims(1, 2)).reshape([1, k, out])
            }
            Routing::ByExpert => {
                let sorted = routes.sorted.as_ref().expect("sorted");
                let inner = inner.reshape([rows * k, width]).select(0, sorted.order.clone());
                let y = by_expert(&self.output, inner, &sorted.counts);
                y.select(0, sorted.inverse.clone()).reshape([rows, k, out])
            }
            Routing::All => {
                // Each expert's rows, zero where it was not chosen: [E, rows, inner].
                let gates = self.spread_gates(routes).swap_dims(1, 2).cast(inner.dtype());
                let spread = gates.matmul(inner).swap_dims(0, 1);
                let y = spread.matmul(self.output.clone().swap_dims(1, 2)).sum_dim(0);
                return y.reshape([rows, out]).cast(DType::F32) + self.bias.clone().unsqueeze::<2>();
            }
        };
        self.combine(y, routes)
    }

    /// Σ_s g_s · y_s + bias.
    fn combine(&self, y: Tensor<3>, routes: &Routes) -> Tensor<2> {
        let [rows, k, out] = y.dims();
        let gated = y.cast(DType::F32) * routes.gates.clone().reshape([rows, k, 1]);
        gated.sum_dim(1).reshape([rows, out]) + self.bias.clone().unsqueeze::<2>()
    }

    /// The gate of each row, slot and expert, `[rows, k, E]`: zero but for the slot's expert.
    fn spread_gates(&self, routes: &Routes) -> Tensor<3> {
        let [rows, k] = routes.experts.dims();
        let [count, ..] = self.output.dims();
        let hot: Tensor<3> = routes.experts.clone().one_hot::<3>(count).float();
        hot * routes.gates.clone().reshape([rows, k, 1])
    }

    /// Σ_s g_s · W_o\[e_s\] · swiglu(W_i\[e_s\] · x) + bias. Rows stay sorted, or all experts' rows together, in between.
    fn mlp(&self, x: Tensor<2>, routes: &Routes, routing: Routing) -> Tensor<2> {
        let [rows, _] = x.dims();
        let [_, k] = routes.experts.dims();
        let [count, out, _] = self.output.dims();
        match routing {
            Routing::Gather => self.output(swiglu(self.input(x, routes, routing)), routes, routing),
            Routing::ByExpert => {
                let sorted = routes.sorted.as_ref().expect("sorted");
                let h = by_expert(&self.input, x.select(0, sorted.rows.clone()), &sorted.counts);
                let h = swiglu(h.unsqueeze::<3>()).squeeze_dim::<2>(0);
                let y = by_expert(&self.output, h, &sorted.counts);
                self.combine(y.select(0, sorted.inverse.clone()).reshape([rows, k, out]), routes)
            }
            Routing::All => {
                let h = swiglu(x.unsqueeze::<3>().matmul(self.input.clone().swap_dims(1, 2)));
                let y = h.matmul(self.output.clone().swap_dims(1, 2)); // [E, rows, D]
                let gates = self.spread_gates(routes).sum_dim(1).reshape([rows, count]);
                let gates = gates.transpose().reshape([count, rows, 1]);
                let sum = (y.cast(DType::F32) * gates).sum_dim(0).reshape([rows, out]);
                sum + self.bias.clone().unsqueeze::<2>()
            }
        }
    }
}

/// Rows sorted by expert, `counts` of each, times that expert's matrix.
fn by_expert(weight: &Tensor<3>, sorted: Tensor<2>, counts: &[usize]) -> Tensor<2> {
    let [_, out, width] = weight.dims();
    let mut start = 0;
    let mut parts = Vec::new();
    for (expert, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let matrix = weight.clone().slice([expert..expert + 1]).reshape([out, width]);
        parts.push(sorted.clone().slice([start..start + count]).matmul(matrix.transpose()));
        start += count;
    }
    Tensor::cat(parts, 0)
}

/// silu of the first half of the last dimension times the second.
fn swiglu(h: Tensor<3>) -> Tensor<3> {
    let [_, _, width] = h.dims();
    let gate = h.clone().slice(s![.., .., 0..width / 2]);
    activation::silu(gate) * h.slice(s![.., .., width / 2..width])
}

fn rms_norm(x: Tensor<2>, weight: &Tensor<1>, epsilon: f64) -> Tensor<2> {
    let scale = (x.clone().square().mean_dim(1) + epsilon).sqrt().recip();
    x * scale * weight.clone().unsqueeze::<2>()
}

/// Rotates channel i with channel i + d/2, in f32.
fn rope(x: Tensor<3>, cos: &Tensor<3>, sin: &Tensor<3>) -> Tensor<3> {
    let x = x.cast(DType::F32);
    let [_, _, d] = x.dims();
    let first = x.clone().slice(s![.., .., 0..d / 2]);
    let second = x.clone().slice(s![.., .., d / 2..d]);
    let turned = Tensor::cat(vec![-second, first], 2);
    x * cos.clone() + turned * sin.clone()
}

fn rope_tables(config: &Config, device: &Device) -> (Tensor<3>, Tensor<3>) {
    let (d, context) = (config.kv_channels, config.max_position_embeddings);
    let angle = |i: usize| {
        let (position, channel) = (i / d, i % d % (d / 2));
        position as f64 / config.rope_theta.powf(2.0 * channel as f64 / d as f64)
    };
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f32> = (0..context * d).map(|i| f(angle(i)) as f32).collect();
        Tensor::from_data(TensorData::new(values, [context, 1, d]), device)
    };
    (table(f64::cos), table(f64::sin))
}
