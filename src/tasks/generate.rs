//! Text generation: prompt in, tokens out, one at a time.

use std::{
    fmt,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    Model, TokenRoutes,
    run::Run,
    session::{Sampling, Session, SessionLayout},
};
use crate::{Error, Result, gpu::Counters, models::Task};

/// How to generate.
#[derive(Clone, Debug)]
pub struct Generate {
    pub(super) max_new: usize,
    temperature: f32,
    top_k: Option<u32>,
    top_p: f32,
    seed: u64,
    pub(super) stop: Option<Vec<u32>>,
    pub(super) routes: bool,
    pub(super) cancel: Cancel,
    pub(super) progress: Option<Progress>,
}

/// Whoever wants to know how much of a prompt was read.
#[derive(Clone)]
pub(super) struct Progress(Arc<dyn Fn(u64, u64) + Send + Sync>);

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
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
            progress: None,
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

    /// Calls back with the tokens of the prompts that were read and in all, while a long prompt is read and at its end.
    pub fn progress(mut self, progress: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        self.progress = Some(Progress(Arc::new(progress)));
        self
    }

    /// Says how much of the prompts was read.
    pub(super) fn tell_progress(&self, read: u64, of: u64) {
        if let Some(Progress(tell)) = &self.progress {
            tell(read, of);
        }
    }

    /// Refuses what is out of range, as every generation does.
    ///
    /// # Errors
    /// [`Error::Argument`] for the first such option.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::argument("temperature", self.temperature, "a finite number of 0 or more"));
        }
        if self.top_k == Some(0) {
            return Err(Error::argument("top-k", 0, "at least 1"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::argument("top-p", self.top_p, "above 0, at most 1"));
        }
        Ok(())
    }

    pub(super) fn sampling(&self) -> Sampling {
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

    /// Stops whatever was given this handle: it ends after the tokens already under way, without an error. A prompt ends after
    /// the part that is under way, a fifth of a second or less.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether work goes on.
    pub(super) fn flow(&self) -> ControlFlow<()> {
        if self.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
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
    /// Its text; empty while a character is incomplete, and when generating from ids. The last token also has what was
    /// held back until then.
    pub text: String,
    /// Whether it ends its sequence. A caller who stops the generation makes no token the last.
    pub last: bool,
    /// The experts it chose, with [`Generate::with_routes`].
    pub routes: Option<TokenRoutes>,
}

#[cfg(feature = "tokenizer")]
impl Token {
    /// The token with what it adds to the text of its sequence.
    pub(super) fn with_text(&self, stream: &mut super::TextStream<'_>) -> Self {
        let mut text = stream.push(self.id);
        if self.last {
            text += &stream.finish();
        }
        Self { text, ..self.clone() }
    }
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

/// Prompt tokens of one step.
pub(super) const PREFILL_TOKENS: usize = 512;

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
        let ids = self.encode(prompt)?;
        let mut stream = self.tokenizer()?.stream();
        // With routes, the prompt's own tokens come first.
        if !options.routes {
            stream.go_on_from(&ids);
        }
        self.generate_ids(&[&ids], options, |token| on_token(&token.with_text(&mut stream))).await
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
        self.check_generates()?;
        self.check_prompts(prompts)?;
        let longest = prompts.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let context = self.info().context as usize;
        let capacity = context.min(longest.saturating_add(options.max_new));
        let total: usize = prompts.iter().map(|ids| ids.len()).sum();
        let layout = SessionLayout {
            sequences: prompts.len() as u32,
            capacity: capacity as u32,
            first: longest as u32,
            step_tokens: total.min(PREFILL_TOKENS).max(prompts.len()) as u32,
            logit_rows: prompts.len() as u32,
        };
        let mut session = Session::new(&self.gpu, &self.transformer, layout)?;
        let stop = options.stop.as_ref().unwrap_or(&self.info().eos);
        let mut run = Run::new(&mut session, options, stop, context, prompts, on_token);
        run.prefill(prompts).await?;
        let shortest = prompts.iter().map(|ids| ids.len()).min().unwrap_or(0);
        run.decode(capacity - shortest).await?;
        Ok(run.finish())
    }

    /// Continues `prompt`, whose first tokens `session` has read: as many as its position says, fewer than all.
    #[cfg(feature = "chat")]
    pub(super) async fn continue_session(
        &self,
        session: &mut Session,
        capacity: usize,
        prompt: &[u32],
        options: &Generate,
        stop: &[u32],
        on_token: impl FnMut(&Token) -> ControlFlow<()>,
    ) -> Result<Generation> {
        options.check()?;
        let kept = session.position(0) as usize;
        let rest = [prompt.get(kept..).unwrap_or_default()];
        let mut run = Run::new(session, options, stop, capacity, &rest, on_token).behind(kept);
        run.prefill(&rest).await?;
        run.decode(capacity - prompt.len()).await?;
        Ok(run.finish())
    }

    /// Refuses a model that has no next token.
    pub(super) fn check_generates(&self) -> Result<()> {
        if !matches!(self.task, Task::Generate) {
            return Err(self.wrong_task("generate"));
        }
        match self.transformer.spec.stack.whole_sequences() {
            None => Ok(()),
            Some(why) => {
                let found = format!("one of the family '{}': {why}", self.info().family);
                Err(Error::argument("model", found, "one that can write token by token"))
            }
        }
    }
}
