//! What observers record: `gather_heads`, `attention_rows` and `row_statistics`.

use headwise_reference::{
    attention_rows::{log_rest, log_sum_exp, mass, row_statistics},
    head_mixture::stick_breaking,
    noise::noise,
    softmax,
};

use super::{
    Finding, Lab, Run,
    attention::{
        BY_EXPERT, FEW, ONE,
        operands::{Attention, Buffers},
    },
    lab::floats_of,
};
use crate::{
    Result,
    gpu::Recorder,
    ops::{
        Asked, AttentionKernel, AttentionRows, GatherHeads, HeadRows, MassOf, Masses, Positions, Queries,
        Routes, RowStatistics, Span,
    },
};

pub(super) async fn check(run: &mut Run<'_>, labs: &[Lab]) {
    let Some(lab) = labs.first() else { return };
    run.case(lab, ("gather_heads", ""), "heads of chosen experts", gathered(lab)).await;
    for (name, attention, kernel) in [
        ("600 keys", FEW[1], AttentionKernel::Softmax),
        ("by expert", BY_EXPERT, AttentionKernel::Softmax),
        ("sticks", ONE, AttentionKernel::StickBreaking),
    ] {
        run.case(lab, ("attention_rows", ""), name, weighed(lab, attention, kernel)).await;
    }
    run.case(lab, ("row_statistics", ""), "3 masses", summed(lab)).await;
}

/// Heads asked for by expert, one of them twice, of some tokens.
async fn gathered(lab: &Lab) -> Result<Finding> {
    let (tokens, slots, heads, stride) = (5u32, 2u32, 2u32, 12u32);
    let width = heads * stride;
    let chosen: Vec<u32> = (0..tokens * slots).map(|row| row % 4).collect();
    let src = noise(1, (tokens * slots * width) as usize);
    let (asked_heads, asked_tokens) = ([3, 0, 7, 3], [4, 0, 2]);
    let mut expected = Vec::new();
    for token in asked_tokens {
        for unit in asked_heads {
            let own = &chosen[(token * slots) as usize..][..slots as usize];
            let slot = own.iter().position(|&expert| expert == unit / heads);
            let row = |slot: usize| {
                let at =
                    ((token * slots) as usize + slot) * width as usize + (unit % heads * stride) as usize;
                src[at..at + stride as usize].to_vec()
            };
            expected.extend(slot.map_or(vec![0.0; stride as usize], row));
        }
    }
    let (rows, on_gpu) = (lab.rows(&src, width), lab.data(&chosen));
    let mut asked = Asked::new(&lab.gpu, &asked_heads, asked_tokens.len() as u32);
    asked.set_tokens(&asked_tokens);
    let out = lab.output(expected.len());
    let record = |recorder: &mut Recorder| {
        let routes = Routes { chosen: &on_gpu, gates: &on_gpu, first: 0, scores: &on_gpu, first_score: 0 };
        let routes = Some(routes);
        let src = HeadRows { rows: &rows, row: width, first: 0, slots, heads, stride, routes };
        GatherHeads { src, asked: &asked, tokens, out: &out.buffer }.record(recorder);
    };
    let read = lab.run(&[&out], record).await?;
    Ok(Finding::close(&floats_of(&read[0]), &expected))
}

/// All heads of all tokens, asked for slot by slot, or as the experts that each token chose.
async fn weighed(lab: &Lab, attention: Attention, kernel: AttentionKernel) -> Result<Finding> {
    let operands = attention.operands();
    let (buffers, _words) = attention.buffers(lab, &operands);
    let Buffers { q, spans, chosen, cache, .. } = &buffers;
    let (row, used) = (attention.most_keys() + 1, attention.slots * attention.heads);
    let by_expert = attention.queries != Queries::BySlot;
    // By expert: those of the first token.
    let heads: Vec<u32> = match by_expert {
        false => (0..used).collect(),
        true => (0..used)
            .map(|index| {
                operands.chosen[(index / attention.heads) as usize] * attention.heads
                    + index % attention.heads
            })
            .collect(),
    };
    let count = if by_expert { 1 } else { attention.tokens() };
    let mut asked = Asked::new(&lab.gpu, &heads, count);
    asked.set_tokens(&(0..count).collect::<Vec<_>>());
    let rows = lab.output((count * used * row) as usize);
    let statistics = lab.output((count * used * 2) as usize);
    let record = |recorder: &mut Recorder| {
        AttentionRows {
            heads: attention.head_layout(),
            kernel,
            positions: Positions::None,
            q,
            spans,
            routes: attention.routes(chosen),
            by_expert,
            cache,
            tokens: attention.tokens(),
            asked: &asked,
            range: 0..count,
            row,
            rows: &rows.buffer,
            statistics: &statistics.buffer,
            columns: 2,
        }
        .record(recorder);
    };
    let read = lab.run(&[&rows, &statistics], record).await?;
    let sticks = kernel == AttentionKernel::StickBreaking;
    let weigh = if sticks { stick_breaking } else { softmax };
    let last = if sticks { log_rest } else { log_sum_exp };
    let mut expected = attention.weights(&operands, row, weigh);
    expected.truncate((count * used * row) as usize);
    let numbers =
        |scores: Vec<f64>| [scores.iter().copied().fold(f64::NEG_INFINITY, f64::max), last(&scores)];
    expected.extend(attention.all_scores(&operands).take((count * used) as usize).flat_map(numbers));
    Ok(Finding::close(&[floats_of(&read[0]), floats_of(&read[1])].concat(), &expected))
}

/// Two heads of three tokens.
async fn summed(lab: &Lab) -> Result<Finding> {
    let (tokens, heads, row) = (3u32, 2u32, 90u32);
    let weights: Vec<f64> =
        noise(5, (tokens * heads * row) as usize).iter().map(|w| w.abs() / 40.0).collect();
    let spans: Vec<Span> = [70, 5, 89].map(|position| Span::causal(position, 0)).to_vec();
    let (listed, of_token): ([u32; 3], [&[u32]; 3]) = ([0, 17, 89], [&[1, 2], &[], &[88]]);
    let mut expected = Vec::new();
    for (index, own) in weights.chunks_exact(row as usize).enumerate() {
        let (of, token) = (row_statistics(own), index / heads as usize);
        let places = |list: &[u32]| list.iter().map(|&slot| slot as usize).collect::<Vec<_>>();
        let behind = spans[token].slot as usize - 1;
        expected.extend([0.0, 0.0, of.entropy, of.squares, of.at as f64, of.most]);
        expected.extend([&[behind][..], &places(&listed), &places(of_token[token])].map(|at| mass(own, at)));
    }
    let masses = [MassOf::Behind(1), MassOf::Listed(&listed), MassOf::OfToken(of_token.to_vec())];
    let masses = Masses::new(&lab.gpu, &masses);
    let mut asked = Asked::new(&lab.gpu, &[0, 1], tokens);
    asked.set_tokens(&[0, 1, 2]);
    let (rows, spans) = (lab.floats(&weights), lab.data(&Span::words(&spans)));
    let statistics = lab.output_of(&vec![0.0f32; expected.len()]);
    let record = |recorder: &mut Recorder| {
        RowStatistics {
            rows: &rows,
            row,
            asked: &asked,
            range: 0..tokens,
            spans: &spans,
            tokens,
            masses: &masses,
            statistics: &statistics.buffer,
        }
        .record(recorder);
    };
    let read = lab.run(&[&statistics], record).await?;
    Ok(Finding::close(&floats_of(&read[0]), &expected))
}
