//! The head-mixture layer: identities between its choices, and plain formulas of some of them.

use crate::{
    assert_same, noise,
    reference::{
        dot,
        head_mixture::{
            HeadMixture, Input, Kernel, KeysValues, Positions, split_columns, stick_breaking, transpose_each,
        },
        jetmoe::linear,
        matvec, max_difference,
        router::{Net, Router, Select, Weight},
        row_attention::{RowAttention, row_attention},
    },
};

pub const WIDTH: usize = 6;
pub const TOKENS: usize = 5;

/// Two sequences.
pub fn x() -> Vec<f64> {
    noise(100, 2 * TOKENS * WIDTH)
}

pub fn run(layer: &HeadMixture, x: &[f64]) -> Vec<f64> {
    layer.forward(&Input { batch: 2, x, ..Input::default() }).y
}

/// E experts of m heads of 4 channels over C key heads, all on with gate 1, bidirectional.
pub fn dense(seed: u64, experts: usize, heads: usize, kv_heads: usize, group: usize) -> HeadMixture {
    let (d, inner) = (4, experts * heads * 4);
    HeadMixture {
        width: WIDTH,
        heads,
        head_dim: d,
        kv_heads,
        group,
        query_share: 1,
        router: Router {
            experts,
            shared: 0,
            groups: 1,
            net: Net::None,
            select: Select::All,
            weight: Weight::Const(1.0),
            shared_weight: None,
            two_stage: None,
        },
        query: noise(seed, inner * WIDTH),
        query_bias: None,
        kv: KeysValues::Projected {
            keys: noise(seed + 1, kv_heads * d * WIDTH),
            key_bias: None,
            values: noise(seed + 2, kv_heads * d * WIDTH),
            value_bias: None,
        },
        positions: Positions::None,
        kernel: Kernel::Softmax,
        causal: false,
        padding_gates_zero: false,
        output: noise(seed + 3, inner * WIDTH),
        output_bias: None,
    }
}

/// The same with a linear router that keeps k.
fn routed(seed: u64, experts: usize, heads: usize, kv_heads: usize, top_k: usize) -> HeadMixture {
    let mut layer = dense(seed, experts, heads, kv_heads, 1);
    layer.router.net = Net::Linear { weight: noise(seed + 4, experts * WIDTH), bias: None };
    layer.router.select = Select::TopK(top_k);
    layer.router.weight = Weight::SoftmaxKept;
    layer
}

#[test]
fn stacks_are_turned_and_cut() {
    let stack = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0];
    let turned = [1.0, 4.0, 2.0, 5.0, 3.0, 6.0, 7.0, 10.0, 8.0, 11.0, 9.0, 12.0];
    assert_same(&transpose_each(&stack, 2, 3), &turned);
    assert_same(&transpose_each(&turned, 3, 2), &stack);
    let cut = [1.0, 2.0, 5.0, 6.0, 9.0, 10.0, 3.0, 4.0, 7.0, 8.0, 11.0, 12.0];
    assert_same(&split_columns(&stack, 4, 2), &cut);
}

#[test]
fn every_head_on_with_gate_1_is_dense_attention() {
    let (heads, d, kv_heads) = (4, 4, 2);
    let whole = noise(7, WIDTH * heads * d); // Wo [D, H·d]
    let layer = HeadMixture {
        causal: true,
        output: split_columns(&whole, heads * d, heads),
        output_bias: Some(vec![0.5; WIDTH]),
        ..dense(1, heads, 1, kv_heads, heads / kv_heads)
    };
    let KeysValues::Projected { keys, values, .. } = &layer.kv else { unreachable!() };
    let x = x();
    let positions: Vec<u32> = (0..2).flat_map(|_| 0..TOKENS as u32).collect();
    let sequences: Vec<u32> = (0..2).flat_map(|sequence| [sequence; TOKENS]).collect();
    let rows = RowAttention {
        heads,
        kv_heads,
        group: heads / kv_heads,
        head_dim: d,
        capacity: TOKENS,
        positions: &positions,
        sequences: &sequences,
    };
    let project = |weight: &[f64]| linear(weight, WIDTH, &x);
    let o = row_attention(&rows, &project(&layer.query), &project(keys), &project(values));
    let expected: Vec<f64> = linear(&whole, heads * d, &o).iter().map(|y| y + 0.5).collect();
    assert_same(&run(&layer, &x), &expected);

    let mut shared = layer.clone();
    shared.router.shared = heads;
    assert_same(&run(&shared, &x), &expected);
    let mut ranked = layer.clone();
    ranked.router.net = Net::QueryNorm;
    ranked.router.select = Select::TopK(heads);
    assert_same(&run(&ranked, &x), &expected);
}

#[test]
fn all_experts_under_a_uniform_router_are_their_mean() {
    let mut layer = dense(20, 3, 2, 2, 1);
    layer.router.select = Select::TopK(3);
    let all = run(&layer, &x());
    for weight in [Weight::SoftmaxAll, Weight::SoftmaxKept, Weight::Renormalised { epsilon: 0.0, scale: 1.0 }]
    {
        layer.router.weight = weight;
        let third: Vec<f64> = all.iter().map(|y| y / 3.0).collect();
        assert_same(&run(&layer, &x()), &third);
    }
    layer.router.weight = Weight::Sigmoid;
    assert_same(&run(&layer, &x()), &all.iter().map(|y| y / 2.0).collect::<Vec<f64>>());
}

#[test]
fn stick_breaking_is_the_product_of_what_newer_keys_leave() {
    let z: Vec<f64> = noise(5, 9).iter().map(|z| 4.0 * z).collect();
    let beta: Vec<f64> = z.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect();
    let rest = |from: usize| beta[from..].iter().map(|beta| 1.0 - beta).product::<f64>();
    let direct: Vec<f64> = (0..9).map(|i| beta[i] * rest(i + 1)).collect();
    assert_same(&stick_breaking(&z), &direct);
    assert_same(&[stick_breaking(&z).iter().sum::<f64>() + rest(0)], &[1.0]);
    assert_same(&stick_breaking(&[3.0, 900.0, -900.0]), &[0.0, 1.0, 0.0]);
    assert!(stick_breaking(&[]).is_empty());
}

#[test]
fn one_stick_breaking_expert_over_identity_keys() {
    let mut layer = dense(30, 1, 1, 1, 1);
    layer.head_dim = WIDTH;
    layer.kv = KeysValues::Identity;
    layer.kernel = Kernel::StickBreaking;
    layer.causal = true;
    layer.query = noise(31, WIDTH * WIDTH);
    layer.output = noise(32, WIDTH * WIDTH);

    let x = x();
    let mut expected = Vec::new();
    for sequence in x.chunks_exact(TOKENS * WIDTH) {
        let row = |t: usize| &sequence[t * WIDTH..][..WIDTH];
        for t in 0..TOKENS {
            let q = matvec(&layer.query, row(t));
            let beta = |i: usize| 1.0 / (1.0 + (-dot(&q, row(i)) / (WIDTH as f64).sqrt()).exp());
            let mut o = vec![0.0; WIDTH];
            for i in 0..=t {
                let weight = beta(i) * (i + 1..=t).map(|l| 1.0 - beta(l)).product::<f64>();
                o.iter_mut().zip(row(i)).for_each(|(o, v)| *o += weight * v);
            }
            expected.extend(matvec(&layer.output, &o));
        }
    }
    assert_same(&run(&layer, &x), &expected);
}

#[test]
fn padding_is_as_if_it_were_not_there() {
    let layer = HeadMixture { output_bias: Some(noise(44, WIDTH)), ..routed(40, 5, 2, 2, 2) };
    let x = x();
    let short = &x[..3 * WIDTH];
    for kernel in [Kernel::Softmax, Kernel::StickBreaking] {
        let layer = HeadMixture { kernel, ..layer.clone() };
        let alone = layer.forward(&Input { batch: 1, x: short, ..Input::default() }).y;
        for padded in [[false, false, false, true, true], [true, true, false, false, false]] {
            let first = padded.iter().position(|padding| !padding).unwrap();
            let mut sequence = vec![9.0; TOKENS * WIDTH];
            sequence[first * WIDTH..][..3 * WIDTH].copy_from_slice(short);
            let padding = Some(&padded[..]);
            let y = layer.forward(&Input { batch: 1, x: &sequence, padding, ..Input::default() }).y;
            assert_same(&y[first * WIDTH..][..3 * WIDTH], &alone);
        }
    }

    let layer = HeadMixture { padding_gates_zero: true, ..layer };
    let padding = [false, true, false, false, false, false, false, false, true, false];
    let output = layer.forward(&Input { batch: 2, x: &x, padding: Some(&padding), ..Input::default() });
    assert_same(&output.y[WIDTH..2 * WIDTH], layer.output_bias.as_ref().unwrap());
    assert_eq!(output.routing.routes.gates[2..4], [0.0, 0.0]);
    assert_eq!(output.routing.routes.margins[8], 0.0);
}

#[test]
fn cross_attention_routes_the_query_and_reads_the_memory() {
    let layer = routed(50, 4, 1, 1, 2);
    let x = x();
    let own = run(&layer, &x);
    let crossed = layer.forward(&Input { batch: 2, x: &x, memory: Some(&x), ..Input::default() });
    assert_same(&crossed.y, &own);

    // A longer memory whose tail is padding, and one query each.
    let memory = noise(55, 2 * 7 * WIDTH);
    let hidden: Vec<bool> = (0..14).map(|i| i % 7 >= 4).collect();
    let cut: Vec<f64> = memory.chunks_exact(7 * WIDTH).flat_map(|m| &m[..4 * WIDTH]).copied().collect();
    let query = &x[..2 * WIDTH];
    let padded = Input {
        batch: 2,
        x: query,
        memory: Some(&memory),
        memory_padding: Some(&hidden),
        ..Input::default()
    };
    let short = Input { batch: 2, x: query, memory: Some(&cut), ..Input::default() };
    assert_same(&layer.forward(&padded).y, &layer.forward(&short).y);
}

#[test]
fn a_prefix_does_not_see_its_future() {
    let mut layer = routed(60, 4, 2, 2, 2);
    layer.causal = true;
    layer.positions = Positions::Rope { theta: 10000.0, fraction: 0.5 };
    let x = x();
    let whole = run(&layer, &x);
    let prefix = layer.forward(&Input { batch: 1, x: &x[..3 * WIDTH], ..Input::default() }).y;
    assert_same(&whole[..3 * WIDTH], &prefix);
}

#[test]
fn part_of_a_head_turns() {
    let mut layer = dense(70, 2, 1, 2, 1);
    layer.positions = Positions::Rope { theta: 100.0, fraction: 0.5 };
    let still = HeadMixture { positions: Positions::None, ..layer.clone() };
    let x = x();
    assert!(max_difference(&run(&layer, &x), &run(&still, &x)) > 1e-3);

    // Nothing turns where the first half of every key is 0.
    let without_first_half = |layer: &HeadMixture| {
        let mut layer = layer.clone();
        let KeysValues::Projected { keys, .. } = &mut layer.kv else { unreachable!() };
        for head in keys.chunks_exact_mut(4 * WIDTH) {
            head[..2 * WIDTH].fill(0.0);
        }
        run(&layer, &x)
    };
    assert_same(&without_first_half(&layer), &without_first_half(&still));
}

#[test]
fn learned_positions_add_to_the_scores() {
    // One head of one channel, q = 1 and K = 0, so that a score is the table's entry: ln 2 one place back, ln
    // 5 two or more back, 0 ahead.
    let mut layer = dense(80, 1, 1, 1, 1);
    layer.width = 1;
    layer.head_dim = 1;
    layer.query = vec![0.0];
    layer.query_bias = Some(vec![1.0]);
    layer.kv = KeysValues::Projected { keys: vec![0.0], key_bias: None, values: vec![1.0], value_bias: None };
    layer.output = vec![1.0];
    // 7 entries: distances −3 … 3, of which −2 … 2 are told apart.
    let table = vec![f64::NAN, 5f64.ln(), 2f64.ln(), 0.0, 0.0, 0.0, f64::NAN];
    layer.positions = Positions::Relative { clip: 2, entries: 7, table };
    let x = [1.0, 10.0, 100.0, 1000.0];
    let y = |layer: &HeadMixture| layer.forward(&Input { batch: 1, x: &x, ..Input::default() }).y;
    let bidirectional =
        [1111.0 / 4.0, 1112.0 / 5.0, (5.0 + 20.0 + 1100.0) / 9.0, (5.0 + 50.0 + 200.0 + 1000.0) / 13.0];
    assert_same(&y(&layer), &bidirectional);
    layer.causal = true;
    assert_same(&y(&layer), &[1.0, 12.0 / 3.0, 125.0 / 8.0, 1255.0 / 13.0]);
}
