//! Choosing tokens: `argmax`, `sample`, `top_logits`; and how likely a given one is: `token_logprob`.

use std::cell::Cell;

use headwise::internal::{
    Argmax, Buffer, Gpu, KernelChoice, MAX_TOP_LOGITS, NOT_FINITE, Sample, Span, TokenLogprob, TopLogits,
};
use proptest::prelude::*;

use crate::{
    reference::{
        sample::{Sampling, argmax, distribution, philox4x32_10, sample, uniform},
        token_logprob::token_logprob,
    },
    support::{Guarded, assert_close, assert_repeatable, check, gpu, hash, noise, run, size, upload},
};

fn device() -> &'static Gpu {
    gpu(KernelChoice::Plain)
}

fn argmax_of(logits: &[f64], vocab: u32) -> Vec<u32> {
    let gpu = device();
    let rows = logits.len() / vocab as usize;
    let logits = upload(gpu, logits, vocab);
    let tokens = Guarded::new(gpu, 0, rows);
    run(gpu, |recorder| {
        Argmax { logits: &logits, tokens: &tokens.buffer, rows: rows as u32, vocab }.record(recorder);
    });
    tokens.read()
}

/// Logits in ±`scale`, rounded to multiples of 1/`levels` so that ties abound; 0 keeps them apart.
fn some_logits(seed: u64, count: u32, scale: f64, levels: u32) -> Vec<f64> {
    let level = |logit: f64| match levels {
        0 => logit,
        levels => (logit * f64::from(levels)).round() / f64::from(levels),
    };
    noise(seed, count as usize).into_iter().map(|x| f64::from((level(x) * scale) as f32)).collect()
}

fn vocabulary() -> impl Strategy<Value = u32> {
    prop_oneof![3 => size(3000), 1 => Just(64), 1 => Just(50_257)]
}

fn levels() -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(0), 1 => 1..=5u32]
}

#[test]
fn argmax_is_exact_and_gives_ties_to_the_lower_index() {
    check(64, (size(9), vocabulary(), levels(), any::<u64>()), |(rows, vocab, levels, seed)| {
        let logits = some_logits(seed, rows * vocab, 8.0, levels);
        let expected: Vec<u32> = logits.chunks_exact(vocab as usize).map(argmax).collect();
        assert_eq!(argmax_of(&logits, vocab), expected);
    });
}

/// Rows of which every second has one logit that is no number, at any place; whether each row is whole.
fn some_broken(seed: u64, rows: u32, vocab: u32) -> (Vec<f64>, Vec<bool>) {
    let negative_nan = f64::from(f32::from_bits(0xffc0_0000));
    let kinds = [f64::NAN, negative_nan, f64::INFINITY, f64::NEG_INFINITY];
    let mut logits = some_logits(seed, rows * vocab, 8.0, 0);
    for row in (1..rows).step_by(2) {
        let place = hash(seed, row as usize) as u32 % vocab;
        logits[(row * vocab + place) as usize] = kinds[row as usize / 2 % 4];
    }
    (logits, (0..rows).map(|row| row % 2 == 0).collect())
}

#[test]
fn no_token_is_chosen_where_a_logit_is_not_finite() {
    check(64, (8..=9u32, vocabulary(), any::<u64>()), |(rows, vocab, seed)| {
        let (logits, whole) = some_broken(seed, rows, vocab);
        let all = |tokens: &[u32]| tokens.iter().map(|&token| token != NOT_FINITE).collect::<Vec<_>>();
        assert_eq!(all(&argmax_of(&logits, vocab)), whole, "argmax");
        for (top_k, top_p) in [(u32::MAX, 1.0), (5, 0.9)] {
            let draw = Draw { top_k, top_p, ..draws(vocab, rows, seed) };
            assert_eq!(all(&draw.run(&logits)), whole, "sample");
        }
        let n = MAX_TOP_LOGITS.min(vocab);
        let (ids, _) = top_logits(&logits, vocab, n);
        let expected: Vec<bool> = whole.iter().flat_map(|&whole| vec![whole; n as usize]).collect();
        assert_eq!(all(&ids), expected, "top_logits");
        let targets: Vec<u32> = (0..rows).map(|row| hash(seed, 50 + row as usize) as u32 % vocab).collect();
        let bits = logprob_bits(gpu(KernelChoice::Plain), &logits, &targets, vocab);
        assert_eq!(all(&bits), whole, "token_logprob");
    });
    assert_eq!(argmax_of(&[f64::NAN; 7], 7), [NOT_FINITE]);
}

#[test]
fn argmax_knows_the_largest_and_the_smallest_numbers() {
    let most = f64::from(f32::MAX);
    assert_eq!(argmax_of(&[-most, -most, most, 1e38, most, 0.0], 3), [2, 1]);
    assert_eq!(argmax_of(&[-most; 5], 5), [0]);
}

#[test]
fn argmax_gives_the_same_bits_every_time() {
    let logits = some_logits(1, 9 * 3000, 8.0, 5);
    assert_repeatable(|| argmax_of(&logits, 3000).into_iter().map(f64::from).collect());
}

#[derive(Clone, Debug)]
struct Draw {
    vocab: u32,
    /// (position, sequence) of tokens, and which of them the rows belong to.
    spans: Vec<[u32; 2]>,
    rows: Vec<u32>,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    seed: u64,
}

impl Draw {
    fn run(&self, logits: &[f64]) -> Vec<u32> {
        let gpu = device();
        let logits = upload(gpu, logits, self.vocab);
        let span = |&[position, sequence]: &[u32; 2]| Span::seeing(position, sequence, 1);
        let words = Span::words(&self.spans.iter().map(span).collect::<Vec<_>>());
        let spans = Buffer::with_data(gpu, "test.spans", &words);
        let rows_of = Buffer::with_data(gpu, "test.rows", &self.rows);
        let tokens = Guarded::new(gpu, 0, self.rows.len());
        run(gpu, |recorder| {
            Sample {
                logits: &logits,
                spans: &spans,
                rows_of: &rows_of,
                tokens: &tokens.buffer,
                rows: self.rows.len() as u32,
                vocab: self.vocab,
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                seed: self.seed,
            }
            .record(recorder);
        });
        tokens.read()
    }

    /// How the oracle says it.
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: f64::from(self.temperature),
            top_k: Some(self.top_k as usize),
            top_p: Some(f64::from(self.top_p)),
        }
    }
}

/// One draw after another: rows 0, 1, … are the positions 0, 1, … of sequence 0.
fn draws(vocab: u32, count: u32, seed: u64) -> Draw {
    Draw {
        vocab,
        spans: (0..count).map(|position| [position, 0]).collect(),
        rows: (0..count).collect(),
        temperature: 1.0,
        top_k: vocab,
        top_p: 1.0,
        seed,
    }
}

fn any_draw() -> impl Strategy<Value = (Draw, Vec<f64>)> {
    let temperature = prop_oneof![Just(1.0f32), 0.05..2.0f32, extreme_temperature()];
    let top_k = prop_oneof![Just(1), Just(u32::MAX), 1..60u32];
    let top_p = prop_oneof![2 => Just(1.0f32), 3 => 0.05..1.0f32, 1 => extreme_top_p()];
    (vocabulary(), size(9), temperature, top_k, top_p, levels(), any::<u64>()).prop_map(
        |(vocab, rows, temperature, top_k, top_p, levels, seed)| {
            let any = |i| hash(seed, i) as u32;
            let draw = Draw {
                vocab,
                spans: (0..20).map(|i| [any(2 * i), any(2 * i + 1)]).collect(),
                rows: (0..rows as usize).map(|i| any(100 + i) % 20).collect(),
                temperature,
                top_k,
                top_p,
                seed,
            };
            (draw, some_logits(seed, rows * vocab, 8.0, levels))
        },
    )
}

/// Down to the least and up to the largest that there are.
fn extreme_temperature() -> impl Strategy<Value = f32> {
    let all = [f32::from_bits(1), 1e-40, f32::MIN_POSITIVE, 1e-30, 1e-3, 1e3, 1e30, 2e30, 1e38, f32::MAX];
    prop::sample::select(all.to_vec())
}

fn extreme_top_p() -> impl Strategy<Value = f32> {
    let all = [f32::from_bits(1), 1e-38, 1e-30, 1e-6, 0.999_999, f32::from_bits(1.0f32.to_bits() - 1)];
    prop::sample::select(all.to_vec())
}

impl Draw {
    /// Draws and compares; returns how many rows differ, which only those may that f32 cannot decide.
    fn check(&self, logits: &[f64]) -> usize {
        let mut differ = 0;
        let rows = logits.chunks_exact(self.vocab as usize);
        for ((row, logits), token) in self.rows.iter().zip(rows).zip(self.run(logits)) {
            // The token that a position's logits choose is the next position's.
            let [position, sequence] = self.spans[*row as usize];
            let expected = sample(logits, &self.sampling(), self.seed, position.wrapping_add(1), sequence);
            if token != expected.token {
                let (gap, u) = (expected.gap(), expected.u);
                assert!(gap < 1e-5, "drew {token}, not {}: u = {u}, gap {gap:e}", expected.token);
                differ += 1;
            }
        }
        differ
    }
}

#[test]
fn sample_draws_what_the_oracle_draws() {
    let (drawn, differ) = (Cell::new(0), Cell::new(0));
    check(128, any_draw(), |(draw, logits)| {
        drawn.set(drawn.get() + draw.rows.len());
        differ.set(differ.get() + draw.check(&logits));
    });
    assert!(differ.get() * 100 <= drawn.get(), "{} of {} draws differ", differ.get(), drawn.get());
}

/// Every token is as likely as any other, and what stands behind the vocabulary in a row is none.
#[test]
fn a_temperature_without_bounds_draws_evenly_from_the_vocabulary() {
    for vocab in [1, 5, 101, 130] {
        for temperature in [1e30, 1e38, f32::MAX] {
            for (top_k, top_p) in [(u32::MAX, 1.0), (u32::MAX, 0.999), (vocab.max(2) - 1, 1.0)] {
                let draw = Draw { temperature, top_k, top_p, ..draws(vocab, 500, 99) };
                let logits = some_logits(8, 500 * vocab, 8.0, 0);
                let got = draw.run(&logits);
                assert!(got.iter().all(|&token| token < vocab), "{vocab} tokens at {temperature:e}: {got:?}");
                assert!(draw.check(&logits) <= 5, "{vocab} tokens at {temperature:e}");
            }
        }
    }
}

/// The likeliest token alone: a temperature or a share of next to nothing.
#[test]
fn next_to_nothing_leaves_the_likeliest() {
    let vocab = 101;
    let logits = some_logits(9, 20 * vocab, 8.0, 0);
    let likeliest = argmax_of(&logits, vocab);
    for temperature in [f32::from_bits(1), f32::MIN_POSITIVE, 1e-30] {
        assert_eq!(Draw { temperature, ..draws(vocab, 20, 5) }.run(&logits), likeliest, "{temperature:e}");
    }
    for top_p in [f32::from_bits(1), f32::MIN_POSITIVE, 1e-30] {
        assert_eq!(Draw { top_p, ..draws(vocab, 20, 5) }.run(&logits), likeliest, "top-p {top_p:e}");
    }
}

/// llvmpipe ends a shader after 65,535 turns of all its loops together, without a word.
#[test]
fn a_large_vocabulary_is_read_to_its_end() {
    let vocab = 262_144;
    let mut logits = some_logits(5, vocab, 8.0, 0);
    for (top_k, top_p) in [(vocab, 1.0), (vocab / 2, 0.9)] {
        let draw = Draw { top_k, top_p, ..draws(vocab, 1, 77) };
        assert_eq!(draw.check(&logits), 0);
    }
    logits[vocab as usize - 1] = 9.0;
    assert_eq!(argmax_of(&logits, vocab), [vocab - 1]);
}

/// Of equal logits over 2¹⁶ tokens, the token is the first 16 bits of the generator's output.
#[test]
fn sample_uses_philox() {
    let vocab = 1 << 16;
    let ends = [[0, 0], [u32::MAX, 0], [u32::MAX - 1, u32::MAX], [0xffff, 0x10000], [0x7fff_ffff, 5]];
    for seed in [0, 1, u64::MAX, 0x299f_31d0_a409_3822, 0x8000_0000_7fff_ffff] {
        let draw = Draw { spans: ends.to_vec(), ..draws(vocab, ends.len() as u32, seed) };
        let got = draw.run(&vec![0.0; ends.len() * vocab as usize]);
        for (token, [position, sequence]) in got.into_iter().zip(ends) {
            let counter = [position.wrapping_add(1), sequence, 0, 0];
            assert_eq!(token, philox4x32_10(counter, [seed as u32, (seed >> 32) as u32])[0] >> 16);
            assert_eq!(token, (uniform(seed, counter[0], sequence) * f64::from(vocab)) as u32);
            if counter == [0; 4] && seed == 0 {
                assert_eq!(token, 0x6627, "Random123's known answer");
            }
        }
    }
}

/// χ² over many positions, for the whole distribution and for a cut one.
#[test]
fn samples_follow_the_distribution() {
    let count = 20_000;
    let logits: Vec<f64> = [2.0, -1.0, 0.5, 0.5, 1.5, -3.0, 0.0, 1.0, -0.5].to_vec();
    let repeated = logits.repeat(count as usize);
    for (top_k, top_p, temperature) in [(9, 1.0, 1.0), (6, 1.0, 0.5), (9, 0.8, 2.0)] {
        let draw = Draw { top_k, top_p, temperature, ..draws(9, count, 1234) };
        let mut counts = [0.0; 9];
        for token in draw.run(&repeated) {
            counts[token as usize] += 1.0;
        }
        let probabilities = distribution(&logits, &draw.sampling()).probabilities;
        let mut chi_square = 0.0;
        for (count_of, probability) in counts.iter().zip(probabilities) {
            let expected = probability * f64::from(count);
            match expected {
                0.0 => assert_eq!(*count_of, 0.0, "a token that was cut"),
                expected => chi_square += (count_of - expected).powi(2) / expected,
            }
        }
        // Eight degrees of freedom exceed 26 once in a thousand.
        assert!(chi_square < 26.0, "χ² = {chi_square}");
    }
}

/// With seed 0, the positions of sequence 0 whose draw is u = `24 bits` · 2⁻²⁴.
const DRAWS: [(u32, u32); 4] =
    [(0, 14_883_994), (0x40_0000, 630_967), (0x80_0000, 9_297_663), (0xff_ffff, 38_471_470)];

/// A token's interval holds its lower end, also where that is the end of a lane's run of tokens.
#[test]
fn sample_finds_the_ends_of_intervals() {
    for (bits, position) in DRAWS {
        let u = f64::from(bits) / f64::from(1 << 24);
        assert_eq!(uniform(0, position + 1, 0), u);
        for vocab in [4, 8, 64, 256, 1024] {
            let draw = Draw { spans: vec![[position, 0]], rows: vec![0], ..draws(vocab, 1, 0) };
            assert_eq!(draw.run(&vec![0.0; vocab as usize]), [(u * f64::from(vocab)) as u32], "u = {u}");

            // Only the last quarter may be drawn.
            let quarter = vocab / 4;
            let logits: Vec<f64> = (0..vocab).map(|i| if i / quarter == 3 { 0.0 } else { -1e3 }).collect();
            assert_eq!(draw.run(&logits), [3 * quarter + (u * f64::from(quarter)) as u32], "u = {u}");
        }
    }
}

/// Where f32 leaves a token no mass it is never drawn, even when rounding puts the draw past all that have some.
#[test]
fn a_token_without_mass_is_never_drawn() {
    // A lane's run of 20 tokens ends in some without mass.
    let (vocab, rows) = (1040, 200);
    let has_mass = |i: u32| i % 20 < 12;
    let noise = noise(3, (vocab * rows) as usize).into_iter();
    let logits: Vec<f64> =
        (0..vocab * rows).zip(noise).map(|(i, x)| if has_mass(i % vocab) { x } else { x - 1e3 }).collect();
    for (_, position) in DRAWS {
        let draw = Draw { spans: vec![[position, 0]], rows: vec![0; rows as usize], ..draws(vocab, rows, 0) };
        let got = draw.run(&logits);
        assert!(got.iter().all(|&token| has_mass(token)), "{got:?}");
    }
}

#[test]
fn sample_gives_the_same_bits_every_time() {
    let logits = some_logits(1, 9 * 3000, 8.0, 0);
    let draw = Draw { top_k: 500, top_p: 0.9, ..draws(3000, 9, 77) };
    assert_repeatable(|| draw.run(&logits).into_iter().map(f64::from).collect());
}

/// The `n` likeliest tokens of each row and their log-probabilities.
fn top_logits(logits: &[f64], vocab: u32, n: u32) -> (Vec<u32>, Vec<f64>) {
    let gpu = device();
    let rows = logits.len() / vocab as usize;
    let logits = upload(gpu, logits, vocab);
    let [ids, values] = [0, 1].map(|_| Guarded::new(gpu, 0, rows * n as usize));
    run(gpu, |recorder| {
        let (ids, values) = (&ids.buffer, &values.buffer);
        TopLogits { logits: &logits, ids, values, rows: rows as u32, vocab, n }.record(recorder);
    });
    (ids.read(), values.read::<f32>().into_iter().map(f64::from).collect())
}

/// What they must be: descending, ties to the lower id.
fn check_top_logits(logits: &[f64], vocab: u32, n: u32) {
    let (ids, values) = top_logits(logits, vocab, n);
    let rows = logits.chunks_exact(vocab as usize);
    let got = ids.chunks_exact(n as usize).zip(values.chunks_exact(n as usize));
    for (row, (ids, values)) in rows.zip(got) {
        let mut order: Vec<u32> = (0..vocab).collect();
        // A stable sort, so equal logits stay in order.
        order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
        assert_eq!(ids, &order[..n as usize], "{vocab} tokens");
        let highest = row[order[0] as usize];
        let log_sum = highest + row.iter().map(|logit| (logit - highest).exp()).sum::<f64>().ln();
        let expected: Vec<f64> = ids.iter().map(|&id| row[id as usize] - log_sum).collect();
        assert_close(values, &expected, vocab);
    }
}

#[test]
fn top_logits_are_the_likeliest_tokens_in_order() {
    let n = prop_oneof![Just(1), Just(MAX_TOP_LOGITS), 1..=MAX_TOP_LOGITS];
    check(96, (size(5), vocabulary(), n, levels(), any::<u64>()), |(rows, vocab, n, levels, seed)| {
        // A zero of each sign would be in order here, but not there.
        let logits = some_logits(seed, rows * vocab, 8.0, levels).iter().map(|x| x + 0.0).collect::<Vec<_>>();
        check_top_logits(&logits, vocab, n.min(vocab));
    });
}

#[test]
fn top_logits_take_any_size_and_nothing_but_ties() {
    for n in [1, 5] {
        check_top_logits(&[0.25; 130], 130, n);
        check_top_logits(&[-1e38, 1e38, 0.0, -1e30, 90.0].map(|x: f64| f64::from(x as f32)), 5, n);
        check_top_logits(&[-1e4, -1e4 - 1.0, -2e4, -1e4, -3e4], 5, n);
    }
}

/// llvmpipe ends a shader after 65,535 turns of all its loops together, without a word.
#[test]
fn top_logits_read_a_large_vocabulary_to_its_end() {
    let vocab = 262_144;
    let mut logits = some_logits(6, vocab, 8.0, 0);
    logits[vocab as usize - 1] = 7.9;
    for n in [1, MAX_TOP_LOGITS] {
        check_top_logits(&logits, vocab, n);
    }
}

#[test]
fn top_logits_give_the_same_bits_every_time() {
    let logits = some_logits(1, 9 * 3000, 8.0, 5);
    assert_repeatable(|| {
        let (ids, values) = top_logits(&logits, 3000, 7);
        ids.into_iter().map(f64::from).chain(values).collect()
    });
}

/// What `token_logprob` writes, by its bits.
fn logprob_bits(gpu: &Gpu, logits: &[f64], targets: &[u32], vocab: u32) -> Vec<u32> {
    let rows = targets.len();
    let logits = upload(gpu, logits, vocab);
    let targets = Buffer::with_data(gpu, "test.targets", targets);
    let values = Guarded::new(gpu, 0, rows);
    run(gpu, |recorder| {
        let values = &values.buffer;
        TokenLogprob { logits: &logits, targets: &targets, values, rows: rows as u32, vocab }
            .record(recorder);
    });
    values.read()
}

fn check_logprobs(choice: KernelChoice, logits: &[f64], targets: &[u32], vocab: u32) {
    let bits = logprob_bits(gpu(choice), logits, targets, vocab);
    let got: Vec<f64> = bits.into_iter().map(|bits| f64::from(f32::from_bits(bits))).collect();
    assert_close(&got, &token_logprob(logits, targets), (choice, vocab));
}

/// Rows of few lanes, as on software adapters, and of many.
const ROW_LANES: [KernelChoice; 2] = [KernelChoice::Plain, KernelChoice::Workgroup];

#[test]
fn token_logprob_is_the_log_softmax_of_the_target() {
    let scale = prop_oneof![Just(8.0), Just(1e-3), Just(100.0)];
    check(
        64,
        (size(9), vocabulary(), levels(), scale, any::<u64>()),
        |(rows, vocab, levels, scale, seed)| {
            let logits = some_logits(seed, rows * vocab, scale, levels);
            // The first and the last token, too.
            let target = |row: u32| [0, vocab - 1, hash(seed, row as usize) as u32 % vocab][row as usize % 3];
            let targets: Vec<u32> = (0..rows).map(target).collect();
            ROW_LANES.iter().for_each(|&choice| check_logprobs(choice, &logits, &targets, vocab));
        },
    );
    // All below zero, which padding is; far apart; the largest there are.
    for logits in [[-1e4, -1e4 - 1.0, -2e4, -1e4, -3e4], [-50.0, 700.0, 3.0, -900.0, 699.0], [-3e38; 5]] {
        for target in 0..5 {
            ROW_LANES.iter().for_each(|&choice| check_logprobs(choice, &logits, &[target], 5));
        }
    }
}

/// llvmpipe ends a shader after 65,535 turns of all its loops together, without a word.
#[test]
fn token_logprob_reads_a_large_vocabulary_to_its_end() {
    let vocab = 262_144;
    let mut logits = some_logits(7, vocab, 8.0, 0);
    logits[vocab as usize - 1] = 20.0;
    for choice in ROW_LANES {
        check_logprobs(choice, &logits, &[5], vocab);
        check_logprobs(choice, &logits, &[vocab - 1], vocab);
    }
}

#[test]
fn token_logprob_gives_the_same_bits_every_time_and_clamps_its_targets() {
    let logits = some_logits(1, 9 * 3000, 8.0, 5);
    let targets: Vec<u32> = (0..9).map(|row| row * 333).collect();
    for choice in ROW_LANES {
        assert_repeatable(|| {
            let bits = logprob_bits(gpu(choice), &logits, &targets, 3000);
            bits.into_iter().map(f64::from).collect()
        });
        let last = logprob_bits(gpu(choice), &logits[..3000], &[2999], 3000);
        assert_eq!(logprob_bits(gpu(choice), &logits[..3000], &[u32::MAX], 3000), last);
    }
}
