//! Row attention: `row_attention_decode` with `attention_merge`, and `row_attention_prefill`.

use headwise::internal::{
    AttentionShape, Buffer, Counters, DECODE_SPLIT_KEYS, DecodeAttention, Gpu, KernelChoice, MAX_HEAD_DIM,
    PrefillAttention,
};
use proptest::prelude::*;

use crate::{
    reference::row_attention::{RowAttention, row_attention},
    support::{Guarded, assert_close, assert_repeatable, check, gpu, hash, noise, pad, run, size, upload},
};

fn device() -> &'static Gpu {
    gpu(KernelChoice::Plain)
}

/// Tokens that attend to a cache.
#[derive(Clone, Debug)]
struct Attention {
    shape: AttentionShape,
    /// (position, sequence) of each token, sequence by sequence.
    spans: Vec<[u32; 2]>,
    seed: u64,
}

/// The numbers of an [`Attention`]: queries, and a cache that is NaN where nobody may look.
struct Operands {
    q: Vec<f64>,
    keys: Vec<f64>,
    values: Vec<f64>,
}

/// Every way to lay query heads over slots and over shared key/value heads.
fn any_shape(max_capacity: u32) -> impl Strategy<Value = AttentionShape> {
    let head_quads = prop_oneof![2 => size(MAX_HEAD_DIM / 4), 1 => Just(MAX_HEAD_DIM / 4)];
    let capacity = prop_oneof![size(70), size(max_capacity)];
    (size(4), size(3), size(3), any::<u32>(), head_quads, capacity, 1..=3u32).prop_map(
        |(kv_heads, group, repeats, split, head_quads, capacity, sequences)| {
            let all = kv_heads * group * repeats;
            let divisors: Vec<u32> = (1..=all).filter(|&n| all.is_multiple_of(n)).collect();
            let heads = divisors[split as usize % divisors.len()];
            AttentionShape {
                slots: all / heads,
                heads,
                kv_heads,
                group,
                head_dim: 4 * head_quads,
                capacity,
                sequences,
            }
        },
    )
}

impl Attention {
    fn tokens(&self) -> u32 {
        self.spans.len() as u32
    }

    fn q_width(&self) -> u32 {
        self.shape.heads * self.shape.head_dim
    }

    fn kv_width(&self) -> u32 {
        self.shape.kv_heads * self.shape.head_dim
    }

    /// The last position any token of a sequence has.
    fn last_position(&self, sequence: u32) -> Option<u32> {
        self.spans.iter().filter(|span| span[1] == sequence).map(|span| span[0]).max()
    }

    /// Keys that all tokens together see.
    fn keys(&self) -> u64 {
        self.spans.iter().map(|span| u64::from(span[0]) + 1).sum()
    }

    fn operands(&self) -> Operands {
        let AttentionShape { slots, capacity, sequences, .. } = self.shape;
        let width = self.kv_width() as usize;
        let q = noise(self.seed, (self.tokens() * slots * self.q_width()) as usize);
        let [mut keys, mut values] =
            [1, 2].map(|salt| noise(self.seed + salt, (sequences * capacity) as usize * width));
        for sequence in 0..sequences {
            let written = self.last_position(sequence).map_or(0, |last| last + 1);
            let unwritten = (sequence * capacity + written) as usize * width
                ..((sequence + 1) * capacity) as usize * width;
            keys[unwritten.clone()].fill(f64::NAN);
            values[unwritten].fill(f64::NAN);
        }
        Operands { q, keys, values }
    }

    fn oracle(&self, operands: &Operands) -> Vec<f64> {
        let shape = self.shape;
        let [positions, sequences] =
            [0, 1].map(|i| self.spans.iter().map(|span| span[i]).collect::<Vec<_>>());
        let op = RowAttention {
            heads: (shape.slots * shape.heads) as usize,
            kv_heads: shape.kv_heads as usize,
            group: shape.group as usize,
            head_dim: shape.head_dim as usize,
            capacity: shape.capacity as usize,
            positions: &positions,
            sequences: &sequences,
        };
        row_attention(&op, &operands.q, &operands.keys, &operands.values)
    }

    /// Rows to write. The padding is zero before; attention must leave it so.
    fn output(&self) -> Guarded {
        let rows = (self.tokens() * self.shape.slots) as usize;
        let marked = vec![777.0; rows * self.q_width() as usize];
        Guarded::holding(device(), 0, &pad(&marked, self.q_width()))
    }

    fn buffers(&self, operands: &Operands) -> [Buffer; 4] {
        let gpu = device();
        [
            Buffer::with_data(gpu, "test.spans", &self.spans),
            upload(gpu, &operands.q, self.q_width()),
            upload(gpu, &operands.keys, self.kv_width()),
            upload(gpu, &operands.values, self.kv_width()),
        ]
    }

    fn decode(&self, operands: &Operands) -> (Vec<f64>, Counters) {
        let gpu = device();
        let [spans, q, k_cache, v_cache] = &self.buffers(operands);
        let positions = self.spans.iter().map(|span| span[0].min(self.shape.capacity - 1));
        let last_position = positions.max().expect("some token");
        let splits = AttentionShape::splits(last_position);
        let partial_rows = (self.tokens() * self.shape.slots * self.shape.heads * splits) as usize;
        let partial = Guarded::new(gpu, 0, partial_rows * self.shape.head_dim as usize);
        let stats = Guarded::new(gpu, 0, 2 * partial_rows);
        let out = self.output();
        let counters = run(gpu, |recorder| {
            DecodeAttention {
                shape: self.shape,
                spans,
                q,
                k_cache,
                v_cache,
                partial: &partial.buffer,
                stats: &stats.buffer,
                out: &out.buffer,
                tokens: self.tokens(),
                last_position,
                keys: self.keys(),
            }
            .record(recorder);
        });
        // Scratch has guards, too.
        partial.read::<f32>();
        stats.read::<f32>();
        (out.read_rows(self.q_width()), counters)
    }

    /// The runs of tokens of one sequence: (first token, tokens).
    fn ranges(&self) -> Vec<[u32; 2]> {
        let runs = self.spans.chunk_by(|a, b| a[1] == b[1]);
        let mut first = 0;
        let range = |run: &[[u32; 2]]| {
            first += run.len() as u32;
            [first - run.len() as u32, run.len() as u32]
        };
        runs.map(range).collect()
    }

    fn prefill(&self, operands: &Operands, ranges: &[[u32; 2]]) -> (Vec<f64>, Counters) {
        let [spans, q, k_cache, v_cache] = &self.buffers(operands);
        let ranges_on_gpu = Buffer::with_data(device(), "test.ranges", ranges);
        let out = self.output();
        let counters = run(device(), |recorder| {
            PrefillAttention {
                shape: self.shape,
                spans,
                ranges: &ranges_on_gpu,
                q,
                k_cache,
                v_cache,
                out: &out.buffer,
                tokens: self.tokens(),
                longest: ranges.iter().map(|range| range[1]).max().expect("some range"),
                ranges_len: ranges.len() as u32,
                keys: self.keys(),
            }
            .record(recorder);
        });
        (out.read_rows(self.q_width()), counters)
    }

    /// Multiply-accumulates, by the definition: q·k and weight·v for each head and key.
    fn macs(&self) -> u64 {
        2 * self.keys() * u64::from(self.shape.slots * self.q_width())
    }
}

/// Tokens at any positions of any sequences.
fn any_decode() -> impl Strategy<Value = Attention> {
    (any_shape(1100), size(5), any::<u64>()).prop_map(|(shape, tokens, seed)| {
        let at = |i, limit: u32| (hash(seed, i) % u64::from(limit)) as u32;
        let mut spans: Vec<[u32; 2]> = (0..tokens as usize)
            .map(|i| [at(2 * i, shape.capacity), at(2 * i + 1, shape.sequences)])
            .collect();
        // One of them at the very end of the cache.
        spans[at(99, tokens) as usize][0] = shape.capacity - 1;
        Attention { shape, spans, seed }
    })
}

/// Runs of neighbouring tokens, one for each of some sequences, not all from position 0.
fn any_prefill() -> impl Strategy<Value = Attention> {
    let runs = prop::collection::vec((size(40), any::<u32>()), 3);
    (any_shape(300), runs, any::<u64>()).prop_map(|(shape, runs, seed)| {
        let mut spans = Vec::new();
        for (sequence, &(tokens, start)) in (0..shape.sequences).rev().zip(&runs) {
            let tokens = tokens.min(shape.capacity);
            let start = start % (shape.capacity - tokens + 1);
            spans.extend((start..start + tokens).map(|position| [position, sequence]));
        }
        Attention { shape, spans, seed }
    })
}

#[test]
fn decode_attends_to_the_keys_up_to_each_position() {
    check(64, any_decode(), |attention| {
        let operands = attention.operands();
        let (got, counters) = attention.decode(&operands);
        assert_close(&got, &attention.oracle(&operands), "out");
        assert_eq!(counters.macs, attention.macs());
    });
}

#[test]
fn prefill_attends_to_the_keys_up_to_each_position() {
    check(64, any_prefill(), |attention| {
        let operands = attention.operands();
        let (got, counters) = attention.prefill(&operands, &attention.ranges());
        assert_close(&got, &attention.oracle(&operands), "out");
        assert_eq!(counters.macs, attention.macs());
    });
}

const SHAPE: AttentionShape =
    AttentionShape { slots: 2, heads: 3, kv_heads: 3, group: 1, head_dim: 20, capacity: 900, sequences: 2 };

/// Positions on both sides of every boundary between splits.
#[test]
fn decode_merges_splits_at_their_edges() {
    for last in [0, 1, 2, 3].map(|splits| splits * DECODE_SPLIT_KEYS) {
        for position in [last.saturating_sub(2), last.saturating_sub(1), last, last + 1] {
            // The first token sees one split only, so its other splits are empty.
            let attention = Attention { shape: SHAPE, spans: vec![[0, 1], [position, 0]], seed: 7 };
            let operands = attention.operands();
            assert_close(&attention.decode(&operands).0, &attention.oracle(&operands), position);
        }
    }
}

#[test]
fn prefill_skips_a_sequence_without_tokens() {
    let spans = (5..30).map(|position| [position, 1]).collect();
    let attention = Attention { shape: SHAPE, spans, seed: 8 };
    let operands = attention.operands();
    let (got, _) = attention.prefill(&operands, &[[0, 0], [0, 25]]);
    assert_close(&got, &attention.oracle(&operands), "out");
}

#[test]
fn decode_and_prefill_agree() {
    let spans = (700..710).map(|position| [position, 0]).chain((0..3).map(|p| [p, 1])).collect();
    let attention = Attention { shape: SHAPE, spans, seed: 9 };
    let operands = attention.operands();
    assert_close(
        &attention.decode(&operands).0,
        &attention.prefill(&operands, &attention.ranges()).0,
        "decode against prefill",
    );
}

/// llvmpipe ends a shader after 65,535 turns of all its loops together, without a word: see
/// `shaders/row_attention_prefill.wgsl`.
#[test]
fn attention_reads_a_long_context() {
    let shape =
        AttentionShape { slots: 1, heads: 1, kv_heads: 1, head_dim: MAX_HEAD_DIM, capacity: 12_000, ..SHAPE };
    let attention = Attention { shape, spans: vec![[11_999, 0]], seed: 13 };
    let operands = attention.operands();
    let expected = attention.oracle(&operands);
    assert_close(&attention.decode(&operands).0, &expected, "decode");
    assert_close(&attention.prefill(&operands, &[[0, 1]]).0, &expected, "prefill");
}

/// The softmax may not overflow: with one score far above the others, its value is the answer.
#[test]
fn attention_holds_scores_of_any_size() {
    for sign in [1.0, -1.0] {
        for best in [0, 31, 32, 63, 64, 255, 256, 599] {
            let attention = Attention { shape: SHAPE, spans: vec![[599, 0]], seed: 10 };
            let Operands { q, mut keys, values } = attention.operands();
            let ones = vec![1.0; q.len()];
            let width = attention.kv_width() as usize;
            keys[..600 * width].fill(sign * 1e4 - 1e4);
            keys[best * width..(best + 1) * width].fill(sign * 1e4);
            let expected = values[best * width..(best + 1) * width].repeat(2);
            let operands = Operands { q: ones, keys, values };
            assert_close(&attention.decode(&operands).0, &expected, ("decode", best));
            assert_close(&attention.prefill(&operands, &[[0, 1]]).0, &expected, ("prefill", best));
        }
    }
}

/// A position past the cache means its last place, a sequence past the last means the last.
#[test]
fn attention_clamps_spans_out_of_range() {
    let wild = Attention { shape: SHAPE, spans: vec![[12, 0], [900, 1], [u32::MAX, u32::MAX]], seed: 11 };
    let clamped = Attention { spans: vec![[12, 0], [899, 1], [899, 1]], ..wild.clone() };
    let operands = clamped.operands();
    let expected = clamped.oracle(&operands);
    let (decode, _) = wild.decode(&operands);
    assert_close(&decode, &expected, "decode");
    let (prefill, _) = wild.prefill(&operands, &[[0, 1], [1, 1], [2, 1]]);
    assert_close(&prefill, &expected, "prefill");
}

#[test]
fn attention_gives_the_same_bits_every_time() {
    let spans = (600..620).map(|position| [position, 0]).chain((10..50).map(|p| [p, 1])).collect();
    let attention = Attention { shape: SHAPE, spans, seed: 12 };
    let operands = attention.operands();
    assert_repeatable(|| attention.decode(&operands).0);
    assert_repeatable(|| attention.prefill(&operands, &attention.ranges()).0);
}
