//! Routers, and the activations inside them.

use crate::{
    assert_same, noise,
    reference::{
        activations::{Activation, erf, gelu, gelu_tanh, log_sigmoid, sigmoid},
        layer_norm::layer_norm,
        matvec,
        router::{Net, Router, Routing, Select, Weight, norm},
        softmax,
    },
};

/// A router that keeps everything and weighs it 1.
fn router(experts: usize, net: Net) -> Router {
    Router {
        experts,
        shared: 0,
        groups: 1,
        net,
        select: Select::All,
        weight: Weight::Const(1.0),
        shared_weight: None,
        two_stage: None,
    }
}

/// z = x: D experts.
fn identity(experts: usize) -> Net {
    let weight = (0..experts * experts).map(|i| if i % (experts + 1) == 0 { 1.0 } else { 0.0 }).collect();
    Net::Linear { weight, bias: None }
}

fn route(router: &Router, x: &[f64], width: usize) -> Routing {
    router.route(x, width, |_, _| unreachable!("no queries here"))
}

#[test]
fn activations_give_known_values() {
    assert_same(
        &[0.5, 1.0, 2.0, 3.0].map(erf),
        &[0.520_499_877_813_046_5, 0.842_700_792_949_714_9, 0.995_322_265_018_952_7, 0.999_977_909_503_001_4],
    );
    assert_same(&[erf(-1.0), erf(5.9), erf(9.0), erf(-1e3)], &[-erf(1.0), 1.0, 1.0, -1.0]);
    assert_same(
        &[gelu(1.0), gelu(-1.0), gelu(0.0)],
        &[0.841_344_746_068_542_9, -0.158_655_253_931_457_1, 0.0],
    );
    assert!((gelu_tanh(1.0) - 0.841_191_990_607_477).abs() < 1e-12 && gelu_tanh(-30.0).abs() < 1e-12);
    assert_same(&[sigmoid(3f64.ln()), sigmoid(-800.0)], &[0.75, 0.0]);
    assert_same(
        &[log_sigmoid(3f64.ln()), log_sigmoid(-800.0), log_sigmoid(800.0)],
        &[0.75f64.ln(), -800.0, 0.0],
    );
    assert_same(&Activation::Relu.apply(&[-1.0, 2.0]), &[0.0, 2.0]);
}

#[test]
fn layer_norm_centres_and_scales_each_row() {
    let y = layer_norm(&[1.0, 3.0, -5.0, 5.0], &[1.0, 2.0], &[0.5, 0.0], 0.0);
    assert_same(&y, &[-0.5, 2.0, -0.5, 2.0]);
    assert_same(&layer_norm(&[1.0, 3.0], &[1.0, 1.0], &[0.0, 0.0], 3.0), &[-0.5, 0.5]);
}

#[test]
fn nets_score_by_their_formulas() {
    let scores = |net| route(&router(2, net), &[3.0, 4.0], 2).scores;
    let weight = vec![1.0, 0.0, 1.0, -1.0];
    assert_same(&scores(Net::None), &[0.0, 0.0]);
    assert_same(&scores(Net::Linear { weight: weight.clone(), bias: None }), &[3.0, -1.0]);
    assert_same(&scores(Net::Linear { weight: weight.clone(), bias: Some(vec![0.5, 1.0]) }), &[3.5, 0.0]);

    // One hidden unit: x_0 − x_1 + 2 = 1.
    let mlp = |activation, output_bias| Net::Mlp {
        input: vec![1.0, -1.0],
        input_bias: Some(vec![2.0]),
        activation,
        output: vec![1.0, 10.0],
        output_bias,
    };
    assert_same(&scores(mlp(Activation::Tanh, None)), &[1f64.tanh(), 10.0 * 1f64.tanh()]);
    let biased = scores(mlp(Activation::Gelu, Some(vec![0.0, 1.0])));
    assert_same(&biased, &[gelu(1.0), 10.0 * gelu(1.0) + 1.0]);

    // W·x = (3, −1); its cosine with (1, 0) is 3/√10, with (1, −3) 6/10.
    let cosine = Net::Cosine { input: weight, centroids: vec![1.0, 0.0, 1.0, -3.0], temperature: 2f64.ln() };
    assert_same(&scores(cosine), &[2.0 * 3.0 / 10f64.sqrt(), 1.2]);

    let by_norm =
        router(4, Net::QueryNorm).route(&[0.0, 1.0], 1, |token, expert| (10 * token + expert) as f64);
    assert_same(&by_norm.scores, &[0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
    assert_same(&[norm(&[3.0, -4.0])], &[5.0]);
}

#[test]
fn weights_of_the_kept() {
    // p = 0.1, 0.4, 0.3, 0.2, of which the second and third are kept.
    let scores = [1f64, 4.0, 3.0, 2.0].map(f64::ln);
    let weights = |weight: Weight| weight.of(&scores, &[1, 2]);
    assert_same(&weights(Weight::SoftmaxAll), &[0.4, 0.3]);
    assert_same(&weights(Weight::SoftmaxKept), &[4.0 / 7.0, 3.0 / 7.0]);
    assert_same(&weights(Weight::Renormalised { epsilon: 0.1, scale: 2.0 }), &[1.0, 0.75]);
    assert_same(&weights(Weight::Sigmoid), &[0.8, 0.75]);
    assert_same(&weights(Weight::Const(1.0)), &[1.0, 1.0]);
}

#[test]
fn renormalised_probabilities_are_the_softmax_of_the_kept() {
    let scores = noise(3, 40);
    let routes = |weight| {
        let router = Router { select: Select::TopK(3), weight, ..router(8, identity(8)) };
        route(&router, &scores, 8).routes
    };
    let renormalised = routes(Weight::Renormalised { epsilon: 0.0, scale: 1.0 });
    let kept = routes(Weight::SoftmaxKept);
    assert_eq!(renormalised.experts, kept.experts);
    assert_same(&renormalised.gates, &kept.gates);
}

#[test]
fn all_experts_come_in_their_order() {
    let router = Router { weight: Weight::SoftmaxAll, ..router(3, identity(3)) };
    let routes = route(&router, &[0.0, 3f64.ln(), 2f64.ln()], 3).routes;
    assert_eq!((routes.top_k, &routes.experts[..]), (3, &[0, 1, 2][..]));
    assert_same(&routes.gates, &[1.0 / 6.0, 0.5, 1.0 / 3.0]);
    assert_eq!(routes.margins, [f64::INFINITY]);
}

#[test]
fn shared_experts_come_first_and_are_not_scored() {
    // Experts 0 and 1 are shared; 2, 3, 4 score 1, 5, 5: a tie, which the lower wins.
    let router = Router {
        shared: 2,
        select: Select::TopK(1),
        weight: Weight::Const(0.5),
        net: Net::Linear { weight: vec![1.0, 5.0, 5.0], bias: None },
        ..router(5, Net::None)
    };
    let routing = route(&router, &[1.0], 1);
    assert_eq!((routing.scores.len(), &routing.routes.experts[..]), (3, &[0, 1, 3][..]));
    assert_same(&routing.routes.gates, &[1.0, 1.0, 0.5]);
    assert_eq!(routing.routes.margins, [0.0]);
}

#[test]
fn two_stages_share_out_the_number_of_heads() {
    let (width, experts, shared, kept) = (4, 7, 3, 2);
    let stages = |two_stage| Router {
        shared,
        net: Net::Linear { weight: noise(1, (experts - shared) * width), bias: None },
        select: Select::TopK(kept),
        weight: Weight::Renormalised { epsilon: 0.0, scale: kept as f64 },
        shared_weight: Some(noise(2, shared * width)),
        two_stage,
        ..router(experts, Net::None)
    };
    let x = noise(4, width);
    let one = route(&stages(None), &x, width).routes.gates;
    assert_same(&[one[..shared].iter().sum(), one[shared..].iter().sum()], &[3.0, 2.0]);

    let weight = noise(3, 2 * width);
    let alpha = softmax(&matvec(&weight, &x)).iter().map(|p| 2.0 * p).collect::<Vec<f64>>();
    let two = route(&stages(Some(weight)), &x, width).routes.gates;
    let expected = one.iter().enumerate().map(|(slot, g)| alpha[usize::from(slot >= shared)] * g);
    assert_same(&two, &expected.collect::<Vec<f64>>());
}

#[test]
fn each_group_keeps_its_own() {
    let router =
        Router { groups: 2, select: Select::TopK(2), weight: Weight::Sigmoid, ..router(6, identity(6)) };
    let scores = [0.0, 3.0, 1.0, 9.0, 7.5, 8.0];
    let routes = route(&router, &scores, 6).routes;
    assert_eq!(routes.experts, [1, 2, 3, 5]);
    assert_same(&routes.gates, &[3.0, 1.0, 9.0, 8.0].map(sigmoid));
    assert_same(&routes.margins, &[0.5]);
}
