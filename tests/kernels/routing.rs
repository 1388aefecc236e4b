//! Which expert gets which row: `norm_router`, `select`, `cosine_router`, `sequence_cut`,
//! `group_count`, `group_scan`, `group_scatter`, `combine`.

use std::cell::Cell;

use headwise::internal::{
    Buffer, Combine, CosineRouter, ExpertChoice, Gpu, Group, GroupBuffers, KernelChoice, MAX_EXPERTS,
    NormKind, NormRouter, RouterInput, Routes, Select, SequenceCut, Weighting,
};
use proptest::prelude::*;

use crate::{
    reference::{
        combine::combine,
        dot,
        group::{Tile, group, tile_table},
        layer_norm::layer_norm,
        matvec,
        norm_router::{Routes as ExpectedRoutes, norm_router, top_k_softmax},
        rms_norm::rms_norm,
        router, softmax, widen,
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
    /// Which norm comes first, if any.
    norm: Option<NormKind>,
    bias: bool,
    choice: ExpertChoice,
    eps: f32,
    first: u32,
    first_score: u32,
    seed: u64,
}

/// The numbers of a [`Router`].
#[derive(Clone, Debug)]
struct Operands {
    x: Vec<f64>,
    norm_weight: Vec<f64>,
    norm_bias: Vec<f64>,
    /// `[score rows, width]` and `[score rows]`
    router: Vec<f64>,
    bias: Vec<f64>,
}

/// What a [`Router`] writes.
struct Ran {
    xn: Vec<f64>,
    chosen: Vec<u32>,
    gates: Vec<f64>,
    /// `[tokens, routed experts]`
    scores: Vec<f64>,
}

/// What it must write.
struct Expected {
    normed: Vec<f64>,
    /// `[tokens, score rows]`
    scores: Vec<f64>,
    routes: ExpectedRoutes,
}

/// JetMoE's choice.
fn best(experts: u32, top_k: u32) -> ExpertChoice {
    ExpertChoice::top_k(experts, top_k, Weighting::SoftmaxTopK)
}

/// Where the routed experts' scores stand in a row.
fn routed_rows(choice: &ExpertChoice) -> std::ops::Range<usize> {
    let first = if choice.shared_softmax { choice.shared as usize } else { 0 };
    first..first + choice.routed() as usize
}

/// The routes that a choice makes of scores `[tokens, score rows]`: the shared experts' where they have some, the
/// routed experts', the stages'.
fn routes_of(choice: &ExpertChoice, scores: &[f64]) -> ExpectedRoutes {
    let weight = match choice.weighting {
        Weighting::SoftmaxTopK => router::Weight::SoftmaxKept,
        Weighting::SoftmaxAll => router::Weight::SoftmaxAll,
        Weighting::SoftmaxAllRenormalised { eps } => {
            router::Weight::Renormalised { epsilon: f64::from(eps), scale: 1.0 }
        }
        Weighting::Sigmoid => router::Weight::Sigmoid,
        Weighting::Constant => router::Weight::Const(1.0),
    };
    let mut routes = ExpectedRoutes { top_k: choice.slots() as usize, ..ExpectedRoutes::default() };
    for scores in scores.chunks_exact(choice.score_rows() as usize) {
        let (own, rest) = scores.split_at(routed_rows(choice).start);
        let (routed, stages) = rest.split_at(choice.routed() as usize);
        let stages = if choice.two_stage { softmax(stages) } else { vec![0.5; 2] };
        let shared = match choice.shared_softmax {
            true => softmax(own).iter().map(|p| f64::from(choice.shared) * p).collect(),
            false => vec![1.0; choice.shared as usize],
        };
        routes.experts.extend(0..choice.shared);
        routes.gates.extend(shared.iter().map(|gate| 2.0 * stages[0] * gate));
        let mut margin = f64::INFINITY;
        let size = routed.len() / choice.groups as usize;
        for (group, scores) in routed.chunks_exact(size.max(1)).enumerate() {
            let first = choice.shared + (group * size) as u32;
            let (kept, own_margin) = router::Select::TopK(choice.top_k as usize).of(scores);
            routes.experts.extend(kept.iter().map(|&e| first + e as u32));
            let scale = 2.0 * stages[1] * f64::from(choice.scale);
            routes.gates.extend(weight.of(scores, &kept).iter().map(|gate| scale * gate));
            margin = margin.min(own_margin);
        }
        routes.margins.push(margin);
    }
    routes
}

impl Router {
    fn operands(&self) -> Operands {
        let rows = self.choice.score_rows();
        Operands {
            x: noise(self.seed, (self.tokens * self.width) as usize),
            norm_weight: noise(self.seed + 1, self.width as usize),
            norm_bias: noise(self.seed + 3, self.width as usize),
            router: noise(self.seed + 2, (rows * self.width) as usize),
            bias: noise(self.seed + 4, rows as usize),
        }
    }

    fn oracle(&self, Operands { x, norm_weight, norm_bias, router, bias }: &Operands) -> Expected {
        let eps = f64::from(self.eps);
        let normed = match self.norm {
            None => x.clone(),
            Some(NormKind::Rms) => rms_norm(x, norm_weight, eps),
            Some(NormKind::Layer) => layer_norm(x, norm_weight, norm_bias, eps),
        };
        let biased = |scores: Vec<f64>| -> Vec<f64> {
            let bias = bias.iter().map(|bias| if self.bias { *bias } else { 0.0 });
            scores.into_iter().zip(bias).map(|(score, bias)| score + bias).collect()
        };
        let rows = normed.chunks_exact(self.width as usize);
        let scores: Vec<f64> = rows.flat_map(|xn| biased(matvec(router, xn))).collect();
        let routes = routes_of(&self.choice, &scores);
        if self.choice == best(self.choice.experts, self.choice.top_k)
            && self.norm == Some(NormKind::Rms)
            && !self.bias
        {
            let other = norm_router(x, norm_weight, eps, router, self.choice.top_k as usize);
            assert_eq!(routes, other.routes, "the two oracles");
        }
        Expected { normed, scores, routes }
    }

    fn run(&self, operands: &Operands) -> Ran {
        let gpu = device();
        let Operands { x, norm_weight, norm_bias, router, bias } = operands;
        let (x, router) = (upload(gpu, x, self.width), upload(gpu, router, self.width));
        let norm_bias = if self.norm == Some(NormKind::Layer) { &norm_bias[..] } else { &[] };
        let weights = upload(gpu, &[norm_weight, norm_bias].concat(), self.width);
        let bias: Vec<f32> = bias.iter().map(|&bias| bias as f32).collect();
        let bias = self.bias.then(|| Buffer::with_data(gpu, "test.bias", &bias));
        let assignments = (self.tokens * self.choice.slots()) as usize;
        let routed = (self.tokens * self.choice.routed()) as usize;
        let xn = Guarded::rows(gpu, self.tokens as usize, self.width);
        let chosen = Guarded::new(gpu, self.first as usize, assignments);
        let gates = Guarded::new(gpu, self.first as usize, assignments);
        let scores = Guarded::new(gpu, self.first_score as usize, routed);
        let input = match self.norm {
            Some(kind) => {
                RouterInput::Normed { kind, eps: self.eps, weights: &weights, x: &x, xn: &xn.buffer }
            }
            None => RouterInput::AsIs { xn: &x, spare: &xn.buffer },
        };
        run(gpu, |recorder| {
            NormRouter {
                input,
                router: &router,
                bias: bias.as_ref(),
                routes: Routes {
                    chosen: &chosen.buffer,
                    gates: &gates.buffer,
                    first: self.first,
                    scores: &scores.buffer,
                    first_score: self.first_score,
                },
                tokens: self.tokens,
                width: self.width,
                choice: self.choice,
            }
            .record(recorder);
        });
        Ran {
            xn: xn.read_rows(self.width),
            chosen: chosen.read(),
            gates: widen(&gates.read::<f32>()),
            scores: widen(&scores.read::<f32>()),
        }
    }
}

/// The scores of the routed experts alone.
fn routed_scores(choice: &ExpertChoice, scores: &[f64]) -> Vec<f64> {
    let rows = scores.chunks_exact(choice.score_rows().max(1) as usize);
    rows.flat_map(|row| row[routed_rows(choice)].to_vec()).collect()
}

fn any_weighting() -> impl Strategy<Value = Weighting> {
    let eps = prop_oneof![Just(0.0f32), Just(1e-6), Just(0.3)];
    prop_oneof![
        2 => Just(Weighting::SoftmaxTopK),
        1 => Just(Weighting::SoftmaxAll),
        1 => eps.prop_map(|eps| Weighting::SoftmaxAllRenormalised { eps }),
        1 => Just(Weighting::Sigmoid),
        1 => Just(Weighting::Constant),
    ]
}

/// Every rule, for few and for many experts, with and without shared ones, in one group or in several.
fn any_choice() -> impl Strategy<Value = ExpertChoice> {
    let experts = prop_oneof![3 => size(16), 1 => size(MAX_EXPERTS), 1 => Just(MAX_EXPERTS)];
    let top_k = prop_oneof![2 => any::<u32>(), 1 => Just(0), 1 => Just(u32::MAX)];
    let shared = prop_oneof![3 => Just(0), 2 => 0..5u32, 1 => any::<u32>()];
    let groups = prop_oneof![1 => Just(1), 1 => size(8)];
    let scale = prop_oneof![2 => Just(1.0f32), 1 => Just(2.5), 1 => Just(8.0)];
    let more = (groups, scale, any::<(bool, bool)>());
    (experts, top_k, shared, any_weighting(), more).prop_map(
        |(experts, top_k, shared, weighting, (groups, scale, (shared_softmax, two_stage)))| {
            let shared = shared % experts;
            let routed = experts - shared;
            let groups = if routed.is_multiple_of(groups) { groups } else { 1 };
            let size = routed / groups;
            // One, all, or anything between.
            let top_k = if top_k == u32::MAX { size } else { 1 + top_k % size.min(32) };
            ExpertChoice {
                experts,
                shared,
                groups,
                top_k,
                weighting,
                scale,
                shared_softmax: shared_softmax && shared > 0,
                two_stage: two_stage && shared > 0,
            }
        },
    )
}

fn any_router() -> impl Strategy<Value = Router> {
    let eps = prop_oneof![Just(1e-6f32), Just(1e-5), Just(0.1)];
    let norm = prop::sample::select(vec![None, Some(NormKind::Rms), Some(NormKind::Layer)]);
    let first = (0..9u32, 0..9u32);
    (size(9), size(200), norm, any::<bool>(), any_choice(), eps, first, any::<u64>()).prop_map(
        |(tokens, width, norm, bias, choice, eps, (first, first_score), seed)| {
            // A variance of nothing but rounding is noise on both sides.
            let width = if norm == Some(NormKind::Layer) { width.max(2) } else { width };
            Router { tokens, width, norm, bias, choice, eps, first, first_score, seed }
        },
    )
}

/// What holds for the gates of every token, whatever its scores.
#[track_caller]
fn check_gates(choice: &ExpertChoice, chosen: &[u32], gates: &[f64]) {
    let (shared, slots) = (choice.shared as usize, choice.slots() as usize);
    let top_k = (choice.top_k as usize).max(1);
    for (chosen, gates) in chosen.chunks_exact(slots).zip(gates.chunks_exact(slots)) {
        assert!(chosen[..shared].iter().copied().eq(0..choice.shared), "shared: {chosen:?}");
        let (own, routed) = gates.split_at(shared);
        if !choice.two_stage && !choice.shared_softmax {
            assert!(own.iter().all(|&gate| gate == 1.0), "shared: {gates:?}");
        }
        for group in routed.chunks_exact(top_k) {
            assert!(group.is_sorted_by(|a, b| a >= b), "descending: {gates:?}");
            if choice.two_stage {
                continue;
            }
            let scale = f64::from(choice.scale);
            match choice.weighting {
                Weighting::SoftmaxTopK => {
                    assert_close(&[group.iter().sum()], &[scale], "sum of gates");
                }
                Weighting::Constant => assert!(group.iter().all(|&gate| gate == scale), "{gates:?}"),
                _ => {}
            }
        }
    }
}

#[test]
fn norm_router_chooses_the_best_experts() {
    let (tokens, skipped) = (Cell::new(0), Cell::new(0));
    check(192, any_router(), |router| {
        let operands = router.operands();
        let expected = router.oracle(&operands);
        let Ran { xn, chosen, gates, scores } = router.run(&operands);
        match router.norm {
            Some(_) => assert_close(&xn, &expected.normed, "xn"),
            None => assert!(xn.iter().copied().all(Guarded::is_untouched), "xn"),
        }
        assert_close(&scores, &routed_scores(&router.choice, &expected.scores), "scores");
        let found = expected.routes.compare(&chosen, &gates, MIN_MARGIN).unwrap();
        let tolerance = 1e-5 * f64::from(router.choice.scale * router.choice.shared.max(1) as f32);
        assert!(found.gate_error <= tolerance, "gates differ by {:e}", found.gate_error);
        check_gates(&router.choice, &chosen, &gates);
        tokens.set(tokens.get() + router.tokens as usize);
        skipped.set(skipped.get() + found.skipped);
    });
    assert!(skipped.get() * 100 <= tokens.get(), "skipped {} of {} tokens", skipped.get(), tokens.get());
}

#[test]
fn norm_router_gives_a_tie_to_the_lower_expert() {
    for (experts, top_k, seed) in [(2, 1, 1), (8, 3, 2), (8, 5, 3), (100, 7, 4), (256, 31, 5)] {
        let router = Router { tokens: 5, width: 50, choice: best(experts, top_k), seed, ..ROUTER };
        // Four experts with the same row, then four others: every score comes four times.
        let mut operands = router.operands();
        let rows = &mut operands.router;
        for expert in 0..experts as usize {
            rows.copy_within(expert / 4 * 4 * 50..(expert / 4 * 4 + 1) * 50, expert * 50);
        }
        let expected = router.oracle(&operands);
        for scores in expected.scores.chunks_exact(experts as usize) {
            let mut sorted: Vec<f64> = scores.to_vec();
            sorted.sort_by(f64::total_cmp);
            let close = |pair: &[f64]| pair[0] != pair[1] && pair[1] - pair[0] < MIN_MARGIN;
            assert!(!sorted.windows(2).any(close), "two scores are too close: choose another seed");
        }
        let Ran { chosen, gates, .. } = router.run(&operands);
        assert_eq!(chosen, expected.routes.experts, "{experts} experts, k = {top_k}");
        assert_close(&gates, &expected.routes.gates, "gates");
    }
}

#[test]
fn norm_router_without_a_preference_takes_the_first_experts() {
    let router = Router { tokens: 3, width: 16, choice: best(9, 4), seed: 1, ..ROUTER };
    let operands = Operands { router: vec![0.0; 9 * 16], ..router.operands() };
    let Ran { chosen, gates, .. } = router.run(&operands);
    assert_eq!(chosen, [0, 1, 2, 3].repeat(3));
    assert_close(&gates, &[0.25; 12], "gates");
}

/// The softmax may not overflow.
#[test]
fn norm_router_holds_scores_of_any_size() {
    let router = Router { tokens: 2, width: 8, choice: best(4, 3), seed: 3, ..ROUTER };
    let mut operands = router.operands();
    operands.router.iter_mut().for_each(|weight| *weight *= 1e6);
    let Ran { chosen, gates, .. } = router.run(&operands);
    let expected = router.oracle(&operands).routes;
    assert_eq!(chosen, expected.experts);
    assert_close(&gates, &expected.gates, "gates");
}

#[test]
fn norm_router_gives_the_same_bits_every_time() {
    let every = ExpertChoice {
        shared: 4,
        groups: 5,
        top_k: 2,
        scale: 2.0,
        shared_softmax: true,
        two_stage: true,
        ..best(24, 2)
    };
    for (norm, choice) in [(Some(NormKind::Rms), best(24, 5)), (Some(NormKind::Layer), every), (None, every)]
    {
        let bias = choice == every;
        let router = Router { tokens: 40, width: 200, norm, bias, choice, seed: 3, ..ROUTER };
        let operands = router.operands();
        assert_repeatable(|| {
            let Ran { xn, chosen, gates, scores } = router.run(&operands);
            [xn, chosen.into_iter().map(f64::from).collect(), gates, scores].concat()
        });
    }
}

/// A norm, a linear router, nothing special.
const ROUTER: Router = Router {
    tokens: 1,
    width: 8,
    norm: Some(NormKind::Rms),
    bias: false,
    choice: ExpertChoice {
        experts: 1,
        shared: 0,
        groups: 1,
        top_k: 1,
        weighting: Weighting::SoftmaxTopK,
        scale: 1.0,
        shared_softmax: false,
        two_stage: false,
    },
    eps: 1e-6,
    first: 0,
    first_score: 0,
    seed: 0,
};

/// Chooses from scores `[tokens, score rows]`: chosen, gates. The scores of the routed experts are kept.
fn select(choice: ExpertChoice, first: u32, scores: &[f64], tokens: u32) -> (Vec<u32>, Vec<f64>) {
    let gpu = device();
    let rows = choice.score_rows();
    let (scores_on_gpu, first_score) = (upload(gpu, scores, rows.max(1)), first / 2);
    let [chosen, gates] =
        [0, 1].map(|_| Guarded::new(gpu, first as usize, (tokens * choice.slots()) as usize));
    let kept = Guarded::new(gpu, first_score as usize, (tokens * choice.routed()) as usize);
    run(gpu, |recorder| {
        let (chosen, gates) = (&chosen.buffer, &gates.buffer);
        let routes = Routes { chosen, gates, first, scores: &kept.buffer, first_score };
        Select { scores: &scores_on_gpu, routes, choice, tokens }.record(recorder);
    });
    let bits = |scores: &[f64]| scores.iter().map(|&score| (score as f32).to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&widen(&kept.read::<f32>())), bits(&routed_scores(&choice, scores)), "kept scores");
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
        let scores: Vec<f64> = noise(seed, (tokens * choice.score_rows()) as usize)
            .into_iter()
            .map(|score| f64::from((level(score) * scale) as f32))
            .collect();
        let expected = routes_of(&choice, &scores);
        let (chosen, gates) = select(choice, first, &scores, tokens);
        assert_eq!(chosen, expected.experts);
        let found = expected.compare(&chosen, &gates, 0.0).unwrap();
        let tolerance = 1e-5 * f64::from(choice.scale * choice.shared.max(1) as f32);
        assert!(found.gate_error <= tolerance, "gates differ by {:e}", found.gate_error);
        check_gates(&choice, &chosen, &gates);
    });
}

const WEIGHTINGS: [Weighting; 5] = [
    Weighting::SoftmaxTopK,
    Weighting::SoftmaxAll,
    Weighting::SoftmaxAllRenormalised { eps: 1e-6 },
    Weighting::Sigmoid,
    Weighting::Constant,
];

/// A shared expert's score is no part of the softmax over the routed ones, whatever it is.
#[test]
fn select_keeps_the_scores_of_shared_experts_apart() {
    for weighting in WEIGHTINGS {
        let choice = ExpertChoice { shared: 2, shared_softmax: true, ..ExpertChoice::top_k(9, 3, weighting) };
        let mut scores = noise(4, 9);
        let expected = routes_of(&choice, &scores);
        for wild in [3e38, -3e38] {
            scores[..2].fill(wild);
            let (chosen, gates) = select(choice, 0, &scores, 1);
            assert_eq!(chosen, expected.experts, "{weighting:?}, {wild}");
            assert_eq!(gates[..2], [1.0; 2], "two halves, times two");
            assert_close(&gates[2..], &expected.gates[2..], (weighting, wild));
        }
    }
}

#[test]
fn select_takes_all_experts_when_all_are_shared() {
    for weighting in WEIGHTINGS {
        for experts in [1, 7, MAX_EXPERTS] {
            let choice = ExpertChoice { shared: experts, ..ExpertChoice::top_k(experts, 0, weighting) };
            let (chosen, gates) = select(choice, 3, &[], 2);
            assert_eq!(chosen, (0..experts).chain(0..experts).collect::<Vec<_>>());
            assert!(gates.iter().all(|&gate| gate == 1.0));

            let choice = ExpertChoice { shared_softmax: true, ..choice };
            let scores = noise(5, 2 * experts as usize);
            let (chosen, gates) = select(choice, 3, &scores, 2);
            let expected = routes_of(&choice, &scores);
            assert_eq!(chosen, expected.experts);
            assert_close(&gates, &expected.gates, experts);
        }
    }
}

/// No weighting may overflow, and none may divide by zero.
#[test]
fn select_holds_scores_of_any_size() {
    for weighting in WEIGHTINGS {
        let choice = ExpertChoice { shared: 1, ..ExpertChoice::top_k(6, 3, weighting) };
        for row in [
            [1e30, 0.0, -1e30, 1e30, 2e30],
            [-1e30, -2e30, -3e30, -4e30, -1e30],
            [90.0, 89.0, -90.0, -200.0, 89.5],
            [-90.0, -89.0, -91.0, -200.0, -1e3],
            [0.0; 5],
        ] {
            let scores = row.map(|score| f64::from(score as f32));
            let expected = routes_of(&choice, &scores);
            let (chosen, gates) = select(choice, 0, &scores, 1);
            assert_eq!(chosen, expected.experts, "{weighting:?}, {row:?}");
            assert_close(&gates, &expected.gates, (weighting, row));
        }
    }
}

/// Scores that are no numbers choose some experts, each once.
#[test]
fn select_never_chooses_out_of_range_or_twice() {
    for weighting in WEIGHTINGS {
        let choice = ExpertChoice { shared: 1, ..ExpertChoice::top_k(71, 8, weighting) };
        for seed in 0..4 {
            let mut scores = noise(seed, 70);
            let count = [70, 69, 40, 1][seed as usize];
            scores[..count].fill(f64::NAN);
            let (mut chosen, _) = select(choice, 0, &scores, 1);
            chosen.sort_unstable();
            assert!(chosen.is_sorted_by(|a, b| a < b) && chosen[8] < 71, "{chosen:?}");
        }
    }
}

#[test]
fn select_gives_the_same_bits_every_time() {
    let scores = noise(7, 40 * 200);
    for weighting in WEIGHTINGS {
        let choice = ExpertChoice { shared: 2, ..ExpertChoice::top_k(202, 9, weighting) };
        assert_repeatable(|| {
            let (chosen, gates) = select(choice, 0, &scores, 40);
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
                routes: Routes {
                    chosen: &chosen,
                    gates: &chosen,
                    first: self.first,
                    scores: &chosen,
                    first_score: 0,
                },
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
    residual: bool,
    seed: u64,
}

impl Combining {
    fn check(&self) -> Vec<f64> {
        let gpu = device();
        let Self { tokens, slots, width, first, seed, .. } = *self;
        let mut rows = noise(seed, (tokens * slots * width) as usize);
        let gates =
            top_k_softmax(&noise(seed + 1, (tokens * slots) as usize), slots as usize, slots as usize);
        let mut gates: Vec<f32> = gates.gates.iter().map(|&gate| gate as f32).collect();
        // Rows that nobody wrote, and that do not count.
        let idle = |i: usize| self.gated && i % 3 == 1;
        for (i, row) in rows.chunks_exact_mut(width as usize).enumerate().filter(|(i, _)| idle(*i)) {
            gates[i] = 0.0;
            row.fill(f64::NAN);
        }
        let bias = self.bias.then(|| noise(seed + 2, width as usize));
        let residual = noise(seed + 3, (tokens * width) as usize);

        let x = Guarded::holding(gpu, 0, &pad(&residual, width));
        let gates_on_gpu = among(gpu, first, &gates, 0.5);
        let rows_on_gpu = upload(gpu, &rows, width);
        let bias_on_gpu = bias.as_ref().map(|bias| upload(gpu, bias, width));
        run(gpu, |recorder| {
            Combine {
                rows: &rows_on_gpu,
                routes: self.gated.then_some(Routes {
                    chosen: &gates_on_gpu,
                    gates: &gates_on_gpu,
                    first,
                    scores: &gates_on_gpu,
                    first_score: 0,
                }),
                bias: bias_on_gpu.as_ref(),
                x: &x.buffer,
                residual: self.residual,
                tokens,
                slots,
                width,
            }
            .record(recorder);
        });
        let got = x.read_rows(width);
        let (slots, width) = (slots as usize, width as usize);
        let gates = self.gated.then(|| widen(&gates));
        for (i, row) in rows.chunks_exact_mut(width).enumerate().filter(|(i, _)| idle(*i)) {
            row.fill(i as f64);
        }
        let residual = self.residual.then_some(&residual[..]);
        let expected = combine(&rows, slots, width, gates.as_deref(), bias.as_deref(), residual);
        assert_close(&got, &expected, self);
        got
    }
}

#[test]
fn combine_sums_the_gated_slots() {
    let any = (size(20), size(8), size(300), 0..9u32, any::<(bool, bool, bool)>(), any::<u64>());
    check(128, any, |(tokens, slots, width, first, (gated, bias, residual), seed)| {
        Combining { tokens, slots, width, first, gated, bias, residual, seed }.check();
    });
}

#[test]
fn combine_gives_the_same_bits_every_time() {
    for gated in [true, false] {
        assert_repeatable(|| {
            let residual = gated;
            Combining { tokens: 20, slots: 6, width: 300, first: 0, gated, bias: true, residual, seed: 1 }
                .check()
        });
    }
}

/// Scores `[tokens, experts]` of hidden rows, and what the oracle says.
fn cosine(hidden: &[f64], centroids: &[f64], temperature: f32, width: u32) -> [Vec<f64>; 2] {
    let gpu = device();
    let rows = hidden.chunks_exact(width as usize);
    let (tokens, experts) = (rows.len() as u32, centroids.len() as u32 / width);
    let (hidden_on_gpu, centroids_on_gpu) = (upload(gpu, hidden, width), upload(gpu, centroids, width));
    let temperature_on_gpu = Buffer::with_data(gpu, "test.temperature", &[temperature]);
    // The padding is zero before; the kernel must leave it so.
    let scores = Guarded::holding(gpu, 0, &pad(&vec![777.0; (tokens * experts) as usize], experts));
    run(gpu, |recorder| {
        CosineRouter {
            hidden: &hidden_on_gpu,
            centroids: &centroids_on_gpu,
            temperature: &temperature_on_gpu,
            scores: &scores.buffer,
            tokens,
            experts,
            width,
        }
        .record(recorder);
    });
    let cosine = |h: &[f64], c: &[f64]| dot(h, c) / (router::norm(h) * router::norm(c));
    let scale = f64::from(temperature).exp();
    let of_token = |h| centroids.chunks_exact(width as usize).map(move |c| scale * cosine(h, c));
    [scores.read_rows(experts), rows.flat_map(of_token).collect()]
}

#[test]
fn cosine_router_compares_directions() {
    let scale = prop_oneof![Just(1.0), Just(1e-4), Just(1e4)];
    let temperature = prop_oneof![Just(0.0f32), -1.0..2.0f32];
    let experts = prop_oneof![3 => size(16), 1 => size(MAX_EXPERTS)];
    check(96, (size(9), experts, size(130), temperature, scale, any::<u64>()), |any| {
        let (tokens, experts, width, temperature, scale, seed) = any;
        let scaled = |seed, count: u32| -> Vec<f64> {
            noise(seed, count as usize).iter().map(|x| f64::from((scale * x) as f32)).collect()
        };
        let (hidden, centroids) = (scaled(seed, tokens * width), noise(seed + 1, (experts * width) as usize));
        let [got, expected] = cosine(&hidden, &centroids, temperature, width);
        assert_close(&got, &expected, "scores");
    });
}

#[test]
fn cosine_router_gives_the_same_bits_every_time() {
    let (hidden, centroids) = (noise(1, 30 * 50), noise(2, 70 * 50));
    assert_repeatable(|| cosine(&hidden, &centroids, 1.5, 50)[0].clone());
}

#[derive(Clone, Debug)]
struct Cut {
    heads: u32,
    top_k: u32,
    /// Tokens of each sequence.
    lengths: Vec<u32>,
    causal: bool,
    first: u32,
    seed: u64,
}

/// What a cut writes: the spans `[tokens, heads]`, the chosen heads, their gates.
#[derive(Debug, PartialEq)]
struct WasCut {
    spans: Vec<[u32; 5]>,
    chosen: Vec<u32>,
    gates: Vec<f32>,
}

const NOBODY: u32 = u32::MAX;

impl Cut {
    fn tokens(&self) -> u32 {
        self.lengths.iter().sum()
    }

    /// `[tokens, top_k]`: heads each token kept, each once.
    fn kept(&self) -> Vec<u32> {
        let of_token = |token: u32| -> Vec<u32> {
            let at = hash(self.seed, token as usize);
            let mut heads: Vec<u32> = (0..self.heads).collect();
            heads.sort_by_key(|&head| hash(at, head as usize));
            heads.truncate(self.top_k as usize);
            heads
        };
        (0..self.tokens()).flat_map(of_token).collect()
    }

    fn run(&self, kept: &[u32]) -> WasCut {
        let gpu = device();
        let tokens = self.tokens();
        let slots = (tokens * self.heads) as usize;
        let mut start = 0;
        let range = |&length: &u32| {
            start += length;
            [start - length, length]
        };
        let ranges: Vec<[u32; 2]> = self.lengths.iter().map(range).collect();
        let kept = Buffer::with_data(gpu, "test.kept", kept);
        let ranges = Buffer::with_data(gpu, "test.ranges", &ranges);
        let spans = Guarded::new(gpu, 0, 5 * slots);
        let [chosen, gates] = [0, 1].map(|_| Guarded::new(gpu, self.first as usize, slots));
        run(gpu, |recorder| {
            SequenceCut {
                kept: &kept,
                ranges: &ranges,
                head_spans: &spans.buffer,
                routes: Routes {
                    chosen: &chosen.buffer,
                    gates: &gates.buffer,
                    first: self.first,
                    scores: &gates.buffer,
                    first_score: 0,
                },
                tokens,
                heads: self.heads,
                top_k: self.top_k,
                sequences: self.lengths.len() as u32,
                causal: self.causal,
            }
            .record(recorder);
        });
        let spans: Vec<u32> = spans.read();
        let spans = spans.as_chunks().0.to_vec();
        WasCut { spans, chosen: chosen.read(), gates: gates.read() }
    }

    /// Every head takes L tokens of each sequence, or all where there are fewer: those that kept it, then the earliest.
    fn oracle(&self, kept: &[u32]) -> WasCut {
        let heads = self.heads as usize;
        let slots = self.tokens() as usize * heads;
        let keeps = |token: usize, head: usize| {
            kept[token * self.top_k as usize..][..self.top_k as usize].contains(&(head as u32))
        };
        let mut starts = vec![0];
        self.lengths.iter().for_each(|&length| starts.push(starts[starts.len() - 1] + length as usize));
        let of_sequence = |sequence: usize| starts[sequence]..starts[sequence + 1];
        let parts = || (0..self.lengths.len()).flat_map(|b| (0..heads).map(move |h| (b, h)));
        let count = |(b, h)| of_sequence(b).filter(|&token| keeps(token, h)).count();
        let longest = parts().map(count).max().unwrap_or(0);
        let mut cut =
            WasCut { spans: vec![[0; 5]; slots], chosen: vec![NOBODY; slots], gates: vec![0.0; slots] };
        for (b, h) in parts() {
            let mut order: Vec<usize> = of_sequence(b).collect();
            // Stable, so the others stay in their order.
            order.sort_by_key(|&token| !keeps(token, h));
            order.truncate(longest);
            order.sort_unstable();
            for (place, token) in order.iter().enumerate() {
                let keys = if self.causal { place + 1 } else { order.len() };
                let at = token * heads + h;
                cut.spans[at] = [place as u32, b as u32, place as u32, 0, keys as u32];
                (cut.chosen[at], cut.gates[at]) = (h as u32, 1.0);
            }
        }
        cut
    }

    fn check(&self) -> WasCut {
        let kept = self.kept();
        let (mut got, expected) = (self.run(&kept), self.oracle(&kept));
        // Where a head leaves a token out, only that it sees no keys counts.
        for span in got.spans.iter_mut().filter(|span| span[4] == 0) {
            *span = [0; 5];
        }
        assert_eq!(got, expected, "{self:?}");
        got
    }
}

#[test]
fn sequence_cut_gives_every_head_the_same_number_of_tokens() {
    let lengths = prop::collection::vec(prop_oneof![3 => size(40), 1 => Just(0)], 1..=4);
    let heads = prop_oneof![4 => size(12), 1 => size(80)];
    check(128, (heads, any::<u32>(), lengths, any::<bool>(), 0..9u32, any::<u64>()), |any| {
        let (heads, top_k, mut lengths, causal, first, seed) = any;
        lengths[0] += 1;
        Cut { heads, top_k: 1 + top_k % heads, lengths, causal, first, seed }.check();
    });
}

/// Kept heads that do not exist count as the last one.
#[test]
fn sequence_cut_survives_heads_out_of_range() {
    let cut = Cut { heads: 3, top_k: 2, lengths: vec![5, 4], causal: true, first: 2, seed: 1 };
    let mut kept = cut.kept();
    kept[3] = 3;
    kept[10] = u32::MAX;
    let clamped: Vec<u32> = kept.iter().map(|&head| head.min(2)).collect();
    let (got, expected) = (cut.run(&kept), cut.oracle(&clamped));
    assert_eq!((got.chosen, got.gates), (expected.chosen, expected.gates));
}

#[test]
fn sequence_cut_gives_the_same_bits_every_time() {
    let cut = Cut { heads: 12, top_k: 6, lengths: vec![64, 40], causal: false, first: 0, seed: 1 };
    assert_repeatable(|| {
        let WasCut { spans, chosen, .. } = cut.check();
        spans.into_iter().flatten().chain(chosen).map(f64::from).collect()
    });
}
