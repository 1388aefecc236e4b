//! One head mixture twice, from the same numbers: on a GPU, and as its f64 oracle.

use headwise::internal::{
    Activation, AttentionKernel, Buffer, Counters, Dimensions, Gpu, HeadMixture, HeadMixtureSpec,
    HeadMixtureWeights, KvCache, KvProjection, Matrix, MatrixShape, Norm, NormKind, PositionEncoding,
    Precision, Router, RouterNet, RouterWeights, Step, Weighting, Workspace, head_stride, padded,
};

use super::drawn::{Drawn, Use};
use crate::{
    reference::{
        activations::Activation as OracleActivation,
        head_mixture::{HeadMixture as Oracle, Input, Kernel, KeysValues, Output, Positions},
        layer_norm::layer_norm,
        rms_norm::rms_norm,
        router::{Net, Router as OracleRouter, Select, Weight},
    },
    support::{gpu, matrix, noise, pad, read, run, stored, upload},
};

/// The numbers of a layer, in the order of a file and as stored on the GPU. What a layer lacks is unused.
pub struct Tensors {
    norm_weight: Vec<f64>,
    norm_bias: Vec<f64>,
    /// `[experts, width]`
    router: Vec<f64>,
    /// `[hidden, width]`, `[hidden]`, `[experts, hidden]`
    router_mlp: [Vec<f64>; 3],
    /// `[experts, heads · head_dim, width]`
    pub query: Vec<f64>,
    /// `[kv_heads · head_dim, width]` each
    keys_values: [Vec<f64>; 2],
    kv_biases: [Vec<f64>; 2],
    /// `[experts, width, heads · head_dim]`
    pub output: Vec<f64>,
    output_bias: Vec<f64>,
}

/// What a layer did to the tokens of one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ran {
    /// `[tokens, width]`: what it added to the residual stream
    pub y: Vec<f64>,
    /// `[tokens, k]`
    pub experts: Vec<u32>,
    pub gates: Vec<f64>,
}

fn hidden(spec: &HeadMixtureSpec) -> u32 {
    match spec.router.map(|router| router.net) {
        Some(RouterNet::Mlp { hidden, .. }) => hidden,
        _ => 0,
    }
}

impl Tensors {
    /// Numbers of a size that keeps activations and scores near 1.
    pub fn new(spec: &HeadMixtureSpec, use_: &Use) -> Self {
        let (width, experts, hidden) = (spec.norm.width, spec.experts(), hidden(spec));
        let rows = spec.heads_per_expert * spec.head_dim;
        let kv_rows = spec.kv_heads * spec.head_dim;
        let mut seed = use_.seed;
        let mut values = |count: u32, scale: f64, precision| {
            seed = seed.wrapping_add(1);
            let values: Vec<f64> = noise(seed, count as usize).iter().map(|value| scale * value).collect();
            stored(&values, precision)
        };
        let fan_in = |inputs: u32| (3.0 / f64::from(inputs.max(1))).sqrt();
        let (f32, weights) = (Precision::F32, use_.precision);
        Self {
            norm_weight: values(width, 0.5, f32).iter().map(|value| 1.0 + value).collect(),
            norm_bias: values(width, 0.3, f32),
            router: values(experts * width, fan_in(width), f32),
            router_mlp: [
                values(hidden * width, fan_in(width), weights),
                values(hidden, 0.5, f32),
                values(experts * hidden, 2.0 * fan_in(hidden), weights),
            ],
            query: values(experts * rows * width, fan_in(width), weights),
            keys_values: [(); 2].map(|()| values(kv_rows * width, fan_in(width), weights)),
            kv_biases: [(); 2].map(|()| values(kv_rows, 0.5, f32)),
            output: values(experts * width * rows, fan_in(rows), weights),
            output_bias: values(width, 0.5, f32),
        }
    }
}

/// Zeros after each run of `from` values, up to `to`: how heads whose size is no multiple of 4 are stored.
fn stretch(values: &[f64], from: u32, to: u32) -> Vec<f64> {
    let zeros = vec![0.0; (to - from) as usize];
    values.chunks_exact(from as usize).flat_map(|run| run.iter().chain(&zeros)).copied().collect()
}

/// The layer as a GPU runs it.
fn layer(gpu: &Gpu, spec: &HeadMixtureSpec, use_: &Use, tensors: &Tensors) -> HeadMixture {
    let (width, dim, stride) = (spec.norm.width, spec.head_dim, head_stride(spec.head_dim));
    let matrix = |shape: MatrixShape, values: &[f64]| -> Matrix {
        matrix(gpu, shape, use_.precision, use_.part_rows.min(shape.outputs), values)
    };
    let vector = |values: &[f64]| -> Buffer { upload(gpu, values, values.len() as u32) };
    let router = spec.router.map(|router| {
        let [first, bias, second] = &tensors.router_mlp;
        let weights = match router.net {
            RouterNet::Linear => RouterWeights::Linear(upload(gpu, &tensors.router, width)),
            RouterNet::Mlp { hidden, .. } => RouterWeights::Mlp {
                first: matrix(MatrixShape::dense(hidden, width), first),
                bias: vector(bias),
                second: matrix(MatrixShape::dense(router.experts(), hidden), second),
            },
            RouterNet::QueryNorm => RouterWeights::QueryNorm,
        };
        Router { spec: router, weights }
    });
    let kv = spec.kv_shape().map(|shape| {
        let rows: Vec<f64> = stretch(&tensors.keys_values.concat(), dim * width, stride * width);
        let bias = stretch(&tensors.kv_biases.concat(), dim, stride);
        let bias = (spec.kv == KvProjection::Projected { bias: true }).then(|| vector(&bias));
        (matrix(shape, &rows), bias)
    });
    let layer_norm = spec.norm.kind == NormKind::Layer;
    HeadMixture {
        spec: *spec,
        norm: Norm {
            spec: spec.norm,
            weight: vector(&tensors.norm_weight),
            bias: layer_norm.then(|| vector(&tensors.norm_bias)),
        },
        router,
        weights: HeadMixtureWeights {
            query: matrix(spec.query_shape(), &stretch(&tensors.query, dim * width, stride * width)),
            kv,
            output: matrix(spec.output_shape(), &stretch(&tensors.output, dim, stride)),
            output_bias: spec.output_bias.then(|| vector(&tensors.output_bias)),
        },
    }
}

fn workspace(gpu: &Gpu, spec: &HeadMixtureSpec, use_: &Use) -> Workspace {
    let shape = spec.attention_shape(use_.sequences(), use_.capacity());
    let dense = spec.query_shape().experts == 1;
    let dimensions = Dimensions {
        tokens: use_.steps.iter().map(|counts| counts.iter().sum()).max().unwrap_or(0),
        sequences: use_.sequences(),
        capacity: use_.capacity(),
        logit_rows: 1,
        width: spec.norm.width,
        vocab: 1,
        query_floats: if dense { shape.q_row() } else { shape.q_row() * shape.slots },
        kv_floats: spec.kv_shape().map_or(0, |shape| shape.outputs),
        attended_floats: shape.out_row() * shape.slots,
        query_heads: spec.active() * spec.heads_per_expert,
        head_dim: spec.head_dim,
        attention_active: spec.active(),
        attention_experts: spec.experts(),
        mlp_active: 1,
        mlp_experts: 1,
        mlp_hidden: 1,
        router_hidden: hidden(spec),
        routes_per_token: use_.routes_before + spec.routes_per_token(),
    };
    Workspace::new(gpu, &dimensions)
}

impl Use {
    fn sequences(&self) -> u32 {
        self.steps[0].len() as u32
    }

    /// Tokens of a sequence over all steps.
    pub fn length(&self, sequence: u32) -> u32 {
        self.steps.iter().map(|counts| counts[sequence as usize]).sum()
    }

    fn capacity(&self) -> u32 {
        (0..self.sequences()).map(|sequence| self.length(sequence)).max().unwrap_or(0) + self.spare_capacity
    }

    /// The residual stream of a sequence, `[length, width]`.
    fn x(&self, sequence: u32, width: u32) -> Vec<f64> {
        noise(self.seed ^ (u64::from(sequence) << 32) ^ 0x5eed, (self.length(sequence) * width) as usize)
    }
}

/// Runs the layer step by step. Returns what it did to each sequence, and the counters of each step.
pub fn run_layer(drawn: &Drawn, tensors: &Tensors) -> (Vec<Ran>, Vec<Counters>) {
    let Drawn { spec, use_ } = drawn;
    let gpu = gpu(use_.kernels);
    let layer = layer(gpu, spec, use_, tensors);
    let workspace = workspace(gpu, spec, use_);
    let cache = KvCache::new(gpu, [spec].into_iter(), use_.sequences(), use_.capacity());
    let cache = &cache.layers[0];
    // Nobody may look where nothing was written.
    for buffer in [&cache.k, &cache.v] {
        buffer.write(0, &vec![f32::NAN; buffer.bytes() as usize / 4]);
    }

    let (width, slots) = (spec.norm.width, spec.routes_per_token() as usize);
    let row = width as usize;
    let streams: Vec<Vec<f64>> = (0..use_.sequences()).map(|sequence| use_.x(sequence, width)).collect();
    let mut ran = vec![Ran::default(); streams.len()];
    let mut positions = vec![0u32; streams.len()];
    let mut counters = Vec::new();
    for counts in &use_.steps {
        let (mut spans, mut ranges, mut x) = (Vec::new(), Vec::new(), Vec::new());
        for (sequence, &count) in (0..).zip(counts).filter(|(_, count)| **count > 0) {
            let position = &mut positions[sequence];
            ranges.push([spans.len() as u32, count]);
            spans.extend((*position..*position + count).map(|position| [position, sequence as u32]));
            x.extend(&streams[sequence][*position as usize * row..(*position + count) as usize * row]);
            *position += count;
        }
        let step = Step {
            tokens: spans.len() as u32,
            ranges: ranges.len() as u32,
            longest: ranges.iter().map(|range| range[1]).max().unwrap_or(0),
            last_position: spans.iter().map(|span| span[0]).max().unwrap_or(0),
            keys: spans.iter().map(|span| u64::from(span[0]) + 1).sum(),
            logit_rows: 0,
        };
        workspace.x.write(0, &pad(&x, width));
        workspace.spans.write(0, &spans);
        workspace.ranges.write(0, &ranges);
        let routes = workspace.routes(step.tokens, use_.routes_before);
        counters.push(run(gpu, |recorder| layer.record(recorder, &workspace, cache, &step, routes)));

        let after: Vec<f32> = read(gpu, &workspace.x, spans.len() * padded(width) as usize);
        let first = routes.first as usize;
        let chosen: Vec<u32> = read(gpu, &workspace.chosen, first + spans.len() * slots);
        let gates: Vec<f32> = read(gpu, &workspace.gates, first + spans.len() * slots);
        for (token, span) in spans.iter().enumerate() {
            let ran = &mut ran[span[1] as usize];
            let (after, padding) =
                after[token * padded(width) as usize..][..padded(width) as usize].split_at(row);
            assert!(padding.iter().all(|&value| value == 0.0), "padding of the residual stream: {padding:?}");
            ran.y.extend(after.iter().zip(&x[token * row..]).map(|(after, x)| f64::from(*after) - x));
            ran.experts.extend(&chosen[first + token * slots..][..slots]);
            ran.gates.extend(gates[first + token * slots..][..slots].iter().copied().map(f64::from));
        }
    }
    (ran, counters)
}

/// What the layer must do to a sequence.
pub fn oracle(drawn: &Drawn, tensors: &Tensors, sequence: u32) -> Output {
    let Drawn { spec, use_ } = drawn;
    let x = use_.x(sequence, spec.norm.width);
    let (weight, eps) = (&tensors.norm_weight, f64::from(spec.norm.eps));
    let xn = match spec.norm.kind {
        NormKind::Rms => rms_norm(&x, weight, eps),
        NormKind::Layer => layer_norm(&x, weight, &tensors.norm_bias, eps),
    };
    let width = spec.norm.width as usize;
    // Keys and values that are the input itself are the input times the identity.
    let identity: Vec<f64> =
        (0..width * width).map(|i| f64::from(u8::from(i / width == i % width))).collect();
    let [keys, values] = match spec.kv {
        KvProjection::Identity => [&identity; 2],
        KvProjection::Projected { .. } => tensors.keys_values.each_ref(),
    };
    let bias = spec.kv == KvProjection::Projected { bias: true };
    let [key_bias, value_bias] = tensors.kv_biases.each_ref().map(|values| bias.then(|| values.clone()));
    let oracle = Oracle {
        width,
        heads: spec.heads_per_expert as usize,
        head_dim: spec.head_dim as usize,
        kv_heads: spec.kv_heads as usize,
        group: spec.group as usize,
        query_share: 1,
        router: oracle_router(spec, tensors),
        query: tensors.query.clone(),
        query_bias: None,
        kv: KeysValues::Projected { keys: keys.clone(), key_bias, values: values.clone(), value_bias },
        positions: match spec.position {
            PositionEncoding::Rope { theta } => Positions::Rope { theta, fraction: 1.0 },
            PositionEncoding::None => Positions::None,
        },
        kernel: match spec.kernel {
            AttentionKernel::Softmax => Kernel::Softmax,
            AttentionKernel::StickBreaking => Kernel::StickBreaking,
        },
        causal: true,
        padding_gates_zero: false,
        output: tensors.output.clone(),
        output_bias: spec.output_bias.then(|| tensors.output_bias.clone()),
    };
    oracle.forward(&Input { batch: 1, x: &xn, ..Input::default() })
}

fn oracle_router(spec: &HeadMixtureSpec, tensors: &Tensors) -> OracleRouter {
    let Some(router) = spec.router else {
        return OracleRouter {
            experts: 1,
            shared: 0,
            groups: 1,
            net: Net::None,
            select: Select::All,
            weight: Weight::Const(1.0),
            shared_weight: None,
            two_stage: None,
        };
    };
    let choice = router.choice;
    // A file's router has a row for every expert; the shared ones' are not looked at.
    let routed = |rows: &[f64], inputs: u32| rows[(choice.shared * inputs) as usize..].to_vec();
    OracleRouter {
        experts: choice.experts as usize,
        shared: choice.shared as usize,
        groups: 1,
        net: match router.net {
            RouterNet::Linear => Net::Linear { weight: routed(&tensors.router, spec.norm.width), bias: None },
            RouterNet::Mlp { hidden, activation } => {
                let [first, bias, second] = &tensors.router_mlp;
                Net::Mlp {
                    input: first.clone(),
                    input_bias: Some(bias.clone()),
                    activation: match activation {
                        Activation::Gelu => OracleActivation::Gelu,
                        Activation::GeluTanh => OracleActivation::GeluTanh,
                        Activation::Tanh => OracleActivation::Tanh,
                        Activation::Relu => OracleActivation::Relu,
                        Activation::None => unreachable!("not drawn"),
                    },
                    output: routed(second, hidden),
                    output_bias: None,
                }
            }
            RouterNet::QueryNorm => Net::QueryNorm,
        },
        select: Select::TopK(choice.top_k as usize),
        weight: match choice.weighting {
            Weighting::SoftmaxTopK => Weight::SoftmaxKept,
            Weighting::SoftmaxAll => Weight::SoftmaxAll,
            Weighting::SoftmaxAllRenormalised { eps } => {
                Weight::Renormalised { epsilon: f64::from(eps), scale: 1.0 }
            }
            Weighting::Sigmoid => Weight::Sigmoid,
            Weighting::Binary => Weight::Const(1.0),
        },
        shared_weight: None,
        two_stage: None,
    }
}
