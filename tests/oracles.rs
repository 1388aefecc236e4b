//! The f64 oracles are right: against values worked out by hand, published known answers, properties of the
//! formulas, and the outputs of the original implementations.

use headwise_reference as reference;

mod oracles {
    mod checkpoints;
    mod decoder_families;
    mod fill_and_fashion;
    mod head_families;
    mod head_mixture;
    mod losses;
    mod mixture_models;
    mod moa;
    mod router;
    mod selective_heads;
    mod trained_models;
    mod vit;
}

use reference::{
    combine::combine,
    embedding::embedding,
    group::{Tile, group, tile_table},
    jetmoe::{JetMoe, read_json, read_safetensors},
    max_difference,
    norm_router::{norm_router, top_k_softmax},
    rms_norm::rms_norm,
    rope_cache::{RopeCache, rope, rope_cache},
    routed_linear::{RoutedLinear, routed_linear},
    row_attention::{RowAttention, row_attention},
    sample::{Sampling, argmax, argmax_gap, distribution, inverse_cdf, philox4x32_10, sample, uniform},
    swiglu::swiglu,
};
use std::path::Path;

/// max |a − b| ≤ 1e-12.
#[track_caller]
fn assert_same(a: &[f64], b: &[f64]) {
    let difference = max_difference(a, b);
    assert!(difference <= 1e-12, "{difference:e}: {a:?} against {b:?}");
}

/// Reproducible values in (−1, 1), from the generator under test.
fn noise(seed: u64, count: usize) -> Vec<f64> {
    (0..count as u32).map(|i| 2.0 * uniform(seed, i, 0) - 1.0).collect()
}

#[test]
fn max_difference_lets_no_nan_pass() {
    assert_eq!(max_difference(&[1.0, 2.0], &[1.5, 2.0]), 0.5);
    assert_eq!(max_difference(&[f64::NAN], &[0.0]), f64::INFINITY);
    assert_eq!(max_difference(&[f64::INFINITY], &[f64::INFINITY]), 0.0);
}

#[test]
fn rms_norm_normalises_each_row() {
    let root = 12.5f64.sqrt();
    assert_same(&rms_norm(&[3.0, 4.0, -1.0, 1.0], &[1.0, 2.0], 0.0), &[3.0 / root, 8.0 / root, -1.0, 2.0]);
    assert_same(&rms_norm(&[1.0, 1.0], &[1.0, 1.0], 3.0), &[0.5, 0.5]);
    assert_same(&rms_norm(&[0.0, 0.0], &[1.0, 1.0], 1e-6), &[0.0, 0.0]);
}

#[test]
fn norm_router_scores_the_normed_rows() {
    let identity = [1.0, 0.0, 0.0, 1.0];
    let out = norm_router(&[3.0, 4.0], &[1.0, 2.0], 0.0, &identity, 1);
    let root = 12.5f64.sqrt();
    assert_same(&out.normed, &[3.0 / root, 8.0 / root]);
    assert_same(&out.scores, &out.normed);
    assert_eq!(out.routes.experts, [1]);
    assert_same(&out.routes.gates, &[1.0]);
    assert_same(&out.routes.margins, &[5.0 / root]);
}

#[test]
fn top_k_takes_the_lower_expert_of_a_tie() {
    let routes = top_k_softmax(&[1.0, 2.0, 2.0, 2.0, 5.0, 4.0, 4.0, 4.0], 4, 2);
    assert_eq!(routes.experts, [1, 2, 0, 1]);
    let e = 1f64.exp();
    assert_same(&routes.gates, &[0.5, 0.5, e / (e + 1.0), 1.0 / (e + 1.0)]);
    assert_eq!(routes.margins, [0.0, 0.0]);
    assert_eq!(top_k_softmax(&[0.0, -0.0], 2, 2).experts, [0, 1], "zeros of either sign are equal");
}

#[test]
fn top_k_of_all_experts_is_a_softmax() {
    let routes = top_k_softmax(&[0.0, 3f64.ln()], 2, 2);
    assert_eq!(routes.experts, [1, 0]);
    assert_same(&routes.gates, &[0.75, 0.25]);
    assert_eq!(routes.margins, [f64::INFINITY]);
}

#[test]
fn routes_compare_as_sets() {
    let routes = top_k_softmax(&[0.0, 3f64.ln(), -1.0, 1.0, 1.0, 1.0 - 1e-9], 3, 2);
    let same = routes.compare(&[0, 1, 2, 0], &[0.25, 0.75, 0.5, 0.5], 1e-6).unwrap();
    assert_eq!(same.skipped, 1, "the second token is a near-tie");
    assert!(same.gate_error < 1e-15);
    assert!(routes.compare(&[0, 1, 2, 0], &[0.25, 0.75, 0.5, 0.5], 1e-12).is_err());
    assert!(routes.compare(&[0, 2, 1, 0], &[0.25, 0.75, 0.5, 0.5], 1e-6).is_err());
    assert!(routes.compare(&[0, 1, 1, 0], &[f64::NAN, 0.75, 0.5, 0.5], 1e-6).is_err());
    let swapped = routes.compare(&[1, 0, 1, 0], &[0.25, 0.75, 0.5, 0.5], 1e-6).unwrap();
    assert!((swapped.gate_error - 0.5).abs() < 1e-15, "gates belong to their experts");
}

#[test]
fn group_sorts_stably() {
    let grouped = group(&[2, 0, 2, 4, 0, 2], 5);
    assert_eq!(grouped.counts, [2, 0, 3, 0, 1]);
    assert_eq!(grouped.offsets, [0, 2, 2, 5, 5, 6]);
    assert_eq!(grouped.order, [1, 4, 0, 2, 5, 3]);
    let tile = |expert, first, rows| Tile { expert, first, rows };
    assert_eq!(tile_table(&grouped, 2), [tile(0, 0, 2), tile(2, 2, 2), tile(2, 4, 1), tile(4, 5, 1)]);
    assert!(tile_table(&group(&[], 3), 4).is_empty());
}

#[test]
fn tiles_cover_every_assignment_once_within_the_bound() {
    for (experts, count, height) in [(1, 7, 4), (3, 1, 8), (5, 64, 8), (8, 200, 16), (64, 50, 4)] {
        let chosen: Vec<u32> = (0..count).map(|i| (uniform(9, i, 0) * f64::from(experts)) as u32).collect();
        let grouped = group(&chosen, experts as usize);
        let tiles = tile_table(&grouped, height);
        let covered: Vec<u32> = tiles.iter().flat_map(|t| t.first..t.first + t.rows).collect();
        assert_eq!(covered, (0..count).collect::<Vec<u32>>());
        assert!(tiles.len() as u32 <= count / height + experts.min(count));
        for tile in tiles {
            for place in tile.first..tile.first + tile.rows {
                assert_eq!(chosen[grouped.order[place as usize] as usize], tile.expert);
            }
        }
    }
}

#[test]
fn swiglu_gates_the_second_half() {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    assert_same(&swiglu(&[0.0, 2.0, 5.0, 3.0], 2), &[0.0, 3.0 * silu(2.0)]);
    assert_same(&swiglu(&[-1000.0, 1.0, 1000.0, 1.0], 1), &[0.0, 1000.0]);
}

#[test]
fn combine_sums_gated_slots() {
    let parts = [1.0, 2.0, 3.0, 4.0];
    assert_same(&combine(&parts, 2, 2, None, None, None), &[4.0, 6.0]);
    let y = combine(&parts, 2, 2, Some(&[10.0, 100.0]), Some(&[0.5, 0.25]), Some(&[7.0, 8.0]));
    assert_same(&y, &[317.5, 428.25]);
}

#[test]
fn routed_linear_fans_out_and_back() {
    // Expert 0 is the identity, expert 1 swaps and doubles.
    let weight = [1.0, 0.0, 0.0, 1.0, 0.0, 2.0, 2.0, 0.0];
    let out = RoutedLinear {
        weight: &weight,
        out_rows: 2,
        in_width: 2,
        experts: &[1, 0, 0, 1],
        gates: None,
        slots: 1,
        src: &[1.0, 2.0, 3.0, 4.0],
        src_div: 2,
        bias: None,
        residual: None,
        swiglu: false,
    };
    assert_same(&routed_linear(&out), &[4.0, 2.0, 1.0, 2.0, 3.0, 4.0, 8.0, 6.0]);

    let back = RoutedLinear {
        gates: Some(&[0.75, 0.25, 0.5, 0.5]),
        slots: 2,
        src: &[1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 4.0, 8.0],
        src_div: 1,
        bias: Some(&[100.0, 200.0]),
        residual: Some(&[0.5, 0.5, 0.0, 0.0]),
        ..out
    };
    assert_same(&routed_linear(&back), &[100.5, 202.25, 109.0, 205.0]);
}

#[test]
fn routed_linear_with_swiglu_gates_after_the_activation() {
    let weight = [1.0, 3.0]; // one expert, F = 1: g = x, u = 3x
    let op = RoutedLinear {
        weight: &weight,
        out_rows: 2,
        in_width: 1,
        experts: &[0, 0],
        gates: Some(&[0.5, 1.0]),
        slots: 1,
        src: &[2.0, -1.0],
        src_div: 1,
        bias: None,
        residual: None,
        swiglu: true,
    };
    let silu = |x: f64| x / (1.0 + (-x).exp());
    assert_same(&routed_linear(&op), &[0.5 * silu(2.0) * 6.0, silu(-1.0) * -3.0]);
}

#[test]
fn embedding_gathers_rows() {
    assert_same(&embedding(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, &[2, 0, 2]), &[5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
}

#[test]
fn rope_turns_pairs_half_a_head_apart() {
    let mut head = [1.0, 0.0, 0.0, 1.0];
    rope(&mut head, 3, 10000.0);
    // Pair 0 (channels 0 and 2) turns by 3, pair 1 (channels 1 and 3) by 3/100.
    assert_same(&head, &[3f64.cos(), -0.03f64.sin(), 3f64.sin(), 0.03f64.cos()]);
    let mut still = [1.0, 2.0, 3.0, 4.0];
    rope(&mut still, 0, 10000.0);
    assert_same(&still, &[1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn rope_products_depend_on_the_distance_only() {
    let (q, k) = (noise(1, 8), noise(2, 8));
    let product = |q_position, k_position| {
        let (mut q, mut k) = (q.clone(), k.clone());
        rope(&mut q, q_position, 10000.0);
        rope(&mut k, k_position, 10000.0);
        reference::dot(&q, &k)
    };
    assert_same(&[product(9, 4)], &[product(105, 100)]);
}

#[test]
fn rope_cache_appends_at_each_tokens_place() {
    let op = RopeCache {
        q_heads: 2,
        kv_heads: 1,
        head_dim: 2,
        theta: 10000.0,
        capacity: 3,
        positions: &[2, 0],
        sequences: &[0, 1],
    };
    let mut q = [1.0, 0.0, 0.0, 1.0, 5.0, 6.0, 7.0, 8.0];
    let kv = [1.0, 0.0, 10.0, 20.0, 3.0, 4.0, 30.0, 40.0];
    let (mut keys, mut values) = (vec![-1.0; 12], vec![-1.0; 12]);
    rope_cache(&op, &mut q, &kv, &mut keys, &mut values);
    let (sin, cos) = 2f64.sin_cos();
    assert_same(&q, &[cos, sin, -sin, cos, 5.0, 6.0, 7.0, 8.0]);
    assert_same(&keys, &[-1.0, -1.0, -1.0, -1.0, cos, sin, 3.0, 4.0, -1.0, -1.0, -1.0, -1.0]);
    assert_same(&values, &[-1.0, -1.0, -1.0, -1.0, 10.0, 20.0, 30.0, 40.0, -1.0, -1.0, -1.0, -1.0]);
}

#[test]
fn row_attention_weighs_the_keys_it_may_see() {
    // d = 1, so scores are q·K: 0 and ln 3 for q = 1, and NaN waits beyond the position.
    let op = RowAttention {
        heads: 1,
        kv_heads: 1,
        group: 1,
        head_dim: 1,
        capacity: 3,
        positions: &[1, 0],
        sequences: &[0, 1],
    };
    let keys = [0.0, 3f64.ln(), f64::NAN, 9.0, f64::NAN, f64::NAN];
    let values = [4.0, 8.0, f64::NAN, 5.0, f64::NAN, f64::NAN];
    assert_same(&row_attention(&op, &[1.0, 1.0], &keys, &values), &[7.0, 5.0]);
}

#[test]
fn row_attention_scales_by_the_root_of_the_head_width() {
    let op = RowAttention {
        heads: 1,
        kv_heads: 1,
        group: 1,
        head_dim: 4,
        capacity: 2,
        positions: &[1],
        sequences: &[0],
    };
    let keys = [0.0, 0.0, 0.0, 0.0, 3f64.ln(), 0.0, 0.0, 0.0];
    let values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
    assert_same(&row_attention(&op, &[2.0, 0.0, 0.0, 0.0], &keys, &values), &[3.0, 4.0, 5.0, 6.0]);
}

#[test]
fn row_attention_maps_query_heads_to_kv_heads() {
    let kv_heads_of = |heads, kv_heads, group| {
        let op = RowAttention {
            heads,
            kv_heads,
            group,
            head_dim: 1,
            capacity: 1,
            positions: &[0],
            sequences: &[0],
        };
        let values: Vec<f64> = (0..kv_heads).map(|head| head as f64).collect();
        row_attention(&op, &vec![1.0; heads], &values, &values)
    };
    assert_same(&kv_heads_of(6, 3, 1), &[0.0, 1.0, 2.0, 0.0, 1.0, 2.0]);
    assert_same(&kv_heads_of(6, 3, 2), &[0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
    assert_same(&kv_heads_of(8, 2, 2), &[0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
}

#[test]
fn philox_gives_the_known_answers() {
    // From Random123's file of known answers.
    assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
    assert_eq!(
        philox4x32_10([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
        [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
    );
}

#[test]
fn uniform_takes_the_first_words_upper_24_bits() {
    assert_eq!(uniform(0, 0, 0), f64::from(0x6627e8) / 16777216.0);
    let word = philox4x32_10([7, 3, 0, 0], [0x89abcdef, 0x01234567])[0];
    assert_eq!(uniform(0x0123456789abcdef, 7, 3), f64::from(word >> 8) / 16777216.0);
}

#[test]
fn argmax_takes_the_lower_of_a_tie() {
    assert_eq!(argmax(&[1.0, 5.0, 5.0, 2.0]), 1);
    assert_eq!(argmax(&[-3.0]), 0);
    assert_eq!(argmax_gap(&[1.0, 5.0, 4.5]), 0.5);
    assert_eq!(argmax_gap(&[5.0, 5.0]), 0.0);
    assert_eq!(argmax_gap(&[5.0]), f64::INFINITY);
}

/// Logits whose softmax is 0.1, 0.4, 0.2, 0.2, 0.1.
fn five_tokens() -> Vec<f64> {
    [1.0f64, 4.0, 2.0, 2.0, 1.0].map(f64::ln).to_vec()
}

#[test]
fn top_k_sampling_keeps_ties_at_the_cut() {
    let keep = |k| distribution(&five_tokens(), &Sampling { temperature: 1.0, top_k: Some(k), top_p: None });
    assert_same(&keep(1).probabilities, &[0.0, 1.0, 0.0, 0.0, 0.0]);
    assert_same(&keep(2).probabilities, &[0.0, 0.5, 0.25, 0.25, 0.0]);
    assert_same(&keep(3).probabilities, &keep(2).probabilities);
    assert_same(&[keep(2).top_k_gap], &[2f64.ln()]);
    assert_eq!(keep(2).kept, [false, true, true, true, false]);
    assert_same(&keep(9).probabilities, &[0.1, 0.4, 0.2, 0.2, 0.1]);
    assert_eq!(keep(5).top_k_gap, f64::INFINITY);
    assert_eq!(keep(5).top_p_gap, f64::INFINITY);
}

#[test]
fn top_p_keeps_the_largest_logits_that_hold_the_mass() {
    let keep = |p| distribution(&five_tokens(), &Sampling { temperature: 1.0, top_k: None, top_p: Some(p) });
    assert_same(&keep(0.3).probabilities, &[0.0, 1.0, 0.0, 0.0, 0.0]);
    assert_same(&[keep(0.3).top_p_gap], &[0.1]); // nothing lies above, so only 0.4 − 0.3 counts
    assert_same(&keep(0.45).probabilities, &[0.0, 0.5, 0.25, 0.25, 0.0]);
    assert_same(&[keep(0.45).top_p_gap], &[0.05]); // 0.45 − 0.4
    assert_same(&[keep(0.75).top_p_gap], &[0.05]); // 0.8 − 0.75
    assert_same(&keep(0.85).probabilities, &[0.1, 0.4, 0.2, 0.2, 0.1]);
    assert_same(&keep(1.0).probabilities, &[0.1, 0.4, 0.2, 0.2, 0.1]);
    assert_eq!(keep(0.0).kept, [false, true, false, false, false]);
    assert_eq!(keep(1.0).top_p_gap, f64::INFINITY);
}

#[test]
fn top_p_counts_mass_inside_the_top_k() {
    // Of the whole the first token holds 0.4, too little; of the top three it holds 0.5.
    let both = Sampling { temperature: 1.0, top_k: Some(2), top_p: Some(0.45) };
    assert_same(&distribution(&five_tokens(), &both).probabilities, &[0.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn temperature_sharpens_before_top_p() {
    let logits = [0.0, 2f64.ln()];
    let at = |temperature, p| distribution(&logits, &Sampling { temperature, top_k: None, top_p: Some(p) });
    assert_same(&at(0.5, 1.0).probabilities, &[0.2, 0.8]);
    assert_same(&at(0.5, 0.75).probabilities, &[0.0, 1.0]);
    assert_same(&at(1.0, 0.75).probabilities, &[1.0 / 3.0, 2.0 / 3.0]);
}

#[test]
fn the_inverse_cdf_runs_in_index_order() {
    let p = [0.0, 0.25, 0.0, 0.5, 0.25, 0.0];
    let (none, half) = (f64::INFINITY, 0.25);
    assert_eq!(inverse_cdf(&p, 0.0), (1, half), "the end 0 is no boundary");
    assert_eq!(inverse_cdf(&p, 0.125), (1, 0.125));
    assert_eq!(inverse_cdf(&p, 0.25), (3, 0.0), "an interval holds its lower end");
    assert_eq!(inverse_cdf(&p, 0.5), (3, 0.25));
    assert_eq!(inverse_cdf(&p, 0.875), (4, 0.125));
    assert_eq!(inverse_cdf(&[0.0, 1.0, 0.0], 0.999), (1, none));
}

#[test]
fn samples_follow_the_distribution() {
    let logits = five_tokens();
    let sampling = Sampling { temperature: 1.0, top_k: None, top_p: None };
    let draws = 20_000;
    let mut counts = [0.0; 5];
    for position in 0..draws {
        let drawn = sample(&logits, &sampling, 42, position, 1);
        assert!(drawn.gap() <= drawn.boundary_gap && (0.0..1.0).contains(&drawn.u));
        counts[drawn.token as usize] += 1.0;
    }
    let probabilities = distribution(&logits, &sampling).probabilities;
    let term = |(count, p): (&f64, &f64)| (count - p * f64::from(draws)).powi(2) / (p * f64::from(draws));
    let chi_square: f64 = counts.iter().zip(&probabilities).map(term).sum();
    assert!(chi_square < 18.5, "χ² = {chi_square}, above 18.5 once in a thousand");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A JSON array, however nested, as flat numbers.
fn numbers(value: &serde_json::Value) -> Vec<f64> {
    match value.as_array() {
        Some(items) => items.iter().flat_map(numbers).collect(),
        None => vec![value.as_f64().expect("a number")],
    }
}

fn ids(values: &[f64]) -> Vec<u32> {
    values.iter().map(|&id| id as u32).collect()
}

#[test]
fn jetmoe_agrees_with_the_original_on_the_tiny_model() {
    let folder = root().join("tests/fixtures/jetmoe_tiny");
    let expected = read_json(&folder.join("expected.json"));
    let prompt = ids(&numbers(&expected["ids"]));
    let model = JetMoe::load(&folder);
    let whole = model.forward(&mut model.cache(prompt.len()), &prompt);

    let difference = max_difference(&whole.logits, &numbers(&expected["logits"]));
    assert!(difference <= 2e-5, "logits differ by {difference:e}");
    for (layer, routes) in whole.routes.iter().enumerate() {
        let experts = ids(&numbers(&expected["attn_route_idx"][layer]));
        let gates = numbers(&expected["attn_route_gate"][layer]);
        let found = routes.attention.compare(&experts, &gates, 0.0).unwrap();
        assert!(found.gate_error <= 1e-6, "layer {layer}: gates differ by {:e}", found.gate_error);
    }

    let mut cache = model.cache(prompt.len());
    let steps: Vec<f64> = prompt.iter().flat_map(|&id| model.forward(&mut cache, &[id]).logits).collect();
    assert_same(&steps, &whole.logits);
}

#[test]
fn jetmoe_agrees_with_the_original_on_the_prose_model() {
    let folder = root().join("models/prose");
    let reference = read_safetensors(&folder.join("reference.safetensors"));
    let model = JetMoe::load(&folder);
    for prompt in 0..7 {
        let prompt_ids = ids(&reference[&format!("{prompt}.ids")]);
        let output = model.forward(&mut model.cache(prompt_ids.len()), &prompt_ids);
        // The reference has the logits of some prompts, the routes of all.
        if [0, 3].contains(&prompt) {
            let difference = max_difference(&output.logits, &reference[&format!("{prompt}.logits")]);
            assert!(difference <= 1e-4, "prompt {prompt}: logits differ by {difference:e}");
        }
        for (layer, routes) in output.routes.iter().enumerate() {
            for (part, routes) in [("attention", &routes.attention), ("mlp", &routes.mlp)] {
                let name = format!("{prompt}.layers.{layer}.{part}");
                let experts = ids(&reference[&format!("{name}.experts")]);
                let found = routes.compare(&experts, &reference[&format!("{name}.gates")], 0.0).unwrap();
                assert!(found.gate_error <= 1e-6, "{name}: gates differ by {:e}", found.gate_error);
            }
        }
    }
}

#[test]
fn jetmoe_continues_a_prompt_as_the_original_does() {
    let folder = root().join("models/prose");
    let reference = read_safetensors(&folder.join("reference.safetensors"));
    let report = read_json(&folder.join("reference.json"));
    let model = JetMoe::load(&folder);
    for prompt in [0, 6] {
        let expected = ids(&reference[&format!("{prompt}.greedy")]);
        let (continuation, gap) = model.greedy(&ids(&reference[&format!("{prompt}.ids")]), expected.len());
        assert_eq!(continuation, expected, "prompt {prompt}");
        let expected_gap = report["prompts"][prompt]["smallest_top2_margin"].as_f64().unwrap();
        assert!((gap - expected_gap).abs() < 1e-4, "prompt {prompt}: gap {gap}, expected {expected_gap}");
    }
}
