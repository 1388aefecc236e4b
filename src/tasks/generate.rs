//! Text generation: prompt in, tokens out, one at a time.

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    Model, Routes, TokenRoutes,
    logits::steps,
    session::{PendingTokens, Sampling, Session, SessionLayout},
};
use crate::{Error, Result, gpu::Counters};

/// How to generate.
#[derive(Clone, Debug)]
pub struct Generate {
    max_new: usize,
    temperature: f32,
    top_k: Option<u32>,
    top_p: f32,
    seed: u64,
    stop: Option<Vec<u32>>,
    routes: bool,
    cancel: Cancel,
}

impl Default for Generate {
    /// 64 tokens, temperature 0.8, top-k 40, top-p 0.95, seed 0.
    fn default() -> Self {
        Self {
            max_new: 64,
            temperature: 0.8,
            top_k: Some(40),
            top_p: 0.95,
            seed: 0,
            stop: None,
            routes: false,
            cancel: Cancel::default(),
        }
    }
}

impl Generate {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tokens to generate at the most.
    pub fn max_new(mut self, tokens: usize) -> Self {
        self.max_new = tokens;
        self
    }

    /// Always the likeliest token; ties go to the lower id.
    pub fn greedy(self) -> Self {
        self.temperature(0.0)
    }

    /// Divides the logits before sampling; 0 is greedy.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Samples from the `k` likeliest tokens (those tied with the last stay too); `None` keeps all.
    pub fn top_k(mut self, k: impl Into<Option<u32>>) -> Self {
        self.top_k = k.into();
        self
    }

    /// Samples from the likeliest tokens that together have probability `p`; 1 keeps all.
    pub fn top_p(mut self, p: f32) -> Self {
        self.top_p = p;
        self
    }

    /// Seeds the generator (Philox4x32-10, counted by position and sequence): same seed, same device, same text.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Tokens that end a text, instead of the model's own.
    pub fn stop_at(mut self, ids: impl Into<Vec<u32>>) -> Self {
        self.stop = Some(ids.into());
        self
    }

    /// Reads back which experts each token chose, and reports the prompt's tokens too.
    pub fn with_routes(mut self) -> Self {
        self.routes = true;
        self
    }

    /// Lets another thread or handler stop the generation.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::argument("temperature", self.temperature, "0 or more"));
        }
        if self.top_k == Some(0) {
            return Err(Error::argument("top-k", 0, "at least 1"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::argument("top-p", self.top_p, "above 0, at most 1"));
        }
        Ok(())
    }

    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k.unwrap_or(u32::MAX),
            top_p: self.top_p,
            seed: self.seed,
        }
    }
}

/// Stops a generation from outside. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not cancelled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops whatever was given this handle: it ends after the tokens already under way, without an error.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One token, as it comes.
#[derive(Clone, Debug)]
pub struct Token {
    /// Which prompt it belongs to.
    pub sequence: usize,
    /// Its place in the sequence, counted from the prompt's start.
    pub position: usize,
    /// Its id.
    pub id: u32,
    /// Whether it is part of the prompt.
    pub prompt: bool,
    /// Its text; empty while a character is incomplete, and when generating from ids.
    pub text: String,
    /// The experts it chose, with [`Generate::with_routes`].
    pub routes: Option<TokenRoutes>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// It has as many new tokens as were asked for.
    MaxNew,
    /// It came to a stop token, which is the last of its ids.
    StopToken,
    /// It fills the model's context.
    Context,
    /// The caller stopped it.
    Cancelled,
}

/// What was generated.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The new ids of each prompt.
    pub ids: Vec<Vec<u32>>,
    /// Why each ended.
    pub stopped: Vec<StopReason>,
    /// Exact counts of the GPU work: dispatches, multiply-accumulates, passes.
    pub counters: Counters,
}

/// Decode steps submitted ahead of the one whose tokens are being read.
const STEPS_AHEAD: usize = 3;

/// Prompt tokens of one step.
const PREFILL_TOKENS: usize = 512;

impl Model {
    /// Continues a text. `on_token` sees each token as it comes and may stop the generation.
    ///
    /// # Errors
    /// A prompt that is empty or longer than the model's context, options out of range, and what the GPU reports.
    #[cfg(feature = "tokenizer")]
    pub async fn generate(
        &self,
        prompt: &str,
        options: &Generate,
        mut on_token: impl FnMut(&Token) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let tokenizer = self.tokenizer()?;
        let ids = tokenizer.encode(prompt)?;
        let mut stream = tokenizer.stream();
        // Without the prompt in the stream, a tokenizer may drop the first new token's leading space.
        if !options.routes {
            for &id in &ids {
                stream.push(id)?;
            }
        }
        let mut failed = None;
        let generation = self
            .generate_ids(&[&ids], options, |token| match stream.push(token.id) {
                Ok(text) => on_token(&Token { text, ..token.clone() }),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            })
            .await?;
        failed.map_or(Ok(generation), Err)
    }

    /// Continues a batch of token sequences side by side.
    ///
    /// The tokens of one step are reported in the order of the prompts. A batch gives each prompt the tokens it
    /// would get alone with greedy choice; sampling draws differently for each place in the batch.
    ///
    /// # Errors
    /// As [`Model::generate`], and an id outside the vocabulary.
    pub async fn generate_ids(
        &self,
        prompts: &[&[u32]],
        options: &Generate,
        on_token: impl FnMut(&Token) -> ControlFlow<()>,
    ) -> Result<Generation> {
        options.check()?;
        self.check_prompts(prompts)?;
        let longest = prompts.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let context = self.info().context as usize;
        let capacity = context.min(longest.saturating_add(options.max_new));
        let total: usize = prompts.iter().map(|ids| ids.len()).sum();
        let layout = SessionLayout {
            sequences: prompts.len() as u32,
            capacity: capacity as u32,
            step_tokens: total.min(PREFILL_TOKENS).max(prompts.len()) as u32,
            logit_rows: prompts.len() as u32,
        };
        let mut run = Run {
            session: Session::new(&self.gpu, &self.decoder, layout)?,
            options,
            stop: options.stop.as_ref().unwrap_or(&self.info().eos),
            context,
            pending: VecDeque::new(),
            sequences: prompts.iter().map(|ids| Sequence::new(ids.len())).collect(),
            on_token,
            broken: false,
        };
        run.prefill(prompts).await?;
        let shortest = prompts.iter().map(|ids| ids.len()).min().unwrap_or(0);
        run.decode(capacity - shortest).await?;
        Ok(Generation {
            counters: run.session.counters(),
            stopped: run.sequences.iter().map(|s| s.stopped.unwrap_or(StopReason::Cancelled)).collect(),
            ids: run.sequences.into_iter().map(|sequence| sequence.ids).collect(),
        })
    }
}

/// One prompt's state.
struct Sequence {
    prompt_len: usize,
    prompt_reported: usize,
    ids: Vec<u32>,
    /// Ids reported so far; with routes, a token waits for the step that reads it.
    reported: usize,
    stopped: Option<StopReason>,
}

impl Sequence {
    fn new(prompt_len: usize) -> Self {
        Self { prompt_len, prompt_reported: 0, ids: Vec::new(), reported: 0, stopped: None }
    }
}

/// One call of `generate_ids`.
struct Run<'a, F> {
    session: Session,
    options: &'a Generate,
    stop: &'a [u32],
    context: usize,
    pending: VecDeque<PendingTokens>,
    sequences: Vec<Sequence>,
    on_token: F,
    /// The callback or the handle said stop.
    broken: bool,
}

impl<F: FnMut(&Token) -> ControlFlow<()>> Run<'_, F> {
    /// Runs the prompts and samples the first new token of each.
    async fn prefill(&mut self, prompts: &[&[u32]]) -> Result<()> {
        let total: usize = prompts.iter().map(|ids| ids.len()).sum();
        let ends = |prompts: &[&[u32]]| -> Vec<u32> {
            let ends = prompts.iter().scan(0, |end, ids| {
                *end += ids.len() as u32;
                Some(*end - 1)
            });
            ends.collect()
        };
        if total <= PREFILL_TOKENS.max(prompts.len()) {
            let runs: Vec<_> = (0..).zip(prompts.iter().copied()).collect();
            self.session.forward(&runs, &ends(prompts))?;
            return self.finish_prefill(&runs).await;
        }
        // Long prompts: everything but the last tokens first, so that one last step has the logits of all.
        let (heads, tails): (Vec<_>, Vec<_>) = prompts.iter().map(|ids| ids.split_at(ids.len() - 1)).unzip();
        for runs in steps(&heads, PREFILL_TOKENS) {
            self.session.forward(&runs, &[])?;
            if self.options.cancel.is_cancelled() {
                self.stop_all();
                return Ok(());
            }
            if self.options.routes {
                let pending = self.session.read_tokens(true);
                let (_, routes) = self.session.wait_tokens(pending).await?;
                self.report_prompt(&runs, routes.as_ref());
            } else {
                self.session.submit();
            }
        }
        let runs: Vec<_> = (0..).zip(tails.iter().copied()).collect();
        self.session.forward(&runs, &ends(&tails))?;
        self.finish_prefill(&runs).await
    }

    /// Samples after the step that has the prompts' last tokens.
    async fn finish_prefill(&mut self, runs: &[(u32, &[u32])]) -> Result<()> {
        if self.options.max_new > 0 {
            self.session.sample(&self.options.sampling());
        }
        let pending = self.session.read_tokens(self.options.routes);
        let (ids, routes) = self.session.wait_tokens(pending).await?;
        self.report_prompt(runs, routes.as_ref());
        if self.options.max_new == 0 {
            self.sequences.iter_mut().for_each(|sequence| sequence.stopped = Some(StopReason::MaxNew));
            return Ok(());
        }
        self.accept(&ids);
        if !self.options.routes {
            self.report(None);
        }
        Ok(())
    }

    /// Runs decode steps, a few ahead of the reads, until every sequence has stopped. `room` is how many
    /// positions the shortest prompt leaves.
    async fn decode(&mut self, room: usize) -> Result<()> {
        let mut recorded = 0;
        loop {
            // The first token came with the prompt. With routes, each needs one more step that reads it in.
            let wanted = self.options.max_new.min(room).saturating_sub(usize::from(!self.options.routes));
            let more = !self.done() && recorded < wanted && !self.broken;
            if more && self.pending.len() <= STEPS_AHEAD {
                self.session.decode()?;
                self.session.sample(&self.options.sampling());
                let pending = self.session.read_tokens(self.options.routes);
                self.pending.push_back(pending);
                recorded += 1;
                continue;
            }
            let Some(pending) = self.pending.pop_front() else { break };
            if self.broken {
                continue;
            }
            let (ids, routes) = self.session.wait_tokens(pending).await?;
            if self.options.routes {
                self.report(routes.as_ref());
                self.accept(&ids);
            } else {
                self.accept(&ids);
                self.report(None);
            }
        }
        // With routes, the last token of a full context was never read in by a step.
        self.report(None);
        Ok(())
    }

    fn done(&self) -> bool {
        self.sequences.iter().all(|s| s.stopped.is_some() && (s.reported == s.ids.len()))
    }

    /// Takes the next id of every sequence that is still going.
    fn accept(&mut self, ids: &[u32]) {
        for (sequence, &id) in self.sequences.iter_mut().zip(ids) {
            if sequence.stopped.is_some() {
                continue;
            }
            sequence.ids.push(id);
            sequence.stopped = if self.stop.contains(&id) {
                Some(StopReason::StopToken)
            } else if sequence.ids.len() >= self.options.max_new {
                Some(StopReason::MaxNew)
            } else if sequence.prompt_len + sequence.ids.len() >= self.context {
                Some(StopReason::Context)
            } else {
                None
            };
        }
    }

    /// Reports the oldest unreported id of every sequence; `routes` is what the step chose that read them in.
    fn report(&mut self, routes: Option<&Routes>) {
        if self.broken {
            return;
        }
        for index in 0..self.sequences.len() {
            let sequence = &mut self.sequences[index];
            let Some(&id) = sequence.ids.get(sequence.reported) else { continue };
            let position = sequence.prompt_len + sequence.reported;
            // Past the context no step could read the token in.
            let routes = routes.filter(|_| position < self.context).map(|routes| routes.token(index));
            let token = Token { sequence: index, position, id, prompt: false, text: String::new(), routes };
            sequence.reported += 1;
            if !self.tell(&token) {
                return;
            }
        }
    }

    /// Reports the prompt tokens of a step, with their routes.
    fn report_prompt(&mut self, runs: &[(u32, &[u32])], routes: Option<&Routes>) {
        let Some(routes) = routes else { return };
        let tokens = runs.iter().flat_map(|(sequence, ids)| ids.iter().map(|&id| (*sequence as usize, id)));
        for (row, (sequence, id)) in tokens.enumerate() {
            let position = self.sequences[sequence].prompt_reported;
            self.sequences[sequence].prompt_reported += 1;
            let routes = Some(routes.token(row));
            let text = String::new();
            if !self.tell(&Token { sequence, position, id, prompt: true, text, routes }) {
                return;
            }
        }
    }

    /// Shows a token to the caller; false when it wants no more.
    fn tell(&mut self, token: &Token) -> bool {
        let told = (self.on_token)(token).is_continue();
        if !told || self.options.cancel.is_cancelled() {
            self.stop_all();
        }
        !self.broken
    }

    fn stop_all(&mut self) {
        self.broken = true;
        for sequence in &mut self.sequences {
            sequence.stopped.get_or_insert(StopReason::Cancelled);
        }
    }
}
