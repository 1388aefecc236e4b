//! Measuring a model and, in the same run and in turns with it, what its adapter does at best.

use std::{fmt, ops::ControlFlow, time::Instant};

use super::{
    bench_report::{BenchReport, BenchRow, Limit, Spread, now},
    yardstick::Yardstick,
};
use crate::{
    Error, Result,
    gpu::Counters,
    ops::Variants,
    sessions::{Run, Sampling, Session, SessionOptions},
    tasks::{Generate, Model},
};

/// Lengths of the prompts.
const PROMPTS: [usize; 3] = [16, 128, 512];

/// Tokens before those that are decoded.
const DECODE_PROMPT: usize = 16;

/// Decode steps whose recording is timed.
const HOST_STEPS: usize = 32;

/// A row that takes longer than this ends when it has [`ENOUGH_ROUNDS`].
const LONG_SECONDS: f64 = 10.0;
const ENOUGH_ROUNDS: usize = 3;

/// How to measure a model.
#[derive(serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct Bench<'a> {
    rounds: usize,
    tokens: usize,
    #[serde(skip, default = "nobody")]
    progress: Box<dyn FnMut(u64, u64) + Send + 'a>,
}

impl fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, tokens, .. } = self;
        f.debug_struct("Bench").field("rounds", rounds).field("tokens", tokens).finish_non_exhaustive()
    }
}

/// Whoever wants to know nothing.
fn nobody<'a>() -> Box<dyn FnMut(u64, u64) + Send + 'a> {
    Box::new(|_, _| {})
}

impl Default for Bench<'_> {
    /// 7 rounds, 64 decoded tokens in each.
    fn default() -> Self {
        Self { rounds: 7, tokens: 64, progress: nobody() }
    }
}

impl<'a> Bench<'a> {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rounds of each measurement, of which the median counts. A measurement that takes longer than ten seconds ends after
    /// three.
    pub fn rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// Tokens to decode in each round; fewer where the model's context is short.
    pub fn tokens(mut self, tokens: usize) -> Self {
        self.tokens = tokens;
        self
    }

    /// Called with the rounds done and in all, from 0 to the end.
    pub fn progress(mut self, progress: impl FnMut(u64, u64) + Send + 'a) -> Self {
        self.progress = Box::new(progress);
        self
    }

    fn check(&self) -> Result<()> {
        for (name, number) in [("rounds", self.rounds), ("tokens", self.tokens)] {
            if number == 0 {
                return Err(Error::argument(name, 0, "at least 1"));
            }
        }
        Ok(())
    }
}

impl Model {
    /// Measures how fast the model reads prompts and writes tokens, counts the work that takes, and holds both against what
    /// the adapter does at best: a copy, and a dense product. Rounds of the model and of its limit alternate, so that a
    /// machine that slows down slows both.
    ///
    /// # Errors
    /// [`Error::Argument`] for a model that does not generate or options out of range; [`Error::Cancelled`], at the latest behind the
    /// measurement under way; and what the GPU reports.
    pub async fn bench(&self, options: Bench<'_>) -> Result<BenchReport> {
        options.check()?;
        self.check_generates()?;
        self.cancel.check()?;
        let date = now();
        let context = self.info().context as usize;
        let prompt = DECODE_PROMPT.min(context / 2).max(1);
        let tokens = options.tokens.min(context.saturating_sub(prompt + 1));
        let mut remarks = Vec::new();
        let (fitting, longer): (Vec<_>, Vec<_>) = PROMPTS.into_iter().partition(|&length| length <= context);
        for length in longer {
            remarks.push(format!("no prompt of {length} tokens: the model's context is {context}"));
        }
        if tokens < options.tokens {
            remarks
                .push(format!("{tokens} tokens decoded, not {}: the context is {context}", options.tokens));
        }

        // Before anything else, so that it finds nothing compiled; the tokens behind the first warm up decoding.
        let first_run = self.timed(prompt, 3).await?.first;
        let copy = Yardstick::copy(&self.gpu, &self.cancel)?;
        let matmul = Yardstick::matmul(&self.gpu, &self.cancel).await?;
        let decodes = tokens > 0;
        let total = ((fitting.len() + 1 + usize::from(decodes)) * options.rounds) as u64;
        let mut bencher = Bencher {
            model: self,
            rounds: options.rounds,
            progress: options.progress,
            done: 0,
            total,
            copy: Sampled::new(copy),
            matmul: Sampled::new(matmul),
        };
        (bencher.progress)(0, total);
        let mut rows = Vec::new();
        for length in fitting {
            rows.push(bencher.prefill(length).await?);
        }
        rows.push(bencher.first_token(prompt).await?);
        if decodes {
            rows.push(bencher.decode(prompt, tokens).await?);
        }
        let host_seconds = self.host_seconds(prompt).await?;

        let (capabilities, info) = (self.gpu.capabilities(), self.info());
        Ok(BenchReport {
            version: env!("CARGO_PKG_VERSION"),
            date,
            adapter: capabilities.name.clone(),
            backend: capabilities.backend.clone(),
            driver: capabilities.driver.clone(),
            kernels: Variants::of(&self.gpu).names(),
            family: info.family.clone(),
            parameters: info.parameters,
            active_parameters: info.active_parameters,
            precision: self.precision(),
            first_run_seconds: first_run,
            rows,
            host_seconds,
            copy: bencher.copy.limit(),
            matmul: bencher.matmul.limit(),
            remarks,
        })
    }

    /// Ids that spread over the vocabulary.
    fn any_ids(&self, count: usize) -> Vec<u32> {
        (0..count as u32).map(|i| i.wrapping_mul(2_654_435_761) % self.info().vocab).collect()
    }

    /// Generates `new` tokens behind a prompt and looks at the clock.
    async fn timed(&self, prompt: usize, new: usize) -> Result<Timed> {
        let ids = self.any_ids(prompt);
        let options = Generate::new().greedy().stop_at([]).max_new(new);
        let start = Instant::now();
        let (mut first, mut last) = (None, start);
        let generation = self
            .generate_ids(&[&ids], &options, |_| {
                last = Instant::now();
                first.get_or_insert(last);
                ControlFlow::Continue(())
            })
            .await?;
        let first = first.unwrap_or(last);
        Ok(Timed {
            first: (first - start).as_secs_f64(),
            rest: (last - first).as_secs_f64(),
            counters: generation.counters,
        })
    }

    /// A session for one sequence, which starts with a prompt of `prompt` tokens.
    fn one_sequence(&self, prompt: usize, capacity: usize) -> Result<Session> {
        let (capacity, step_tokens) = (capacity as u32, prompt as u32);
        let options = SessionOptions::new().positions(capacity).reserve(step_tokens).step_tokens(step_tokens);
        self.session(options)
    }

    /// Seconds to record and submit a decode step, while the GPU has nothing else to do.
    async fn host_seconds(&self, prompt: usize) -> Result<Spread> {
        let ids = self.any_ids(prompt);
        let mut session = self.one_sequence(prompt, prompt + HOST_STEPS)?;
        read_prompt(&mut session, &ids).await?;
        let greedy = Sampling::new().greedy();
        let mut times = Vec::with_capacity(HOST_STEPS);
        for _ in 0..HOST_STEPS {
            self.gpu.settle()?;
            let start = Instant::now();
            session.forward(&[Run::sampled(0)])?;
            session.sample(&greedy)?;
            let pending = session.tokens().await?;
            times.push(start.elapsed().as_secs_f64());
            pending.wait().await?;
        }
        Ok(Spread::of(times))
    }
}

/// Reads a whole prompt and chooses the next token.
async fn read_prompt(session: &mut Session, ids: &[u32]) -> Result<()> {
    session.forward(&[Run::ids(0, ids)])?;
    session.sample(&Sampling::new().greedy())?;
    session.tokens().await?.wait().await?;
    Ok(())
}

/// One generation on the clock.
struct Timed {
    /// Seconds until the first token.
    first: f64,
    /// Seconds from the first to the last.
    rest: f64,
    counters: Counters,
}

/// A yardstick and what it said so far.
struct Sampled {
    yardstick: Yardstick,
    rates: Vec<f64>,
}

impl Sampled {
    fn new(yardstick: Yardstick) -> Self {
        Self { yardstick, rates: Vec::new() }
    }

    fn limit(self) -> Limit {
        Limit { name: self.yardstick.name, per_second: Spread::of(self.rates) }
    }
}

/// One run of [`Model::bench`].
struct Bencher<'a> {
    model: &'a Model,
    rounds: usize,
    progress: Box<dyn FnMut(u64, u64) + Send + 'a>,
    /// Rounds done and in all.
    done: u64,
    total: u64,
    copy: Sampled,
    matmul: Sampled,
}

/// What is held against which limit.
#[derive(Clone, Copy)]
enum Against {
    Copy,
    Matmul,
}

/// The work of a row, apart from its times.
struct Work {
    what: &'static str,
    prompt: usize,
    tokens: usize,
    counters: Counters,
}

impl<'b> Bencher<'b> {
    async fn prefill(&mut self, length: usize) -> Result<BenchRow> {
        let ids = self.model.any_ids(length);
        let mut session = self.model.one_sequence(length, length)?;
        // Warms up.
        read_prompt(&mut session, &ids).await?;
        let counters = session.counters();
        let mut rounds = self.rounds(Against::Matmul);
        while rounds.more() {
            session.rewind(0, 0)?;
            let start = Instant::now();
            read_prompt(&mut session, &ids).await?;
            rounds.took(start.elapsed().as_secs_f64())?;
        }
        let times = rounds.finish();
        Ok(row(Work { what: "prefill", prompt: length, tokens: length, counters }, Against::Matmul, times))
    }

    async fn first_token(&mut self, prompt: usize) -> Result<BenchRow> {
        let model = self.model;
        let counters = model.timed(prompt, 1).await?.counters;
        let mut rounds = self.rounds(Against::Matmul);
        while rounds.more() {
            rounds.took(model.timed(prompt, 1).await?.first)?;
        }
        let times = rounds.finish();
        Ok(row(Work { what: "first token", prompt, tokens: prompt, counters }, Against::Matmul, times))
    }

    async fn decode(&mut self, prompt: usize, tokens: usize) -> Result<BenchRow> {
        let model = self.model;
        let mut with_prompt = Counters::default();
        let mut rounds = self.rounds(Against::Copy);
        while rounds.more() {
            let timed = model.timed(prompt, 1 + tokens).await?;
            with_prompt = timed.counters;
            rounds.took(timed.rest)?;
        }
        let times = rounds.finish();
        let counters = with_prompt - model.timed(prompt, 1).await?.counters;
        Ok(row(Work { what: "decode", prompt, tokens, counters }, Against::Copy, times))
    }

    /// Begins the rounds of a row.
    fn rounds(&mut self, against: Against) -> Rounds<'_, 'b> {
        let first_rate = self.limit(against).rates.len();
        Rounds { start: Instant::now(), times: Vec::new(), first_rate, against, bencher: self }
    }

    fn limit(&mut self, against: Against) -> &mut Sampled {
        match against {
            Against::Copy => &mut self.copy,
            Against::Matmul => &mut self.matmul,
        }
    }
}

/// The rounds of a row, each with one of its limit behind it.
struct Rounds<'a, 'b> {
    bencher: &'a mut Bencher<'b>,
    against: Against,
    start: Instant,
    /// Seconds of each.
    times: Vec<f64>,
    /// How often the limit was measured before.
    first_rate: usize,
}

impl Rounds<'_, '_> {
    /// Whether there is another one.
    fn more(&self) -> bool {
        let short = self.times.len() < ENOUGH_ROUNDS || self.start.elapsed().as_secs_f64() < LONG_SECONDS;
        self.times.len() < self.bencher.rounds && short
    }

    /// Takes note of a round, and measures the limit.
    fn took(&mut self, seconds: f64) -> Result<()> {
        self.times.push(seconds);
        self.bencher.model.cancel.check()?;
        let limit = self.bencher.limit(self.against);
        limit.rates.push(limit.yardstick.rate()?);
        (self.bencher.progress)(self.bencher.done + self.times.len() as u64, self.bencher.total);
        Ok(())
    }

    /// Seconds of each round, and what the limit did in a second after each.
    fn finish(self) -> (Spread, Spread) {
        let Self { bencher, against, times, first_rate, .. } = self;
        bencher.done += bencher.rounds as u64;
        (bencher.progress)(bencher.done, bencher.total);
        (Spread::of(times), Spread::of(bencher.limit(against).rates[first_rate..].to_vec()))
    }
}

fn row(work: Work, against: Against, (seconds, limit): (Spread, Spread)) -> BenchRow {
    let Work { what, prompt, tokens, counters } = work;
    let (name, needed) = match against {
        Against::Copy => ("copy", counters.weight_bytes),
        Against::Matmul => ("matmul", 2 * counters.macs),
    };
    let needed_per_second = needed as f64 / seconds.median;
    BenchRow {
        what,
        prompt,
        tokens,
        seconds,
        tokens_per_second: tokens as f64 / seconds.median,
        counters,
        limit: name,
        needed_per_second,
        limit_per_second: limit.median,
        ratio: needed_per_second / limit.median,
    }
}
