//! Changing logits before a token is chosen: `adjust_logits`; and what it counts: `count_tokens`.

use headwise::internal::{
    AdjustLogits, Argmax, BANNED, Buffer, FROM_PROMPT, Gpu, KernelChoice, NOT_FINITE, Sample, Span,
    TokenCounts, padded,
};
use proptest::prelude::*;

use crate::{
    reference::adjust_logits::{Penalties, adjust_logits},
    support::{Guarded, assert_close, assert_repeatable, check, gpu, hash, noise, run, size, upload},
};

fn device() -> &'static Gpu {
    gpu(KernelChoice::Plain)
}

/// Sequences with what they read and wrote, and rows of logits of some of them, in any order.
struct Case {
    vocab: u32,
    prompts: Vec<Vec<u32>>,
    written: Vec<Vec<u32>>,
    /// The sequence of each row, each another.
    rows: Vec<u32>,
    penalties: Penalties,
    logits: Vec<f64>,
}

impl Case {
    fn new(seed: u64, vocab: u32, sequences: u32) -> Self {
        let any = |i: usize| hash(seed, i) as u32;
        let ids = |from: usize, most: u32| -> Vec<u32> {
            (1..=(any(from) % (most + 1)) as usize).map(|i| any(from + i) % vocab).collect()
        };
        let number = |i: usize, scale: f64| f64::from((noise(seed ^ 77, i + 1)[i] * scale) as f32);
        let mut rows: Vec<u32> = (0..sequences).collect();
        rows.sort_by_key(|&row| hash(seed, 900 + row as usize));
        rows.truncate(1 + any(800) as usize % sequences as usize);
        let bias = (0..vocab as usize).map(|v| if any(7000 + v) % 3 == 0 { number(v, 5.0) } else { 0.0 });
        Self {
            vocab,
            prompts: (0..sequences as usize).map(|s| ids(1000 + 100 * s, 20)).collect(),
            written: (0..sequences as usize).map(|s| ids(4000 + 100 * s, 30)).collect(),
            penalties: Penalties {
                repetition: [1.0, f64::from(1.3f32), 0.5, 7.0][any(0) as usize % 4],
                presence: number(1, 2.0),
                frequency: number(2, 2.0),
                bias: bias.collect(),
            },
            logits: noise(seed, rows.len() * vocab as usize)
                .into_iter()
                .map(|x| f64::from((8.0 * x) as f32))
                .collect(),
            rows,
        }
    }

    fn sequences(&self) -> u32 {
        self.prompts.len() as u32
    }

    /// Counts of what was read, as the host writes them.
    fn read_counts(&self) -> Vec<u32> {
        let stride = padded(self.vocab);
        let mut counts = vec![0; (self.sequences() * stride) as usize];
        for (sequence, prompt) in self.prompts.iter().enumerate() {
            prompt.iter().for_each(|&id| counts[sequence * stride as usize + id as usize] = FROM_PROMPT);
        }
        counts
    }

    /// Counts all that was written on the GPU, one token of each sequence after the other, then adjusts.
    fn run(&self) -> (Vec<u32>, Vec<f64>) {
        let (gpu, vocab, sequences) = (device(), self.vocab, self.sequences());
        let counts = Guarded::holding(gpu, 0, &self.read_counts());
        let spans: Vec<Span> = (0..sequences).map(|sequence| Span::causal(7, sequence)).collect();
        let spans = Buffer::with_data(gpu, "test.spans", &Span::words(&spans));
        let longest = self.written.iter().map(Vec::len).max().unwrap_or(0);
        let all: Vec<u32> = (0..sequences).collect();
        let all = Buffer::with_data(gpu, "test.rows", &all);
        let rows_of = Buffer::with_data(gpu, "test.rows", &self.rows);
        let count = |rows_of, rows| TokenCounts {
            counts: &counts.buffer,
            spans: &spans,
            rows_of,
            sequences,
            rows,
            vocab,
        };
        for turn in 0..longest {
            // A sequence that has no more writes a token that is none.
            let tokens = self.written.iter().map(|ids| ids.get(turn).copied().unwrap_or(NOT_FINITE));
            let tokens = Buffer::with_data(gpu, "test.tokens", &tokens.collect::<Vec<u32>>());
            run(gpu, |recorder| count(&all, sequences).record(recorder, &tokens));
        }
        let logits = upload(gpu, &self.logits, vocab);
        let bias =
            self.penalties.bias.iter().map(|&bias| if bias.is_finite() { bias } else { BANNED.into() });
        let bias = upload(gpu, &bias.collect::<Vec<f64>>(), vocab);
        let adjusted = Guarded::rows(gpu, self.rows.len(), vocab);
        run(gpu, |recorder| {
            AdjustLogits {
                logits: &logits,
                counts: count(&rows_of, self.rows.len() as u32),
                bias: &bias,
                adjusted: &adjusted.buffer,
                repetition: self.penalties.repetition as f32,
                presence: self.penalties.presence as f32,
                frequency: self.penalties.frequency as f32,
            }
            .record(recorder);
        });
        (counts.read(), adjusted.read_rows(vocab))
    }

    fn expected(&self) -> Vec<f64> {
        let rows = self.rows.iter().zip(self.logits.chunks_exact(self.vocab as usize));
        let adjusted = rows.map(|(&sequence, logits)| {
            let (prompt, written) = (&self.prompts[sequence as usize], &self.written[sequence as usize]);
            adjust_logits(logits, &self.penalties, prompt, written)
        });
        adjusted.collect::<Vec<_>>().concat()
    }
}

fn vocabulary() -> impl Strategy<Value = u32> {
    prop_oneof![3 => size(300), 1 => Just(50_257)]
}

#[test]
fn adjusted_logits_are_those_of_the_penalties() {
    check(24, (vocabulary(), size(9), any::<u64>()), |(vocab, sequences, seed)| {
        let case = Case::new(seed, vocab, sequences);
        let (counts, adjusted) = case.run();
        assert_close(&adjusted, &case.expected(), (vocab, sequences));
        let mut expected = case.read_counts();
        for (sequence, written) in case.written.iter().enumerate() {
            written.iter().for_each(|&id| expected[sequence * padded(vocab) as usize + id as usize] += 1);
        }
        assert_eq!(counts, expected);
    });
}

#[test]
fn a_kernel_without_penalties_changes_no_bit() {
    let mut case = Case::new(3, 1000, 5);
    case.penalties = Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0, bias: vec![0.0; 1000] };
    assert_eq!(case.run().1, case.logits);
}

#[test]
fn a_banned_token_is_the_least_likely_and_is_not_drawn_at_any_temperature() {
    let gpu = device();
    let vocab = 130;
    let mut case = Case::new(5, vocab, 1);
    case.penalties.bias = (0..vocab).map(|v| if v % 3 == 0 { 1.0 } else { f64::NEG_INFINITY }).collect();
    let adjusted = case.run().1;
    for (token, &logit) in adjusted.iter().enumerate() {
        assert_eq!(logit == f64::from(f32::MIN), token % 3 != 0, "{token}: {logit}");
    }
    // So is one that a logit bans.
    case.logits[6] = f64::from(BANNED);
    let adjusted = case.run().1;
    assert_eq!(adjusted[6], f64::from(f32::MIN));
    let rows = 500;
    let logits = upload(gpu, &adjusted.repeat(rows), vocab);
    let spans: Vec<Span> = (0..rows as u32).map(|position| Span::seeing(position, 0, 1)).collect();
    let spans = Buffer::with_data(gpu, "test.spans", &Span::words(&spans));
    let rows_of = Buffer::with_data(gpu, "test.rows", &(0..rows as u32).collect::<Vec<_>>());
    for (temperature, top_k, top_p) in [(1.0, u32::MAX, 1.0), (f32::MAX, 100, 0.999), (1e37, u32::MAX, 1.0)] {
        let tokens = Guarded::new(gpu, 0, rows);
        run(gpu, |recorder| {
            Sample {
                logits: &logits,
                spans: &spans,
                rows_of: &rows_of,
                tokens: &tokens.buffer,
                rows: rows as u32,
                vocab,
                temperature,
                top_k,
                top_p,
                seed: 1,
            }
            .record(recorder);
        });
        let drawn: Vec<u32> = tokens.read();
        assert!(drawn.iter().all(|&token| token % 3 == 0 && token != 6), "at {temperature:e}: {drawn:?}");
    }
}

#[test]
fn what_is_too_large_is_the_largest_and_what_is_no_number_stays_none() {
    let vocab = 9;
    let mut case = Case::new(1, vocab, 1);
    (case.prompts, case.written) = (vec![vec![0, 1, 2]], vec![vec![]]);
    case.penalties = Penalties { repetition: 1e-9, presence: 0.0, frequency: 0.0, bias: vec![0.0; 9] };
    (case.penalties.bias[3], case.penalties.bias[4]) = (3e38, -3e38);
    case.logits = vec![3e38, -1.0, 0.0, 3e38, -3e38, 1.0, 0.0, 0.0, 0.0];
    let most = f64::from(f32::MAX);
    // What is not banned stays above what is, which is the lowest number.
    let allowed = f64::from(f32::MIN.next_up());
    let adjusted = case.run().1;
    assert_eq!((adjusted[0], adjusted[2], adjusted[3], adjusted[4]), (most, 0.0, most, allowed));
    for broken in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for place in [0, 4, 8] {
            case.logits = vec![1.0; 9];
            case.logits[place] = broken;
            let gpu = device();
            let logits = upload(gpu, &case.run().1, vocab);
            let tokens = Guarded::new(gpu, 0, 1);
            run(gpu, |recorder| {
                Argmax { logits: &logits, tokens: &tokens.buffer, rows: 1, vocab }.record(recorder);
            });
            assert_eq!(tokens.read::<u32>(), [NOT_FINITE], "{broken} at {place}");
        }
    }
}

#[test]
fn adjusted_logits_have_the_same_bits_every_time() {
    let case = Case::new(2, 3000, 9);
    assert_repeatable(|| case.run().1);
}
