//! What a plan changes: `edit_heads`, `edit_routes`.

use std::cell::Cell;

use headwise::internal::{
    Buffer, EditHeads, EditKind, EditPlan, EditPositions, EditRoutes, ExpertChoice, Gpu, HeadRows,
    KernelChoice, MAX_EXPERTS, PlannedEdit, ReplayRoutes, Routes, Span, Weighting, padded,
};
use proptest::prelude::*;

use crate::{
    reference::{
        edits::{Choice, ExpertEdit, blend, edit_routes},
        router::Weight,
        widen,
    },
    support::{Guarded, among, assert_close, check, gpu, hash, noise, pad, read, run, size},
};

fn device() -> &'static Gpu {
    gpu(KernelChoice::Plain)
}

/// Random positions: all, a range, a list.
fn positions(seed: u64) -> EditPositions {
    let any = |i: usize| (hash(seed, i) % 12) as u32;
    match any(0) % 3 {
        0 => EditPositions::All,
        1 => EditPositions::Range(any(1), any(1) + 1 + any(2)),
        _ => EditPositions::List((0..1 + any(1) as usize % 5).map(|i| any(3 + i)).collect()),
    }
}

pub(super) fn is_at(positions: &EditPositions, position: u32) -> bool {
    match positions {
        EditPositions::All => true,
        EditPositions::Range(first, end) => (*first..*end).contains(&position),
        EditPositions::List(list) => list.contains(&position),
    }
}

/// Edits of random units, numbered in their order.
pub(super) fn edits(seed: u64, units: u32, kinds: &[EditKind]) -> Vec<PlannedEdit> {
    let edit = |number: u32| {
        let seed = hash(seed, number as usize);
        let kind = kinds[hash(seed, 90) as usize % kinds.len()];
        let value = (2.0 * noise(seed, 1)[0]) as f32;
        let unit = (hash(seed, 91) % u64::from(units)) as u32;
        PlannedEdit {
            unit,
            kind,
            value,
            positions: positions(seed),
            number,
            vectors: [].into(),
            row: [].into(),
        }
    };
    (0..1 + (hash(seed, 99) % 9) as u32).map(edit).collect()
}

/// A vector of `width` for each edit that has one, some with one for each position of their range.
fn with_vectors(mut edits: Vec<PlannedEdit>, seed: u64, width: u32) -> Vec<PlannedEdit> {
    for edit in edits.iter_mut().filter(|edit| edit.kind != EditKind::Scale) {
        let seed = hash(seed, edit.number as usize);
        let count = match edit.positions {
            EditPositions::Range(first, end) if seed.is_multiple_of(2) => end - first,
            _ => 1,
        };
        let vector =
            |i: u32| noise(hash(seed, i as usize), width as usize).iter().map(|&v| v as f32).collect();
        edit.vectors = (0..count).map(vector).collect();
    }
    edits
}

/// What an edit of `EditHeads` makes of a head at a position.
fn edited(edit: &PlannedEdit, position: u32, z: &[f64]) -> Vec<f64> {
    let value = f64::from(edit.value);
    let own = match (&edit.positions, edit.vectors.len()) {
        (EditPositions::Range(first, _), 2..) => (position - first) as usize,
        _ => 0,
    };
    let vector = edit.vectors.get(own).map(|vector| widen(vector)).unwrap_or_default();
    match edit.kind {
        EditKind::Mix => blend(z, &vector, value),
        EditKind::Add => z.iter().zip(&vector).map(|(z, v)| z + value * v).collect(),
        _ => z.iter().map(|z| value * z).collect(),
    }
}

/// Spans of tokens at random positions.
fn places(seed: u64, tokens: u32) -> Vec<u32> {
    (0..tokens as usize).map(|t| (hash(seed ^ 5, t) % 14) as u32).collect()
}

fn spans(gpu: &Gpu, places: &[u32]) -> Buffer {
    let spans: Vec<Span> = places.iter().map(|&position| Span::causal(position, 0)).collect();
    Buffer::with_data(gpu, "test.spans", Span::words(&spans).as_flattened())
}

#[derive(Clone, Debug)]
struct Heads {
    tokens: u32,
    slots: u32,
    heads: u32,
    stride: u32,
    experts: u32,
    routed: bool,
    first: u32,
    seed: u64,
}

#[test]
fn edit_heads_changes_the_heads_of_the_experts_that_stand_there() {
    let shapes = (size(9), size(4), size(5), size(9), size(6), any::<bool>(), 0..5u32, any::<u64>());
    let cases = shapes.prop_map(|(tokens, slots, heads, stride, experts, routed, first, seed)| Heads {
        tokens,
        slots,
        heads,
        stride: 4 * stride,
        experts: if routed { experts } else { slots },
        routed,
        first,
        seed,
    });
    check(128, cases, |Heads { tokens, slots, heads, stride, experts, routed, first, seed }| {
        let gpu = device();
        // Something may stand before the heads.
        let before = 4 * (seed % 3) as u32;
        let (rows, width) = ((tokens * slots) as usize, before + heads * stride);
        let z = noise(seed, rows * width as usize);
        let kinds = [EditKind::Scale, EditKind::Mix, EditKind::Add];
        let edits = with_vectors(edits(seed, experts * heads, &kinds), seed, stride);
        let places = places(seed, tokens);
        // Some slots are nobody's.
        let any = |row: usize| (hash(seed ^ 9, row) % u64::from(experts + 1)) as u32;
        let chosen: Vec<u32> =
            (0..rows).map(|row| if any(row) == experts { u32::MAX } else { any(row) }).collect();
        let stands = |row: usize| match routed {
            true => chosen[row],
            false => row as u32 % slots,
        };

        let mut expected: Vec<f64> = z.iter().map(|&z| f64::from(z as f32)).collect();
        let mut counts = vec![0u32; edits.len()];
        for row in 0..rows {
            let place = places[row / slots as usize];
            for head in 0..heads.min(if stands(row) == u32::MAX { 0 } else { heads }) {
                let unit = stands(row) * heads + head;
                for edit in edits.iter().filter(|edit| edit.unit == unit && is_at(&edit.positions, place)) {
                    let from = row * width as usize + (before + head * stride) as usize;
                    let own = &mut expected[from..from + stride as usize];
                    own.copy_from_slice(&edited(edit, place, own));
                    counts[edit.number as usize] += 1;
                }
            }
        }

        let z = Guarded::holding(gpu, 0, &pad(&z, width));
        let applied = Guarded::holding(gpu, 0, &vec![0u32; edits.len()]);
        let among = [vec![0; first as usize], chosen.clone()].concat();
        let chosen = Buffer::with_data(gpu, "test.chosen", &among);
        let plan = EditPlan::new(gpu, experts * heads, &edits);
        let spans = spans(gpu, &places);
        run(gpu, |recorder| {
            let routes = Routes { chosen: &chosen, gates: &chosen, first, scores: &chosen, first_score: 0 };
            EditHeads {
                plan: &plan,
                applied: &applied.buffer,
                spans: &spans,
                rows: HeadRows {
                    rows: &z.buffer,
                    row: padded(width),
                    first: before,
                    slots,
                    heads,
                    stride,
                    routes: routed.then_some(routes),
                },
                tokens,
            }
            .record(recorder);
        });
        assert_close(&z.read_rows(width), &expected, "rows");
        assert_eq!(applied.read::<u32>(), counts);
        assert_eq!(padded(width) as usize * rows, z.words());
    });
}

#[test]
fn what_edit_heads_scales_beyond_a_bound_is_infinite() {
    let gpu = device();
    let (tokens, stride) = (3, 8);
    let z: Vec<f32> = noise(7, (tokens * 2 * stride) as usize).iter().map(|&z| z as f32).collect();
    let (positions, number) = (EditPositions::All, 0);
    let vectors = [].into();
    let edit = PlannedEdit {
        unit: 1,
        kind: EditKind::Scale,
        value: -3e10,
        positions,
        number,
        vectors,
        row: [].into(),
    };
    let rows = Buffer::with_data(gpu, "test.rows", &z);
    let applied = Buffer::with_data(gpu, "test.applied", &[0u32]);
    let (plan, spans) = (EditPlan::new(gpu, 2, &[edit]), spans(gpu, &[0, 1, 2]));
    run(gpu, |recorder| {
        EditHeads {
            plan: &plan,
            applied: &applied,
            spans: &spans,
            rows: HeadRows {
                rows: &rows,
                row: 2 * stride,
                first: 0,
                slots: 1,
                heads: 2,
                stride,
                routes: None,
            },
            tokens,
        }
        .record(recorder);
    });
    let (mut infinite, found) = (0, read::<f32>(gpu, &rows, z.len()));
    for (index, (&z, found)) in z.iter().zip(found).enumerate() {
        let edited = index / stride as usize % 2 == 1;
        let expected = if edited { f64::from(z) * -3e10 } else { f64::from(z) };
        infinite += usize::from(expected.abs() > 1e10);
        match expected.abs() > 1e10 {
            true => assert_eq!(found, f32::INFINITY.copysign(expected as f32)),
            false => assert!((f64::from(found) - expected).abs() <= 1e-6 * expected.abs()),
        }
    }
    assert!((1..tokens * stride).contains(&(infinite as u32)), "{infinite}");
}

const WEIGHTS: [(Weighting, Weight); 5] = [
    (Weighting::SoftmaxTopK, Weight::SoftmaxKept),
    (Weighting::SoftmaxAll, Weight::SoftmaxAll),
    (Weighting::SoftmaxAllRenormalised { eps: 0.25 }, Weight::Renormalised { epsilon: 0.25, scale: 1.0 }),
    (Weighting::Sigmoid, Weight::Sigmoid),
    (Weighting::Constant, Weight::Const(1.0)),
];

#[derive(Clone, Debug)]
struct Routing {
    tokens: u32,
    choice: ExpertChoice,
    weight: Weight,
    kinds: Vec<EditKind>,
    seed: u64,
}

fn any_routing() -> impl Strategy<Value = Routing> {
    use EditKind::{Bias, Forced, Masked, Off};
    let kinds = prop::sample::select(vec![
        vec![Off],
        vec![Masked],
        vec![Forced],
        vec![Bias],
        vec![Off, Masked, Forced, Bias],
    ]);
    let experts = prop_oneof![4 => 1..12u32, 1 => 100..=MAX_EXPERTS / 2];
    (size(7), experts, 0..4u32, 1..4u32, any::<u32>(), 0..5usize, any::<bool>(), kinds, any::<u64>())
        .prop_map(|(tokens, size, shared, groups, top_k, weight, two_stage, kinds, seed)| {
            let groups = if size * groups + shared > MAX_EXPERTS { 1 } else { groups };
            let (weighting, weight) = WEIGHTS[weight];
            let choice = ExpertChoice {
                experts: shared + groups * size,
                shared,
                groups,
                top_k: 1 + top_k % size,
                weighting,
                scale: if seed % 2 == 0 { 1.0 } else { 2.5 },
                shared_softmax: false,
                two_stage: two_stage && shared > 0,
            };
            Routing { tokens, choice, weight, kinds, seed }
        })
}

#[test]
fn edit_routes_chooses_again() {
    let (tokens, skipped) = (Cell::new(0u32), Cell::new(0u32));
    check(192, any_routing(), |routing| {
        let Routing { tokens: count, choice, weight, kinds, seed } = routing;
        let gpu = device();
        let (routed, slots) = (choice.routed() as usize, choice.slots() as usize);
        let scores: Vec<f64> =
            noise(seed, count as usize * routed).iter().map(|z| f64::from((4.0 * z) as f32)).collect();
        let plan = edits(seed, choice.experts, &kinds);
        let places = places(seed, count);
        let (first, first_score) = (3, 5);

        // What the router chose, and what edits make of it.
        let mut before = (Vec::new(), Vec::new());
        let (mut expected, mut counts, mut margins) =
            ((Vec::new(), Vec::new()), vec![0u32; plan.len()], Vec::new());
        for (token, scores) in scores.chunks_exact(routed).enumerate() {
            // A factor of two stages that nobody but the gates knows of.
            let stage = if choice.two_stage { 0.4 + 0.1 * token as f64 } else { 1.0 };
            let rule = Choice {
                shared: choice.shared as usize,
                groups: choice.groups as usize,
                top_k: choice.top_k as usize,
                weight,
                factor: stage * f64::from(choice.scale),
            };
            let shared = vec![2.0 - stage; choice.shared as usize];
            let none = vec![ExpertEdit::default(); choice.experts as usize];
            let (experts, gates, margin) = edit_routes(&rule, scores, &shared, &none);
            let mut edits = none;
            let here: Vec<&PlannedEdit> =
                plan.iter().filter(|edit| is_at(&edit.positions, places[token])).collect();
            for edit in &here {
                let to = &mut edits[edit.unit as usize];
                // The shared ones are chosen whatever happens.
                match edit.kind {
                    EditKind::Off => to.off = true,
                    EditKind::Masked => to.masked = edit.unit >= choice.shared,
                    EditKind::Forced => to.forced = edit.unit >= choice.shared,
                    _ => to.bias += f64::from(edit.value),
                }
            }
            let after = edit_routes(&rule, scores, &shared, &edits);
            for edit in here {
                let changes = match edit.kind {
                    EditKind::Off => after.0.contains(&edit.unit),
                    EditKind::Masked => experts.contains(&edit.unit),
                    EditKind::Forced => !experts.contains(&edit.unit),
                    _ => true,
                };
                counts[edit.number as usize] += u32::from(changes);
            }
            before.0.extend(experts);
            before.1.extend(gates.iter().map(|&gate| gate as f32));
            expected.0.extend(after.0);
            expected.1.extend(after.1);
            margins.push(margin.min(after.2));
        }

        let chosen = Guarded::holding(gpu, first, &before.0);
        let gates = Guarded::holding(gpu, first, &before.1);
        let kept: Vec<f32> = scores.iter().map(|&z| z as f32).collect();
        let kept_scores = Guarded::holding(gpu, first_score, &kept);
        let applied = Guarded::holding(gpu, 0, &vec![0u32; plan.len()]);
        let edits = EditPlan::new(gpu, choice.experts, &plan);
        let spans = spans(gpu, &places);
        run(gpu, |recorder| {
            let routes = Routes {
                chosen: &chosen.buffer,
                gates: &gates.buffer,
                first: first as u32,
                scores: &kept_scores.buffer,
                first_score: first_score as u32,
            };
            EditRoutes {
                plan: &edits,
                applied: &applied.buffer,
                spans: &spans,
                routes,
                choice,
                tokens: count,
            }
            .record(recorder);
        });
        assert_eq!(kept_scores.read::<f32>(), kept, "scores stay");
        let (chosen, gates) = (chosen.read::<u32>(), gates.read::<f32>());
        let mut clear = true;
        for token in 0..count as usize {
            let own = token * slots..(token + 1) * slots;
            tokens.set(tokens.get() + 1);
            if margins[token] < 1e-5 {
                skipped.set(skipped.get() + 1);
                clear = false;
                continue;
            }
            assert_eq!(chosen[own.clone()], expected.0[own.clone()], "token {token}");
            let tolerance = 3e-5 * expected.1[own.clone()].iter().fold(1.0, |a: f64, b| a.max(b.abs()));
            for (found, expected) in widen(&gates[own.clone()]).iter().zip(&expected.1[own.clone()]) {
                assert!((found - expected).abs() <= tolerance, "found {found}, expected {expected}");
            }
            // Nobody meant: not a bit changes.
            if !plan.iter().any(|edit| is_at(&edit.positions, places[token])) {
                assert_eq!(gates[own.clone()], before.1[own]);
            }
        }
        if clear {
            assert_eq!(applied.read::<u32>(), counts);
        }
    });
    assert!(skipped.get() * 50 <= tokens.get(), "skipped {} of {} tokens", skipped.get(), tokens.get());
}

#[test]
fn replay_routes_takes_what_is_not_open() {
    for count in [1, 63, 64, 1000, 65_535 * 64 + 70] {
        let gpu = device();
        let first = 5;
        let any = |salt: u64, i: usize| hash(salt, i) as u32 % 100;
        let words = |salt: u64| -> Vec<u32> { (0..count as usize).map(|i| any(salt, i)).collect() };
        let numbers = |salt: u64| -> Vec<f32> { words(salt).iter().map(|&word| word as f32).collect() };
        let open = |i: usize| any(5, i) < 40;
        let (chosen, gates, taken, taken_gates) = (words(1), numbers(2), words(3), numbers(4));
        let expected: Vec<u32> =
            (0..count as usize).map(|i| if open(i) { chosen[i] } else { taken[i] }).collect();
        let expected_gates: Vec<f32> =
            (0..count as usize).map(|i| if open(i) { gates[i] } else { taken_gates[i] }).collect();
        let marked: Vec<u32> = taken
            .iter()
            .enumerate()
            .map(|(i, &word)| if open(i) { ReplayRoutes::OPEN } else { word })
            .collect();
        let (chosen, gates) = (Guarded::holding(gpu, first, &chosen), Guarded::holding(gpu, first, &gates));
        let taken = among(gpu, first as u32, &marked, 0u32);
        let taken_gates = among(gpu, first as u32, &taken_gates, 0f32);
        run(gpu, |recorder| {
            let routes = Routes {
                chosen: &chosen.buffer,
                gates: &gates.buffer,
                first: first as u32,
                scores: &taken,
                first_score: 0,
            };
            ReplayRoutes { taken: &taken, gates: &taken_gates, routes, count }.record(recorder);
        });
        assert_eq!(chosen.read::<u32>(), expected);
        assert_eq!(gates.read::<f32>(), expected_gates);
    }
}
