//! One expert MLP twice, from the same numbers: on a GPU, and in f64.

use headwise::internal::{
    Activation, Buffer, Dimensions, ExpertChoice, ExpertMlp, ExpertMlpSpec, ExpertMlpWeights, KernelChoice,
    MatrixShape, MlpActivation, Norm, NormKind, NormPlacement, NormSpec, Pass, Precision, Router, RouterNet,
    RouterSpec, RouterWeights, Step, Weighting, Workspace, padded,
};
use proptest::prelude::*;

use crate::{
    reference::{
        activations::Activation as OracleActivation,
        layer_norm::layer_norm,
        rms_norm::rms_norm,
        router::{Net, Router as OracleRouter, Select, Weight, affine},
        swiglu::swiglu,
    },
    support::{CHOICES, assert_close, gpu, matrix, noise, pad, precision, read, run, size, stored, upload},
};

/// Scores closer than this may be ordered either way.
const MIN_MARGIN: f64 = 1e-5;

/// A layer and its use.
#[derive(Clone, Debug)]
pub struct DrawnMlp {
    spec: ExpertMlpSpec,
    kernels: KernelChoice,
    precision: Precision,
    tokens: u32,
    up_bias: bool,
    output_bias: bool,
    seed: u64,
}

pub fn any_mlp() -> impl Strategy<Value = DrawnMlp> {
    let experts = prop_oneof![1 => Just(None), 3 => (2..=6u32, any::<u32>()).prop_map(Some)];
    let activation = prop_oneof![
        Just(MlpActivation::SwiGlu),
        prop::sample::select(vec![Activation::Gelu, Activation::GeluTanh, Activation::Relu])
            .prop_map(MlpActivation::Plain),
    ];
    let placement = prop::sample::select(vec![
        NormPlacement::Before,
        NormPlacement::After,
        NormPlacement::Shared,
        NormPlacement::None,
    ]);
    let sizes = (12..=48u32, size(40), prop_oneof![1..=4u32, 5..=40u32]);
    let rest =
        (prop::sample::select(CHOICES.to_vec()), precision(), any::<(bool, bool, bool)>(), any::<u64>());
    (experts, activation, placement, sizes, rest).prop_map(
        |(experts, activation, placement, (width, hidden, tokens), rest)| {
            let (kernels, precision, (layer_norm, up_bias, output_bias), seed) = rest;
            let kind = if layer_norm { NormKind::Layer } else { NormKind::Rms };
            let router = experts.map_or(RouterSpec::none(), |(experts, top_k)| {
                let choice = ExpertChoice::top_k(experts, 1 + top_k % experts, Weighting::SoftmaxTopK);
                RouterSpec::new(RouterNet::Linear, choice)
            });
            let norm = NormSpec { kind, width, eps: 1e-5, placement };
            // A gated activation has no bias.
            let up_bias = up_bias && activation != MlpActivation::SwiGlu;
            let spec = ExpertMlpSpec { norm, router, hidden, activation };
            DrawnMlp { spec, kernels, precision, tokens, up_bias, output_bias, seed }
        },
    )
}

impl DrawnMlp {
    fn numbers(&self, salt: u64, count: u32, scale: f64, precision: Precision) -> Vec<f64> {
        let values: Vec<f64> =
            noise(self.seed.wrapping_add(salt), count as usize).iter().map(|value| scale * value).collect();
        stored(&values, precision)
    }

    /// Runs the layer on a GPU and compares; returns how many tokens were too close to call.
    pub fn check(&self) -> usize {
        let ExpertMlpSpec { norm, router, hidden, activation } = self.spec;
        self.spec.check().unwrap();
        let (width, experts) = (norm.width, router.experts());
        let fan_in = |inputs: u32| (3.0 / f64::from(inputs)).sqrt();
        let (f32, weights) = (Precision::F32, self.precision);
        let halves = if activation == MlpActivation::SwiGlu { 2 } else { 1 };
        let x = self.numbers(1, self.tokens * width, 1.0, f32);
        let other = self.numbers(2, self.tokens * width, 1.0, f32);
        let norm_weight: Vec<f64> =
            self.numbers(3, width, 0.5, f32).iter().map(|value| 1.0 + value).collect();
        let norm_bias = self.numbers(4, width, 0.3, f32);
        let scores = self.numbers(5, experts * width, fan_in(width), f32);
        let up = self.numbers(6, experts * halves * hidden * width, fan_in(width), weights);
        let up_bias = self.numbers(7, experts * hidden, 0.5, f32);
        let down = self.numbers(8, experts * width * hidden, fan_in(hidden), weights);
        let output_bias = self.numbers(9, width, 0.5, f32);

        // The GPU.
        let gpu = gpu(self.kernels);
        let matrix = |shape: MatrixShape, values: &[f64]| matrix(gpu, shape, weights, shape.outputs, values);
        let norm_rows = match norm.rows() {
            0 => None,
            1 => Some(norm_weight.clone()),
            _ => Some([&norm_weight[..], &norm_bias].concat()),
        };
        let rows = |is: bool, values: &[f64], width: u32| -> Option<Buffer> {
            is.then(|| upload(gpu, values, width))
        };
        let layer = ExpertMlp {
            spec: self.spec,
            norm: Norm { spec: norm, weights: norm_rows.map(|rows| upload(gpu, &rows, width)) },
            router: router.routes().then(|| Router {
                spec: router,
                weights: RouterWeights::Linear { weight: upload(gpu, &scores, width), bias: None },
            }),
            weights: ExpertMlpWeights {
                up: matrix(self.spec.up_shape(), &up),
                up_bias: rows(self.up_bias, &up_bias, hidden),
                down: matrix(self.spec.down_shape(), &down),
                output_bias: rows(self.output_bias, &output_bias, width),
            },
        };
        let mut dimensions = Dimensions::new(self.tokens, 1, self.tokens, 1);
        dimensions.mlp(&self.spec);
        let workspace = Workspace::new(gpu, &dimensions);
        workspace.x.write(0, &pad(&x, width));
        workspace.xn.write(0, &pad(&other, width));
        let step = Step { tokens: self.tokens, ranges: 1, longest: self.tokens, ..Step::default() };
        run(gpu, |recorder| {
            layer.record(&mut Pass::new(recorder, &workspace, &step));
        });
        let after: Vec<f32> = read(gpu, &workspace.x, (self.tokens * padded(width)) as usize);
        let after = after.chunks_exact(padded(width) as usize);
        let got: Vec<f64> =
            after.flat_map(|row| row[..width as usize].iter().copied().map(f64::from)).collect();

        // The formula.
        let normed = |x: &[f64]| match norm.kind {
            NormKind::Rms => rms_norm(x, &norm_weight, f64::from(norm.eps)),
            NormKind::Layer => layer_norm(x, &norm_weight, &norm_bias, f64::from(norm.eps)),
        };
        let input = match norm.placement {
            NormPlacement::Before => normed(&x),
            NormPlacement::Shared => other,
            NormPlacement::After | NormPlacement::None => x.clone(),
        };
        let oracle = OracleRouter {
            experts: experts as usize,
            shared: 0,
            groups: 1,
            net: if router.routes() { Net::Linear { weight: scores, bias: None } } else { Net::None },
            select: Select::TopK(router.choice.top_k as usize),
            weight: Weight::SoftmaxKept,
            shared_weight: None,
            two_stage: None,
        };
        let (width, hidden) = (width as usize, hidden as usize);
        let routes = oracle.route(&input, width, |_, _| unreachable!("an MLP has no queries")).routes;
        let mlp = |expert: usize, x: &[f64]| -> Vec<f64> {
            let size = halves as usize * hidden * width;
            let bias = self.up_bias.then(|| &up_bias[expert * hidden..][..hidden]);
            let inside = affine(&up[expert * size..][..size], bias, x);
            let inside = match activation {
                MlpActivation::SwiGlu => swiglu(&inside, hidden),
                MlpActivation::Plain(Activation::Gelu) => OracleActivation::Gelu.apply(&inside),
                MlpActivation::Plain(Activation::GeluTanh) => OracleActivation::GeluTanh.apply(&inside),
                MlpActivation::Plain(Activation::Relu) => OracleActivation::Relu.apply(&inside),
                MlpActivation::Plain(_) => unreachable!("not drawn"),
            };
            affine(&down[expert * width * hidden..][..width * hidden], None, &inside)
        };
        let mut out = x;
        for (t, (out, x)) in out.chunks_exact_mut(width).zip(input.chunks_exact(width)).enumerate() {
            let slots = t * routes.top_k..(t + 1) * routes.top_k;
            for (expert, gate) in routes.experts[slots.clone()].iter().zip(&routes.gates[slots]) {
                out.iter_mut().zip(mlp(*expert as usize, x)).for_each(|(out, y)| *out += gate * y);
            }
            if self.output_bias {
                out.iter_mut().zip(&output_bias).for_each(|(out, bias)| *out += bias);
            }
        }
        let expected = if norm.placement == NormPlacement::After { normed(&out) } else { out };
        let clear = |t: &usize| routes.margins[*t] >= MIN_MARGIN;
        let tokens = 0..self.tokens as usize;
        let of = |rows: &[f64]| -> Vec<f64> {
            tokens.clone().filter(clear).flat_map(|t| rows[t * width..][..width].to_vec()).collect()
        };
        assert_close(&of(&got), &of(&expected), "out");
        tokens.clone().filter(|t| !clear(t)).count()
    }
}
