//! What observers record: `gather_heads`, `attention_rows`, `row_statistics`.

use headwise::internal::{
    Asked, AttentionKernel, AttentionRows, Buffer, GatherHeads, HeadRows, MAX_HEAD_DIM, MassOf, Masses,
    Positions, Queries, RelativePositions, Routes, RowStatistics, Span, padded, rope_angles,
};
use proptest::prelude::*;

use super::attention::{Attention, Operands, any_decode, any_expert_decode, any_visible};
use crate::{
    reference::{
        attention_rows::{log_rest, log_sum_exp, mass, row_statistics},
        head_mixture::stick_breaking,
        softmax,
    },
    support::{Guarded, among, assert_close, check, choices, gpu, hash, noise, pad, run, size, upload},
};

const THETA: f64 = 1e4;

/// Some of `count`, in any order, some twice.
fn some_of(seed: u64, count: u32) -> Vec<u32> {
    let wanted = 1 + hash(seed, 0) % 6;
    (1..=wanted as usize).map(|i| (hash(seed, i) % u64::from(count)) as u32).collect()
}

/// Rows of heads as experts have them, or by slot.
#[test]
fn asked_heads_of_asked_tokens_are_gathered() {
    let any = (size(6), size(4), size(4), size(40), 0..4u32, any::<bool>(), any::<u64>());
    check(96, any, |(tokens, slots, heads, quads, extra, routed, seed)| {
        let gpu = gpu(choices()[0]);
        let experts = slots + extra;
        let (stride, before) = (4 * quads, 4 * (seed % 3) as u32);
        let width = padded(before + heads * stride);
        let src = noise(seed, (tokens * slots * width) as usize);
        let mut chosen = Vec::new();
        for token in 0..tokens as usize {
            let mut all: Vec<u32> = (0..experts).collect();
            all.sort_by_key(|&expert| hash(seed ^ token as u64, expert as usize));
            chosen.extend(&all[..slots as usize]);
        }
        // A slot that nobody took.
        chosen[0] = u32::MAX;
        let units = heads * if routed { experts } else { slots };
        let (asked_heads, asked_tokens) = (some_of(seed + 1, units), some_of(seed + 2, tokens));
        let mut expected = Vec::new();
        for &token in &asked_tokens {
            for &unit in &asked_heads {
                let row = |slot: u32| {
                    let at = ((token * slots + slot) * width + before + unit % heads * stride) as usize;
                    src[at..at + stride as usize].to_vec()
                };
                let own = &chosen[(token * slots) as usize..][..slots as usize];
                let slot = match routed {
                    true => own.iter().position(|&expert| expert == unit / heads).map(|slot| slot as u32),
                    false => Some(unit / heads),
                };
                expected.extend(slot.map_or(vec![0.0; stride as usize], row));
            }
        }
        let first = (seed % 5) as u32;
        let (rows, on_gpu) = (upload(gpu, &src, width), among(gpu, first, &chosen, 0));
        let out = Guarded::new(gpu, 0, expected.len());
        let mut asked = Asked::new(gpu, &asked_heads, asked_tokens.len() as u32);
        asked.set_tokens(&asked_tokens);
        run(gpu, |recorder| {
            let routes = Routes { chosen: &on_gpu, gates: &on_gpu, first, scores: &on_gpu, first_score: 0 };
            let routes = routed.then_some(routes);
            let src = HeadRows { rows: &rows, row: width, first: before, slots, heads, stride, routes };
            GatherHeads { src, asked: &asked, tokens, out: &out.buffer }.record(recorder);
        });
        let found: Vec<f64> = out.read::<f32>().into_iter().map(f64::from).collect();
        let expected: Vec<f64> = expected.iter().map(|&x| f64::from(x as f32)).collect();
        assert_eq!(found, expected);
    });
}

/// What is asked of an attention.
struct Question {
    attention: Attention,
    heads: Vec<u32>,
    tokens: Vec<u32>,
    /// Whether heads count by expert.
    by_expert: bool,
    kernel: AttentionKernel,
    /// Channels that turn, none where nothing does.
    rotated: Option<u32>,
}

impl Question {
    fn new(mut attention: Attention, kernel: AttentionKernel, turns: bool) -> Self {
        let (shape, seed) = (attention.shape, attention.seed);
        let mut units = shape.slots * shape.heads;
        let mut by_expert = false;
        if shape.queries != Queries::BySlot {
            units = (attention.chosen.iter().max().unwrap_or(&0) + 2) * shape.heads;
            by_expert = true;
        } else if seed % 2 == 0 {
            // Experts whose key/value head does not depend on them, as JetMoE's.
            by_expert = true;
            let experts = shape.slots + 2;
            attention.chosen = (0..attention.tokens())
                .flat_map(|token| (0..shape.slots).map(move |slot| (slot + token) % experts))
                .collect();
            units = experts * shape.heads;
        }
        let rotated = turns.then(|| {
            let pairs = (shape.key_dim / 2).max(1);
            2 * (1 + hash(seed, 77) as u32 % pairs).min(pairs)
        });
        let rotated = rotated.filter(|_| shape.key_dim >= 4 && shape.key_dim.is_multiple_of(4));
        if rotated.is_some() {
            attention.ahead = (seed % 9) as u32;
        }
        let (heads, tokens) = (some_of(seed + 4, units), some_of(seed + 5, attention.tokens()));
        Self { attention, heads, tokens, by_expert, kernel, rotated }
    }

    /// The scores of an asked row with the first slot that it sees, if the token chose the head.
    fn scores(&self, operands: &Operands, token: u32, unit: u32) -> Option<(Vec<f64>, u32)> {
        let shape = self.attention.shape;
        let index = match self.by_expert {
            false => unit,
            true => {
                let own = &self.attention.chosen[(token * shape.slots) as usize..][..shape.slots as usize];
                let slot = own.iter().position(|&expert| expert == unit / shape.heads)?;
                slot as u32 * shape.heads + unit % shape.heads
            }
        };
        let (scores, span, _) = self.attention.scores(operands, token as usize, index);
        Some((scores, self.attention.first(span)))
    }

    fn check(&self) {
        let attention = &self.attention;
        let (shape, gpu) = (attention.shape, attention.gpu());
        let operands = attention.operands();
        let row = seen_slots(attention).max(1) + (attention.seed % 3) as u32;
        let seen: Operands = match self.rotated {
            Some(rotated) => {
                Operands { q: attention.turned(&operands.q, rotated, THETA), ..attention.operands() }
            }
            None => attention.operands(),
        };
        // What is expected.
        let masses_of = Lists::new(attention.seed, row, self.tokens.len());
        let (mut rows, mut first_columns, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &token) in self.tokens.iter().enumerate() {
            for &unit in &self.heads {
                let mut weights = vec![0.0; row as usize];
                let mut numbers = [0.0; 2];
                if let Some((scores, first)) = self.scores(&seen, token, unit) {
                    let (own, last) = match self.kernel {
                        AttentionKernel::Softmax => (softmax(&scores), log_sum_exp(&scores)),
                        AttentionKernel::StickBreaking => (stick_breaking(&scores), log_rest(&scores)),
                    };
                    weights[first as usize..][..own.len()].copy_from_slice(&own);
                    if !scores.is_empty() {
                        numbers = [scores.iter().copied().fold(f64::NEG_INFINITY, f64::max), last];
                    }
                }
                first_columns.push(numbers);
                let slot = attention.spans.get(token as usize).map_or(0, |span| span[0]);
                others.push((row_statistics(&weights), masses_of.expected(&weights, i, slot)));
                rows.extend(weights);
            }
        }

        let (spans, q, cache) = attention.buffers(&operands);
        let chosen = among(gpu, self.attention.first_route(), &attention.chosen, 0);
        let mut asked = Asked::new(gpu, &self.heads, self.tokens.len() as u32);
        asked.set_tokens(&self.tokens);
        let columns = RowStatistics::COLUMNS + masses_of.count();
        let count = self.heads.len() * self.tokens.len();
        let found_rows = Guarded::new(gpu, 0, count * row as usize);
        let statistics = Guarded::new(gpu, 0, count * columns as usize);
        let table = attention.learned(&operands);
        let angles = self.rotated.map(|rotated| rope_angles(gpu, shape.capacity + 9, rotated, THETA));
        let relative = attention.clip.map(|clip| RelativePositions { table: &table, clip });
        let positions = match (&angles, relative) {
            (Some(angles), _) => Positions::Rope { angles, rotated: self.rotated.unwrap_or(0) },
            (None, Some(relative)) => Positions::Relative(relative),
            (None, None) => Positions::None,
        };
        let masses = Masses::new(gpu, &masses_of.masses());
        run(gpu, |recorder| {
            let range = 0..asked.tokens();
            AttentionRows {
                heads: shape.head_layout(),
                kernel: self.kernel,
                positions,
                q: &q,
                spans: &spans,
                routes: Some(Routes {
                    chosen: &chosen,
                    gates: &chosen,
                    first: attention.first_route(),
                    scores: &chosen,
                    first_score: 0,
                }),
                by_expert: self.by_expert,
                cache: &cache.kv,
                tokens: attention.tokens(),
                asked: &asked,
                range: range.clone(),
                row,
                rows: &found_rows.buffer,
                statistics: &statistics.buffer,
                columns,
            }
            .record(recorder);
            RowStatistics {
                rows: &found_rows.buffer,
                row,
                asked: &asked,
                range,
                spans: &spans,
                tokens: attention.tokens(),
                masses: &masses,
                statistics: &statistics.buffer,
            }
            .record(recorder);
        });
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
        let found = wide(found_rows.read::<f32>());
        assert_close(&found, &rows, "weights");
        let statistics = wide(statistics.read::<f32>());
        for (i, found) in statistics.chunks_exact(columns as usize).enumerate() {
            let (row_of, expected_masses) = &others[i];
            assert_close(&found[..2], &first_columns[i], "highest score and logarithm of the sum");
            assert_close(&found[2..4], &[row_of.entropy, row_of.squares], "entropy, squares");
            assert_close(&found[5..6], &[row_of.most], "largest weight");
            // Equals but for rounding may change places.
            let at = found[4] as usize;
            let own = &rows[i * row as usize..][..row as usize];
            assert!((own[at] - row_of.most).abs() <= 1e-5, "slot {at} instead of {}", row_of.at);
            assert_close(&found[6..], expected_masses, "masses");
        }
    }
}

/// The slot behind the last that any row sees.
fn seen_slots(attention: &Attention) -> u32 {
    let ends = (0..attention.spans.len()).map(|span| attention.sees(span).min(attention.shape.capacity));
    ends.max().unwrap_or(0)
}

/// Keys whose weights are summed up: drawn.
struct Lists {
    behind: u32,
    listed: Vec<u32>,
    of_token: Vec<Vec<u32>>,
}

impl Lists {
    fn new(seed: u64, row: u32, tokens: usize) -> Self {
        let list = |salt: u64| -> Vec<u32> {
            let count = hash(seed ^ salt, 0) % 9;
            // One or another lies behind the row.
            (0..count as usize).map(|i| (hash(seed ^ salt, i + 1) % u64::from(row + 2)) as u32).collect()
        };
        let of_token = (0..tokens as u64).map(|i| list(100 + i)).collect();
        Self { behind: (hash(seed, 3) % 4) as u32, listed: list(50), of_token }
    }

    fn count(&self) -> u32 {
        3
    }

    fn masses(&self) -> [MassOf<'_>; 3] {
        let of_token = self.of_token.iter().map(Vec::as_slice).collect();
        [MassOf::Behind(self.behind), MassOf::Listed(&self.listed), MassOf::OfToken(of_token)]
    }

    fn expected(&self, weights: &[f64], token: usize, slot: u32) -> Vec<f64> {
        let places = |list: &[u32]| list.iter().map(|&slot| slot as usize).collect::<Vec<_>>();
        let behind = slot.checked_sub(self.behind).map_or(0.0, |at| mass(weights, &[at as usize]));
        vec![behind, mass(weights, &places(&self.listed)), mass(weights, &places(&self.of_token[token]))]
    }
}

#[test]
fn rows_weigh_keys_as_attention_does() {
    let any =
        prop_oneof![any_decode(300, MAX_HEAD_DIM), any_expert_decode(200, MAX_HEAD_DIM), any_visible(200)];
    check(128, any, |attention| {
        let learned = attention.clip.is_some();
        Question::new(attention, AttentionKernel::Softmax, !learned).check();
    });
}

#[test]
fn rows_break_sticks_as_attention_does() {
    let any = prop_oneof![any_decode(300, 128), any_expert_decode(200, 64)];
    check(64, any, |attention| Question::new(attention, AttentionKernel::StickBreaking, true).check());
}

/// Parts of the asked tokens, one after the other over the same rows, leave the same statistics as all at once.
#[test]
fn statistics_do_not_depend_on_how_many_rows_share_the_scratch() {
    let gpu = gpu(choices()[0]);
    let (tokens, row) = (5, 12);
    let rows = noise(3, (tokens * row) as usize);
    let rows: Vec<f32> = pad(&rows.iter().map(|x| x.abs()).collect::<Vec<_>>(), row).into_iter().collect();
    let width = padded(row);
    let spans: Vec<Span> = (0..tokens).map(|position| Span::causal(position, 0)).collect();
    let spans = Buffer::with_data(gpu, "test.spans", &Span::words(&spans));
    let mut asked = Asked::new(gpu, &[0], tokens);
    asked.set_tokens(&(0..tokens).collect::<Vec<_>>());
    let masses = Masses::new(gpu, &[MassOf::Behind(1)]);
    let all = |parts: &[[u32; 2]]| {
        let out = Guarded::new(gpu, 0, (tokens * 7) as usize);
        for &[first, end] in parts {
            let range = first..end;
            let of = &rows[(range.start * width) as usize..(range.end * width) as usize];
            let scratch = Buffer::with_data(gpu, "test.rows", of);
            run(gpu, |recorder| {
                RowStatistics {
                    rows: &scratch,
                    row: width,
                    asked: &asked,
                    range: range.clone(),
                    spans: &spans,
                    tokens,
                    masses: &masses,
                    statistics: &out.buffer,
                }
                .record(recorder);
            });
        }
        let read = out.read::<f32>();
        read.chunks_exact(7).flat_map(|columns| columns[2..].to_vec()).collect::<Vec<f32>>()
    };
    assert_eq!(all(&[[0, 2], [2, 3], [3, 5]]), all(&[[0, 5]]));
}
