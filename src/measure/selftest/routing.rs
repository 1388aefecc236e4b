//! Routers and what they make: `norm_router`, `select`, `cosine_router`, grouping, `combine`.

use headwise_reference::{
    combine::combine,
    dot,
    group::{Tile, group, tile_table},
    noise::{hash, noise},
    norm_router::{Routes as Expected, norm_router, top_k_softmax},
    router::{self, Weight},
};

use super::{
    Finding, Lab, Run,
    lab::{floats_of, pad, unpad},
};
use crate::{
    Result,
    gpu::Recorder,
    ops::{
        Combine, CosineRouter, ExpertChoice, Group, GroupBuffers, NormKind, NormRouter, RouterInput, Routes,
        Select, SequenceCut, Weighting,
    },
};

/// Scores closer than this may be ordered either way.
const MIN_MARGIN: f64 = 1e-5;
const EPS: f32 = 1e-5;

/// (tokens, width, experts, kept ones)
const ROUTERS: [(&str, [u32; 4]); 4] = [
    ("2 of 8", [5, 45, 8, 2]),
    ("all of 24", [3, 64, 24, 24]),
    ("7 of 256", [2, 100, 256, 7]),
    ("the only one", [1, 1, 1, 1]),
];

pub(super) async fn check(run: &mut Run<'_>, labs: &[Lab]) {
    for lab in labs {
        let lanes = format!("{} lanes", lab.variants.row_lanes);
        for (name, sizes) in ROUTERS {
            run.case(lab, ("norm_router", &lanes), name, normed(lab, sizes)).await;
        }
    }
    let Some(lab) = labs.first() else { return };
    let weightings = [
        ("softmax of the kept", Weighting::SoftmaxTopK, Weight::SoftmaxKept),
        ("softmax of all", Weighting::SoftmaxAll, Weight::SoftmaxAll),
        (
            "softmax, renormalised",
            Weighting::SoftmaxAllRenormalised { eps: 0.25 },
            Weight::Renormalised { epsilon: 0.25, scale: 1.0 },
        ),
        ("sigmoid", Weighting::Sigmoid, Weight::Sigmoid),
        ("constant", Weighting::Constant, Weight::Const(1.0)),
    ];
    for (name, weighting, weight) in weightings {
        run.case(lab, ("select", ""), name, select(lab, weighting, weight)).await;
    }
    run.case(lab, ("cosine_router", ""), "70 experts", cosine(lab)).await;
    for (name, assignments, experts, tile_rows) in
        [("700 of 24", 700, 24, 8), ("333 of 3, tall tiles", 333, 3, 32), ("one", 1, 5, 16)]
    {
        run.case(lab, ("group", ""), name, grouped(lab, assignments, experts, tile_rows)).await;
    }
    run.case(lab, ("sequence_cut", ""), "13 and 8 tokens, 2 of 5 heads", cut(lab)).await;
    for (name, gated, residual) in [("gated", true, false), ("plain, added", false, true)] {
        run.case(lab, ("combine", ""), name, combined(lab, gated, residual)).await;
    }
}

/// Whether the same experts were chosen, with gates as near.
fn compare(expected: &Expected, chosen: &[u32], gates: &[u32]) -> Finding {
    match expected.compare(chosen, &floats_of(gates), MIN_MARGIN) {
        Ok(found) => Finding { error: found.gate_error, limit: 1e-5 },
        Err(_) => Finding { error: 1.0, limit: 0.0 },
    }
}

async fn normed(lab: &Lab, [tokens, width, experts, top_k]: [u32; 4]) -> Result<Finding> {
    let x = noise(1, (tokens * width) as usize);
    let (weight, router) = (noise(2, width as usize), noise(3, (experts * width) as usize));
    let expected = norm_router(&x, &weight, f64::from(EPS), &router, top_k as usize);
    let [x, weights, router] = [x, weight, router].map(|values| lab.rows(&values, width));
    let xn = lab.output_rows(tokens, width);
    let [chosen, gates] = [0, 1].map(|_| lab.output((tokens * top_k) as usize));
    let scores = lab.output((tokens * experts) as usize);
    let record = |recorder: &mut Recorder| {
        NormRouter {
            input: RouterInput::Normed {
                kind: NormKind::Rms,
                eps: EPS,
                weights: &weights,
                x: &x,
                xn: &xn.buffer,
            },
            router: &router,
            bias: None,
            routes: Routes {
                chosen: &chosen.buffer,
                gates: &gates.buffer,
                first: 0,
                scores: &scores.buffer,
                first_score: 0,
            },
            tokens,
            width,
            choice: ExpertChoice::top_k(experts, top_k, Weighting::SoftmaxTopK),
        }
        .record(recorder);
    };
    let read = lab.run(&[&scores, &xn, &chosen, &gates], record).await?;
    Ok(Finding::close(&floats_of(&read[0]), &expected.scores)
        .and(Finding::close(&unpad(&read[1], width)?, &expected.normed))
        .and(compare(&expected.routes, &read[2], &read[3])))
}

async fn select(lab: &Lab, weighting: Weighting, weight: Weight) -> Result<Finding> {
    let (tokens, experts, top_k) = (9, 37, 5);
    let scores = noise(1, tokens * experts);
    let mut expected = Expected { top_k, ..Expected::default() };
    for scores in scores.chunks_exact(experts) {
        let (kept, margin) = router::Select::TopK(top_k).of(scores);
        expected.gates.extend(weight.of(scores, &kept));
        expected.experts.extend(kept.iter().map(|&expert| expert as u32));
        expected.margins.push(margin);
    }
    let on_gpu = lab.rows(&scores, experts as u32);
    let [chosen, gates] = [0, 1].map(|_| lab.output(tokens * top_k));
    let copied = lab.output(tokens * experts);
    let record = |recorder: &mut Recorder| {
        Select {
            scores: &on_gpu,
            routes: Routes {
                chosen: &chosen.buffer,
                gates: &gates.buffer,
                first: 0,
                scores: &copied.buffer,
                first_score: 0,
            },
            choice: ExpertChoice::top_k(experts as u32, top_k as u32, weighting),
            tokens: tokens as u32,
        }
        .record(recorder);
    };
    let read = lab.run(&[&chosen, &gates, &copied], record).await?;
    Ok(compare(&expected, &read[0], &read[1]).and(Finding::close(&floats_of(&read[2]), &scores)))
}

async fn cosine(lab: &Lab) -> Result<Finding> {
    let (tokens, experts, width, temperature) = (5, 70, 45, 1.5f32);
    let (hidden, centroids) = (noise(1, (tokens * width) as usize), noise(2, (experts * width) as usize));
    let scale = f64::from(temperature).exp();
    let cosine = |h: &[f64], c: &[f64]| scale * dot(h, c) / (router::norm(h) * router::norm(c));
    let rows = hidden.chunks_exact(width as usize);
    let expected: Vec<f64> =
        rows.flat_map(|h| centroids.chunks_exact(width as usize).map(move |c| cosine(h, c))).collect();
    let [hidden, centroids] = [hidden, centroids].map(|values| lab.rows(&values, width));
    let temperature = lab.data(&[temperature]);
    // The padding is zero before; the kernel must leave it so.
    let scores = lab.output_of(&pad(&vec![777.0; (tokens * experts) as usize], experts));
    let record = |recorder: &mut Recorder| {
        let (hidden, centroids, temperature) = (&hidden, &centroids, &temperature);
        CosineRouter { hidden, centroids, temperature, scores: &scores.buffer, tokens, experts, width }
            .record(recorder);
    };
    let read = lab.run(&[&scores], record).await?;
    Ok(Finding::close(&unpad(&read[0], experts)?, &expected))
}

async fn grouped(lab: &Lab, assignments: u32, experts: u32, tile_rows: u32) -> Result<Finding> {
    // The last expert has none.
    let used = u64::from(experts.max(2) - 1);
    let chosen: Vec<u32> = (0..assignments as usize).map(|i| (hash(1, i) % used) as u32).collect();
    let expected = group(&chosen, experts as usize);
    let table = tile_table(&expected, tile_rows);
    let on_gpu = lab.data(&chosen);
    let mut into = GroupBuffers::new(&lab.gpu, assignments, experts, tile_rows);
    let [_, _, tile_bytes] = GroupBuffers::bytes(assignments, experts, tile_rows);
    let (order, tiles) = (lab.output(assignments as usize), lab.output(tile_bytes as usize / 4));
    (into.order, into.tiles) = (order.buffer.clone(), tiles.buffer.clone());
    let routes = Routes { chosen: &on_gpu, gates: &on_gpu, first: 0, scores: &on_gpu, first_score: 0 };
    let record = |recorder: &mut Recorder| {
        Group { routes, assignments, experts, tile_rows, into: &into }.record(recorder);
    };
    let read = lab.run(&[&order, &tiles], record).await?;
    let tile = |words: &[u32]| Tile { expert: words[0], first: words[1], rows: words[2] };
    let tiles: Vec<Tile> = read[1].chunks_exact(3).map(tile).collect();
    let (own, unused) = tiles.split_at(table.len().min(tiles.len()));
    let none = unused.iter().map(|tile| tile.rows).collect::<Vec<_>>();
    Ok(Finding::equal(&read[0], &expected.order)
        .and(Finding::equal(own, &table))
        .and(Finding::equal(&none, &vec![0; none.len()])))
}

async fn combined(lab: &Lab, gated: bool, residual: bool) -> Result<Finding> {
    let (tokens, slots, width) = (7u32, 3u32, 45u32);
    let rows = noise(1, (tokens * slots * width) as usize);
    let gates = top_k_softmax(&noise(2, (tokens * slots) as usize), slots as usize, slots as usize).gates;
    // As the kernel gets them.
    let gates: Vec<f64> = gates.into_iter().map(|gate| f64::from(gate as f32)).collect();
    let (bias, before) = (noise(3, width as usize), noise(4, (tokens * width) as usize));
    let expected = combine(
        &rows,
        slots as usize,
        width as usize,
        gated.then_some(&gates[..]),
        Some(&bias),
        residual.then_some(&before[..]),
    );
    let (rows, bias, gates) = (lab.rows(&rows, width), lab.rows(&bias, width), lab.floats(&gates));
    let x = lab.output_of(&pad(&before, width));
    let routes = Routes { chosen: &gates, gates: &gates, first: 0, scores: &gates, first_score: 0 };
    let record = |recorder: &mut Recorder| {
        Combine {
            rows: &rows,
            routes: gated.then_some(routes),
            bias: Some(&bias),
            x: &x.buffer,
            residual,
            tokens,
            slots,
            width,
        }
        .record(recorder);
    };
    let read = lab.run(&[&x], record).await?;
    Ok(Finding::close(&unpad(&read[0], width)?, &expected))
}

/// Every head takes as many tokens of a sequence as the busiest one kept: those that kept it, then the earliest.
async fn cut(lab: &Lab) -> Result<Finding> {
    let (heads, top_k, lengths) = (5usize, 2usize, [13usize, 8]);
    let tokens = lengths.iter().sum::<usize>();
    let kept: Vec<u32> = (0..tokens)
        .flat_map(|token| {
            let first = hash(1, token) as usize % heads;
            [first, (first + 1 + hash(2, token) as usize % (heads - 1)) % heads].map(|head| head as u32)
        })
        .collect();
    let keeps = |token: usize, head: usize| kept[token * top_k..][..top_k].contains(&(head as u32));
    let ranges = [[0, lengths[0]], [lengths[0], lengths[1]]];
    let parts = || (0..2).flat_map(|sequence| (0..heads).map(move |head| (sequence, head)));
    let of = |sequence: usize| ranges[sequence][0]..ranges[sequence][0] + ranges[sequence][1];
    let longest =
        parts().map(|(sequence, head)| of(sequence).filter(|&token| keeps(token, head)).count()).max();
    // (position, sequence, slot, first, end) of each token's heads; who is left out sees no keys.
    let mut expected = vec![[0u32; 5]; tokens * heads];
    for (sequence, head) in parts() {
        let mut order: Vec<usize> = of(sequence).collect();
        // Stable, so the others stay in their order.
        order.sort_by_key(|&token| !keeps(token, head));
        order.truncate(longest.unwrap_or(0));
        order.sort_unstable();
        for (place, token) in (0u32..).zip(order) {
            expected[token * heads + head] = [place, sequence as u32, place, 0, place + 1];
        }
    }
    let on_gpu = lab.data(&kept);
    let ranges = lab.data(&ranges.as_flattened().iter().map(|&word| word as u32).collect::<Vec<_>>());
    let spans = lab.output(5 * tokens * heads);
    let [chosen, gates] = [0, 1].map(|_| lab.output(tokens * heads));
    let record = |recorder: &mut Recorder| {
        SequenceCut {
            kept: &on_gpu,
            ranges: &ranges,
            head_spans: &spans.buffer,
            routes: Routes {
                chosen: &chosen.buffer,
                gates: &gates.buffer,
                first: 0,
                scores: &gates.buffer,
                first_score: 0,
            },
            tokens: tokens as u32,
            heads: heads as u32,
            top_k: top_k as u32,
            sequences: 2,
            causal: true,
        }
        .record(recorder);
    };
    let read = lab.run(&[&spans, &chosen, &gates], record).await?;
    let mut got: Vec<[u32; 5]> = read[0].as_chunks().0.to_vec();
    got.iter_mut().filter(|span| span[4] == 0).for_each(|span| *span = [0; 5]);
    let heads_of = |span: (usize, &[u32; 5])| if span.1[4] > 0 { (span.0 % heads) as u32 } else { u32::MAX };
    let chosen: Vec<u32> = expected.iter().enumerate().map(heads_of).collect();
    let gates: Vec<f64> = expected.iter().map(|span| f64::from(u8::from(span[4] > 0))).collect();
    Ok(Finding::equal(&got, &expected)
        .and(Finding::equal(&read[1], &chosen))
        .and(Finding::equal(&floats_of(&read[2]), &gates)))
}
