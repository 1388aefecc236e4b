//! One head mixture twice, from the same numbers: on a GPU, and as its f64 oracle.

use headwise::internal::{
    Activation, AttentionKernel, Buffer, CachePrecision, CacheSize, CacheUse, CachedWindow, Counters,
    Dimensions, ExpertChoice, Gpu, HeadMixture, HeadMixtureSpec, HeadMixtureWeights, Hook, KeyValues,
    KvCache, KvProjection, Matrix, MatrixShape, Norm, NormKind, NormPlacement, OutputBias, Pass,
    PositionEncoding, Precision, Router, RouterNet, RouterSpec, RouterWeights, Scope, Sections, Span, Step,
    Visible, Weighting, Workspace, head_stride, padded,
};

use super::drawn::{Drawn, OutputBiased, Use};
use crate::{
    reference::{
        activations::Activation as OracleActivation,
        head_mixture::{HeadMixture as Oracle, Input, Kernel, KeysValues, Positions},
        layer_norm::layer_norm,
        norm_router::Routes as OracleRoutes,
        rms_norm::rms_norm,
        router::{Net, Router as OracleRouter, Routing, Select, Weight},
        selective_heads::SelectiveHeads,
    },
    support::{gpu, matrix, noise, pad, read, run, stored, upload},
};

/// The slot of a head that a token is left out of.
const NOBODY: u32 = u32::MAX;

/// The numbers of a router, in the order of a file. What it lacks is unused.
pub struct RouterTensors {
    /// `[score rows, width]`
    linear: Vec<f64>,
    /// `[hidden, width]` and `[hidden]`
    first: Vec<f64>,
    first_bias: Vec<f64>,
    /// `[score rows, hidden]`
    second: Vec<f64>,
    /// `[score rows]`
    bias: Vec<f64>,
    temperature: f64,
}

/// The numbers of a layer, in the order of a file and as stored on the GPU. What a layer lacks is unused.
pub struct Tensors {
    norm_weight: Vec<f64>,
    norm_bias: Vec<f64>,
    router: RouterTensors,
    /// `[experts / query_share, heads · head_dim, width]`
    pub query: Vec<f64>,
    query_bias: Vec<f64>,
    /// `[kv_heads · head_dim, width]` each
    keys_values: [Vec<f64>; 2],
    kv_biases: [Vec<f64>; 2],
    /// `[value experts, head_dim, width]`, and their router
    pub values: Vec<f64>,
    value_router: RouterTensors,
    /// `[experts, width, heads · head_dim]`
    pub output: Vec<f64>,
    /// `[width]` or `[experts, width]`
    output_bias: Vec<f64>,
    /// `[heads, 2 · clip + 1, head_dim]`
    relative: Vec<f64>,
}

/// What one router wrote about the tokens of one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chosen {
    /// `[tokens, k]`
    pub experts: Vec<u32>,
    pub gates: Vec<f64>,
    /// `[tokens, routed experts]`
    pub scores: Vec<f64>,
}

/// What a layer did to the tokens of one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ran {
    /// `[tokens, width]`: the residual stream behind it
    pub out: Vec<f64>,
    /// By each router.
    pub chosen: [Chosen; 2],
}

/// What it must do.
pub struct Expected {
    pub out: Vec<f64>,
    pub routing: [Option<Routing>; 2],
    /// `[tokens]`: how clear everything was that a token depends on.
    pub margins: Vec<f64>,
}

fn clip(spec: &HeadMixtureSpec) -> u32 {
    match spec.position {
        PositionEncoding::Relative { clip } => clip,
        PositionEncoding::Rope { .. } | PositionEncoding::None => 0,
    }
}

/// Reproducible numbers, one tensor after the other.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, count: u32, scale: f64, precision: Precision) -> Vec<f64> {
        self.0 = self.0.wrapping_add(1);
        let values: Vec<f64> = noise(self.0, count as usize).iter().map(|value| scale * value).collect();
        stored(&values, precision)
    }
}

fn fan_in(inputs: u32) -> f64 {
    (3.0 / f64::from(inputs.max(1))).sqrt()
}

impl RouterTensors {
    fn new(numbers: &mut Numbers, router: &RouterSpec, width: u32, weights: Precision) -> Self {
        let (rows, hidden, f32) = (router.choice.score_rows(), router.hidden(), Precision::F32);
        // Centroids are no matrix.
        let second = if matches!(router.net, RouterNet::Cosine { .. }) { f32 } else { weights };
        Self {
            linear: numbers.next(rows * width, fan_in(width), f32),
            first: numbers.next(hidden * width, fan_in(width), weights),
            first_bias: numbers.next(hidden, 0.5, f32),
            second: numbers.next(rows * hidden, 2.0 * fan_in(hidden), second),
            bias: numbers.next(rows, 0.5, f32),
            temperature: numbers.next(1, 1.0, f32)[0],
        }
    }
}

impl Tensors {
    /// Numbers of a size that keeps activations and scores near 1.
    pub fn new(spec: &HeadMixtureSpec, use_: &Use) -> Self {
        let (width, experts, weights) = (spec.norm.width, spec.experts(), use_.precision);
        let rows = spec.heads_per_expert * spec.head_dim;
        let kv_rows = spec.kv_heads * spec.head_dim;
        let queries = experts / spec.query_share;
        let numbers = &mut Numbers(use_.seed);
        let f32 = Precision::F32;
        let none = RouterSpec::none();
        let value_router = spec.value_router().unwrap_or(&none);
        let biases = if use_.biases.output == OutputBiased::OfExpert { experts } else { 1 };
        let entries = spec.heads_per_expert * (2 * clip(spec) + 1);
        Self {
            norm_weight: numbers.next(width, 0.5, f32).iter().map(|value| 1.0 + value).collect(),
            norm_bias: numbers.next(width, 0.3, f32),
            router: RouterTensors::new(numbers, &spec.router, width, weights),
            query: numbers.next(queries * rows * width, fan_in(width), weights),
            query_bias: numbers.next(queries * rows, 0.5, f32),
            keys_values: [(); 2].map(|()| numbers.next(kv_rows * width, fan_in(width), weights)),
            kv_biases: [(); 2].map(|()| numbers.next(kv_rows, 0.5, f32)),
            values: numbers.next(value_router.experts() * spec.head_dim * width, fan_in(width), weights),
            value_router: RouterTensors::new(numbers, value_router, width, weights),
            output: numbers.next(experts * width * rows, fan_in(rows), weights),
            output_bias: numbers.next(biases * width, 0.5, f32),
            relative: numbers.next(entries * spec.head_dim, 1.0, f32),
        }
    }
}

/// Zeros after each run of `from` values, up to `to`: how heads whose size is no multiple of 4 are stored.
fn stretch(values: &[f64], from: u32, to: u32) -> Vec<f64> {
    let zeros = vec![0.0; (to - from) as usize];
    values.chunks_exact(from as usize).flat_map(|run| run.iter().chain(&zeros)).copied().collect()
}

/// A buffer of f32, nothing padded.
fn plain(gpu: &Gpu, values: &[f64]) -> Buffer {
    Buffer::with_data(gpu, "test.plain", &values.iter().map(|&value| value as f32).collect::<Vec<_>>())
}

fn router(gpu: &Gpu, spec: RouterSpec, tensors: &RouterTensors, width: u32, use_: &Use) -> Option<Router> {
    let matrix = |shape: MatrixShape, values: &[f64]| {
        matrix(gpu, shape, use_.precision, use_.part_rows.min(shape.outputs), values)
    };
    let rows = spec.choice.score_rows();
    let bias = use_.biases.router.then(|| upload(gpu, &tensors.bias, rows.max(1)));
    let weights = match spec.net {
        RouterNet::None => return None,
        RouterNet::Linear => RouterWeights::Linear { weight: upload(gpu, &tensors.linear, width), bias },
        RouterNet::Mlp { hidden, .. } => RouterWeights::Mlp {
            first: matrix(MatrixShape::dense(hidden, width), &tensors.first),
            first_bias: use_.biases.hidden.then(|| upload(gpu, &tensors.first_bias, hidden)),
            second: matrix(MatrixShape::dense(rows, hidden), &tensors.second),
            second_bias: bias,
        },
        RouterNet::Cosine { hidden } => RouterWeights::Cosine {
            projection: matrix(MatrixShape::dense(hidden, width), &tensors.first),
            centroids: upload(gpu, &tensors.second, hidden),
            temperature: plain(gpu, &[tensors.temperature]),
        },
        RouterNet::QueryNorm => RouterWeights::QueryNorm,
    };
    Some(Router { spec, weights })
}

/// The layer as a GPU runs it.
fn layer(gpu: &Gpu, spec: &HeadMixtureSpec, use_: &Use, tensors: &Tensors) -> HeadMixture {
    let (width, dim, stride) = (spec.norm.width, spec.head_dim, head_stride(spec.head_dim));
    let matrix = |shape: MatrixShape, values: &[f64]| -> Matrix {
        matrix(gpu, shape, use_.precision, use_.part_rows.min(shape.outputs), values)
    };
    let vector = |values: &[f64]| -> Buffer { upload(gpu, values, values.len() as u32) };
    let mixed = spec.value_router().is_some();
    let kv = spec.kv_shape().map(|shape| {
        let parts = if mixed { 1 } else { 2 };
        let rows: Vec<f64> = stretch(&tensors.keys_values[..parts].concat(), dim * width, stride * width);
        let bias = stretch(&tensors.kv_biases[..parts].concat(), dim, stride);
        (matrix(shape, &rows), use_.biases.kv.then(|| vector(&bias)))
    });
    let values = spec.value_router().zip(spec.value_shape()).map(|(spec, shape)| {
        let router =
            router(gpu, *spec, &tensors.value_router, width, use_).expect("value experts are routed");
        (matrix(shape, &tensors.values), router)
    });
    let norm_rows = match spec.norm.rows() {
        0 => None,
        1 => Some(tensors.norm_weight.clone()),
        _ => Some([&tensors.norm_weight[..], &tensors.norm_bias].concat()),
    };
    let query_bias = stretch(&tensors.query_bias, dim, stride);
    // A row for each expert, or one of all heads.
    let query_row = spec.query_shape().outputs;
    HeadMixture {
        spec: *spec,
        norm: Norm { spec: spec.norm, weights: norm_rows.map(|rows| upload(gpu, &rows, width)) },
        router: router(gpu, spec.router, &tensors.router, width, use_),
        weights: HeadMixtureWeights {
            query: matrix(spec.query_shape(), &stretch(&tensors.query, dim * width, stride * width)),
            query_bias: use_.biases.query.then(|| upload(gpu, &query_bias, query_row)),
            kv,
            values,
            output: matrix(spec.output_shape(), &stretch(&tensors.output, dim, stride)),
            output_bias: match use_.biases.output {
                OutputBiased::None => OutputBias::None,
                OutputBiased::Once => OutputBias::Once(upload(gpu, &tensors.output_bias, width)),
                OutputBiased::OfExpert => OutputBias::OfExpert(upload(gpu, &tensors.output_bias, width)),
            },
            relative: (clip(spec) > 0).then(|| plain(gpu, &stretch(&tensors.relative, dim, stride))),
        },
    }
}

impl Use {
    pub fn sequences(&self) -> u32 {
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
    pub fn x(&self, sequence: u32, width: u32) -> Vec<f64> {
        noise(self.seed ^ (u64::from(sequence) << 32) ^ 0x5eed, (self.length(sequence) * width) as usize)
    }

    /// What an earlier layer normed.
    fn xn(&self, sequence: u32, width: u32) -> Vec<f64> {
        noise(self.seed ^ (u64::from(sequence) << 32) ^ 0xfeed, (self.length(sequence) * width) as usize)
    }

    /// Which memory a sequence attends to.
    fn memory_of(&self, sequence: u32) -> u32 {
        sequence % self.memory.len() as u32
    }

    fn memory(&self, memory: u32, width: u32) -> Vec<f64> {
        let count = self.memory[memory as usize] * width;
        noise(self.seed ^ (u64::from(memory) << 32) ^ 0xfade, count as usize)
    }
}

fn workspace(gpu: &Gpu, spec: &HeadMixtureSpec, use_: &Use) -> Workspace {
    let tokens = use_.steps.iter().map(|counts| counts.iter().sum()).max().unwrap_or(0);
    let remembered: u32 = use_.memory.iter().sum();
    let keys = use_.memory.iter().copied().fold(use_.capacity(), u32::max);
    let mut dimensions = Dimensions::new(tokens.max(remembered), use_.sequences(), keys, 1);
    dimensions.sections = Sections { count: use_.sections, slots: keys };
    dimensions.attention(spec);
    dimensions.reserve(use_.routes_before, use_.scores_before);
    Workspace::new(gpu, &dimensions)
}

/// Lets the slots of a cache lie in so many sections, or one for each of fewer.
fn in_sections(gpu: &Gpu, kv: &mut KeyValues, sections: u32) {
    let layout = kv.layout;
    let windows = layout.cut([layout.sequences, layout.capacity.div_ceil(sections), layout.kv_heads]);
    let cached =
        |window| CachedWindow { window, buffer: Buffer::new(gpu, "test.window", layout.bytes_of(&window)) };
    kv.windows = windows.into_iter().map(cached).collect();
}

/// The spans of tokens that are not in a step.
fn remembered(lengths: &[u32]) -> Vec<[u32; 5]> {
    let of = |(sequence, &length): (u32, &u32)| (0..length).map(move |i| Span::causal(i, sequence));
    Span::words(&(0..).zip(lengths).flat_map(of).collect::<Vec<_>>())
}

/// Runs the layer step by step. Returns what it did to each sequence, and the counters of each step.
pub fn run_layer(drawn: &Drawn, tensors: &Tensors) -> (Vec<Ran>, Vec<Counters>) {
    run_layer_with(drawn, tensors, None)
}

/// As [`run_layer`], with someone who looks on, or edits.
pub fn run_layer_with(
    drawn: &Drawn,
    tensors: &Tensors,
    mut hook: Option<&mut dyn Hook>,
) -> (Vec<Ran>, Vec<Counters>) {
    let Drawn { spec, use_ } = drawn;
    let gpu = gpu(use_.kernels);
    let layer = layer(gpu, spec, use_, tensors);
    let workspace = workspace(gpu, spec, use_);
    let remembers = spec.kv == KvProjection::Memory;
    let (sequences, capacity) = match remembers {
        true => {
            (use_.memory.len() as u32, use_.memory.iter().max().copied().unwrap_or(0) + use_.spare_capacity)
        }
        false => (use_.sequences(), use_.capacity()),
    };
    let capacity = capacity.max(1);
    let size = CacheSize { sequences, capacity, most: capacity, precision: CachePrecision::F32 };
    let mut cache = KvCache::new(gpu, [spec].into_iter(), size, CacheUse::Kept);
    let cache = &mut cache.layers[0];
    if use_.sections > 1 {
        in_sections(gpu, &mut cache.kv, use_.sections);
    }
    // Nobody may look where nothing was written.
    for window in &cache.kv.windows {
        window.buffer.write(0, &vec![f32::NAN; window.buffer.bytes() as usize / 4]);
    }

    let width = spec.norm.width;
    let row = width as usize;
    let stride = padded(width) as usize;
    if remembers {
        let spans = remembered(&use_.memory);
        let rows: Vec<f64> = (0..sequences).flat_map(|memory| use_.memory(memory, width)).collect();
        let memory = upload(gpu, &rows, width);
        workspace.spans.write(0, &spans);
        run(gpu, |recorder| layer.remember(recorder, &workspace, &memory, cache, spans.len() as u32));
    }
    let streams: Vec<Vec<f64>> = (0..use_.sequences()).map(|sequence| use_.x(sequence, width)).collect();
    let mut ran = vec![Ran::default(); streams.len()];
    let mut positions = vec![0u32; streams.len()];
    let mut counters = Vec::new();
    for counts in &use_.steps {
        let (mut spans, mut ranges, mut x, mut xn) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut memory_spans = Vec::new();
        for (sequence, &count) in (0u32..).zip(counts).filter(|(_, count)| **count > 0) {
            let position = &mut positions[sequence as usize];
            ranges.push([spans.len() as u32, count]);
            let length = *position + count;
            let places = *position..length;
            spans.extend(places.clone().map(|position| match use_.causal {
                true => Span::causal(position, sequence),
                false => Span::seeing(position, sequence, length),
            }));
            if remembers {
                let memory = use_.memory_of(sequence);
                let keys = use_.memory[memory as usize];
                memory_spans.extend(places.clone().map(|position| Span::seeing(position, memory, keys)));
            }
            let rows = *position as usize * row..length as usize * row;
            x.extend(&streams[sequence as usize][rows.clone()]);
            xn.extend(&use_.xn(sequence, width)[rows]);
            *position = length;
        }
        let tokens = spans.len();
        let step = Step { memory: Visible::of(&memory_spans), ..workspace.begin(&spans, &ranges) };
        workspace.x.write(0, &pad(&x, width));
        if spec.norm.placement == NormPlacement::Shared {
            workspace.xn.write(0, &pad(&xn, width));
        }
        if remembers {
            workspace.memory_spans.write(0, &Span::words(&memory_spans));
        }
        counters.push(run(gpu, |recorder| {
            let hook = hook.as_mut().map(|hook| &mut **hook as &mut dyn Hook);
            let mut pass = Pass::new(recorder, &workspace, &step).with_hook(hook);
            pass.routes.skip(use_.routes_before, use_.scores_before);
            layer.record(&mut pass, cache);
        }));

        let after: Vec<f32> = read(gpu, &workspace.x, tokens * stride);
        for (after, span) in after.chunks_exact(stride).zip(&spans) {
            let (after, padding) = after.split_at(row);
            assert!(padding.iter().all(|&value| value == 0.0), "padding of the residual stream: {padding:?}");
            ran[span.sequence as usize].out.extend(after.iter().copied().map(f64::from));
        }
        let (mut first, mut first_score) =
            (tokens * use_.routes_before as usize, tokens * use_.scores_before as usize);
        for (i, router) in spec.routers().enumerate() {
            let [slots, scored] = [router.routes_per_token(), router.scores_per_token()].map(|n| n as usize);
            let chosen: Vec<u32> = read(gpu, &workspace.chosen, first + tokens * slots);
            let gates: Vec<f32> = read(gpu, &workspace.gates, first + tokens * slots);
            let scores: Vec<f32> = read(gpu, &workspace.route_scores, first_score + tokens * scored);
            let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
            for (token, span) in spans.iter().enumerate() {
                let to = &mut ran[span.sequence as usize].chosen[i];
                to.experts.extend(&chosen[first + token * slots..][..slots]);
                to.gates.extend(wide(&gates[first + token * slots..][..slots]));
                to.scores.extend(wide(&scores[first_score + token * scored..][..scored]));
            }
            (first, first_score) = (first + tokens * slots, first_score + tokens * scored);
        }
    }
    (ran, counters)
}

/// The norm of the layer.
fn normed(spec: &HeadMixtureSpec, tensors: &Tensors, x: &[f64]) -> Vec<f64> {
    let (weight, eps) = (&tensors.norm_weight, f64::from(spec.norm.eps));
    match spec.norm.kind {
        NormKind::Rms => rms_norm(x, weight, eps),
        NormKind::Layer => layer_norm(x, weight, &tensors.norm_bias, eps),
    }
}

/// What the layer must do to each sequence.
pub fn oracle(drawn: &Drawn, tensors: &Tensors) -> Vec<Expected> {
    let Drawn { spec, use_ } = drawn;
    let width = spec.norm.width;
    let sequences = 0..use_.sequences();
    let inputs: Vec<Vec<f64>> = sequences
        .clone()
        .map(|sequence| match spec.norm.placement {
            NormPlacement::Before => normed(spec, tensors, &use_.x(sequence, width)),
            NormPlacement::Shared => use_.xn(sequence, width),
            NormPlacement::After | NormPlacement::None => use_.x(sequence, width),
        })
        .collect();
    let mut expected = match spec.router.scope {
        Scope::Sequence { causal } => cut(drawn, tensors, &inputs, causal),
        Scope::Token => {
            let one = |(sequence, input): (u32, &Vec<f64>)| by_token(drawn, tensors, sequence, input);
            sequences.clone().zip(&inputs).map(one).collect()
        }
    };
    for (sequence, expected) in sequences.zip(&mut expected) {
        let x = use_.x(sequence, width);
        expected.out.iter_mut().zip(&x).for_each(|(out, x)| *out += x);
        if spec.norm.placement == NormPlacement::After {
            expected.out = normed(spec, tensors, &expected.out);
        }
    }
    expected
}

/// One sequence, its tokens routed one by one.
fn by_token(drawn: &Drawn, tensors: &Tensors, sequence: u32, input: &[f64]) -> Expected {
    let Drawn { spec, use_ } = drawn;
    let width = spec.norm.width as usize;
    let remembers = spec.kv == KvProjection::Memory;
    let memory = remembers.then(|| use_.memory(use_.memory_of(sequence), spec.norm.width));
    // Keys and values that are the input itself are the input times the identity.
    let identity: Vec<f64> =
        (0..width * width).map(|i| f64::from(u8::from(i / width == i % width))).collect();
    let bias =
        |values: &Vec<f64>| (use_.biases.kv && spec.kv != KvProjection::Identity).then(|| values.clone());
    let kv = match spec.kv {
        KvProjection::MixedValues(router) => KeysValues::MixedValues {
            keys: tensors.keys_values[0].clone(),
            router: oracle_router(&router, &tensors.value_router, use_),
            values: tensors.values.clone(),
        },
        KvProjection::Identity | KvProjection::Projected | KvProjection::Memory => {
            let [keys, values] = match spec.kv {
                KvProjection::Identity => [&identity; 2],
                _ => tensors.keys_values.each_ref(),
            };
            let [key_bias, value_bias] = tensors.kv_biases.each_ref().map(bias);
            KeysValues::Projected { keys: keys.clone(), key_bias, values: values.clone(), value_bias }
        }
    };
    let oracle = Oracle {
        width,
        heads: spec.heads_per_expert as usize,
        head_dim: spec.head_dim as usize,
        kv_heads: spec.kv_heads as usize,
        // The oracle counts experts, not the queries they share.
        group: (spec.group * spec.query_share) as usize,
        query_share: spec.query_share as usize,
        router: oracle_router(&spec.router, &tensors.router, use_),
        query: tensors.query.clone(),
        query_bias: use_.biases.query.then(|| tensors.query_bias.clone()),
        kv,
        positions: positions(spec, tensors),
        kernel: match spec.kernel {
            AttentionKernel::Softmax => Kernel::Softmax,
            AttentionKernel::StickBreaking => Kernel::StickBreaking,
        },
        causal: use_.causal && !remembers,
        padding_gates_zero: false,
        output: tensors.output.clone(),
        output_bias: (use_.biases.output == OutputBiased::Once).then(|| tensors.output_bias.clone()),
    };
    let out = oracle.forward(&Input { batch: 1, x: input, memory: memory.as_deref(), ..Input::default() });
    // A value that was mixed otherwise reaches every token that sees it.
    let values = out.value_routing.iter().flat_map(|routing| &routing.routes.margins);
    let least = values.copied().fold(f64::INFINITY, f64::min);
    let margins = out.routing.routes.margins.iter().map(|margin| margin.min(least)).collect();
    let routing = spec.router.routes().then_some(out.routing);
    Expected { out: out.y, routing: [routing, out.value_routing], margins }
}

fn positions(spec: &HeadMixtureSpec, tensors: &Tensors) -> Positions {
    match spec.position {
        PositionEncoding::Rope { theta, channels } => {
            Positions::Rope { theta, fraction: f64::from(channels) / f64::from(spec.head_dim) }
        }
        PositionEncoding::Relative { clip } => Positions::Relative {
            clip: clip as usize,
            entries: 2 * clip as usize + 1,
            table: tensors.relative.clone(),
        },
        PositionEncoding::None => Positions::None,
    }
}

/// Whole sequences, cut: the formula of `crates/reference/src/selective_heads.rs` for sequences of any lengths. The order of v
/// among tokens that kept a head does not matter, because L leaves room for all of them.
fn cut(drawn: &Drawn, tensors: &Tensors, inputs: &[Vec<f64>], causal: bool) -> Vec<Expected> {
    let Drawn { spec, use_ } = drawn;
    let (width, d) = (spec.norm.width as usize, spec.head_dim as usize);
    let (heads, top_k) = (spec.experts() as usize, spec.router.choice.top_k as usize);
    let parts = width * d;
    let router = oracle_router(&spec.router, &tensors.router, use_);
    let one = OracleRouter { experts: 1, shared: 0, groups: 1, net: Net::None, ..always(1) };
    let head = |h: usize| {
        let own = |rows: &[f64], count: usize| rows[h * count..(h + 1) * count].to_vec();
        let bias = |rows: &[f64], is: bool| is.then(|| own(rows, d));
        let [keys, values] = tensors.keys_values.each_ref().map(|rows| own(rows, parts));
        let [key_bias, value_bias] = tensors.kv_biases.each_ref().map(|rows| bias(rows, use_.biases.kv));
        Oracle {
            width,
            heads: 1,
            head_dim: d,
            kv_heads: 1,
            group: 1,
            query_share: 1,
            router: one.clone(),
            query: own(&tensors.query, parts),
            query_bias: bias(&tensors.query_bias, use_.biases.query),
            kv: KeysValues::Projected { keys, key_bias, values, value_bias },
            positions: positions(spec, tensors),
            kernel: Kernel::Softmax,
            causal,
            padding_gates_zero: false,
            output: own(&tensors.output, parts),
            output_bias: match use_.biases.output {
                OutputBiased::OfExpert => Some(own(&tensors.output_bias, width)),
                OutputBiased::None | OutputBiased::Once => None,
            },
        }
    };
    let heads: Vec<Oracle> = (0..heads).map(head).collect();
    let routings: Vec<Routing> = inputs
        .iter()
        .map(|input| router.route(input, width, |_, _| unreachable!("a linear router")))
        .collect();
    let keeps =
        |b: usize, t: usize, h: usize| routings[b].routes.experts[t * top_k..][..top_k].contains(&(h as u32));
    let tokens = |b: usize| inputs[b].len() / width;
    let count = |b: usize, h: usize| (0..tokens(b)).filter(|&t| keeps(b, t, h)).count();
    let longest =
        (0..inputs.len()).flat_map(|b| (0..heads.len()).map(move |h| count(b, h))).max().unwrap_or(0);
    let margins = routings.iter().flat_map(|routing| &routing.routes.margins);
    // One near-tie may change the cut of every sequence.
    let margin = margins.copied().fold(f64::INFINITY, f64::min);

    let expected: Vec<Expected> = inputs
        .iter()
        .enumerate()
        .map(|(b, input)| {
            let mut out = vec![0.0; input.len()];
            if use_.biases.output == OutputBiased::Once {
                out.chunks_exact_mut(width).for_each(|row| row.copy_from_slice(&tensors.output_bias));
            }
            let mut experts = vec![NOBODY; tokens(b) * heads.len()];
            let mut gates = vec![0.0; experts.len()];
            for (h, head) in heads.iter().enumerate() {
                let mut places: Vec<usize> = (0..tokens(b)).collect();
                places.sort_by_key(|&t| !keeps(b, t, h));
                places.truncate(longest);
                places.sort_unstable();
                let own: Vec<f64> =
                    places.iter().flat_map(|t| &input[t * width..][..width]).copied().collect();
                let y = head.forward(&Input { batch: 1, x: &own, ..Input::default() }).y;
                for (t, y) in places.iter().zip(y.chunks_exact(width)) {
                    out[t * width..][..width].iter_mut().zip(y).for_each(|(out, y)| *out += y);
                    (experts[t * heads.len() + h], gates[t * heads.len() + h]) = (h as u32, 1.0);
                }
            }
            let margins = vec![margin; tokens(b)];
            let routes = OracleRoutes { top_k: heads.len(), experts, gates, margins: margins.clone() };
            let routing = Routing { scores: routings[b].scores.clone(), routes };
            Expected { out, routing: [Some(routing), None], margins }
        })
        .collect();
    if use_.biases.output != OutputBiased::Once && inputs.iter().all(|input| input.len() == inputs[0].len()) {
        let selective = SelectiveHeads {
            width,
            gate: tensors.router.linear.clone(),
            gate_bias: match use_.biases.router {
                true => tensors.router.bias.clone(),
                false => vec![0.0; heads.len()],
            },
            top_k,
            capacity: 1.0,
            epsilon: 1e-8,
            limit: None,
            heads,
        };
        let y = selective.forward(inputs.len(), &inputs.concat()).y;
        let same: Vec<f64> = expected.iter().flat_map(|expected| expected.out.clone()).collect();
        assert!(crate::reference::max_difference(&same, &y) < 1e-12, "the two oracles");
    }
    expected
}

/// A router of experts that every token uses.
fn always(experts: usize) -> OracleRouter {
    OracleRouter {
        experts,
        shared: 0,
        groups: 1,
        net: Net::None,
        select: Select::All,
        weight: Weight::Const(1.0),
        shared_weight: None,
        two_stage: None,
    }
}

fn oracle_router(router: &RouterSpec, tensors: &RouterTensors, use_: &Use) -> OracleRouter {
    if !router.routes() {
        return always(1);
    }
    let ExpertChoice { experts, shared, groups, top_k, shared_softmax, two_stage, .. } = router.choice;
    let [routed, scored] =
        [router.choice.routed(), if shared_softmax { shared } else { 0 }].map(|n| n as usize);
    let inputs = if router.hidden() > 0 {
        router.hidden()
    } else {
        tensors.linear.len() as u32 / router.choice.score_rows().max(1)
    };
    let last = if router.hidden() > 0 { &tensors.second } else { &tensors.linear };
    let rows = |first: usize, count: usize| -> Vec<f64> {
        if last.is_empty() {
            return Vec::new();
        }
        last[first * inputs as usize..][..count * inputs as usize].to_vec()
    };
    let bias = use_.biases.router.then(|| tensors.bias[scored..][..routed].to_vec());
    OracleRouter {
        experts: experts as usize,
        shared: shared as usize,
        groups: groups as usize,
        net: match router.net {
            RouterNet::None => Net::None,
            RouterNet::Linear => Net::Linear { weight: rows(scored, routed), bias },
            RouterNet::Mlp { activation, .. } => Net::Mlp {
                input: tensors.first.clone(),
                input_bias: use_.biases.hidden.then(|| tensors.first_bias.clone()),
                activation: match activation {
                    Activation::Gelu => OracleActivation::Gelu,
                    Activation::GeluTanh => OracleActivation::GeluTanh,
                    Activation::Tanh => OracleActivation::Tanh,
                    Activation::Relu => OracleActivation::Relu,
                    Activation::None => unreachable!("not drawn"),
                },
                output: rows(scored, routed),
                output_bias: bias,
            },
            RouterNet::Cosine { .. } => Net::Cosine {
                input: tensors.first.clone(),
                centroids: tensors.second.clone(),
                temperature: tensors.temperature,
            },
            RouterNet::QueryNorm => Net::QueryNorm,
        },
        select: Select::TopK(top_k as usize),
        weight: weight(&router.choice),
        shared_weight: shared_softmax.then(|| rows(0, scored)),
        two_stage: two_stage.then(|| rows(scored + routed, 2)),
    }
}

/// How the oracle says what the gates of a choice are. It can scale only some of them.
fn weight(choice: &ExpertChoice) -> Weight {
    let scale = f64::from(choice.scale);
    match choice.weighting {
        Weighting::SoftmaxTopK if scale == 1.0 => Weight::SoftmaxKept,
        Weighting::SoftmaxTopK => Weight::Renormalised { epsilon: 0.0, scale },
        Weighting::SoftmaxAllRenormalised { eps } => Weight::Renormalised { epsilon: f64::from(eps), scale },
        Weighting::Constant => Weight::Const(scale),
        Weighting::SoftmaxAll | Weighting::Sigmoid => {
            assert_eq!(scale, 1.0, "not drawn");
            if choice.weighting == Weighting::Sigmoid { Weight::Sigmoid } else { Weight::SoftmaxAll }
        }
    }
}
