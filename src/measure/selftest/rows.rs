//! Kernels that work row by row: `norm`, `query_norm`, `embedding`, `add_positions`, `copy`, and those that write a cache.

use headwise_reference::{
    embedding::embedding,
    layer_norm::layer_norm,
    noise::{hash, noise},
    rms_norm::rms_norm,
    rope_cache::{RopeCache as Expected, rope_cache},
    router,
};

use super::{
    Finding, Lab, Run,
    lab::{Output, Stored, floats_of, pad, unpad},
};
use crate::{
    Result,
    gpu::Recorder,
    ops::{
        AddPositions, CacheAppend, CacheLayout, CachePrecision, CacheReorder, CachedWindow, Copy, Embedding,
        HeadLayout, KeyOrValue, KeyValues, MatrixShape, NormInput, NormKind, NormRows, Precision, Queries,
        QueryNorm, RopeCache, Span, rope_angles,
    },
};

const EPS: f32 = 1e-5;

pub(super) async fn check(run: &mut Run<'_>, labs: &[Lab]) {
    for lab in labs {
        let lanes = format!("{} lanes", lab.variants.row_lanes);
        for width in [1, 45, 600] {
            let name = |kind| format!("{kind} of {width}");
            run.case(lab, ("norm", &lanes), &name("RMSNorm"), norm(lab, width, NormKind::Rms)).await;
            if width > 1 {
                let work = norm(lab, width, NormKind::Layer);
                run.case(lab, ("norm", &lanes), &name("LayerNorm"), work).await;
            }
        }
    }
    let Some(lab) = labs.first() else { return };
    run.case(lab, ("query_norm", ""), "heads of 25", query_norm(lab)).await;
    for precision in [Precision::F32, Precision::F16] {
        run.case(lab, ("embedding", ""), precision.name(), embed(lab, precision)).await;
    }
    run.case(lab, ("add_positions", ""), "with a class token", positions(lab)).await;
    run.case(lab, ("copy", ""), "4,001 quads", copied(lab)).await;
    run.case(lab, ("rope_cache", ""), "heads of 24", turned(lab)).await;
    run.case(lab, ("cache_append", ""), "values of 24", appended(lab)).await;
    run.case(lab, ("cache_reorder", ""), "3 sequences", reordered(lab)).await;
}

async fn norm(lab: &Lab, width: u32, kind: NormKind) -> Result<Finding> {
    let x = noise(1, 7 * width as usize);
    let (weight, bias) = (noise(2, width as usize), noise(3, width as usize));
    let chosen = [6, 0, 3];
    let rows: Vec<f64> = chosen
        .iter()
        .flat_map(|&row| x[row as usize * width as usize..][..width as usize].to_vec())
        .collect();
    let (expected, weights) = match kind {
        NormKind::Rms => (rms_norm(&rows, &weight, f64::from(EPS)), weight),
        NormKind::Layer => (layer_norm(&rows, &weight, &bias, f64::from(EPS)), [weight, bias].concat()),
    };
    let [x, weights] = [x, weights].map(|values| lab.rows(&values, width));
    let (chosen, y) = (lab.data(&chosen), lab.output_rows(3, width));
    let record = |recorder: &mut Recorder| {
        let x = NormInput::Chosen(&x, &chosen);
        NormRows { kind, x, weights: &weights, y: &y.buffer, count: 3, width, eps: EPS }.record(recorder);
    };
    let read = lab.run(&[&y], record).await?;
    Ok(Finding::close(&unpad(&read[0], width)?, &expected))
}

async fn query_norm(lab: &Lab) -> Result<Finding> {
    let (tokens, heads, first_head, head_dim) = (3, 11, 2, 25usize);
    // Heads come padded to whole vec4s.
    let q = pad_heads(&noise(1, tokens * heads * head_dim), head_dim, 28);
    let of_token = |q: &[f64]| q.chunks_exact(28).skip(first_head).map(router::norm).collect::<Vec<_>>();
    let expected: Vec<f64> = q.chunks_exact(heads * 28).flat_map(of_token).collect();
    let measured = heads - first_head;
    let q = lab.rows(&q, heads as u32 * 28);
    let scores = lab.output_of(&pad(&vec![777.0; tokens * measured], measured as u32));
    let record = |recorder: &mut Recorder| {
        QueryNorm {
            q: &q,
            scores: &scores.buffer,
            tokens: tokens as u32,
            heads: heads as u32,
            first_head: first_head as u32,
            head_dim: head_dim as u32,
        }
        .record(recorder);
    };
    let read = lab.run(&[&scores], record).await?;
    Ok(Finding::close(&unpad(&read[0], measured as u32)?, &expected))
}

/// Heads of `dim` numbers with zeros up to `stride`.
fn pad_heads(values: &[f64], dim: usize, stride: usize) -> Vec<f64> {
    let padded = |head: &[f64]| [head, &vec![0.0; stride - dim]].concat();
    values.chunks_exact(dim).flat_map(padded).collect()
}

async fn embed(lab: &Lab, precision: Precision) -> Result<Finding> {
    let (vocab, width, tokens) = (100, 45, 20);
    let stored = Stored::new(&noise(1, (vocab * width) as usize), width, precision)?;
    let ids: Vec<u32> = (0..tokens as usize).map(|i| (hash(2, i) % u64::from(vocab)) as u32).collect();
    let expected = embedding(&stored.weights, width as usize, &ids);
    let table = lab.matrix(MatrixShape::dense(vocab, width), &stored, 40);
    let (ids, x) = (lab.data(&ids), lab.output_rows(tokens, width));
    let record = |recorder: &mut Recorder| {
        Embedding { ids: &ids, table: &table, x: &x.buffer, tokens, scale: 1.0 }.record(recorder);
    };
    let read = lab.run(&[&x], record).await?;
    Ok(Finding::equal(&unpad(&read[0], width)?, &expected))
}

async fn positions(lab: &Lab) -> Result<Finding> {
    let width = 45;
    let spans = [0u32, 7, 3].map(|position| Span::seeing(position, 0, 1));
    let (x, table, class) = (noise(1, 3 * 45), noise(2, 8 * 45), noise(3, 45));
    let mut expected = x.clone();
    expected[..45].copy_from_slice(&class);
    for (row, span) in expected.chunks_exact_mut(45).zip(&spans) {
        let own = &table[span.position as usize * 45..][..45];
        row.iter_mut().zip(own).for_each(|(x, position)| *x += position);
    }
    let on_gpu = lab.output_of(&pad(&x, width));
    let (table, class) = (lab.rows(&table, width), lab.rows(&class, width));
    let spans = lab.data(&Span::words(&spans));
    let record = |recorder: &mut Recorder| {
        let (x, class_token) = (&on_gpu.buffer, Some(&class));
        AddPositions { spans: &spans, table: &table, class_token, x, tokens: 3, width }.record(recorder);
    };
    let read = lab.run(&[&on_gpu], record).await?;
    Ok(Finding::close(&unpad(&read[0], width)?, &expected))
}

async fn copied(lab: &Lab) -> Result<Finding> {
    let quads = 4001;
    let words: Vec<u32> = (0..4 * quads as usize).map(|i| hash(1, i) as u32).collect();
    let (src, dst) = (lab.data(&words), lab.output(words.len()));
    let record = |recorder: &mut Recorder| {
        Copy { src: &src, dst: &dst.buffer, quads, each: 8, runs: false }.record(recorder);
    };
    let read = lab.run(&[&dst], record).await?;
    Ok(Finding::equal(&read[0], &words))
}

// -- caches: of three sequences, in f32 ------------------------------------------------------------------------

const HEADS: HeadLayout = HeadLayout {
    queries: Queries::BySlot,
    slots: 2,
    heads: 3,
    kv_heads: 3,
    group: 1,
    key_dim: 24,
    value_dim: 24,
    scale: 1.0,
    head_spans: false,
};
const CAPACITY: u32 = 50;
const SEQUENCES: u32 = 3;
/// Numbers of a token's keys, or values.
const ROW: usize = 72;

/// Keys and values `[sequences, capacity, kv_heads, dim]` as the one window of a cache.
fn cache(lab: &Lab, keys: &[f64], values: &[f64]) -> (KeyValues, Output) {
    let layout = CacheLayout {
        sequences: SEQUENCES,
        capacity: CAPACITY,
        kv_heads: HEADS.kv_heads,
        key_dim: HEADS.key_dim,
        value_dim: HEADS.value_dim,
        keys_are_values: false,
        precision: CachePrecision::F32,
    };
    let both: Vec<f32> = keys.iter().chain(values).map(|&value| value as f32).collect();
    let words = lab.output_of(&both);
    let windows = layout.windows(u64::MAX).into_iter();
    let windows = windows.map(|window| CachedWindow { window, buffer: words.buffer.clone() });
    (KeyValues { layout, windows: windows.collect() }, words)
}

/// Keys and values of noise.
fn old(seed: u64) -> [Vec<f64>; 2] {
    [0, 1].map(|half| noise(seed + half, (SEQUENCES * CAPACITY) as usize * ROW))
}

/// The slots and sequences of some tokens.
const PLACES: [[u32; 2]; 4] = [[49, 0], [0, 2], [1, 2], [17, 1]];

fn spans(lab: &Lab) -> crate::gpu::Buffer {
    lab.data(&Span::words(&PLACES.map(|[slot, sequence]| Span::causal(slot, sequence))))
}

async fn turned(lab: &Lab) -> Result<Finding> {
    let [mut keys, mut values] = old(1);
    let (mut q, kv) = (noise(3, PLACES.len() * 2 * ROW), noise(4, PLACES.len() * 2 * ROW));
    let (cached, words) = cache(lab, &keys, &values);
    // Two rows of queries a token.
    let (on_gpu, new) = (lab.output_of(&pad(&q, ROW as u32)), lab.rows(&kv, 2 * ROW as u32));
    let (spans, angles) = (spans(lab), rope_angles(&lab.gpu, CAPACITY, HEADS.key_dim, 1e4));
    let record = |recorder: &mut Recorder| {
        RopeCache {
            heads: HEADS,
            spans: &spans,
            angles: &angles,
            rotated: HEADS.key_dim,
            q: &on_gpu.buffer,
            keys: &new,
            values: None,
            cache: &cached,
            tokens: PLACES.len() as u32,
        }
        .record(recorder);
    };
    let read = lab.run(&[&on_gpu, &words], record).await?;
    let [positions, sequences] = [0, 1].map(|i| PLACES.map(|place| place[i]));
    let op = Expected {
        q_heads: (HEADS.slots * HEADS.heads) as usize,
        kv_heads: HEADS.kv_heads as usize,
        head_dim: HEADS.key_dim as usize,
        theta: 1e4,
        capacity: CAPACITY as usize,
        positions: &positions,
        sequences: &sequences,
    };
    rope_cache(&op, &mut q, &kv, &mut keys, &mut values);
    let cached = Finding::close(&floats_of(&read[1]), &[keys, values].concat());
    Ok(Finding::close(&unpad(&read[0], ROW as u32)?, &q).and(cached))
}

async fn appended(lab: &Lab) -> Result<Finding> {
    let [keys, mut values] = old(1);
    // Columns before and behind are not theirs.
    let width = 8 + ROW + 4;
    let src = noise(5, PLACES.len() * width);
    let (cached, words) = cache(lab, &keys, &values);
    let (on_gpu, spans) = (lab.rows(&src, width as u32), spans(lab));
    let record = |recorder: &mut Recorder| {
        CacheAppend {
            heads: HEADS,
            spans: &spans,
            src: &on_gpu,
            src_width: width as u32,
            first: 8,
            half: KeyOrValue::Value,
            cache: &cached,
            tokens: PLACES.len() as u32,
        }
        .record(recorder);
    };
    let read = lab.run(&[&words], record).await?;
    for (row, [slot, sequence]) in src.chunks_exact(width).zip(PLACES) {
        values[(sequence * CAPACITY + slot) as usize * ROW..][..ROW].copy_from_slice(&row[8..][..ROW]);
    }
    Ok(Finding::equal(&floats_of(&read[0]), &[keys, values].concat()))
}

async fn reordered(lab: &Lab) -> Result<Finding> {
    let (from, mut to) = (old(1), old(3));
    let (parents, filled) = ([2u32, 2, 0], 41);
    let (source, _words) = cache(lab, &from[0], &from[1]);
    let (target, words) = cache(lab, &to[0], &to[1]);
    let on_gpu = lab.data(&parents);
    let record = |recorder: &mut Recorder| {
        CacheReorder { parents: &on_gpu, from: &source, to: &target, filled }.record(recorder);
    };
    let read = lab.run(&[&words], record).await?;
    let sequence = CAPACITY as usize * ROW;
    for (to, from) in to.iter_mut().zip(&from) {
        for (own, parent) in to.chunks_exact_mut(sequence).zip(parents) {
            let part = filled as usize * ROW;
            own[..part].copy_from_slice(&from[parent as usize * sequence..][..part]);
        }
    }
    Ok(Finding::equal(&floats_of(&read[0]), &to.concat()))
}
