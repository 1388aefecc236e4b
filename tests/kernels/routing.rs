//! Which expert gets which row: `norm_router`, `group_count`, `group_scan`, `group_scatter`, `combine`.

use std::cell::Cell;

use headwise::internal::{Combine, Gpu, Group, GroupBuffers, KernelChoice, MAX_EXPERTS, NormRouter, Routes};
use proptest::prelude::*;

use crate::{
    reference::{
        combine::combine,
        group::{Tile, group, tile_table},
        norm_router::{NormRouter as Expected, norm_router, top_k_softmax},
        widen,
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
    experts: u32,
    top_k: u32,
    eps: f32,
    first: u32,
    seed: u64,
}

impl Router {
    fn operands(&self) -> [Vec<f64>; 3] {
        [
            noise(self.seed, (self.tokens * self.width) as usize),
            noise(self.seed + 1, self.width as usize),
            noise(self.seed + 2, (self.experts * self.width) as usize),
        ]
    }

    fn oracle(&self, [x, norm_weight, router]: &[Vec<f64>; 3]) -> Expected {
        norm_router(x, norm_weight, f64::from(self.eps), router, self.top_k as usize)
    }

    /// xn, chosen, gates.
    fn run(&self, operands: &[Vec<f64>; 3]) -> (Vec<f64>, Vec<u32>, Vec<f64>) {
        let gpu = device();
        let [x, norm_weight, router] = &operands.each_ref().map(|rows| upload(gpu, rows, self.width));
        let assignments = (self.tokens * self.top_k) as usize;
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
                experts: self.experts,
                active: self.top_k,
                eps: self.eps,
            }
            .record(recorder);
        });
        (xn.read_rows(self.width), chosen.read(), widen(&gates.read::<f32>()))
    }
}

fn any_router() -> impl Strategy<Value = Router> {
    let experts = prop_oneof![3 => size(16), 1 => size(MAX_EXPERTS), 1 => Just(MAX_EXPERTS)];
    let top_k = prop_oneof![2 => any::<u32>(), 1 => Just(0), 1 => Just(u32::MAX)];
    let eps = prop_oneof![Just(1e-6f32), Just(1e-5), Just(0.1)];
    (size(9), size(200), experts, top_k, eps, 0..9u32, any::<u64>()).prop_map(
        |(tokens, width, experts, top_k, eps, first, seed)| {
            // One, all, or anything between.
            let top_k = if top_k == u32::MAX { experts } else { 1 + top_k % experts.min(32) };
            Router { tokens, width, experts, top_k, eps, first, seed }
        },
    )
}

#[test]
fn norm_router_chooses_the_best_experts() {
    let (tokens, skipped) = (Cell::new(0), Cell::new(0));
    check(96, any_router(), |router| {
        let operands = router.operands();
        let expected = router.oracle(&operands);
        let (xn, chosen, gates) = router.run(&operands);
        assert_close(&xn, &expected.normed, "xn");
        let found = expected.routes.compare(&chosen, &gates, MIN_MARGIN).unwrap();
        assert!(found.gate_error <= 1e-5, "gates differ by {:e}", found.gate_error);
        for gates in gates.chunks_exact(router.top_k as usize) {
            assert!(gates.is_sorted_by(|a, b| a >= b), "descending: {gates:?}");
            assert_close(&[gates.iter().sum()], &[1.0], "sum of gates");
        }
        tokens.set(tokens.get() + router.tokens as usize);
        skipped.set(skipped.get() + found.skipped);
    });
    assert!(skipped.get() * 100 <= tokens.get(), "skipped {} of {} tokens", skipped.get(), tokens.get());
}

#[test]
fn norm_router_gives_a_tie_to_the_lower_expert() {
    for (experts, top_k, seed) in [(2, 1, 1), (8, 3, 2), (8, 5, 3), (100, 7, 4), (256, 31, 5)] {
        let router = Router { tokens: 5, width: 50, experts, top_k, eps: 1e-6, first: 0, seed };
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
    let router = Router { tokens: 3, width: 16, experts: 9, top_k: 4, eps: 1e-6, first: 0, seed: 1 };
    let [x, norm_weight, _] = router.operands();
    let (_, chosen, gates) = router.run(&[x, norm_weight, vec![0.0; 9 * 16]]);
    assert_eq!(chosen, [0, 1, 2, 3].repeat(3));
    assert_close(&gates, &[0.25; 12], "gates");
}

/// The softmax may not overflow.
#[test]
fn norm_router_holds_scores_of_any_size() {
    let router = Router { tokens: 2, width: 8, experts: 4, top_k: 3, eps: 1e-6, first: 0, seed: 3 };
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
    let router = Router { tokens: 40, width: 200, experts: 24, top_k: 5, eps: 1e-6, first: 0, seed: 3 };
    let operands = router.operands();
    assert_repeatable(|| {
        let (xn, chosen, gates) = router.run(&operands);
        [xn, chosen.into_iter().map(f64::from).collect(), gates].concat()
    });
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
                routes: Routes { chosen: &gates_on_gpu, gates: &gates_on_gpu, first },
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
        let expected = combine(&rows, slots, width, Some(&widen(&gates)), bias.as_deref(), Some(&residual));
        assert_close(&got, &expected, self);
        got
    }
}

#[test]
fn combine_adds_the_gated_slots_to_the_residual() {
    let any = (size(20), size(8), size(300), 0..9u32, any::<bool>(), any::<u64>());
    check(64, any, |(tokens, slots, width, first, bias, seed)| {
        Combining { tokens, slots, width, first, bias, seed }.check();
    });
}

#[test]
fn combine_gives_the_same_bits_every_time() {
    assert_repeatable(|| {
        Combining { tokens: 20, slots: 6, width: 300, first: 0, bias: true, seed: 1 }.check()
    });
}
