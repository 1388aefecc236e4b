//! Choosing tokens: `argmax`, `sample`, `top_logits`; and how likely a given one is: `token_logprob`.

use headwise_reference::{
    adjust_logits::{Penalties, adjust_logits},
    noise::{hash, noise},
    sample::{Sampling, argmax, sample},
    token_logprob::token_logprob,
};

use super::{
    Finding, Lab, Run,
    lab::{floats_of, unpad},
};
use crate::{
    Result,
    gpu::Recorder,
    ops::{
        AdjustLogits, Argmax, FROM_PROMPT, MAX_TOP_LOGITS, Sample, Span, TokenCounts, TokenLogprob,
        TopLogits, padded,
    },
};

const ROWS: u32 = 5;

pub(super) async fn check(run: &mut Run<'_>, labs: &[Lab]) {
    let Some(lab) = labs.first() else { return };
    for vocab in [1, 3001, 70_001] {
        let case = format!("{vocab} tokens");
        run.case(lab, ("argmax", ""), &case, best(lab, vocab)).await;
        run.case(lab, ("top_logits", ""), &case, top(lab, vocab)).await;
    }
    for (name, temperature, top_k, top_p) in
        [("all", 1.0, u32::MAX, 1.0), ("top 40", 0.7, 40, 1.0), ("top-p 0.9", 1.3, u32::MAX, 0.9)]
    {
        run.case(lab, ("sample", ""), name, drawn(lab, temperature, top_k, top_p)).await;
    }
    run.case(lab, ("count_tokens", ""), "3 of 2 sequences", penalised(lab, true)).await;
    run.case(lab, ("adjust_logits", ""), "all penalties", penalised(lab, false)).await;
    for lab in labs {
        let lanes = format!("{} lanes", lab.variants.row_lanes);
        for vocab in [1, 3001] {
            let work = logprobs(lab, vocab);
            run.case(lab, ("token_logprob", &lanes), &format!("{vocab} tokens"), work).await;
        }
    }
}

/// In ±8, exact in f32, many of them alike.
fn logits(vocab: u32) -> Vec<f64> {
    noise(1, (ROWS * vocab) as usize).into_iter().map(|x| (x * 512.0).round() / 64.0).collect()
}

async fn best(lab: &Lab, vocab: u32) -> Result<Finding> {
    let logits = logits(vocab);
    let expected: Vec<u32> = logits.chunks_exact(vocab as usize).map(argmax).collect();
    let (logits, tokens) = (lab.rows(&logits, vocab), lab.output(ROWS as usize));
    let record = |recorder: &mut Recorder| {
        Argmax { logits: &logits, tokens: &tokens.buffer, rows: ROWS, vocab }.record(recorder);
    };
    let read = lab.run(&[&tokens], record).await?;
    Ok(Finding::equal(&read[0], &expected))
}

async fn top(lab: &Lab, vocab: u32) -> Result<Finding> {
    // A zero of each sign would be in order here, but not there.
    let logits: Vec<f64> = logits(vocab).into_iter().map(|logit| logit + 0.0).collect();
    let n = MAX_TOP_LOGITS.min(vocab);
    let (mut ids, mut values) = (Vec::new(), Vec::new());
    for row in logits.chunks_exact(vocab as usize) {
        let mut order: Vec<u32> = (0..vocab).collect();
        // A stable sort, so equal logits stay in order.
        order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
        order.truncate(n as usize);
        let log_sum = row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        values.extend(order.iter().map(|&id| row[id as usize] - log_sum));
        ids.extend(order);
    }
    let on_gpu = lab.rows(&logits, vocab);
    let [ids_on_gpu, values_on_gpu] = [0, 1].map(|_| lab.output((ROWS * n) as usize));
    let record = |recorder: &mut Recorder| {
        let (ids, values) = (&ids_on_gpu.buffer, &values_on_gpu.buffer);
        TopLogits { logits: &on_gpu, ids, values, rows: ROWS, vocab, n }.record(recorder);
    };
    let read = lab.run(&[&ids_on_gpu, &values_on_gpu], record).await?;
    Ok(Finding::equal(&read[0], &ids).and(Finding::close(&floats_of(&read[1]), &values)))
}

/// Draws that f32 can tell from their neighbours.
async fn drawn(lab: &Lab, temperature: f32, top_k: u32, top_p: f32) -> Result<Finding> {
    let (vocab, rows, seed) = (301, 64, 11);
    let logits: Vec<f64> =
        noise(1, (rows * vocab) as usize).into_iter().map(|x| f64::from((3.0 * x) as f32)).collect();
    let spans: Vec<Span> = (0..rows).map(|position| Span::seeing(position, position % 3, 1)).collect();
    let rows_of: Vec<u32> = (0..rows).collect();
    let sampling = Sampling {
        temperature: f64::from(temperature),
        top_k: Some(top_k as usize),
        top_p: Some(f64::from(top_p)),
    };
    // The token that a position's logits choose is the next position's.
    let expected: Vec<_> = logits
        .chunks_exact(vocab as usize)
        .zip(&spans)
        .map(|(row, span)| sample(row, &sampling, seed, span.position + 1, span.sequence))
        .collect();
    let (on_gpu, spans) = (lab.rows(&logits, vocab), lab.data(&Span::words(&spans)));
    let (rows_of, tokens) = (lab.data(&rows_of), lab.output(rows as usize));
    let record = |recorder: &mut Recorder| {
        Sample {
            logits: &on_gpu,
            spans: &spans,
            rows_of: &rows_of,
            tokens: &tokens.buffer,
            rows,
            vocab,
            temperature,
            top_k,
            top_p,
            seed,
        }
        .record(recorder);
    };
    let read = lab.run(&[&tokens], record).await?;
    let clear = read[0].iter().zip(&expected).filter(|(_, draw)| draw.gap() > 1e-5);
    let (got, wanted): (Vec<u32>, Vec<u32>) = clear.map(|(&token, draw)| (token, draw.token)).unzip();
    Ok(Finding::equal(&got, &wanted))
}

async fn logprobs(lab: &Lab, vocab: u32) -> Result<Finding> {
    let logits = logits(vocab);
    let targets: Vec<u32> = (0..ROWS as usize).map(|row| (hash(2, row) % u64::from(vocab)) as u32).collect();
    let expected = token_logprob(&logits, &targets);
    let (logits, targets) = (lab.rows(&logits, vocab), lab.data(&targets));
    let values = lab.output(ROWS as usize);
    let record = |recorder: &mut Recorder| {
        TokenLogprob { logits: &logits, targets: &targets, values: &values.buffer, rows: ROWS, vocab }
            .record(recorder);
    };
    let read = lab.run(&[&values], record).await?;
    Ok(Finding::close(&floats_of(&read[0]), &expected))
}

/// Two sequences read some tokens and write three each, of which one comes twice: what is counted, or the logits of both.
async fn penalised(lab: &Lab, counted: bool) -> Result<Finding> {
    let vocab = 301;
    let prompts = [[5u32, 300], [0, 7]];
    let written = [[7u32, 5, 7], [300, 7, 7]];
    let logits: Vec<f64> = noise(1, 2 * vocab).into_iter().map(|x| f64::from((8.0 * x) as f32)).collect();
    let penalties = Penalties { repetition: 1.25, presence: 0.5, frequency: 0.75, bias: noise(2, vocab) };
    let stride = padded(vocab as u32) as usize;
    let mut expected_counts = vec![0u32; 2 * stride];
    for (sequence, prompt) in prompts.iter().enumerate() {
        prompt.iter().for_each(|&id| expected_counts[sequence * stride + id as usize] = FROM_PROMPT);
    }
    let counts = lab.output_of(&expected_counts);
    for (sequence, written) in written.iter().enumerate() {
        written.iter().for_each(|&id| expected_counts[sequence * stride + id as usize] += 1);
    }
    let spans = lab.data(&Span::words(&[Span::causal(7, 0), Span::causal(7, 1)]));
    let rows_of = lab.data(&[0u32, 1]);
    let turns = [0, 1, 2].map(|turn| lab.data(&written.map(|ids| ids[turn])));
    let [on_gpu, bias] = [&logits, &penalties.bias].map(|values| lab.rows(values, vocab as u32));
    let adjusted = lab.output_rows(2, vocab as u32);
    let of = TokenCounts {
        counts: &counts.buffer,
        spans: &spans,
        rows_of: &rows_of,
        sequences: 2,
        rows: 2,
        vocab: vocab as u32,
    };
    let record = |recorder: &mut Recorder| {
        turns.iter().for_each(|tokens| of.record(recorder, tokens));
        AdjustLogits {
            logits: &on_gpu,
            counts: of,
            bias: &bias,
            adjusted: &adjusted.buffer,
            repetition: 1.25,
            presence: 0.5,
            frequency: 0.75,
        }
        .record(recorder);
    };
    if counted {
        let read = lab.run(&[&counts], record).await?;
        return Ok(Finding::equal(&read[0], &expected_counts));
    }
    let read = lab.run(&[&adjusted], record).await?;
    let of_row =
        |row: usize| adjust_logits(&logits[row * vocab..][..vocab], &penalties, &prompts[row], &written[row]);
    Ok(Finding::close(&unpad(&read[0], vocab as u32)?, &[of_row(0), of_row(1)].concat()))
}
