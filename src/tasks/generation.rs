//! How to generate, and what comes of it.

use std::{fmt, sync::Arc};

use super::logit_filter::LogitFilter;
use crate::{
    Cancel, Error, Result,
    gpu::Counters,
    ops::MAX_TOP_LOGITS,
    sessions::{Penalties, Sampling, TokenRoutes, Wanted},
};

/// How to generate.
///
/// With serde these are fields that are named as the methods here are, those of [`Sampling`] in `sampling`, and `penalties` with
/// `repetition`, `presence`, `frequency` and `bias`, in which `null` bans a token; what is left out is as [`Generate::default`] has it.
/// A filter, a handle to cancel by and callbacks are left out.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct Generate {
    pub(super) max_new: usize,
    pub(super) sampling: Sampling,
    #[serde(rename = "stop_at")]
    pub(super) stop: Option<Vec<u32>>,
    #[serde(rename = "stop")]
    pub(super) stop_strings: Vec<String>,
    pub(super) penalties: Penalties,
    pub(super) logprobs: Option<u32>,
    #[serde(skip)]
    pub(super) filter: Option<LogitFilter>,
    pub(super) routes: bool,
    #[serde(skip)]
    pub(super) cancel: Cancel,
    #[serde(skip)]
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
    /// 64 tokens, chosen as [`Sampling::default`] says: temperature 0.8, top-k 40, top-p 0.95, seed 0.
    fn default() -> Self {
        Self {
            max_new: 64,
            sampling: Sampling::default(),
            stop: None,
            stop_strings: Vec::new(),
            penalties: Penalties::default(),
            logprobs: None,
            filter: None,
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
        self.sampling = self.sampling.temperature(temperature);
        self
    }

    /// Samples from the `k` likeliest tokens (those tied with the last stay too); `None` keeps all.
    pub fn top_k(mut self, k: impl Into<Option<u32>>) -> Self {
        self.sampling = self.sampling.top_k(k);
        self
    }

    /// Samples from the likeliest tokens that together have probability `p`; 1 keeps all.
    pub fn top_p(mut self, p: f32) -> Self {
        self.sampling = self.sampling.top_p(p);
        self
    }

    /// Seeds the generator (Philox4x32-10, counted by position and sequence): same seed, same device, same text.
    pub fn seed(mut self, seed: u64) -> Self {
        self.sampling = self.sampling.seed(seed);
        self
    }

    /// Makes less likely what the prompt or the new text has: the logit of such a token is divided by `penalty`, or multiplied where
    /// it is below zero, as transformers does. 1 changes nothing, less makes repetition likelier.
    ///
    /// Penalties, and then [`logit_bias`](Self::logit_bias), change logits on the GPU, before temperature, top-k and top-p.
    pub fn repetition_penalty(mut self, penalty: f32) -> Self {
        self.penalties = self.penalties.repetition(penalty);
        self
    }

    /// Taken off the logits of tokens that the new text has, as in OpenAI's API; 0 changes nothing.
    pub fn presence_penalty(mut self, penalty: f32) -> Self {
        self.penalties = self.penalties.presence(penalty);
        self
    }

    /// Taken off the logits of tokens of the new text, once for each time that it has them, as in OpenAI's API; 0 changes nothing.
    pub fn frequency_penalty(mut self, penalty: f32) -> Self {
        self.penalties = self.penalties.frequency(penalty);
        self
    }

    /// Added to the logits of these ids, whatever the text has; −∞ bans a token. Of equal ids the last counts.
    pub fn logit_bias(mut self, biases: impl IntoIterator<Item = (u32, f32)>) -> Self {
        self.penalties = self.penalties.bias(biases);
        self
    }

    /// Lets `filter` change the logits of each new token. It is called with the ids of a sequence so far, prompt included, and its
    /// logits, as many as the vocabulary has tokens; −∞ bans one. Penalties and biases come behind it, then the token is drawn on
    /// the GPU as ever: a filter that changes nothing changes no token. A batch has one call for each of its sequences.
    ///
    /// Slow: the logits go to the host and back, and the next step waits for them, where otherwise four steps are under way.
    pub fn filter_logits(mut self, filter: impl FnMut(&[u32], &mut [f32]) + Send + 'static) -> Self {
        self.filter = Some(LogitFilter::new(filter));
        self
    }

    /// Reads back how likely each new token was, [`Token::logprob`], and the `n` likeliest in its place, [`Token::top`]: 0 to 16.
    /// Both are of the model's own distribution, before penalties, biases, a filter, temperature, top-k and top-p.
    pub fn logprobs(mut self, n: u32) -> Self {
        self.logprobs = Some(n);
        self
    }

    /// Tokens that end a text, instead of the model's own.
    pub fn stop_at(mut self, ids: impl Into<Vec<u32>>) -> Self {
        self.stop = Some(ids.into());
        self
    }

    /// Texts that end a text, found wherever tokens are cut. Neither they nor what comes behind them are part of the text; their
    /// ids are among the ids. What may be the start of one is held back until it is decided. Special tokens have no text:
    /// [`stop_at`](Self::stop_at) is for these.
    pub fn stop<S: Into<String>>(mut self, texts: impl IntoIterator<Item = S>) -> Self {
        self.stop_strings = texts.into_iter().map(Into::into).collect();
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

    /// The same, which `cancel` ends, too.
    pub(super) fn cancelled_by(&self, cancel: &Cancel) -> Self {
        Self { cancel: Cancel::below([cancel, &self.cancel]), ..self.clone() }
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
        if self.stop_strings.iter().any(String::is_empty) {
            return Err(Error::argument("stop", "an empty text", "texts of at least one character"));
        }
        if let Some(n) = self.logprobs.filter(|&n| n > MAX_TOP_LOGITS) {
            return Err(Error::argument("logprobs", n, format!("at most {MAX_TOP_LOGITS}")));
        }
        self.penalties.check()?;
        self.sampling.check()
    }

    /// Refuses also what is out of range for a model of `vocab` tokens.
    pub(super) fn check_for(&self, vocab: u32) -> Result<()> {
        self.check()?;
        if let Some(n) = self.logprobs.filter(|&n| n > vocab) {
            return Err(Error::argument("logprobs", n, format!("at most the {vocab} of the vocabulary")));
        }
        self.penalties.check_for(vocab)
    }

    /// What changes logits, if anything does.
    pub(super) fn penalties(&self) -> Option<&Penalties> {
        // What a filter says goes the same way.
        let some = self.filter.is_some() || self.penalties != Penalties::default();
        some.then_some(&self.penalties)
    }

    /// What is read back of each step.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted { routes: self.routes, logprobs: self.logprobs }
    }
}

/// One token, as it comes.
#[derive(Clone, Debug, serde::Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Token {
    /// Which prompt it belongs to.
    pub sequence: usize,
    /// Its place in the sequence, counted from the prompt's start.
    pub position: usize,
    /// Its id.
    pub id: u32,
    /// Whether it is part of the prompt.
    pub prompt: bool,
    /// What it adds to the text of its sequence: nothing while a character is incomplete or a stop string may have begun, and
    /// nothing where the model has no tokenizer. The last token also has what was held back until then.
    pub text: String,
    /// Whether it ends its sequence. A caller who stops the generation makes no token the last.
    pub last: bool,
    /// How likely the model found it, `ln p` in nats, with [`Generate::logprobs`]; none for a token of the prompt.
    pub logprob: Option<f32>,
    /// The likeliest tokens in its place, the likeliest first, with [`Generate::logprobs`].
    pub top: Vec<TopToken>,
    /// The experts it chose, with [`Generate::with_routes`].
    pub routes: Option<TokenRoutes>,
}

/// A token that might have come.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct TopToken {
    /// Its id.
    pub id: u32,
    /// What it would have added to the text, had that ended with it; empty where the model has no tokenizer.
    pub text: String,
    /// How likely the model found it, `ln p` in nats.
    pub logprob: f32,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StopReason {
    /// It has as many new tokens as were asked for.
    MaxNew,
    /// It came to a stop token, which is the last of its ids.
    StopToken,
    /// Its text came to a stop string, the ids of which are its last.
    StopString,
    /// It fills the model's context.
    Context,
    /// The caller stopped it.
    Cancelled,
}

/// What was generated.
#[derive(Clone, Debug, serde::Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Generation {
    /// The new ids of each prompt.
    pub ids: Vec<Vec<u32>>,
    /// The new text of each prompt, what its tokens had one after the other; up to a stop string, without it. Where the caller ended
    /// it, what was held back until then is at its end. Empty where the model has no tokenizer.
    pub text: Vec<String>,
    /// Why each ended.
    pub stopped: Vec<StopReason>,
    /// Exact counts of the GPU work: dispatches, multiply-accumulates, passes.
    pub counters: Counters,
}
