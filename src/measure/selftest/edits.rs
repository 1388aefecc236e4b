//! What a plan changes, `edit_heads` and `edit_routes`, and choices that are taken again, `replay_routes`. (`blend_heads` is among the attentions, whose operands it has.)

use headwise_reference::{
    edits::{Choice, ExpertEdit, edit_routes},
    noise::noise,
    router::Weight,
};

use super::{
    Finding, Lab, Run,
    lab::{floats_of, pad, unpad},
};
use crate::{
    Result,
    gpu::Recorder,
    ops::{
        EditHeads, EditKind, EditPlan, EditPositions, EditRoutes, ExpertChoice, HeadRows, PlannedEdit,
        ReplayRoutes, Routes, Span, Weighting,
    },
};

pub(super) async fn check(run: &mut Run<'_>, labs: &[Lab]) {
    let Some(lab) = labs.first() else { return };
    run.case(lab, ("edit_heads", ""), "3 of 8 heads", scaled(lab)).await;
    run.case(lab, ("edit_routes", ""), "all kinds", chosen_again(lab)).await;
    run.case(lab, ("replay_routes", ""), "200 of 300 choices", replayed(lab)).await;
}

/// Tokens that stand at positions 0, 1, 2 …
fn spans(tokens: u32) -> Vec<[u32; Span::WORDS as usize]> {
    Span::words(&(0..tokens).map(|position| Span::causal(position, 0)).collect::<Vec<_>>())
}

fn edit(unit: u32, kind: EditKind, value: f32, positions: EditPositions, number: u32) -> PlannedEdit {
    PlannedEdit { unit, kind, value, positions, number, vectors: [].into(), row: [].into() }
}

async fn scaled(lab: &Lab) -> Result<Finding> {
    let (tokens, slots, heads, stride) = (5, 2, 2, 12);
    let width = heads * stride;
    let chosen: Vec<u32> = (0..tokens * slots).map(|row| row % 4).collect();
    let plan = [
        edit(3, EditKind::Scale, -0.5, EditPositions::All, 0),
        edit(0, EditKind::Scale, 3.0, EditPositions::Range(1, 4), 1),
        edit(6, EditKind::Scale, 0.25, EditPositions::List(vec![4, 1]), 2),
        edit(6, EditKind::Scale, 2.0, EditPositions::All, 3),
        PlannedEdit {
            vectors: [vec![0.5; stride as usize]].into(),
            ..edit(5, EditKind::Mix, 0.25, EditPositions::All, 4)
        },
        PlannedEdit {
            vectors: [vec![1.0; stride as usize], vec![3.0; stride as usize]].into(),
            ..edit(5, EditKind::Add, -2.0, EditPositions::Range(2, 4), 5)
        },
    ];
    let z = noise(1, (tokens * slots * width) as usize);
    let by = |unit: u32, position: u32| match (unit, position) {
        (3, _) => -0.5,
        (0, 1..4) => 3.0,
        (6, 1 | 4) => 0.5,
        (6, _) => 2.0,
        _ => 1.0,
    };
    let head_of = |at: usize| {
        let (row, head) = (at as u32 / width, at as u32 % width / stride);
        by(chosen[row as usize] * heads + head, row / slots)
    };
    // Head 1 of expert 2 is mixed, then moved.
    let moved = |at: usize, z: f64| {
        let (row, head) = (at as u32 / width, at as u32 % width / stride);
        let added = [0.0, 0.0, -2.0, -6.0, 0.0][(row / slots) as usize];
        if chosen[row as usize] * heads + head == 5 { 0.75 * z + 0.125 + added } else { z }
    };
    let expected: Vec<f64> = z.iter().enumerate().map(|(at, &z)| moved(at, z * head_of(at))).collect();
    let plan = EditPlan::new(&lab.gpu, 4 * heads, &plan);
    let (spans, on_gpu) = (lab.data(&spans(tokens)), lab.data(&chosen));
    let (rows, applied) = (lab.output_of(&pad(&z, width)), lab.output_of(&[0u32; 6]));
    let record = |recorder: &mut Recorder| {
        let routes = Routes { chosen: &on_gpu, gates: &on_gpu, first: 0, scores: &on_gpu, first_score: 0 };
        EditHeads {
            plan: &plan,
            applied: &applied.buffer,
            spans: &spans,
            rows: HeadRows {
                rows: &rows.buffer,
                row: width,
                first: 0,
                slots,
                heads,
                stride,
                routes: Some(routes),
            },
            tokens,
        }
        .record(recorder);
    };
    let read = lab.run(&[&rows], record).await?;
    Ok(Finding::close(&unpad(&read[0], width)?, &expected))
}

async fn chosen_again(lab: &Lab) -> Result<Finding> {
    let (tokens, experts, top_k) = (6, 9usize, 3);
    let scores: Vec<f64> = noise(1, tokens * experts).iter().map(|z| f64::from((4.0 * z) as f32)).collect();
    let weight = Weight::SoftmaxKept;
    let choice = Choice { shared: 0, groups: 1, top_k, weight, factor: 1.0 };
    let plan = [
        edit(0, EditKind::Off, 0.0, EditPositions::Range(0, 3), 0),
        edit(2, EditKind::Masked, 0.0, EditPositions::All, 1),
        edit(5, EditKind::Forced, 0.0, EditPositions::List(vec![5, 0, 3]), 2),
        edit(7, EditKind::Bias, 1.5, EditPositions::Range(2, 6), 3),
    ];
    let none = vec![ExpertEdit::default(); experts];
    let (mut before, mut expected) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for (token, scores) in scores.chunks_exact(experts).enumerate() {
        let mut edits = none.clone();
        edits[0].off = token < 3;
        edits[2].masked = true;
        edits[5].forced = [0, 3, 5].contains(&token);
        edits[7].bias = if token >= 2 { 1.5 } else { 0.0 };
        let (experts, gates, _) = edit_routes(&choice, scores, &[], &none);
        before.0.extend(experts);
        before.1.extend(gates.iter().map(|&gate| gate as f32));
        let (experts, gates, _) = edit_routes(&choice, scores, &[], &edits);
        expected.0.extend(experts);
        expected.1.extend(gates);
    }
    let kept: Vec<f32> = scores.iter().map(|&z| z as f32).collect();
    let (chosen, gates) = (lab.output_of(&before.0), lab.output_of(&before.1));
    let (scores, applied) = (lab.output_of(&kept), lab.output_of(&[0u32; 4]));
    let plan = EditPlan::new(&lab.gpu, experts as u32, &plan);
    let spans = lab.data(&spans(tokens as u32));
    let record = |recorder: &mut Recorder| {
        let routes = Routes {
            chosen: &chosen.buffer,
            gates: &gates.buffer,
            first: 0,
            scores: &scores.buffer,
            first_score: 0,
        };
        let choice = ExpertChoice::top_k(experts as u32, top_k as u32, Weighting::SoftmaxTopK);
        EditRoutes {
            plan: &plan,
            applied: &applied.buffer,
            spans: &spans,
            routes,
            choice,
            tokens: tokens as u32,
        }
        .record(recorder);
    };
    let read = lab.run(&[&chosen, &gates], record).await?;
    Ok(Finding::equal(&read[0], &expected.0).and(Finding::close(&floats_of(&read[1]), &expected.1)))
}

async fn replayed(lab: &Lab) -> Result<Finding> {
    let taken: Vec<u32> = (0..300).map(|i| if i % 3 == 0 { ReplayRoutes::OPEN } else { i }).collect();
    let expected: Vec<u32> =
        taken.iter().map(|&word| if word == ReplayRoutes::OPEN { 7 } else { word }).collect();
    let gate = |word: &u32| f64::from(*word) / 8.0;
    let (chosen, gates) = (lab.output_of(&[7u32; 300]), lab.output_of(&[7.0f32 / 8.0; 300]));
    let (taken_gates, taken) = (lab.floats(&taken.iter().map(gate).collect::<Vec<_>>()), lab.data(&taken));
    let record = |recorder: &mut Recorder| {
        let routes =
            Routes { chosen: &chosen.buffer, gates: &gates.buffer, first: 0, scores: &taken, first_score: 0 };
        ReplayRoutes { taken: &taken, gates: &taken_gates, routes, count: 300 }.record(recorder);
    };
    let read = lab.run(&[&chosen, &gates], record).await?;
    let expected_gates: Vec<f64> = expected.iter().map(gate).collect();
    Ok(Finding::equal(&read[0], &expected).and(Finding::close(&floats_of(&read[1]), &expected_gates)))
}
