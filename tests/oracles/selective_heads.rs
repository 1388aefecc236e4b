//! UoE's selective heads.

use crate::{
    assert_same, noise,
    reference::{
        head_mixture::{HeadMixture, Input},
        max_difference,
        moh_llama::{Heads, attention},
        selective_heads::SelectiveHeads,
    },
};

const WIDTH: usize = 6;
const HEADS: usize = 4;

/// Four heads of 4 channels, causal and rotary, each with its own output bias.
fn layer(top_k: usize) -> SelectiveHeads {
    let head = |h: u64| {
        let matrices = [0, 1, 2, 3].map(|part| noise(10 * h + part, 4 * WIDTH));
        let layer = attention(Heads { all: 1, shared: 1, routed: 0 }, 4, 10000.0, matrices);
        HeadMixture { output_bias: Some(noise(10 * h + 4, WIDTH)), ..layer }
    };
    SelectiveHeads {
        width: WIDTH,
        gate: noise(90, HEADS * WIDTH),
        gate_bias: noise(91, HEADS),
        top_k,
        capacity: 1.0,
        epsilon: 1e-8,
        limit: None,
        heads: (0..HEADS as u64).map(head).collect(),
    }
}

#[test]
fn every_head_selected_is_dense_attention() {
    let (layer, x) = (layer(HEADS), noise(1, 2 * 5 * WIDTH));
    let output = layer.forward(2, &x);
    assert!(output.places.iter().all(|places| *places == [0, 1, 2, 3, 4]));
    let mut expected = vec![0.0; x.len()];
    for head in &layer.heads {
        let y = head.forward(&Input { batch: 2, x: &x, ..Input::default() }).y;
        expected.iter_mut().zip(y).for_each(|(sum, y)| *sum += y);
    }
    assert_same(&output.y, &expected);
}

#[test]
fn every_head_takes_as_many_tokens_as_the_busiest() {
    // One channel, and heads 0 and 1 wanted by positive, 2 and 3 by negative tokens.
    let mut layer = layer(2);
    layer.gate = vec![0.0; HEADS * WIDTH];
    for (head, sign) in [1.0, 1.0, -1.0, -1.0].into_iter().enumerate() {
        layer.gate[head * WIDTH] = sign;
    }
    layer.gate_bias = vec![0.0; HEADS];
    let tokens = [1.0, -1.0, 2.0, 3.0, -2.0];
    let x: Vec<f64> = tokens.iter().flat_map(|&first| [first, 0.1, 0.2, 0.3, 0.4, 0.5]).collect();
    let output = layer.forward(1, &x);
    // Heads 0 and 1 are wanted three times; 2 and 3 twice, so they take the first unwanted token too.
    let [positive, negative] = [vec![0, 2, 3], vec![0, 1, 4]];
    assert_eq!(output.places, [positive.clone(), positive, negative.clone(), negative]);

    // A cut at two: the highest scores, back in their order.
    layer.epsilon = 1.0; // so that a lone sequence's scores differ
    layer.limit = Some(0.4);
    let [positive, negative] = [vec![2, 3], vec![1, 4]];
    assert_eq!(layer.forward(1, &x).places, [positive.clone(), positive, negative.clone(), negative]);
}

#[test]
fn a_head_sees_its_own_tokens_alone() {
    let (layer, x) = (layer(2), noise(2, 8 * WIDTH));
    let output = layer.forward(1, &x);
    let longest = output.places[0].len();
    assert!((4..8).contains(&longest) && output.places.iter().all(|places| places.len() == longest));
    let mut expected = vec![0.0; x.len()];
    for (head, places) in layer.heads.iter().zip(&output.places) {
        let own: Vec<f64> = places.iter().flat_map(|t| x[t * WIDTH..][..WIDTH].to_vec()).collect();
        let y = head.forward(&Input { batch: 1, x: &own, ..Input::default() }).y;
        for (i, t) in places.iter().enumerate() {
            expected[t * WIDTH..][..WIDTH].iter_mut().zip(&y[i * WIDTH..]).for_each(|(sum, y)| *sum += y);
        }
    }
    assert_same(&output.y, &expected);
}

#[test]
fn scores_share_out_the_batch() {
    let (tokens, x) = (12, noise(3, 2 * 12 * WIDTH));
    let scores = layer(2).forward(2, &x).scores;
    let (first, second) = scores.split_at(tokens * HEADS);
    for (a, b) in first.iter().zip(second) {
        // Both sequences together have the batch's size at each place of each head, unless neither kept it.
        assert!((a + b - 2.0).abs() < 1e-5 || a + b == 0.0, "{a} and {b}");
    }
    assert!(first.iter().any(|v| *v > 0.1 && *v < 1.9), "some are shared");
}

#[test]
fn the_rest_of_the_batch_changes_the_result() {
    let (layer, x) = (layer(2), noise(2, 8 * WIDTH));
    let alone = layer.forward(1, &x).y;
    let neighbour = x[..WIDTH].repeat(8); // one token over and over, so that two heads take it all
    let together = layer.forward(2, &[x.clone(), neighbour].concat()).y;
    assert!(max_difference(&alone, &together[..x.len()]) > 1e-3, "why it has no next-token form");
}
