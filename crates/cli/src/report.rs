//! The object that `headwise generate --json` prints.

use std::time::Duration;

use headwise::{Counters, Generation, Model, Precision, StopReason, Token, TokenRoutes, TopToken};
use serde::Serialize;

use super::transcript::{Speed, Transcript};

#[derive(Serialize)]
pub struct Report<'a> {
    prompt_ids: &'a [u32],
    /// The new text; null where the model has no tokenizer.
    text: Option<String>,
    /// The new ids, a stop token included.
    ids: Vec<u32>,
    stop_reason: StopReason,
    adapter: &'a str,
    backend: &'a str,
    precision: Precision,
    timings: Timings,
    counters: Counters,
    /// With `--show-heads` or `--logprobs`: every token, with heads the prompt's first.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Vec<ReportedToken<'a>>>,
}

#[derive(Serialize)]
struct Timings {
    /// Opening the GPU and loading the model.
    load_seconds: f64,
    prefill_tokens: usize,
    prefill_seconds: f64,
    prefill_tokens_per_second: f64,
    decode_tokens: usize,
    decode_seconds: f64,
    decode_tokens_per_second: f64,
}

#[derive(Serialize)]
struct ReportedToken<'a> {
    position: usize,
    id: u32,
    prompt: bool,
    text: &'a str,
    /// With `--logprobs`, of new tokens: `ln p`, and the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    logprob: Option<f32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    top: &'a [TopToken],
    /// Null for the last token of a full context: no step read it in.
    routes: Option<&'a TokenRoutes>,
}

impl<'a> Report<'a> {
    pub fn new(
        model: &'a Model,
        prompt_ids: &'a [u32],
        transcript: &'a Transcript,
        generated: &Generation,
        load: Duration,
    ) -> Self {
        let adapter = model.gpu().capabilities();
        let told = transcript.tokens.iter().any(|token| token.routes.is_some() || token.logprob.is_some());
        Self {
            prompt_ids,
            text: transcript.new_text(),
            ids: transcript.new_tokens().map(|token| token.id).collect(),
            stop_reason: generated.stopped.first().copied().unwrap_or(StopReason::Cancelled),
            adapter: &adapter.name,
            backend: &adapter.backend,
            precision: model.precision(),
            timings: Timings::new(transcript, prompt_ids.len(), load),
            counters: generated.counters,
            tokens: told.then(|| transcript.tokens.iter().map(ReportedToken::new).collect()),
        }
    }
}

impl Timings {
    fn new(transcript: &Transcript, prompt: usize, load: Duration) -> Self {
        let speeds = transcript.speeds(prompt);
        let Speed { tokens: prefill_tokens, time: prefill } = speeds.prefill;
        let Speed { tokens: decode_tokens, time: decode } = speeds.decode;
        Self {
            load_seconds: load.as_secs_f64(),
            prefill_tokens,
            prefill_seconds: prefill.as_secs_f64(),
            prefill_tokens_per_second: speeds.prefill.per_second(),
            decode_tokens,
            decode_seconds: decode.as_secs_f64(),
            decode_tokens_per_second: speeds.decode.per_second(),
        }
    }
}

impl<'a> ReportedToken<'a> {
    fn new(token: &'a Token) -> Self {
        let Token { position, id, prompt, text, logprob, top, routes, .. } = token;
        let (position, id, prompt, logprob) = (*position, *id, *prompt, *logprob);
        Self { position, id, prompt, text, logprob, top, routes: routes.as_ref() }
    }
}
