//! Heads that look at what no query asked for: `blend_heads`.

use headwise::internal::{BlendHeads, EditKind, EditPlan, EditPositions, MAX_HEAD_DIM, PlannedEdit, Queries};
use proptest::prelude::*;

use super::{
    attention::{Attention, any_decode, any_expert_decode, spread},
    edits::{edits, is_at},
};
use crate::{
    reference::edits::{blend, mean, weighed},
    support::{
        Guarded, assert_close_in,
        cache::{AttentionShape, sections},
        check, hash, noise, pad, run,
    },
};

/// Heads in all.
fn units(attention: &Attention) -> u32 {
    let AttentionShape { queries, slots, heads, .. } = attention.shape;
    match queries {
        Queries::BySlot => slots * heads,
        _ => (attention.chosen.iter().max().unwrap_or(&0) + 1) * heads,
    }
}

fn oracle(attention: &Attention, values: &[f64], z: &[f64], plan: &[PlannedEdit]) -> (Vec<f64>, Vec<u32>) {
    let AttentionShape { slots, heads: own, kv_heads, group, value_dim, capacity, .. } = attention.shape;
    let width = value_dim as usize;
    let (mut out, mut counts) = (Vec::new(), vec![0; plan.len()]);
    for token in 0..attention.tokens() as usize {
        for index in 0..slots * own {
            let [unit, _] = attention.head_of(token, index);
            let kv_head = unit / group % kv_heads;
            let span = attention.span_of(token, kv_head);
            let [slot, sequence] = attention.spans[span];
            let value = |slot: u32| {
                let place = ((sequence * capacity + slot) * kv_heads + kv_head) * value_dim;
                values[place as usize..][..width].to_vec()
            };
            let seen: Vec<f64> = (attention.first(span)..attention.sees(span)).flat_map(value).collect();
            let mut row = z[out.len()..][..width].to_vec();
            for edit in
                plan.iter().filter(|edit| edit.unit == unit && is_at(&edit.positions, slot + attention.ahead))
            {
                let other = match edit.kind {
                    EditKind::Identity => value(slot),
                    EditKind::Uniform => mean(&seen, width),
                    _ => {
                        let sees = attention.first(span)..attention.sees(span);
                        let on = edit.row.iter().map(|&(position, weight)| {
                            (position.wrapping_sub(attention.ahead), f64::from(weight))
                        });
                        let on = on.filter(|(slot, _)| sees.contains(slot));
                        weighed(&on.map(|(slot, weight)| (value(slot), weight)).collect::<Vec<_>>(), width)
                    }
                };
                row = blend(&row, &other, f64::from(edit.value));
                counts[edit.number as usize] += 1;
            }
            out.extend(row);
        }
    }
    (out, counts)
}

/// Rows for the edits that are given one, of places that some see and some do not.
fn with_rows(mut plan: Vec<PlannedEdit>, attention: &Attention) -> Vec<PlannedEdit> {
    for edit in plan.iter_mut().filter(|edit| edit.kind == EditKind::Row) {
        let seed = hash(attention.seed, 700 + edit.number as usize);
        let entry = |i: usize| {
            let place = hash(seed, i) % u64::from(attention.shape.capacity + 3);
            (place as u32 + attention.ahead, noise(seed, i + 1)[i].abs() as f32)
        };
        edit.row = (0..1 + (seed % 16) as usize).map(entry).collect();
    }
    plan
}

fn check_blends(attention: &Attention) {
    let shape = attention.shape;
    let operands = attention.operands();
    let rows = (attention.tokens() * shape.slots) as usize;
    let z = noise(attention.seed ^ 3, rows * (shape.heads * shape.value_dim) as usize);
    let z: Vec<f64> = z.iter().map(|&z| f64::from(z as f32)).collect();
    let kinds = [EditKind::Identity, EditKind::Uniform, EditKind::Row];
    let plan = with_rows(edits(attention.seed, units(attention), &kinds), attention);
    let (expected, counts) = oracle(attention, &operands.values, &z, &plan);

    let gpu = attention.gpu();
    let (spans, _, cache) = attention.buffers(&operands);
    let chosen = attention.chosen();
    let out = Guarded::holding(gpu, 0, &pad(&spread(&z, shape.value_dim), attention.out_width()));
    let applied = Guarded::holding(gpu, 0, &vec![0u32; plan.len()]);
    let edits = EditPlan::new(gpu, units(attention), &plan);
    run(gpu, |recorder| {
        BlendHeads {
            plan: &edits,
            applied: &applied.buffer,
            heads: shape.head_layout(),
            spans: &spans,
            routes: attention.routes(&chosen),
            cache: &cache.kv,
            out: &out.buffer,
            tokens: attention.tokens(),
        }
        .record(recorder);
    });
    let found = attention.read(&out);
    assert_close_in(shape.cache, &found, &expected, "blended heads");
    assert_eq!(applied.read::<u32>(), counts);
    // Rows that nobody means keep their bits.
    let width = shape.value_dim as usize;
    for (row, (found, z)) in found.chunks_exact(width).zip(z.chunks_exact(width)).enumerate() {
        let (token, index) =
            (row / (shape.slots * shape.heads) as usize, row as u32 % (shape.slots * shape.heads));
        let [unit, _] = attention.head_of(token, index);
        let span = attention.span_of(token, unit / shape.group % shape.kv_heads);
        let position = attention.spans[span][0] + attention.ahead;
        if !plan.iter().any(|edit| edit.unit == unit && is_at(&edit.positions, position)) {
            assert_eq!(found, z);
        }
    }
}

#[test]
fn heads_blend_with_their_own_value_and_with_the_mean() {
    let any = prop_oneof![any_decode(40, MAX_HEAD_DIM), any_expert_decode(40, 64)];
    check(128, any, |attention| check_blends(&attention));
}

#[test]
fn heads_blend_over_a_cache_that_is_cut_by_slots() {
    let any = prop_oneof![any_decode(90, 32), any_expert_decode(90, 32)];
    check(64, (any, sections()), |(attention, most)| check_blends(&attention.cut(most)));
}

/// All of a blend is the other row, to the bit.
#[test]
fn a_whole_blend_is_the_other_row() {
    check(32, any_decode(20, 32), |attention| {
        let operands = attention.operands();
        let (units, tokens) = (units(&attention), attention.tokens());
        let whole = |unit: u32| PlannedEdit {
            unit,
            kind: EditKind::Identity,
            value: 1.0,
            positions: EditPositions::All,
            number: 0,
            vectors: [].into(),
            row: [].into(),
        };
        let plan: Vec<PlannedEdit> = (0..units).map(whole).collect();
        let rows = (tokens * attention.shape.slots) as usize;
        let z = noise(
            hash(attention.seed, 1),
            rows * (attention.shape.heads * attention.shape.value_dim) as usize,
        );
        let (expected, counts) = oracle(&attention, &operands.values, &z, &plan);
        let gpu = attention.gpu();
        let (spans, _, cache) = attention.buffers(&operands);
        let out =
            Guarded::holding(gpu, 0, &pad(&spread(&z, attention.shape.value_dim), attention.out_width()));
        let applied = Guarded::holding(gpu, 0, &[0u32]);
        let edits = EditPlan::new(gpu, units, &plan);
        run(gpu, |recorder| {
            BlendHeads {
                plan: &edits,
                applied: &applied.buffer,
                heads: attention.shape.head_layout(),
                spans: &spans,
                routes: None,
                cache: &cache.kv,
                out: &out.buffer,
                tokens,
            }
            .record(recorder);
        });
        assert_eq!(attention.read(&out), expected);
        assert_eq!(applied.read::<u32>(), counts[..1]);
    });
}
