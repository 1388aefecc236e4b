//! Which expert gets which row: `norm_router`, `select`, `group_count`, `group_scan`, `group_scatter`, `combine`.

use std::cell::Cell;

use headwise::internal::{
    Combine, ExpertChoice, Gpu, Group, GroupBuffers, KernelChoice, MAX_EXPERTS, NormRouter, Routes, Select,
    Weighting,
};
use proptest::prelude::*;

use crate::{
    reference::{
        combine::combine,
        group::{Tile, group, tile_table},
        norm_router::{NormRouter as Expected, Routes as ExpectedRoutes, norm_router, top_k_softmax},
        router, widen,
    },
    support::{
        Guarded, among, assert_close, assert_repeatable, check, gpu, hash, noise, pad, read, run, size,
        upload,
    },
};

fn device() -> &'static Gpu {
    gpu(KernelChoice::Plain)
}

/// Scores closer than this may be ordered either way.
const MIN_MARGIN: f64 = 1e-5;

#[derive(Clone, Copy, Debug)]
struct Router {
    tokens: u32,
    width: u32,
    choice: ExpertChoice,
    eps: f32,
    first: u32,
    seed: u64,
}

/// JetMoE's choice.
fn best(experts: u32, top_k: u32) -> ExpertChoice {
    ExpertChoice { experts, shared: 0, top_k, weighting: Weighting::SoftmaxTopK }
}

/// The routes that a choice makes of scores `[tokens, experts]`.
fn routes_of(choice: &ExpertChoice, scores: &[f64]) -> ExpectedRoutes {
    let weight = match choice.weighting {
        Weighting::SoftmaxTopK => router::Weight::SoftmaxKept,
        Weighting::SoftmaxAll => router::Weight::SoftmaxAll,
        Weighting::SoftmaxAllRenormalised { eps } => {
            router::Weight::Renormalised { epsilon: f64::from(eps), scale: 1.0 }
        }
        Weighting::Sigmoid => router::Weight::Sigmoid,
        Weighting::Binary => router::Weight::Const(1.0),
    };
    let mut routes = ExpectedRoutes { top_k: choice.slots() as usize, ..ExpectedRoutes::default() };
    for scores in scores.chunks_exact(choice.experts as usize) {
        let routed = &scores[choice.shared as usize..];
        let (kept, margin) = router::Select::TopK(choice.top_k as usize).of(routed);
        routes.experts.extend((0..choice.shared).chain(kept.iter().map(|&e| choice.shared + e as u32)));
        routes.gates.extend(vec![1.0; choice.shared as usize]);
        routes.gates.extend(weight.of(routed, &kept));
        routes.margins.push(margin);
    }
    routes
}

impl Router {
    fn operands(&self) -> [Vec<f64>; 3] {
        [
            noise(self.seed, (self.tokens * self.width) as usize),
            noise(self.seed + 1, self.width as usize),
            noise(self.seed + 2, (self.choice.experts * self.width) as usize),
        ]
    }

    fn oracle(&self, [x, norm_weight, router]: &[Vec<f64>; 3]) -> Expected {
        let top_k = self.choice.top_k as usize;
        let expected = norm_router(x, norm_weight, f64::from(self.eps), router, top_k);
        let routes = routes_of(&self.choice, &expected.scores);
        if self.choice == best(self.choice.experts, self.choice.top_k) {
            assert_eq!(routes, expected.routes, "the two oracles");
        }
        Expected { routes, ..expected }
    }

    /// xn, chosen, gates.
    fn run(&self, operands: &[Vec<f64>; 3]) -> (Vec<f64>, Vec<u32>, Vec<f64>) {
        let gpu = device();
        let [x, norm_weight, router] = &operands.each_ref().map(|rows| upload(gpu, rows, self.width));
        let assignments = (self.tokens * self.choice.slots()) as usize;
        let xn = Guarded::rows(gpu, self.tokens as usize, self.width);
        let chosen = Guarded::new(gpu, self.first as usize, assignments);
        let gates = Guarded::new(gpu, self.first as usize, assignments);
        run(gpu, |recorder| {
            NormRouter {
                x,
                norm_weight,
                router,
                xn: &xn.buffer,
                routes: Routes { chosen: &chosen.buffer, gates: &gates.buffer, first: self.first },
                tokens: self.tokens,
                width: self.width,
                choice: self.choice,
                eps: self.eps,
            }
            .record(recorder);
        });
        (xn.read_rows(self.width), chosen.read(), widen(&gates.read::<f32>()))
    }
}

fn any_weighting() -> impl Strategy<Value = Weighting> {
    let eps = prop_oneof![Just(0.0f32), Just(1e-6), Just(0.3)];
    prop_oneof![
        2 => Just(Weighting::SoftmaxTopK),
        1 => Just(Weighting::SoftmaxAll),
        1 => eps.prop_map(|eps| Weighting::SoftmaxAllRenormalised { eps }),
        1 => Just(Weighting::Sigmoid),
        1 => Just(Weighting::Binary),
    ]
}

/// Every rule, for few and for many experts, with and without shared ones.
fn any_choice() -> impl Strategy<Value = ExpertChoice> {
    let experts = prop_oneof![3 => size(16), 1 => size(MAX_EXPERTS), 1 => Just(MAX_EXPERTS)];
    let top_k = prop_oneof![2 => any::<u32>(), 1 => Just(0), 1 => Just(u32::MAX)];
    let shared = prop_oneof![3 => Just(0), 2 => 0..5u32, 1 => any::<u32>()];
    (experts, top_k, shared, any_weighting()).prop_map(|(experts, top_k, shared, weighting)| {
        let shared = shared % experts;
        let routed = experts - shared;
        // One, all, or anything between.
        let top_k = if top_k == u32::MAX { routed } else { 1 + top_k % routed.min(32) };
        ExpertChoice { experts, shared, top_k, weighting }
    })
}

fn any_router() -> impl Strategy<Value = Router> {
    let eps = prop_oneof![Just(1e-6f32), Just(1e-5), Just(0.1)];
    (size(9), size(200), any_choice(), eps, 0..9u32, any::<u64>()).prop_map(
        |(tokens, width, choice, eps, first, seed)| Router { tokens, width, choice, eps, first, seed },
    )
}

/// What holds for the gates of every token, whatever its scores.
#[track_caller]
fn check_gates(choice: &ExpertChoice, chosen: &[u32], gates: &[f64]) {
    let (shared, slots) = (choice.shared as usize, choice.slots() as usize);
    for (chosen, gates) in chosen.chunks_exact(slots).zip(gates.chunks_exact(slots)) {
        assert!(chosen[..shared].iter().copied().eq(0..choice.shared), "shared: {chosen:?}");
        assert!(gates[..shared].iter().all(|&gate| gate == 1.0), "shared: {gates:?}");
        let routed = &gates[shared..];
        assert!(routed.is_sorted_by(|a, b| a >= b), "descending: {gates:?}");
        match choice.weighting {
            Weighting::SoftmaxTopK => assert_close(&[routed.iter().sum()], &[1.0], "sum of gates"),
            Weighting::Binary => assert!(routed.iter().all(|&gate| gate == 1.0), "{gates:?}"),
            _ => {}
        }
    }
}

#[test]
fn norm_router_chooses_the_best_experts() {
    let (tokens, skipped) = (Cell::new(0), Cell::new(0));
    check(192, any_router(), |router| {
        let operands = router.operands();
        let expected = router.oracle(&operands);
        let (xn, chosen, gates) = router.run(&operands);
        assert_close(&xn, &expected.normed, "xn");
        let found = expected.routes.compare(&chosen, &gates, MIN_MARGIN).unwrap();
        assert!(found.gate_error <= 1e-5, "gates differ by {:e}", found.gate_error);
        check_gates(&router.choice, &chosen, &gates);
        tokens.set(tokens.get() + router.tokens as usize);
        skipped.set(skipped.get() + found.skipped);
    });
    assert!(skipped.get() * 100 <= tokens.get(), "skipped {} of {} tokens", skipped.get(), tokens.get());
}

#[test]
fn norm_router_gives_a_tie_to_the_lower_expert() {
    for (experts, top_k, seed) in [(2, 1, 1), (8, 3, 2), (8, 5, 3), (100, 7, 4), (256, 31, 5)] {
        let router = Router { tokens: 5, width: 50, choice: best(experts, top_k), eps: 1e-6, first: 0, seed };
        // Four experts with the same row, then four others: every score comes four times.
        let [x, norm_weight, mut rows] = router.operands();
        for expert in 0..experts as usize {
            rows.copy_within(expert / 4 * 4 * 50..(expert / 4 * 4 + 1) * 50, expert * 50);
        }
        let operands = [x, norm_weight, rows];
        let expected = router.oracle(&operands);
        for scores in expected.scores.chunks_exact(experts as usize) {
            let mut sorted: Vec<f64> = scores.to_vec();
            sorted.sort_by(f64::total_cmp);
            let close = |pair: &[f64]| pair[0] != pair[1] && pair[1] - pair[0] < MIN_MARGIN;
            assert!(!sorted.windows(2).any(close), "two scores are too close: choose another seed");
        }
        let (_, chosen, gates) = router.run(&operands);
        assert_eq!(chosen, expected.routes.experts, "{experts} experts, k = {top_k}");
        assert_close(&gates, &expected.routes.gates, "gates");
    }
}

#[test]
fn norm_router_without_a_preference_takes_the_first_experts() {
    let router = Router { tokens: 3, width: 16, choice: best(9, 4), eps: 1e-6, first: 0, seed: 1 };
    let [x, norm_weight, _] = router.operands();
    let (_, chosen, gates) = router.run(&[x, norm_weight, vec![0.0; 9 * 16]]);
    assert_eq!(chosen, [0, 1, 2, 3].repeat(3));
    assert_close(&gates, &[0.25; 12], "gates");
}

/// The softmax may not overflow.
#[test]
fn norm_router_holds_scores_of_any_size() {
    let router = Router { tokens: 2, width: 8, choice: best(4, 3), eps: 1e-6, first: 0, seed: 3 };
    let [x, norm_weight, rows] = router.operands();
    let huge: Vec<f64> = rows.iter().map(|weight| weight * 1e6).collect();
    let operands = [x, norm_weight, huge];
    let (_, chosen, gates) = router.run(&operands);
    let expected = router.oracle(&operands).routes;
    assert_eq!(chosen, expected.experts);
    assert_close(&gates, &expected.gates, "gates");
}

#[test]
fn norm_router_gives_the_same_bits_every_time() {
    let router = Router { tokens: 40, width: 200, choice: best(24, 5), eps: 1e-6, first: 0, seed: 3 };
    let operands = router.operands();
    assert_repeatable(|| {
        let (xn, chosen, gates) = router.run(&operands);
        [xn, chosen.into_iter().map(f64::from).collect(), gates].concat()
    });
}

/// Chooses from scores: chosen, gates.
fn select(choice: ExpertChoice, first: u32, scores: &[f64]) -> (Vec<u32>, Vec<f64>) {
    let gpu = device();
    let tokens = scores.len() / choice.experts as usize;
    let scores = upload(gpu, scores, choice.experts);
    let [chosen, gates] = [0, 1].map(|_| Guarded::new(gpu, first as usize, tokens * choice.slots() as usize));
    run(gpu, |recorder| {
        let routes = Routes { chosen: &chosen.buffer, gates: &gates.buffer, first };
        Select { scores: &scores, routes, choice, tokens: tokens as u32 }.record(recorder);
    });
    (chosen.read(), widen(&gates.read::<f32>()))
}

/// Scores are given here, not computed, so the order is exact, also of ties.
#[test]
fn select_keeps_the_rule_of_each_weighting() {
    // Levels of which many scores share one; 0 keeps them apart.
    let levels = prop_oneof![1 => Just(0.0), 1 => (1..=5u32).prop_map(f64::from)];
    let scale = prop_oneof![3 => Just(1.0), 2 => Just(8.0), 1 => Just(1e4)];
    let any = (any_choice(), size(9), 0..9u32, levels, scale, any::<u64>());
    check(256, any, |(choice, tokens, first, levels, scale, seed)| {
        let level = |score: f64| if levels == 0.0 { score } else { (score * levels).round() / levels };
        let scores: Vec<f64> = noise(seed, (tokens * choice.experts) as usize)
            .into_iter()
            .map(|score| f64::from((level(score) * scale) as f32))
            .collect();
        let expected = routes_of(&choice, &scores);
        let (chosen, gates) = select(choice, first, &scores);
        assert_eq!(chosen, expected.experts);
        let found = expected.compare(&chosen, &gates, 0.0).unwrap();
        assert!(found.gate_error <= 1e-5, "gates differ by {:e}", found.gate_error);
        check_gates(&choice, &chosen, &gates);
    });
}

const WEIGHTINGS: [Weighting; 5] = [
    Weighting::SoftmaxTopK,
    Weighting::SoftmaxAll,
    Weighting::SoftmaxAllRenormalised { eps: 1e-6 },
    Weighting::Sigmoid,
    Weighting::Binary,
];

/// A shared expert's score is no part of any softmax, whatever it is.
#[test]
fn select_does_not_look_at_the_scores_of_shared_experts() {
    for weighting in WEIGHTINGS {
        let choice = ExpertChoice { experts: 9, shared: 2, top_k: 3, weighting };
        let mut scores = noise(4, 9);
        let expected = routes_of(&choice, &scores);
        for wild in [f64::NAN, f64::INFINITY, 3e38, -3e38] {
            scores[..2].fill(wild);
            let (chosen, gates) = select(choice, 0, &scores);
            assert_eq!(chosen, expected.experts, "{weighting:?}, {wild}");
            assert_close(&gates, &expected.gates, (weighting, wild));
        }
    }
}

#[test]
fn select_takes_all_experts_when_all_are_shared() {
    for weighting in WEIGHTINGS {
        for experts in [1, 7, MAX_EXPERTS] {
            let choice = ExpertChoice { experts, shared: experts, top_k: 0, weighting };
            let (chosen, gates) = select(choice, 3, &noise(5, 2 * experts as usize));
            assert_eq!(chosen, (0..experts).chain(0..experts).collect::<Vec<_>>());
            assert!(gates.iter().all(|&gate| gate == 1.0));
        }
    }
}

/// No weighting may overflow, and none may divide by zero.
#[test]
fn select_holds_scores_of_any_size() {
    for weighting in WEIGHTINGS {
        let choice = ExpertChoice { experts: 6, shared: 1, top_k: 3, weighting };
        for row in [
            [0.0, 1e30, 0.0, -1e30, 1e30, 2e30],
            [0.0, -1e30, -2e30, -3e30, -4e30, -1e30],
            [0.0, 90.0, 89.0, -90.0, -200.0, 89.5],
            [0.0, -90.0, -89.0, -91.0, -200.0, -1e3],
            [0.0; 6],
        ] {
            let scores = row.map(|score| f64::from(score as f32));
            let expected = routes_of(&choice, &scores);
            let (chosen, gates) = select(choice, 0, &scores);
            assert_eq!(chosen, expected.experts, "{weighting:?}, {row:?}");
            assert_close(&gates, &expected.gates, (weighting, row));
        }
    }
}

/// Scores that are no numbers choose some experts, each once.
#[test]
fn select_never_chooses_out_of_range_or_twice() {
    for weighting in WEIGHTINGS {
        let choice = ExpertChoice { experts: 70, shared: 1, top_k: 8, weighting };
        for seed in 0..4 {
            let mut scores = noise(seed, 70);
            let count = [70, 69, 40, 1][seed as usize];
            scores[..count].fill(f64::NAN);
            let (mut chosen, _) = select(choice, 0, &scores);
            chosen.sort_unstable();
            assert!(chosen.is_sorted_by(|a, b| a < b) && chosen[8] < 70, "{chosen:?}");
        }
    }
}

#[test]
fn select_gives_the_same_bits_every_time() {
    let scores = noise(7, 40 * 200);
    for weighting in WEIGHTINGS {
        let choice = ExpertChoice { experts: 200, shared: 2, top_k: 9, weighting };
        assert_repeatable(|| {
            let (chosen, gates) = select(choice, 0, &scores);
            [chosen.into_iter().map(f64::from).collect(), gates].concat()
        });
    }
}

#[derive(Clone, Copy, Debug)]
struct Grouping {
    assignments: u32,
    experts: u32,
    tile_rows: u32,
    first: u32,
    /// Neighbouring experts that were chosen at all.
    used: u32,
    seed: u64,
}

fn any_grouping() -> impl Strategy<Value = Grouping> {
    let experts = prop_oneof![size(16), size(MAX_EXPERTS)];
    let tile_rows = prop_oneof![Just(8), Just(32), size(40)];
    let used = prop_oneof![any::<u32>(), Just(0)];
    (size(700), experts, tile_rows, 0..70u32, used, any::<u64>()).prop_map(
        |(assignments, experts, tile_rows, first, used, seed)| Grouping {
            assignments,
            experts,
            tile_rows,
            first,
            used: 1 + used % experts,
            seed,
        },
    )
}

impl Grouping {
    fn chosen(&self) -> Vec<u32> {
        let expert =
            |i| (hash(self.seed, i) % u64::from(self.used) + self.seed % 97) % u64::from(self.experts);
        (0..self.assignments as usize).map(|i| expert(i) as u32).collect()
    }

    /// The order and all tiles, used or not.
    fn run(&self, chosen: &[u32]) -> (Vec<u32>, Vec<Tile>) {
        let gpu = device();
        let chosen = among(gpu, self.first, chosen, 0);
        let into = GroupBuffers::new(gpu, self.assignments, self.experts, self.tile_rows);
        into.order.write(0, &vec![u32::MAX; self.assignments as usize]);
        let [_, _, tile_bytes] = GroupBuffers::bytes(self.assignments, self.experts, self.tile_rows);
        into.tiles.write(0, &vec![u32::MAX; tile_bytes as usize / 4]);
        run(gpu, |recorder| {
            Group {
                routes: Routes { chosen: &chosen, gates: &chosen, first: self.first },
                assignments: self.assignments,
                experts: self.experts,
                tile_rows: self.tile_rows,
                into: &into,
            }
            .record(recorder);
        });
        let order = read(gpu, &into.order, self.assignments as usize);
        let tiles: Vec<[u32; 3]> = read(gpu, &into.tiles, tile_bytes as usize / 12);
        (order, tiles.into_iter().map(|[expert, first, rows]| Tile { expert, first, rows }).collect())
    }
}

#[test]
fn grouping_is_the_stable_sort_and_its_tile_table() {
    check(96, any_grouping(), |grouping| {
        let chosen = grouping.chosen();
        let expected = group(&chosen, grouping.experts as usize);
        let (order, tiles) = grouping.run(&chosen);
        assert_eq!(order, expected.order);
        let table = tile_table(&expected, grouping.tile_rows);
        let (used, unused) = tiles.split_at(table.len());
        assert_eq!(used, table);
        assert!(unused.iter().all(|tile| tile.rows == 0), "unused tiles: {unused:?}");
    });
}

/// An expert no token chose costs nothing: no tile is his.
#[test]
fn only_chosen_experts_own_tiles() {
    for tile_rows in [8, 32] {
        let grouping = Grouping { assignments: 333, experts: 24, tile_rows, first: 0, used: 7, seed: 5 };
        let chosen = grouping.chosen();
        let (_, tiles) = grouping.run(&chosen);
        let tiles: Vec<Tile> = tiles.into_iter().filter(|tile| tile.rows > 0).collect();

        let count = |expert| chosen.iter().filter(|&&chosen| chosen == expert).count() as u32;
        let counts: Vec<u32> = (0..24).map(count).collect();
        assert_eq!(counts.iter().filter(|&&count| count == 0).count(), 17, "most experts are idle");

        assert_eq!(tiles.iter().map(|tile| tile.rows).sum::<u32>(), 333);
        assert_eq!(tiles.len() as u32, counts.iter().map(|count| count.div_ceil(tile_rows)).sum::<u32>());
        for (expert, count) in (0..).zip(counts) {
            let own = tiles.iter().filter(|tile| tile.expert == expert);
            assert_eq!(own.map(|tile| tile.rows).sum::<u32>(), count, "expert {expert}");
        }
    }
}

#[test]
fn grouping_leaves_out_experts_out_of_range() {
    let grouping = Grouping { assignments: 200, experts: 6, tile_rows: 8, first: 3, used: 6, seed: 9 };
    let mut chosen = grouping.chosen();
    for (i, wild) in [(0, 6), (77, 1 << 20), (199, u32::MAX)] {
        chosen[i] = wild;
    }
    let (order, tiles) = grouping.run(&chosen);
    let mut expected: Vec<u32> = (0..200).filter(|&i| chosen[i as usize] < 6).collect();
    expected.sort_by_key(|&i| chosen[i as usize]);
    assert_eq!(order[..197], expected);
    assert_eq!(order[197..], [u32::MAX; 3], "left as it was");
    assert_eq!(tiles.iter().map(|tile| tile.rows).sum::<u32>(), 197);
}

#[test]
fn grouping_gives_the_same_bits_every_time() {
    let grouping = Grouping { assignments: 700, experts: 24, tile_rows: 8, first: 0, used: 24, seed: 5 };
    let chosen = grouping.chosen();
    assert_repeatable(|| {
        let (order, tiles) = grouping.run(&chosen);
        let tiles = tiles.into_iter().flat_map(|tile| [tile.expert, tile.first, tile.rows]);
        order.into_iter().chain(tiles).map(f64::from).collect()
    });
}

#[derive(Clone, Copy, Debug)]
struct Combining {
    tokens: u32,
    slots: u32,
    width: u32,
    first: u32,
    gated: bool,
    bias: bool,
    seed: u64,
}

impl Combining {
    fn check(&self) -> Vec<f64> {
        let gpu = device();
        let Self { tokens, slots, width, first, seed, .. } = *self;
        let rows = noise(seed, (tokens * slots * width) as usize);
        let gates =
            top_k_softmax(&noise(seed + 1, (tokens * slots) as usize), slots as usize, slots as usize);
        let gates: Vec<f32> = gates.gates.iter().map(|&gate| gate as f32).collect();
        let bias = self.bias.then(|| noise(seed + 2, width as usize));
        let residual = noise(seed + 3, (tokens * width) as usize);

        let x = Guarded::holding(gpu, 0, &pad(&residual, width));
        let gates_on_gpu = among(gpu, first, &gates, 0.5);
        let rows_on_gpu = upload(gpu, &rows, width);
        let bias_on_gpu = bias.as_ref().map(|bias| upload(gpu, bias, width));
        run(gpu, |recorder| {
            Combine {
                rows: &rows_on_gpu,
                routes: self.gated.then_some(Routes { chosen: &gates_on_gpu, gates: &gates_on_gpu, first }),
                bias: bias_on_gpu.as_ref(),
                x: &x.buffer,
                tokens,
                slots,
                width,
            }
            .record(recorder);
        });
        let got = x.read_rows(width);
        let (slots, width) = (slots as usize, width as usize);
        let gates = self.gated.then(|| widen(&gates));
        let expected = combine(&rows, slots, width, gates.as_deref(), bias.as_deref(), Some(&residual));
        assert_close(&got, &expected, self);
        got
    }
}

#[test]
fn combine_adds_the_gated_slots_to_the_residual() {
    let any = (size(20), size(8), size(300), 0..9u32, any::<(bool, bool)>(), any::<u64>());
    check(128, any, |(tokens, slots, width, first, (gated, bias), seed)| {
        Combining { tokens, slots, width, first, gated, bias, seed }.check();
    });
}

#[test]
fn combine_gives_the_same_bits_every_time() {
    for gated in [true, false] {
        assert_repeatable(|| {
            Combining { tokens: 20, slots: 6, width: 300, first: 0, gated, bias: true, seed: 1 }.check()
        });
    }
}
