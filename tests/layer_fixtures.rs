//! The promise: the attention of MoA and of MoH computes on the GPU what the original code computed, within 1e-5, with the
//! same auxiliary losses.

use headwise_reference as reference;
mod support;

use headwise::internal::{
    AttentionKernel, Buffer, CachePrecision, CacheSize, CacheUse, Dimensions, ExpertChoice, HeadMixture,
    HeadMixtureSpec, HeadMixtureWeights, KernelChoice, KvCache, KvProjection, Matrix, MatrixShape, Norm,
    NormKind, NormPlacement, NormSpec, OutputBias, Pass, PositionEncoding, Precision, Router, RouterNet,
    RouterSpec, RouterWeights, Span, Weighting, Workspace,
};
use headwise::{Choice, RouterShape, RouterUse};
use reference::{
    head_mixture::{split_columns, transpose_each},
    jetmoe::{read_json, read_safetensors},
    max_difference,
};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};
use support::{CHOICES, gpu, matrix, pad, read, run, unpad, upload};

type Tensors = BTreeMap<String, Vec<f64>>;

fn fixture(name: &str) -> (Value, Tensors) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let tensors = read_safetensors(&folder.join("model.safetensors"));
    (read_json(&folder.join("expected.json")), tensors.into_iter().collect())
}

fn numbers(value: &Value) -> Vec<f64> {
    match value.as_array() {
        Some(values) => values.iter().flat_map(numbers).collect(),
        None => vec![value.as_f64().unwrap()],
    }
}

/// What a layer did: y `[tokens, D]`, the choices of each token, the scores of the routed experts.
struct Ran {
    y: Vec<f64>,
    choices: Vec<Vec<Choice>>,
    scores: Vec<f32>,
}

/// Two sequences of equal length whose tokens see as many keys as `keys(sequence, position)`.
fn run_layer(
    choice: KernelChoice,
    layer: &HeadMixture,
    x: &[f64],
    length: u32,
    keys: impl Fn(u32, u32) -> u32,
) -> Ran {
    let (gpu, spec) = (gpu(choice), &layer.spec);
    let tokens = 2 * length;
    let mut dimensions = Dimensions::new(tokens, 2, length, 1);
    dimensions.attention(spec);
    let workspace = Workspace::new(gpu, &dimensions);
    let precision = CachePrecision::F32;
    let size = CacheSize { sequences: 2, capacity: length, most: length, precision };
    let cache = KvCache::new(gpu, std::iter::once(spec), size, CacheUse::Kept);
    let spans: Vec<Span> = (0..tokens)
        .map(|token| {
            let (sequence, position) = (token / length, token % length);
            Span::seeing(position, sequence, keys(sequence, position))
        })
        .collect();
    let step = workspace.begin(&spans, &[[0, length], [length, length]]);
    let width = spec.norm.width;
    workspace.x.write(0, &pad(x, width));
    run(gpu, |recorder| {
        layer.record(&mut Pass::new(recorder, &workspace, &step), &cache.layers[0]);
    });
    let rows = pad(x, width).len();
    let after = unpad(&read::<f32>(gpu, &workspace.x, rows), width);
    let (slots, routed) = (spec.active() as usize, spec.router.choice.routed() as usize);
    let chosen: Vec<u32> = read(gpu, &workspace.chosen, tokens as usize * slots);
    let gates: Vec<f32> = read(gpu, &workspace.gates, tokens as usize * slots);
    let choices: Vec<Choice> =
        chosen.into_iter().zip(gates).map(|(expert, gate)| Choice::new(expert, gate)).collect();
    Ran {
        y: after.iter().zip(x).map(|(after, x)| after - f64::from(*x as f32)).collect(),
        choices: choices.chunks(slots).map(<[_]>::to_vec).collect(),
        scores: read(gpu, &workspace.route_scores, tokens as usize * routed),
    }
}

/// The residual stream as it is, which the layer's output is added to.
fn no_norm(width: u32) -> Norm {
    let spec = NormSpec { placement: NormPlacement::None, ..NormSpec::before(NormKind::Rms, width, 1e-6) };
    Norm { spec, weights: None }
}

/// `moa_attn_tiny`: D = 12, E = 7 heads of 6 channels over one key head, k = 3.
fn moa(choice: KernelChoice, tensors: &Tensors) -> HeadMixture {
    let gpu = gpu(choice);
    let norm = no_norm(12);
    let choice = ExpertChoice::top_k(7, 3, Weighting::SoftmaxAll);
    let spec = HeadMixtureSpec {
        norm: norm.spec,
        router: RouterSpec::new(RouterNet::Linear, choice),
        query_share: 1,
        heads_per_expert: 1,
        kv_heads: 1,
        group: 1,
        head_dim: 6,
        kv: KvProjection::Projected,
        position: PositionEncoding::None,
        kernel: AttentionKernel::Softmax,
    };
    spec.check().unwrap();
    let stored = |shape: MatrixShape, values: &[f64]| -> Matrix {
        matrix(gpu, shape, Precision::F32, shape.outputs, values)
    };
    // Heads of 6 channels take 8.
    let rows = |values: &[f64]| -> Vec<f64> {
        values.chunks(6 * 12).flat_map(|head| head.iter().copied().chain([0.0; 2 * 12])).collect()
    };
    let columns = |values: &[f64]| -> Vec<f64> {
        values.chunks(6).flat_map(|head| head.iter().copied().chain([0.0; 2])).collect()
    };
    let query = transpose_each(&tensors["q_proj.experts.w"], 12, 6);
    let output = transpose_each(&tensors["q_proj.output_experts.w"], 6, 12);
    let kv: Vec<f64> = [&tensors["k_proj.weight"][..], &tensors["v_proj.weight"]].concat();
    let weight: Buffer = upload(gpu, &transpose_each(&tensors["q_proj.w_gate"], 12, 7), 12);
    HeadMixture {
        norm,
        router: Some(Router { spec: spec.router, weights: RouterWeights::Linear { weight, bias: None } }),
        weights: HeadMixtureWeights {
            query: stored(spec.query_shape(), &rows(&query)),
            query_bias: None,
            kv: Some((stored(spec.kv_shape().unwrap(), &rows(&kv)), None)),
            values: None,
            output: stored(spec.output_shape(), &columns(&output)),
            output_bias: OutputBias::None,
            relative: None,
        },
        spec,
    }
}

#[test]
fn moa_agrees_with_the_original_and_its_losses() {
    let (expected, tensors) = fixture("moa_attn_tiny");
    let x = numbers(&expected["x"]);
    let padding: Vec<bool> = expected["bidir_pad"]["pad"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_array().unwrap())
        .map(|padding| padding.as_bool().unwrap())
        .collect();
    let lengths: Vec<u32> =
        padding.chunks(6).map(|row| row.iter().filter(|padding| !**padding).count() as u32).collect();
    let shape = RouterShape::new(7, 3);
    for kernels in CHOICES {
        let layer = moa(kernels, &tensors);
        let causal = run_layer(kernels, &layer, &x, 6, |_, position| position + 1);
        // Padding has no keys; what its rows compute is not looked at.
        let both_ways = run_layer(kernels, &layer, &x, 6, |sequence, _| lengths[sequence as usize]);
        for (case, ran, real) in [
            ("causal_nopad", causal, vec![true; 12]),
            ("bidir_pad", both_ways, padding.iter().map(|padding| !padding).collect()),
        ] {
            let wanted = numbers(&expected[case]["y"]);
            for token in (0..12).filter(|&token| real[token]) {
                let row = |values: &[f64]| values[token * 12..][..12].to_vec();
                let worst = max_difference(&row(&ran.y), &row(&wanted));
                println!("MoA, {case}, {kernels:?}, token {token}: {worst:.1e}");
                assert!(worst <= 1e-5, "{case}, {kernels:?}, token {token}: {worst:e}");
            }
            // The original leaves padding out of everything but the z-loss.
            let tokens: Vec<usize> = (0..12).filter(|&token| real[token]).collect();
            let choices: Vec<Vec<Choice>> = tokens.iter().map(|&token| ran.choices[token].clone()).collect();
            let scores: Vec<f32> =
                tokens.iter().flat_map(|&token| &ran.scores[token * 7..][..7]).copied().collect();
            let used = RouterUse::of(shape, &choices, &scores).unwrap().unwrap();
            let all = RouterUse::of(shape, &ran.choices, &ran.scores).unwrap().unwrap();
            let losses = 0.5 * used.importance_cv + 0.01 * used.switch_balance + 0.001 * all.router_z;
            let wanted = expected[case]["aux"].as_f64().unwrap();
            assert!((losses - wanted).abs() <= 1e-5, "{case}, {kernels:?}: losses {losses}, not {wanted}");
        }
    }
}

/// A case of `moh_attn_tiny`: D = 20, 6 heads of 4 channels, so that the heads together are wider than the input.
fn moh(choice: KernelChoice, tensors: &Tensors, case: &str, shared: u32, routed: u32) -> HeadMixture {
    let gpu = gpu(choice);
    let tensor = |name: &str| tensors.get(&format!("{case}.{name}")).cloned();
    let norm = no_norm(20);
    let choice = ExpertChoice {
        shared,
        scale: routed as f32,
        shared_softmax: tensor("wg_1.weight").is_some(),
        two_stage: tensor("wg_0.weight").is_some(),
        ..ExpertChoice::top_k(6, routed, Weighting::SoftmaxAllRenormalised { eps: 0.0 })
    };
    let spec = HeadMixtureSpec {
        norm: norm.spec,
        router: RouterSpec::new(RouterNet::Linear, choice),
        query_share: 1,
        heads_per_expert: 1,
        kv_heads: 6,
        group: 1,
        head_dim: 4,
        kv: KvProjection::Projected,
        position: PositionEncoding::None,
        kernel: AttentionKernel::Softmax,
    };
    spec.check().unwrap();
    let stored = |shape: MatrixShape, values: &[f64]| -> Matrix {
        matrix(gpu, shape, Precision::F32, shape.outputs, values)
    };
    let (weight, bias) = (tensor("qkv.weight").unwrap(), tensor("qkv.bias").unwrap());
    let (query, kv) = weight.split_at(24 * 20);
    let (query_bias, kv_bias) = bias.split_at(24);
    let rows: Vec<f64> = ["wg_1", "wg", "wg_0"]
        .iter()
        .filter_map(|part| tensor(&format!("{part}.weight")))
        .flatten()
        .collect();
    let output = split_columns(&tensor("proj.weight").unwrap(), 24, 6);
    HeadMixture {
        norm,
        router: Some(Router {
            spec: spec.router,
            weights: RouterWeights::Linear { weight: upload(gpu, &rows, 20), bias: None },
        }),
        weights: HeadMixtureWeights {
            query: stored(spec.query_shape(), query),
            query_bias: Some(upload(gpu, query_bias, 4)),
            kv: Some((stored(spec.kv_shape().unwrap(), kv), Some(upload(gpu, kv_bias, 48)))),
            values: None,
            output: stored(spec.output_shape(), &output),
            output_bias: OutputBias::Once(upload(gpu, &tensor("proj.bias").unwrap(), 20)),
            relative: None,
        },
        spec,
    }
}

#[test]
fn moh_agrees_with_the_original_in_all_three_cases() {
    let (expected, tensors) = fixture("moh_attn_tiny");
    let x = numbers(&expected["x"]);
    for kernels in CHOICES {
        for (case, shared, routed) in
            [("shared2_routed2", 2, 2), ("shared0_routed3", 0, 3), ("shared6_routed0", 6, 0)]
        {
            let layer = moh(kernels, &tensors, case, shared, routed);
            let ran = run_layer(kernels, &layer, &x, 5, |_, _| 5);
            let worst = max_difference(&ran.y, &numbers(&expected["cases"][case]["y"]));
            println!("MoH, {case}, {kernels:?}: {worst:.1e}");
            assert!(worst <= 1e-5, "{case}, {kernels:?}: {worst:e}");
        }
    }
}
