//! Row attention: `row_attention_decode` with `attention_merge`, `row_attention_prefill`, and `stick_breaking`.

use headwise::internal::{
    Buffer, CachePrecision, Counters, DECODE_SPLIT_KEYS, DecodeAttention, Dimensions, Gpu, HeadLayout,
    HeadMixtureSpec, Heads, KernelChoice, MAX_HEAD_DIM, MAX_STICK_HEAD_DIM, NormKind, NormSpec,
    PositionEncoding, PrefillAttention, Queries, RelativePositions, RopeAttentionDecode, Routes, Span,
    StickBreaking, head_stride, rope_angles,
};
use proptest::prelude::*;

use crate::{
    reference::{
        dot,
        head_mixture::stick_breaking,
        rope_cache::rope,
        row_attention::{RowAttention, row_attention},
        softmax,
    },
    support::{
        Guarded, among, assert_close, assert_close_in, assert_repeatable,
        cache::{AttentionShape, GuardedCache, Most, cache_precision, most, sections},
        check, choices, gpu, hash, noise, pad, run, size, upload,
    },
};

/// The variants of the softmax kernels that this run is for: by workgroups, and by single subgroups where the device has them.
fn attention_choices() -> Vec<KernelChoice> {
    let mut all = choices();
    all.retain(|choice| [KernelChoice::Plain, KernelChoice::Broadcast].contains(choice));
    all
}

/// One of them.
fn some_choice(seed: u64) -> KernelChoice {
    let all = attention_choices();
    all[seed as usize % all.len()]
}

/// Tokens that attend to a cache.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub(super) shape: AttentionShape,
    /// (slot, sequence) of each token, sequence by sequence; with head spans of each key/value head of each.
    pub(super) spans: Vec<[u32; 2]>,
    /// The end of what each span sees; empty where attention is causal.
    sees: Vec<u32>,
    /// The first slot that each span sees; empty where that is the first of all.
    from: Vec<u32>,
    /// How far positions are ahead of slots. No kernel but those that turn asks for a position.
    pub(super) ahead: u32,
    /// The largest distance that learned vectors tell apart, where there are any.
    pub(super) clip: Option<u32>,
    /// `[tokens, slots]`, of no matter where queries count by slot.
    pub(super) chosen: Vec<u32>,
    /// Where the routes start.
    first: u32,
    pub(super) seed: u64,
    /// The shape of the kernels.
    choice: KernelChoice,
}

/// How weights come from scores.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weigh {
    Softmax,
    StickBreaking,
}

/// The numbers of an [`Attention`]: queries, and a cache that is NaN where nobody may look.
pub(super) struct Operands {
    pub(super) q: Vec<f64>,
    pub(super) keys: Vec<f64>,
    pub(super) values: Vec<f64>,
    /// `[heads, 2 · clip + 1, head_dim]`
    pub(super) relative: Vec<f64>,
}

/// Every way to lay query heads over slots and over shared key/value heads; heads of any size, but more often of
/// whole vec4s.
fn any_shape(max_capacity: u32, max_head_dim: u32) -> impl Strategy<Value = AttentionShape> {
    let head_dim = prop_oneof![
        2 => size(max_head_dim / 4).prop_map(|quads| 4 * quads),
        2 => size(max_head_dim),
        1 => Just(max_head_dim),
    ];
    let capacity = prop_oneof![size(70), size(max_capacity)];
    let heads = (size(4), size(3), size(3), any::<u32>());
    let dims = (head_dim.clone(), prop_oneof![3 => Just(None), 1 => head_dim.prop_map(Some)]);
    (heads, dims, capacity, 1..=3u32, cache_precision(), most()).prop_map(
        |((kv_heads, group, repeats, split), (key_dim, value_dim), capacity, sequences, cache, most)| {
            let all = kv_heads * group * repeats;
            let divisors: Vec<u32> = (1..=all).filter(|&n| all.is_multiple_of(n)).collect();
            let heads = divisors[split as usize % divisors.len()];
            AttentionShape {
                queries: Queries::BySlot,
                slots: all / heads,
                heads,
                kv_heads,
                group,
                key_dim,
                value_dim: value_dim.unwrap_or(key_dim),
                capacity,
                sequences,
                head_spans: false,
                cache,
                most,
            }
        },
    )
}

/// As [`any_shape`], with heads that count over experts.
fn any_expert_shape(max_capacity: u32, max_head_dim: u32) -> impl Strategy<Value = (AttentionShape, u32)> {
    (any_shape(max_capacity, max_head_dim), 0..6u32, any::<bool>()).prop_map(|(shape, more, dense)| {
        let experts = shape.slots + more;
        let queries = if dense { Queries::Dense { experts } } else { Queries::ByExpert };
        (AttentionShape { queries, ..shape }, experts)
    })
}

/// Heads of `channels` floats in the layout of the GPU: each padded with zeros to whole vec4s.
pub(super) fn spread(values: &[f64], channels: u32) -> Vec<f64> {
    let stride = head_stride(channels) as usize;
    let padded = |head: &[f64]| (0..stride).map(|i| head.get(i).copied().unwrap_or(0.0)).collect::<Vec<_>>();
    values.chunks_exact(channels as usize).flat_map(padded).collect()
}

/// The reverse of [`spread`]; panics if the padding is not zero.
fn gather(values: &[f64], channels: u32) -> Vec<f64> {
    let mut heads = Vec::new();
    for head in values.chunks_exact(head_stride(channels) as usize) {
        let (head, padding) = head.split_at(channels as usize);
        assert!(padding.iter().all(|&value| value == 0.0), "padding of a head is {padding:?}");
        heads.extend(head);
    }
    heads
}

/// Tokens whose queries count by slot.
fn by_slot(shape: AttentionShape, spans: Vec<[u32; 2]>, seed: u64) -> Attention {
    Attention {
        shape,
        spans,
        sees: Vec::new(),
        from: Vec::new(),
        ahead: 0,
        clip: None,
        chosen: vec![0],
        first: 0,
        seed,
        choice: KernelChoice::Plain,
    }
}

/// Tokens that chose some of `experts`, each one once.
fn by_expert(shape: AttentionShape, experts: u32, spans: Vec<[u32; 2]>, seed: u64) -> Attention {
    let mut chosen = Vec::new();
    for token in 0..spans.len() {
        let at = hash(seed + 9, token);
        let mut all: Vec<u32> = (0..experts).collect();
        all.sort_by_key(|&expert| hash(at, expert as usize));
        chosen.extend(&all[..shape.slots as usize]);
    }
    Attention {
        shape,
        spans,
        sees: Vec::new(),
        from: Vec::new(),
        ahead: 0,
        clip: None,
        chosen,
        first: (seed % 7) as u32,
        seed,
        choice: KernelChoice::Plain,
    }
}

impl Attention {
    /// The same over a cache that is cut in another way.
    pub(super) fn cut(self, most: Most) -> Self {
        Self { shape: AttentionShape { most, ..self.shape }, ..self }
    }

    /// The same in another shape of the kernels.
    fn on(self, choice: KernelChoice) -> Self {
        Self { choice, ..self }
    }

    pub(super) fn gpu(&self) -> &'static Gpu {
        gpu(self.choice)
    }

    pub(super) fn tokens(&self) -> u32 {
        self.spans.len() as u32 / if self.shape.head_spans { self.shape.kv_heads } else { 1 }
    }

    /// The first slot that a span sees.
    pub(super) fn first(&self, span: usize) -> u32 {
        self.from.get(span).copied().unwrap_or(0)
    }

    /// The slot after the last that a span sees.
    pub(super) fn sees(&self, span: usize) -> u32 {
        self.sees.get(span).copied().unwrap_or(self.spans[span][0].saturating_add(1))
    }

    /// Which span a token has for a key/value head.
    pub(super) fn span_of(&self, token: usize, kv_head: u32) -> usize {
        if self.shape.head_spans { token * self.shape.kv_heads as usize + kv_head as usize } else { token }
    }

    /// Query heads of a token, chosen or not.
    fn q_heads(&self) -> u32 {
        match self.shape.queries {
            Queries::Dense { experts } => experts * self.shape.heads,
            Queries::BySlot | Queries::ByExpert => self.shape.slots * self.shape.heads,
        }
    }

    /// Floats of an output row, one for each slot.
    pub(super) fn out_width(&self) -> u32 {
        self.shape.heads * head_stride(self.shape.value_dim)
    }

    /// The first slots of a sequence, of which any token sees the last.
    fn written(&self, sequence: u32) -> u32 {
        let own = (0..self.spans.len()).filter(|&span| self.spans[span][1] == sequence);
        own.map(|span| self.sees(span)).max().unwrap_or(0)
    }

    /// Keys that all tokens together see.
    fn keys(&self) -> u64 {
        (0..self.spans.len()).map(|span| u64::from(self.sees(span) - self.first(span))).sum()
    }

    pub(super) fn operands(&self) -> Operands {
        let AttentionShape { capacity, sequences, kv_heads, key_dim, value_dim, heads, .. } = self.shape;
        let q = noise(self.seed, (self.tokens() * self.q_heads() * key_dim) as usize);
        let [keys, values] = self.shape.cache_floats();
        let (mut keys, mut values) = (noise(self.seed + 1, keys), noise(self.seed + 2, values));
        for sequence in 0..sequences {
            let own = (0..self.spans.len()).filter(|&span| self.spans[span][1] == sequence);
            let first = own.map(|span| self.first(span)).min().unwrap_or(0);
            let start = sequence * capacity;
            for unwritten in [start..start + first, start + self.written(sequence)..start + capacity] {
                let place = |channels: u32| {
                    [unwritten.start, unwritten.end].map(|slot| (slot * kv_heads * channels) as usize)
                };
                let ([from, to], [value_from, value_to]) = (place(key_dim), place(value_dim));
                keys[from..to].fill(f64::NAN);
                values[value_from..value_to].fill(f64::NAN);
            }
        }
        let entries = self.clip.map_or(0, |clip| 2 * clip + 1);
        let (keys, values) = (self.shape.cached_keys(&keys), self.shape.cached_values(&values));
        let relative = noise(self.seed + 3, (heads * entries * key_dim) as usize);
        Operands { q, keys, values, relative }
    }

    fn oracle(&self, operands: &Operands) -> Vec<f64> {
        let shape = self.shape;
        if shape.key_dim != shape.value_dim {
            return self.oracle_by_head(Weigh::Softmax, operands);
        }
        let [positions, sequences] =
            [0, 1].map(|i| self.spans.iter().map(|span| span[i]).collect::<Vec<_>>());
        let op = RowAttention {
            heads: (shape.slots * shape.heads) as usize,
            kv_heads: shape.kv_heads as usize,
            group: shape.group as usize,
            head_dim: shape.key_dim as usize,
            capacity: shape.capacity as usize,
            positions: &positions,
            sequences: &sequences,
        };
        row_attention(&op, &operands.q, &operands.keys, &operands.values)
    }

    /// Which head the `index`-th query head of a token is, over all experts where heads count so, and which of the token's queries
    /// is its own.
    pub(super) fn head_of(&self, token: usize, index: u32) -> [u32; 2] {
        let AttentionShape { queries, slots, heads, .. } = self.shape;
        let (slot, j) = ((index / heads) as usize, index % heads);
        let by_expert = || self.chosen[token * slots as usize + slot] * heads + j;
        match queries {
            Queries::BySlot => [index, index],
            Queries::ByExpert => [by_expert(), index],
            Queries::Dense { .. } => [by_expert(); 2],
        }
    }

    /// The scores of the keys that the `index`-th query head of a token sees, from the oldest to the newest; its span, and its
    /// key/value head.
    pub(super) fn scores(&self, operands: &Operands, token: usize, index: u32) -> (Vec<f64>, usize, u32) {
        let AttentionShape { heads, kv_heads, group, key_dim, capacity, .. } = self.shape;
        let (d, j) = (key_dim as usize, index % heads);
        let [head, query] = self.head_of(token, index);
        let q = &operands.q[token * (self.q_heads() * key_dim) as usize + query as usize * d..][..d];
        let kv_head = head / group % kv_heads;
        let span = self.span_of(token, kv_head);
        let [own_slot, sequence] = self.spans[span];
        let relative = |i: u32| {
            let clip = i64::from(self.clip?);
            let entry = clip + (i64::from(i) - i64::from(own_slot)).clamp(-clip, clip);
            Some(&operands.relative[(i64::from(j) * (2 * clip + 1) + entry) as usize * d..][..d])
        };
        let scale = 1.0 / f64::from(key_dim).sqrt();
        let score = |i: u32| {
            let k =
                &operands.keys[(((sequence * capacity + i) * kv_heads + kv_head) * key_dim) as usize..][..d];
            scale * (dot(q, k) + relative(i).map_or(0.0, |relative| dot(q, relative)))
        };
        ((self.first(span)..self.sees(span)).map(score).collect(), span, kv_head)
    }

    /// Each chosen head by itself, in either way to weigh: its query, its key/value head, and the weights of
    /// the keys from the oldest to the newest.
    fn oracle_by_head(&self, weigh: Weigh, operands: &Operands) -> Vec<f64> {
        let AttentionShape { slots, heads, kv_heads, value_dim, capacity, .. } = self.shape;
        let mut out = Vec::new();
        for token in 0..self.tokens() as usize {
            for index in 0..slots * heads {
                let (scores, span, kv_head) = self.scores(operands, token, index);
                let weights = match weigh {
                    Weigh::Softmax => softmax(&scores),
                    Weigh::StickBreaking => stick_breaking(&scores),
                };
                let [_, sequence] = self.spans[span];
                let mut sum = vec![0.0; value_dim as usize];
                for (weight, i) in weights.iter().zip(self.first(span)..) {
                    let place = ((sequence * capacity + i) * kv_heads + kv_head) * value_dim;
                    let v = &operands.values[place as usize..][..value_dim as usize];
                    sum.iter_mut().zip(v).for_each(|(sum, v)| *sum += weight * v);
                }
                out.extend(sum);
            }
        }
        out
    }

    /// Rows to write. The padding is zero before; attention must leave it so.
    fn output(&self) -> Guarded {
        let rows = (self.tokens() * self.shape.slots) as usize;
        let marked = vec![777.0; rows * self.out_width() as usize];
        Guarded::holding(self.gpu(), 0, &pad(&marked, self.out_width()))
    }

    fn span_words(&self) -> Vec<[u32; 5]> {
        let span = |(i, &[slot, sequence]): (usize, &[u32; 2])| {
            let position = slot.saturating_add(self.ahead);
            Span { position, sequence, slot, first: self.first(i), end: self.sees(i) }
        };
        Span::words(&self.spans.iter().enumerate().map(span).collect::<Vec<_>>())
    }

    /// Spans, queries, and the cache.
    pub(super) fn buffers(&self, operands: &Operands) -> (Buffer, Buffer, GuardedCache) {
        let gpu = self.gpu();
        let AttentionShape { queries, heads, key_dim, .. } = self.shape;
        let q_row = if let Queries::Dense { .. } = queries { self.q_heads() } else { heads };
        let q = upload(gpu, &spread(&operands.q, key_dim), q_row * head_stride(key_dim));
        let spans = Buffer::with_data(gpu, "test.spans", &self.span_words());
        (spans, q, GuardedCache::new(gpu, &self.shape, &operands.keys, &operands.values))
    }

    /// Scratch for `splits` splits, sums and statistics.
    fn scratch(&self, splits: u32) -> Guarded {
        let rows = self.tokens() * self.shape.slots * self.shape.heads * splits;
        Guarded::new(self.gpu(), 0, (rows * (head_stride(self.shape.value_dim) + 4)) as usize)
    }

    /// The vectors that are learned for distances.
    pub(super) fn learned(&self, operands: &Operands) -> Buffer {
        let table = spread(&operands.relative, self.shape.key_dim);
        Buffer::with_data(self.gpu(), "test.relative", &table.iter().map(|&x| x as f32).collect::<Vec<_>>())
    }

    /// Chosen experts on the GPU, among those of other routers.
    pub(super) fn chosen(&self) -> Buffer {
        among(self.gpu(), self.first, &self.chosen, 0)
    }

    pub(super) fn routes<'a>(&self, chosen: &'a Buffer) -> Option<Routes<'a>> {
        let routes = Routes { chosen, gates: chosen, first: self.first, scores: chosen, first_score: 0 };
        (self.shape.queries != Queries::BySlot).then_some(routes)
    }

    /// Where its routes start.
    pub(super) fn first_route(&self) -> u32 {
        self.first
    }

    /// The output rows, without any padding.
    pub(super) fn read(&self, out: &Guarded) -> Vec<f64> {
        gather(&out.read_rows(self.out_width()), self.shape.value_dim)
    }

    fn stick_breaking(&self, operands: &Operands) -> (Vec<f64>, Counters) {
        let (spans, q, cache) = &self.buffers(operands);
        let (chosen, out, scratch) = (self.chosen(), self.output(), self.scratch(cache.kv.sections()));
        let counters = run(self.gpu(), |recorder| {
            StickBreaking {
                heads: self.shape.head_layout(),
                spans,
                q,
                cache: &cache.kv,
                scratch: &scratch.buffer,
                routes: self.routes(&chosen),
                out: &out.buffer,
                tokens: self.tokens(),
                keys: self.keys(),
            }
            .record(recorder);
        });
        scratch.read::<f32>();
        (self.read(&out), counters)
    }

    fn decode(&self, operands: &Operands) -> (Vec<f64>, Counters) {
        self.decode_in(true, operands)
    }

    fn decode_unsplit(&self, operands: &Operands) -> (Vec<f64>, Counters) {
        self.decode_in(false, operands)
    }

    /// Keys that one token sees at the most.
    fn most_keys(&self) -> u32 {
        let seen =
            (0..self.spans.len()).map(|span| self.sees(span).min(self.shape.capacity) - self.first(span));
        seen.max().expect("some token")
    }

    fn decode_in(&self, split: bool, operands: &Operands) -> (Vec<f64>, Counters) {
        let gpu = self.gpu();
        let (spans, q, cache) = &self.buffers(operands);
        let most_keys = self.most_keys();
        let splits = if split { HeadLayout::splits(most_keys) } else { 1 };
        let table = self.learned(operands);
        let relative = self.clip.map(|clip| RelativePositions { table: &table, clip });
        let scratch = self.scratch(splits * cache.kv.sections());
        let (chosen, out) = (self.chosen(), self.output());
        let counters = run(gpu, |recorder| {
            DecodeAttention {
                heads: self.shape.head_layout(),
                spans,
                q,
                cache: &cache.kv,
                scratch: &scratch.buffer,
                routes: self.routes(&chosen),
                out: &out.buffer,
                tokens: self.tokens(),
                most_keys,
                relative,
                split,
                keys: self.keys(),
            }
            .record(recorder);
        });
        // Scratch has guards, too.
        scratch.read::<f32>();
        (self.read(&out), counters)
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
        let (spans, q, cache) = &self.buffers(operands);
        let ranges_on_gpu = Buffer::with_data(self.gpu(), "test.ranges", ranges);
        let out = self.output();
        let counters = run(self.gpu(), |recorder| {
            PrefillAttention {
                heads: self.shape.head_layout(),
                spans,
                ranges: &ranges_on_gpu,
                q,
                cache: &cache.kv,
                out: &out.buffer,
                tokens: self.tokens(),
                longest: ranges.iter().map(|range| range[1]).max().expect("some range"),
                ranges_len: ranges.len() as u32,
                most_keys: self.most_keys(),
                keys: self.keys(),
            }
            .record(recorder);
        });
        (self.read(&out), counters)
    }

    /// Queries turned to their positions in the first `rotated` channels of each head, by `theta`.
    pub(super) fn turned(&self, q: &[f64], rotated: u32, theta: f64) -> Vec<f64> {
        let mut q = q.to_vec();
        let width = (self.q_heads() * self.shape.key_dim) as usize;
        for (token, heads) in q.chunks_exact_mut(width).enumerate() {
            // Heads with spans of their own do not turn.
            let position = self.spans[token][0] + self.ahead;
            for head in heads.chunks_exact_mut(self.shape.key_dim as usize) {
                rope(&mut head[..rotated as usize], position, theta);
            }
        }
        q
    }

    /// Multiply-accumulates, by the definition: q·k and weight·v for each head and key.
    fn macs(&self) -> u64 {
        let AttentionShape { slots, heads, key_dim, value_dim, .. } = self.shape;
        self.keys() * u64::from(slots * heads) * u64::from(key_dim + value_dim)
    }
}

/// Tokens at any positions of any sequences, one of them at the very end of the cache.
fn any_spans(shape: &AttentionShape, tokens: u32, seed: u64) -> Vec<[u32; 2]> {
    let at = |i, limit: u32| (hash(seed, i) % u64::from(limit)) as u32;
    let mut spans: Vec<[u32; 2]> =
        (0..tokens as usize).map(|i| [at(2 * i, shape.capacity), at(2 * i + 1, shape.sequences)]).collect();
    spans[at(99, tokens) as usize][0] = shape.capacity - 1;
    spans
}

pub(super) fn any_decode(max_capacity: u32, max_head_dim: u32) -> impl Strategy<Value = Attention> {
    (any_shape(max_capacity, max_head_dim), size(5), any::<u64>()).prop_map(|(shape, tokens, seed)| {
        by_slot(shape, any_spans(&shape, tokens, seed), seed).on(some_choice(seed))
    })
}

pub(super) fn any_expert_decode(max_capacity: u32, max_head_dim: u32) -> impl Strategy<Value = Attention> {
    (any_expert_shape(max_capacity, max_head_dim), size(5), any::<u64>()).prop_map(
        |((shape, experts), tokens, seed)| by_expert(shape, experts, any_spans(&shape, tokens, seed), seed),
    )
}

/// Runs of neighbouring tokens, one for each of some sequences, not all from position 0.
fn any_prefill() -> impl Strategy<Value = Attention> {
    let runs = prop::collection::vec((size(40), any::<u32>()), 3);
    (any_shape(300, MAX_HEAD_DIM), runs, any::<u64>()).prop_map(|(shape, runs, seed)| {
        let mut spans = Vec::new();
        for (sequence, &(tokens, start)) in (0..shape.sequences).rev().zip(&runs) {
            let tokens = tokens.min(shape.capacity);
            let start = start % (shape.capacity - tokens + 1);
            spans.extend((start..start + tokens).map(|position| [position, sequence]));
        }
        by_slot(shape, spans, seed).on(some_choice(seed))
    })
}

#[test]
fn decode_attends_to_the_keys_up_to_each_position() {
    check(160, any_decode(1100, MAX_HEAD_DIM), |attention| {
        let operands = attention.operands();
        let expected = attention.oracle(&operands);
        for split in [true, false] {
            let (got, counters) = attention.decode_in(split, &operands);
            assert_close(&got, &expected, split);
            assert_eq!(counters.macs, attention.macs());
        }
    });
}

#[test]
fn decode_finds_the_heads_of_the_chosen_experts() {
    check(96, any_expert_decode(600, MAX_HEAD_DIM), |attention| {
        let operands = attention.operands();
        let expected = attention.oracle_by_head(Weigh::Softmax, &operands);
        for split in [true, false] {
            let (got, counters) = attention.decode_in(split, &operands);
            assert_close(&got, &expected, split);
            assert_eq!(counters.macs, attention.macs());
        }
    });
}

#[test]
fn stick_breaking_attends_to_the_keys_up_to_each_position() {
    let any = prop_oneof![any_decode(700, 128), any_expert_decode(700, 128)];
    check(96, any, |attention| {
        let operands = attention.operands();
        let (got, counters) = attention.stick_breaking(&operands);
        assert_close(&got, &attention.oracle_by_head(Weigh::StickBreaking, &operands), "out");
        assert_eq!(counters.macs, attention.macs());
    });
}

/// Scores of a size that models have: queries and keys here are ten times as large.
#[test]
fn stick_breaking_holds_for_sharp_scores_and_large_heads() {
    let any = prop_oneof![
        any_decode(200, MAX_STICK_HEAD_DIM),
        any_expert_decode(200, MAX_STICK_HEAD_DIM),
        any_decode(700, 40),
    ];
    check(48, any, |attention| {
        let mut operands = attention.operands();
        operands.q.iter_mut().chain(&mut operands.keys).for_each(|x| *x *= 10.0);
        operands.keys = attention.shape.cached_keys(&operands.keys);
        let (got, _) = attention.stick_breaking(&operands);
        assert_close(&got, &attention.oracle_by_head(Weigh::StickBreaking, &operands), "out");
    });
}

#[test]
fn prefill_attends_to_the_keys_up_to_each_position() {
    check(160, any_prefill(), |attention| {
        let operands = attention.operands();
        let (got, counters) = attention.prefill(&operands, &attention.ranges());
        assert_close(&got, &attention.oracle(&operands), "out");
        assert_eq!(counters.macs, attention.macs());
    });
}

const SHAPE: AttentionShape = AttentionShape {
    queries: Queries::BySlot,
    slots: 2,
    heads: 3,
    kv_heads: 3,
    group: 1,
    key_dim: 20,
    value_dim: 20,
    capacity: 900,
    sequences: 2,
    head_spans: false,
    cache: CachePrecision::F32,
    most: Most::Everything,
};

/// Positions on both sides of every boundary between splits.
#[test]
fn decode_merges_splits_at_their_edges() {
    for choice in attention_choices() {
        for last in [0, 1, 2, 3].map(|splits| splits * DECODE_SPLIT_KEYS) {
            for position in [last.saturating_sub(2), last.saturating_sub(1), last, last + 1] {
                // The first token sees one split only, so its other splits are empty.
                let attention = by_slot(SHAPE, vec![[0, 1], [position, 0]], 7).on(choice);
                let operands = attention.operands();
                let expected = attention.oracle(&operands);
                assert_close(&attention.decode(&operands).0, &expected, position);
                assert_close(&attention.decode_unsplit(&operands).0, &expected, position);
            }
        }
    }
}

#[test]
fn prefill_skips_a_sequence_without_tokens() {
    for choice in attention_choices() {
        let spans = (5..30).map(|position| [position, 1]).collect();
        let attention = by_slot(SHAPE, spans, 8).on(choice);
        let operands = attention.operands();
        let (got, _) = attention.prefill(&operands, &[[0, 0], [0, 25]]);
        assert_close(&got, &attention.oracle(&operands), "out");
    }
}

#[test]
fn decode_and_prefill_agree() {
    for choice in attention_choices() {
        let spans = (700..710).map(|position| [position, 0]).chain((0..3).map(|p| [p, 1])).collect();
        let attention = by_slot(SHAPE, spans, 9).on(choice);
        let operands = attention.operands();
        assert_close(
            &attention.decode(&operands).0,
            &attention.prefill(&operands, &attention.ranges()).0,
            "decode against prefill",
        );
    }
}

/// llvmpipe ends a shader after 65,535 turns of all its loops together, without a word: see
/// `shaders/row_attention_prefill.wgsl`.
#[test]
fn attention_reads_a_long_context() {
    for choice in attention_choices() {
        let shape = AttentionShape {
            slots: 1,
            heads: 1,
            kv_heads: 1,
            key_dim: MAX_HEAD_DIM,
            value_dim: MAX_HEAD_DIM,
            capacity: 12_000,
            ..SHAPE
        };
        let attention = by_slot(shape, vec![[11_999, 0]], 13).on(choice);
        let operands = attention.operands();
        let expected = attention.oracle(&operands);
        assert_close(&attention.decode(&operands).0, &expected, "decode");
        assert_close(&attention.decode_unsplit(&operands).0, &expected, "decode unsplit");
        assert_close(&attention.prefill(&operands, &[[0, 1]]).0, &expected, "prefill");
        let expected = attention.oracle_by_head(Weigh::StickBreaking, &operands);
        assert_close(&attention.stick_breaking(&operands).0, &expected, "stick-breaking");
    }
}

/// The softmax may not overflow: with one score far above the others, its value is the answer.
#[test]
fn attention_holds_scores_of_any_size() {
    for choice in attention_choices() {
        for sign in [1.0, -1.0] {
            for best in [0, 31, 32, 63, 64, 255, 256, 599] {
                let attention = by_slot(SHAPE, vec![[599, 0]], 10).on(choice);
                let in_sections = attention.clone().cut(Most::Sections(4));
                let Operands { q, mut keys, values, relative } = attention.operands();
                let ones = vec![1.0; q.len()];
                let width = (SHAPE.kv_heads * SHAPE.key_dim) as usize;
                keys[..600 * width].fill(sign * 1e4 - 1e4);
                keys[best * width..(best + 1) * width].fill(sign * 1e4);
                let expected = values[best * width..(best + 1) * width].repeat(2);
                let operands = Operands { q: ones, keys, values, relative };
                assert_close(&attention.decode(&operands).0, &expected, ("decode", best));
                assert_close(&in_sections.decode(&operands).0, &expected, ("decode over sections", best));
                assert_close(&attention.decode_unsplit(&operands).0, &expected, ("decode unsplit", best));
                assert_close(&attention.prefill(&operands, &[[0, 1]]).0, &expected, ("prefill", best));
            }
        }
    }
}

/// A position past the cache means its last place, a sequence past the last means the last.
#[test]
fn attention_clamps_spans_out_of_range() {
    for choice in attention_choices() {
        let wild = by_slot(SHAPE, vec![[12, 0], [900, 1], [u32::MAX, u32::MAX]], 11).on(choice);
        let clamped = Attention { spans: vec![[12, 0], [899, 1], [899, 1]], ..wild.clone() };
        let operands = clamped.operands();
        let expected = clamped.oracle(&operands);
        for split in [true, false] {
            let (decode, _) = wild.decode_in(split, &operands);
            assert_close(&decode, &expected, ("decode", split));
            let (decode, _) = wild.clone().cut(Most::Sections(3)).decode_in(split, &operands);
            assert_close(&decode, &expected, ("decode over sections", split));
        }
        let (stick, _) = wild.stick_breaking(&operands);
        assert_close(&stick, &clamped.oracle_by_head(Weigh::StickBreaking, &operands), "stick-breaking");
        let (prefill, _) = wild.prefill(&operands, &[[0, 1], [1, 1], [2, 1]]);
        assert_close(&prefill, &expected, "prefill");
    }
}

#[test]
fn attention_gives_the_same_bits_every_time() {
    for choice in attention_choices() {
        let spans = (600..620).map(|position| [position, 0]).chain((10..50).map(|p| [p, 1])).collect();
        let attention = by_slot(SHAPE, spans, 12).on(choice);
        let operands = attention.operands();
        assert_repeatable(|| attention.decode(&operands).0);
        assert_repeatable(|| attention.decode_unsplit(&operands).0);
        assert_repeatable(|| attention.stick_breaking(&operands).0);
        assert_repeatable(|| attention.prefill(&operands, &attention.ranges()).0);
    }
}

/// The shapes of expert heads that single tests use: 5 experts of 3 heads, of which a token has 2.
fn expert_shapes() -> [AttentionShape; 2] {
    [Queries::ByExpert, Queries::Dense { experts: 5 }].map(|queries| AttentionShape {
        queries,
        kv_heads: 4,
        group: 2,
        key_dim: 18,
        value_dim: 18,
        ..SHAPE
    })
}

#[test]
fn expert_heads_give_the_same_bits_every_time() {
    for shape in expert_shapes() {
        let spans = (600..610).map(|position| [position, 0]).chain((10..20).map(|p| [p, 1])).collect();
        let attention = by_expert(shape, 5, spans, 14);
        let operands = attention.operands();
        assert_repeatable(|| attention.decode(&operands).0);
        assert_repeatable(|| attention.decode_unsplit(&operands).0);
        assert_repeatable(|| attention.stick_breaking(&operands).0);
    }
}

/// A token's output does not depend on how many tokens there are beside it.
#[test]
fn a_token_attends_in_the_same_bits_alone_and_in_a_batch() {
    for choice in attention_choices() {
        for shape in [SHAPE, expert_shapes()[0], expert_shapes()[1]] {
            let spans = vec![[700, 0], [699, 1], [3, 0], [64, 1]];
            let batch = by_expert(shape, 5, spans.clone(), 15).on(choice);
            let operands = batch.operands();
            let [q_width, out_width, slots] =
                [batch.q_heads() * shape.key_dim, shape.slots * shape.heads * shape.value_dim, shape.slots]
                    .map(|n| n as usize);
            let (decode, stick) = (batch.decode_unsplit(&operands).0, batch.stick_breaking(&operands).0);
            for (token, span) in spans.into_iter().enumerate() {
                let chosen = batch.chosen[token * slots..][..slots].to_vec();
                let alone = Attention { spans: vec![span], chosen, ..batch.clone() };
                let q = operands.q[token * q_width..][..q_width].to_vec();
                let (keys, values) = (operands.keys.clone(), operands.values.clone());
                let operands = Operands { q, keys, values, relative: Vec::new() };
                let out = token * out_width..(token + 1) * out_width;
                assert_eq!(alone.decode_unsplit(&operands).0, decode[out.clone()], "decode, token {token}");
                assert_eq!(alone.stick_breaking(&operands).0, stick[out], "stick-breaking, token {token}");
            }
        }
    }
}

/// An expert out of range reads some query and some key/value head that exist; no other slot notices.
#[test]
fn an_expert_out_of_range_spoils_only_its_own_heads() {
    for shape in expert_shapes() {
        for wild in [5, 6, 1 << 20, 0x5555_5555, 1 << 31, u32::MAX] {
            let clean = by_expert(shape, 5, vec![[80, 0], [300, 1], [7, 0]], 16);
            let operands = clean.operands();
            let mut spoiled = clean.clone();
            spoiled.chosen[3] = wild;
            let slot = (shape.heads * shape.value_dim) as usize;
            for (weigh, got) in [
                (Weigh::Softmax, spoiled.decode(&operands).0),
                (Weigh::Softmax, spoiled.decode_unsplit(&operands).0),
                (Weigh::StickBreaking, spoiled.stick_breaking(&operands).0),
            ] {
                let mut expected = clean.oracle_by_head(weigh, &operands);
                let own = 3 * slot..4 * slot;
                assert!(got[own.clone()].iter().all(|value| value.abs() <= 1.0), "{:?}", &got[own]);
                expected[own.clone()].copy_from_slice(&got[own]);
                assert_close(&got, &expected, (weigh, wild));
            }
        }
    }
}

/// The two oracles, and with them the two ways to count heads, agree where both apply.
#[test]
fn queries_by_expert_are_queries_by_slot_when_experts_are_the_slots() {
    let spans = vec![[500, 0], [20, 1]];
    let slot = by_slot(SHAPE, spans.clone(), 17).on(KernelChoice::Plain);
    let operands = slot.operands();
    let expected = slot.oracle(&operands);
    assert_close(&slot.oracle_by_head(Weigh::Softmax, &operands), &expected, "oracles");
    for queries in [Queries::ByExpert, Queries::Dense { experts: 2 }] {
        let shape = AttentionShape { queries, ..SHAPE };
        let expert = Attention {
            shape,
            spans: spans.clone(),
            sees: Vec::new(),
            from: Vec::new(),
            ahead: 0,
            clip: None,
            chosen: vec![0, 1, 0, 1],
            first: 0,
            seed: 17,
            choice: KernelChoice::Plain,
        };
        assert_eq!(expert.decode(&operands).0, slot.decode(&operands).0, "{queries:?}");
        assert_eq!(expert.stick_breaking(&operands).0, slot.stick_breaking(&operands).0, "{queries:?}");
    }
}

/// Keys that tokens see without regard to their positions: none, some, all of the cache.
pub(super) fn any_visible(max_capacity: u32) -> impl Strategy<Value = Attention> {
    let clip = prop_oneof![1 => Just(None), 2 => size(90).prop_map(Some)];
    let shapes =
        (any_shape(max_capacity, MAX_HEAD_DIM), any_expert_shape(max_capacity, MAX_HEAD_DIM), any::<bool>());
    (shapes, size(5), clip, any::<u64>()).prop_map(|((slot, (expert, experts), by), tokens, clip, seed)| {
        let mut attention = match by {
            true => by_expert(expert, experts, any_spans(&expert, tokens, seed), seed),
            false => by_slot(slot, any_spans(&slot, tokens, seed), seed),
        };
        let capacity = attention.shape.capacity;
        let sees = |i: usize| match hash(seed + 40, i) % 4 {
            0 => 0,
            1 => capacity,
            _ => (hash(seed + 41, i) % u64::from(capacity + 1)) as u32,
        };
        attention.sees = (0..attention.spans.len()).map(sees).collect();
        // Half see nothing of the beginning.
        let from = |(i, &end): (usize, &u32)| match hash(seed + 42, i) % 2 {
            0 => 0,
            _ => (hash(seed + 43, i) % u64::from(end + 1)) as u32,
        };
        attention.from = attention.sees.iter().enumerate().map(from).collect();
        Attention { clip, ahead: seed as u32, ..attention }
    })
}

#[test]
fn decode_sees_the_keys_its_spans_say_at_learned_distances() {
    check(192, any_visible(600), |attention| {
        let operands = attention.operands();
        let expected = attention.oracle_by_head(Weigh::Softmax, &operands);
        for split in [true, false] {
            let (got, counters) = attention.decode_in(split, &operands);
            assert_close(&got, &expected, split);
            assert_eq!(counters.macs, attention.macs());
        }
    });
}

#[test]
fn stick_breaking_sees_the_keys_its_spans_say() {
    check(48, any_visible(300), |attention| {
        let attention = Attention { clip: None, ..attention };
        let operands = attention.operands();
        let (got, _) = attention.stick_breaking(&operands);
        assert_close(&got, &attention.oracle_by_head(Weigh::StickBreaking, &operands), "out");
    });
}

/// Where slots lie in sections, what a row sees may begin and end in any of them, and leave any of them out.
#[test]
fn decode_sees_the_keys_its_spans_say_over_sections() {
    for choice in attention_choices() {
        check(96, (any_visible(1100), sections()), |(attention, most)| {
            let attention = attention.cut(most).on(choice);
            let operands = attention.operands();
            let expected = attention.oracle_by_head(Weigh::Softmax, &operands);
            for split in [true, false] {
                let (got, counters) = attention.decode_in(split, &operands);
                assert_close(&got, &expected, split);
                assert_eq!(counters.macs, attention.macs());
            }
        });
    }
}

#[test]
fn stick_breaking_sees_the_keys_its_spans_say_over_sections() {
    check(64, (any_visible(600), sections()), |(attention, most)| {
        let attention = Attention { clip: None, ..attention }.cut(most);
        let operands = attention.operands();
        let (got, counters) = attention.stick_breaking(&operands);
        assert_close(&got, &attention.oracle_by_head(Weigh::StickBreaking, &operands), "out");
        assert_eq!(counters.macs, attention.macs());
    });
}

/// Spans that touch every edge of sections of 225 slots, in steps of more tokens than are ever split.
#[test]
fn sections_meet_at_their_edges() {
    for choice in attention_choices() {
        let edges = [0u32, 1, 224, 225, 226, 449, 450, 451, 674, 675, 899, 900];
        let mut attention = by_slot(SHAPE, Vec::new(), 33).cut(Most::Sections(4)).on(choice);
        for (i, &from) in edges.iter().enumerate() {
            for &end in &edges[i..] {
                attention.spans.push([end.saturating_sub(1), attention.spans.len() as u32 % 2]);
                attention.from.push(from);
                attention.sees.push(end);
            }
        }
        let operands = attention.operands();
        let softmax = attention.oracle_by_head(Weigh::Softmax, &operands);
        assert_close(&attention.decode(&operands).0, &softmax, "decode");
        assert_close(&attention.decode_unsplit(&operands).0, &softmax, "decode unsplit");
        let stick = attention.oracle_by_head(Weigh::StickBreaking, &operands);
        assert_close(&attention.stick_breaking(&operands).0, &stick, "stick-breaking");
        assert_repeatable(|| attention.decode(&operands).0);
    }
}

/// A row has 512 splits at the most where there are sections: here 200 of 800 slots have two, of 512 keys and of the rest.
#[test]
fn many_sections_have_longer_splits() {
    for choice in attention_choices() {
        let shape = AttentionShape {
            slots: 1,
            heads: 2,
            kv_heads: 1,
            group: 2,
            key_dim: 4,
            value_dim: 4,
            sequences: 1,
            capacity: 160_000,
            ..SHAPE
        };
        let mut attention =
            by_slot(shape, vec![[159_999, 0], [100, 0]], 34).cut(Most::Sections(200)).on(choice);
        attention.from = vec![700, 0];
        let operands = attention.operands();
        let (got, _) = attention.decode(&operands);
        assert_close(&got, &attention.oracle_by_head(Weigh::Softmax, &operands), "decode");
    }
}

/// Every token of a sequence sees the same keys, all of them or none.
#[test]
fn prefill_sees_whole_sequences() {
    check(160, any_prefill(), |mut attention| {
        let capacity = u64::from(attention.shape.capacity);
        let of_sequence = |sequence: u32| match hash(attention.seed + 40, sequence as usize) % 3 {
            0 => 0,
            1 => capacity as u32,
            _ => (hash(attention.seed + 41, sequence as usize) % (capacity + 1)) as u32,
        };
        attention.sees = attention.spans.iter().map(|span| of_sequence(span[1])).collect();
        let operands = attention.operands();
        let (got, counters) = attention.prefill(&operands, &attention.ranges());
        assert_close(&got, &attention.oracle_by_head(Weigh::Softmax, &operands), "out");
        assert_eq!(counters.macs, attention.macs());
    });
}

/// Every token sees the slots of a window that slides with it.
#[test]
fn prefill_sees_a_window_that_slides() {
    for choice in attention_choices() {
        check(64, (any_prefill(), size(90)), |(attention, window)| {
            let mut attention = attention.on(choice);
            attention.from =
                attention.spans.iter().map(|span| (span[0] + 1).saturating_sub(window)).collect();
            let operands = attention.operands();
            let (got, counters) = attention.prefill(&operands, &attention.ranges());
            assert_close(&got, &attention.oracle_by_head(Weigh::Softmax, &operands), "out");
            assert_eq!(counters.macs, attention.macs());
        });
    }
}

/// Where every key/value head has spans of its own, as after a cut of whole sequences.
#[test]
fn every_head_has_spans_of_its_own() {
    for choice in attention_choices() {
        let any = (size(6), size(60), size(5), any::<u64>());
        check(64, any, |(kv_heads, head_dim, tokens, seed)| {
            let shape = AttentionShape {
                slots: kv_heads,
                heads: 1,
                kv_heads,
                key_dim: head_dim,
                value_dim: head_dim,
                capacity: 1 + (seed % 400) as u32,
                most: [Most::Everything, Most::Half, Most::Head, Most::Sections(3)][seed as usize % 4],
                head_spans: true,
                ..SHAPE
            };
            let spans = any_spans(&shape, tokens * kv_heads, seed);
            let sees = |i| (hash(seed + 41, i) % u64::from(shape.capacity + 1)) as u32;
            let sees = (0..spans.len()).map(|i| if i % 3 == 0 { 0 } else { sees(i) }).collect();
            let attention = Attention { sees, ..by_slot(shape, spans, seed).on(choice) };
            let operands = attention.operands();
            let softmax = attention.oracle_by_head(Weigh::Softmax, &operands);
            for split in [true, false] {
                assert_close(&attention.decode_in(split, &operands).0, &softmax, split);
            }
            let stick = attention.oracle_by_head(Weigh::StickBreaking, &operands);
            assert_close(&attention.stick_breaking(&operands).0, &stick, "stick-breaking");
        });
    }
}

#[test]
fn learned_distances_give_the_same_bits_every_time() {
    let spans = (600..610).map(|position| [position, 0]).collect();
    let attention = Attention { clip: Some(63), ..by_slot(SHAPE, spans, 14) };
    let operands = attention.operands();
    assert_repeatable(|| attention.decode(&operands).0);
}

const STICK: AttentionShape = AttentionShape {
    slots: 1,
    heads: 1,
    kv_heads: 1,
    key_dim: 4,
    value_dim: 4,
    capacity: 10_000,
    sequences: 1,
    ..SHAPE
};

/// Small shares of many keys add up: what is left of the stick may not drift.
#[test]
fn stick_breaking_does_not_drift_over_thousands_of_equal_keys() {
    for position in [62, 63, 64, 127, 128, 1000, 9999] {
        for score in [-14.0, -12.0, -10.0, -9.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -1.0, 0.0, 2.0] {
            let attention = by_slot(STICK, vec![[position, 0]], 18);
            let operands = Operands {
                q: vec![1.0; 4],
                keys: vec![score / 2.0; 4 * STICK.capacity as usize],
                values: vec![1.0; 4 * STICK.capacity as usize],
                relative: Vec::new(),
            };
            let expected = attention.oracle_by_head(Weigh::StickBreaking, &operands);
            assert_close(&attention.stick_breaking(&operands).0, &expected, (position, score));
            let in_sections = attention.cut(Most::Sections(3));
            assert_close(&in_sections.stick_breaking(&operands).0, &expected, ("sections", position, score));
        }
    }
}

/// Shares that are all or nothing: the newest key that takes all of the stick is the answer, and without one
/// the answer is 0.
#[test]
fn stick_breaking_holds_scores_of_any_size() {
    for size in [100.0, 1e4, 1e30] {
        for best in [0, 1, 62, 63, 64, 65, 200, 599] {
            let shape = AttentionShape { capacity: 600, ..STICK };
            let attention = by_slot(shape, vec![[599, 0]], 19);
            let q = vec![1.0; 4];
            let values = noise(20, 4 * 600);
            let mut keys = vec![-size; 4 * 600];
            let relative = Vec::new;
            let nothing =
                Operands { q: q.clone(), keys: keys.clone(), values: values.clone(), relative: relative() };
            assert_close(&attention.stick_breaking(&nothing).0, &[0.0; 4], (size, "nothing"));

            // All keys up to the best one, so that older ones get nothing.
            keys[..4 * (best + 1)].fill(size);
            let expected = values[4 * best..][..4].to_vec();
            let operands = Operands { q, keys, values, relative: relative() };
            assert_close(&attention.stick_breaking(&operands).0, &expected, (size, best));
            let in_sections = attention.cut(Most::Sections(5));
            assert_close(&in_sections.stick_breaking(&operands).0, &expected, ("sections", size, best));
        }
    }
}

/// llvmpipe ends a shader after 65,535 turns of all its loops together, without a word.
#[test]
fn stick_breaking_reads_a_long_context_with_the_largest_heads() {
    let shape = AttentionShape {
        key_dim: MAX_STICK_HEAD_DIM,
        value_dim: MAX_STICK_HEAD_DIM,
        capacity: 4096,
        ..STICK
    };
    let attention = by_slot(shape, vec![[4095, 0]], 21);
    let mut operands = attention.operands();
    // Scores near −8, so that the oldest key still counts.
    operands.q.fill(0.25);
    operands.keys.iter_mut().for_each(|key| *key = *key / 8.0 - 1.0);
    let expected = attention.oracle_by_head(Weigh::StickBreaking, &operands);
    assert_close(&attention.stick_breaking(&operands).0, &expected, "out");
    let oldest = stick_breaking(&vec![-8.0; 4096])[0];
    assert!(oldest > 5e-5, "the oldest key has {oldest:e}");
}

/// Decoded tokens, each the newest of a sequence of its own.
#[derive(Clone, Debug)]
struct RopeDecode {
    attention: Attention,
    /// Channels that turn.
    rotated: u32,
}

fn any_rope_decode() -> impl Strategy<Value = RopeDecode> {
    (any_shape(1100, MAX_HEAD_DIM), any::<[u32; 2]>(), any::<u64>()).prop_map(
        |(shape, [turned, tokens], seed)| {
            let key_dim = shape.key_dim.next_multiple_of(4).max(8);
            // A query fits where its output goes.
            let shape = AttentionShape { key_dim, value_dim: shape.value_dim.max(key_dim), ..shape };
            let tokens = 1 + tokens % shape.sequences;
            // Sequences in any order, each once.
            let spans = (0..tokens)
                .map(|token| {
                    let slot = (hash(seed, token as usize) % u64::from(shape.capacity)) as u32;
                    [slot, (token + seed as u32 % 7) % shape.sequences]
                })
                .collect::<Vec<_>>();
            let rotated = 8 * (1 + turned % (key_dim / 8));
            let from = (0..).zip(&spans).map(|(i, span)| match hash(seed + 42, i) % 2 {
                0 => 0,
                _ => (hash(seed + 43, i) % u64::from(span[0] + 1)) as u32,
            });
            let from = from.collect();
            let ahead = (seed % 50) as u32;
            RopeDecode { attention: Attention { from, ahead, ..by_slot(shape, spans, seed) }, rotated }
        },
    )
}

impl RopeDecode {
    const THETA: f64 = 1e4;

    /// Attention output, keys and values after the kernel, and after the oracle.
    fn run(&self) -> [[Vec<f64>; 3]; 2] {
        let attention = &self.attention;
        let (gpu, shape) = (attention.gpu(), attention.shape);
        let AttentionShape { slots, heads, kv_heads, key_dim, value_dim, capacity, .. } = shape;
        let (tokens, ahead) = (attention.tokens(), attention.ahead);
        let [keys_row, values_row] = [key_dim, value_dim].map(|channels| (kv_heads * channels) as usize);
        let new_keys = noise(attention.seed + 5, tokens as usize * keys_row);
        let new_values = noise(attention.seed + 6, tokens as usize * values_row);
        let Operands { mut q, mut keys, mut values, .. } = attention.operands();
        // Nobody reads the own place, whatever it holds; what stays unwritten must stay.
        let place = |slot: u32, sequence: u32| (sequence * capacity + slot) as usize;
        let unwritten = |x: &mut f64| *x = if x.is_nan() { 0.5 } else { *x };
        keys.iter_mut().chain(&mut values).for_each(unwritten);
        let (mut old_keys, mut old_values) = (keys.clone(), values.clone());
        for &[slot, sequence] in &attention.spans {
            old_keys[place(slot, sequence) * keys_row..][..keys_row].fill(f64::NAN);
            old_values[place(slot, sequence) * values_row..][..values_row].fill(f64::NAN);
        }

        let cache = GuardedCache::new(gpu, &shape, &old_keys, &old_values);
        let spans = Buffer::with_data(gpu, "test.spans", &attention.span_words());
        let q_on_gpu = upload(gpu, &q, heads * key_dim);
        let padded_values = spread(&new_values, value_dim);
        let stride = padded_values.len() / tokens as usize;
        let rows = new_keys.chunks_exact(keys_row).zip(padded_values.chunks_exact(stride));
        let kv: Vec<f64> = rows.flat_map(|(keys, values)| [keys, values].concat()).collect();
        let kv_on_gpu = upload(gpu, &kv, (keys_row + stride) as u32);
        let angles = rope_angles(gpu, capacity + ahead, self.rotated, Self::THETA);
        let most_keys = attention.most_keys();
        let splits = HeadLayout::splits(most_keys) * cache.kv.sections();
        let (scratch, out) = (attention.scratch(splits), attention.output());
        let head_layout = shape.head_layout();
        assert!(RopeAttentionDecode::fits(&head_layout, self.rotated));
        let counters = run(gpu, |recorder| {
            RopeAttentionDecode {
                heads: head_layout,
                spans: &spans,
                q: &q_on_gpu,
                kv: &kv_on_gpu,
                angles: &angles,
                rotated: self.rotated,
                cache: &cache.kv,
                scratch: &scratch.buffer,
                out: &out.buffer,
                tokens,
                most_keys,
                split: true,
                keys: attention.keys(),
            }
            .record(recorder);
        });
        assert_eq!(counters.macs, attention.macs());
        scratch.read::<f32>();
        let [got_keys, got_values] = cache.read();
        let got = [attention.read(&out), got_keys, got_values];

        let d = key_dim as usize;
        for (token, &[slot, sequence]) in attention.spans.iter().enumerate() {
            let turn = |head: &mut [f64]| rope(&mut head[..self.rotated as usize], slot + ahead, Self::THETA);
            let heads = (slots * heads) as usize * d;
            q[token * heads..][..heads].chunks_exact_mut(d).for_each(turn);
            let own = &mut keys[place(slot, sequence) * keys_row..][..keys_row];
            own.copy_from_slice(&new_keys[token * keys_row..][..keys_row]);
            own.chunks_exact_mut(d).for_each(turn);
            values[place(slot, sequence) * values_row..][..values_row]
                .copy_from_slice(&new_values[token * values_row..][..values_row]);
        }
        let out = attention.oracle_by_head(
            Weigh::Softmax,
            &Operands {
                q,
                keys: shape.cached_keys(&keys),
                values: shape.cached_values(&values),
                relative: Vec::new(),
            },
        );
        [got, [out, keys, values]]
    }

    fn check(&self) -> Vec<f64> {
        let [got, expected] = self.run();
        let cache = self.attention.shape.cache;
        assert_close_in(cache, &got[0], &expected[0], "out");
        assert_close_in(cache, &got[1], &expected[1], "keys");
        assert_eq!(got[2], self.attention.shape.cached_values(&expected[2]), "values are copied");
        got.concat()
    }
}

#[test]
fn rope_attention_rotates_appends_and_attends() {
    for choice in attention_choices() {
        check(96, any_rope_decode(), |decode| {
            RopeDecode { attention: decode.attention.on(choice), ..decode }.check();
        });
    }
}

/// The section that has the own slot takes the own key, the others what they have.
#[test]
fn rope_attention_attends_over_sections() {
    for choice in attention_choices() {
        check(64, (any_rope_decode(), sections()), |(decode, most)| {
            RopeDecode { attention: decode.attention.cut(most).on(choice), ..decode }.check();
        });
    }
}

/// At the edges of splits, where the own key is alone in the last one or the last of a full one.
#[test]
fn rope_attention_finds_its_own_split() {
    for choice in attention_choices() {
        let shape = AttentionShape { key_dim: 24, value_dim: 24, sequences: 4, ..SHAPE };
        for positions in [[0, 255, 256, 257], [511, 512, 63, 899], [31, 32, 33, 1]] {
            let spans = (0..4).map(|i| [positions[i as usize], 3 - i]).collect();
            RopeDecode { attention: by_slot(shape, spans, 30).on(choice), rotated: 16 }.check();
        }
    }
}

#[test]
fn rope_attention_gives_the_same_bits_every_time() {
    for choice in attention_choices() {
        let shape = AttentionShape { key_dim: 64, value_dim: 64, sequences: 3, ..SHAPE };
        let attention = by_slot(shape, vec![[700, 2], [3, 0], [256, 1]], 31).on(choice);
        let decode = RopeDecode { attention, rotated: 64 };
        assert_repeatable(|| decode.check());
    }
}

/// 64 query heads of one key/value head are 8 tiles a token, or 16 where subgroups have 4 lanes: a step of more than a dispatch
/// counts is refused before it is made.
#[test]
fn a_prompt_of_more_tiles_than_a_dispatch_counts_is_refused() {
    let heads = Heads { query: 64, kv: 1, dim: 8 };
    let spec = HeadMixtureSpec::dense(
        NormSpec::before(NormKind::Rms, 16, 1e-5),
        heads,
        PositionEncoding::Rope { theta: 1e4, channels: 8 },
    );
    for choice in attention_choices() {
        let check = |tokens, keys| {
            let mut dimensions = Dimensions::new(tokens, 16, keys, 1);
            dimensions.attention(&spec);
            dimensions.check(gpu(choice)).map_err(|error| error.to_string())
        };
        check(4_000, 4_000).unwrap();
        // Of several sequences.
        check(40_000, 4_000).unwrap();
        let refused = check(8_192, 8_192).unwrap_err();
        assert!(refused.starts_with("tokens of a step: found 8192 tokens, for which "), "{refused}");
    }
}
