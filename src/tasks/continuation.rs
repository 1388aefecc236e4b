//! One call of `generate_ids`: prefill, decode steps in flight, reporting.

use std::{collections::VecDeque, ops::ControlFlow};

use super::{Generate, Generation, StopReason, Token, writer::Writer};
use crate::{
    Error, Result,
    gpu::Counters,
    sessions::{PendingTokens, Routes, Run, Session},
};

/// Decode steps submitted ahead of the one whose tokens are being read.
const STEPS_AHEAD: usize = 3;

/// One prompt's state.
struct Sequence<'a> {
    prompt_len: usize,
    prompt_reported: usize,
    ids: Vec<u32>,
    /// What the last ids add to the text, of those that were not reported: with routes, a token waits for the step that reads it.
    waiting: VecDeque<String>,
    writer: Writer<'a>,
    stopped: Option<StopReason>,
}

impl<'a> Sequence<'a> {
    fn new(prompt_len: usize, writer: Writer<'a>) -> Self {
        let (ids, waiting) = (Vec::new(), VecDeque::new());
        Self { prompt_len, prompt_reported: 0, ids, waiting, writer, stopped: None }
    }
}

/// How to generate, and where texts end.
pub(super) struct Rules<'a> {
    pub options: &'a Generate,
    /// Tokens that end a text.
    pub stop: &'a [u32],
    /// Tokens of a sequence at the most.
    pub context: usize,
}

/// One call of `generate_ids`, or a turn of a conversation.
pub(super) struct Continuation<'a, F> {
    session: &'a mut Session,
    /// What the session had counted before.
    before: Counters,
    options: &'a Generate,
    stop: &'a [u32],
    context: usize,
    pending: VecDeque<PendingTokens>,
    sequences: Vec<Sequence<'a>>,
    on_token: F,
    /// The callback or the handle said stop.
    broken: bool,
}

impl<'a, F: FnMut(&Token) -> ControlFlow<()>> Continuation<'a, F> {
    /// Goes on from `prompts`, the text of each by a writer of its own.
    pub fn new(
        session: &'a mut Session,
        rules: Rules<'a>,
        prompts: &[&[u32]],
        writers: Vec<Writer<'a>>,
        on_token: F,
    ) -> Self {
        let Rules { options, stop, context } = rules;
        let sequences = prompts.iter().zip(writers).map(|(ids, writer)| Sequence::new(ids.len(), writer));
        let sequences = sequences.collect();
        let before = session.counters();
        let pending = VecDeque::new();
        Self { session, before, options, stop, context, pending, sequences, on_token, broken: false }
    }

    /// Counts the `kept` tokens that every sequence of the session has read before these prompts.
    #[cfg(feature = "chat")]
    pub fn behind(mut self, kept: usize) -> Self {
        for sequence in &mut self.sequences {
            sequence.prompt_len += kept;
            sequence.prompt_reported += kept;
        }
        self
    }

    /// What was generated.
    pub fn finish(self) -> Generation {
        let mut generation = Generation {
            ids: Vec::new(),
            text: Vec::new(),
            stopped: Vec::new(),
            counters: self.session.counters() - self.before,
        };
        for sequence in self.sequences {
            generation.ids.push(sequence.ids);
            generation.text.push(sequence.writer.into_text());
            generation.stopped.push(sequence.stopped.unwrap_or(StopReason::Cancelled));
        }
        generation
    }

    /// Runs the prompts and samples the first new token of each. One that is cancelled ends without an error.
    pub async fn prefill(&mut self, prompts: &[&[u32]]) -> Result<()> {
        match self.read_prompts(prompts).await {
            Err(Error::Cancelled) => self.stop_all(),
            other => return other,
        }
        Ok(())
    }

    async fn read_prompts(&mut self, prompts: &[&[u32]]) -> Result<()> {
        let total: usize = prompts.iter().map(|ids| ids.len()).sum();
        let runs: Vec<Run<'_>> = (0..).zip(prompts).map(|(sequence, ids)| Run::ids(sequence, ids)).collect();
        // The last step has the logits of all.
        let mut steps = self.session.steps(&runs);
        let Some(last) = steps.pop() else { return Ok(()) };
        let mut read = 0;
        for runs in steps {
            let tokens = runs.iter().map(Run::tokens).sum();
            let watch = watch(self.options, read, tokens, total);
            self.session.forward(&runs)?;
            if self.options.routes {
                let pending = self.session.read_tokens(true, watch).await?;
                let (_, routes) = pending.wait_with_routes().await?;
                self.report_prompt(&runs, routes.as_ref());
            } else {
                self.session.submit(watch).await?;
            }
            if self.broken {
                return Ok(());
            }
            read += tokens;
        }
        self.session.forward(&last)?;
        self.finish_prefill(&last, total).await
    }

    /// Samples after the step that has the last tokens of the prompts, which are `total` tokens.
    async fn finish_prefill(&mut self, runs: &[Run<'_>], total: usize) -> Result<()> {
        if self.options.max_new > 0 {
            self.session.sample(&self.options.sampling)?;
        }
        let tokens = runs.iter().map(Run::tokens).sum();
        let watch = watch(self.options, total - tokens, tokens, total);
        let pending = self.session.read_tokens(self.options.routes, watch).await?;
        let (ids, routes) = pending.wait_with_routes().await?;
        self.options.tell_progress(total as u64, total as u64);
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
    pub async fn decode(&mut self, room: usize) -> Result<()> {
        let mut recorded = 0;
        let mut failed = None;
        loop {
            // The first token came with the prompt. With routes, each needs one more step that reads it in.
            let wanted = self.options.max_new.min(room).saturating_sub(usize::from(!self.options.routes));
            let more = !self.done() && recorded < wanted && !self.broken && failed.is_none();
            if more && self.pending.len() <= STEPS_AHEAD {
                if let Err(error) = self.session.decode() {
                    // What is under way still arrives.
                    failed = Some(error);
                    continue;
                }
                self.session.sample(&self.options.sampling)?;
                let cancel = &self.options.cancel;
                match self.session.read_tokens(self.options.routes, |_, _| cancel.flow()).await {
                    Ok(pending) => self.pending.push_back(pending),
                    Err(Error::Cancelled) => self.stop_all(),
                    Err(error) => failed = Some(error),
                }
                recorded += 1;
                continue;
            }
            let Some(pending) = self.pending.pop_front() else { break };
            if self.broken {
                continue;
            }
            let (ids, routes) = pending.wait_with_routes().await?;
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
        failed.map_or(Ok(()), Err)
    }

    fn done(&self) -> bool {
        self.sequences.iter().all(|s| s.stopped.is_some() && s.waiting.is_empty())
    }

    /// Takes the next id of every sequence that is still going.
    fn accept(&mut self, ids: &[u32]) {
        for (sequence, &id) in self.sequences.iter_mut().zip(ids) {
            if sequence.stopped.is_some() {
                continue;
            }
            sequence.ids.push(id);
            let mut text = sequence.writer.push(id);
            sequence.stopped = if self.stop.contains(&id) {
                Some(StopReason::StopToken)
            } else if sequence.ids.len() >= self.options.max_new {
                Some(StopReason::MaxNew)
            } else if sequence.prompt_len + sequence.ids.len() >= self.context {
                Some(StopReason::Context)
            } else {
                None
            };
            if sequence.stopped.is_some() {
                text += &sequence.writer.end();
            }
            // What came out at the end may have one, too.
            if sequence.writer.is_stopped() {
                sequence.stopped = Some(StopReason::StopString);
            }
            sequence.waiting.push_back(text);
        }
    }

    /// Reports the oldest unreported id of every sequence; `routes` is what the step chose that read them in.
    fn report(&mut self, routes: Option<&Routes>) {
        if self.broken {
            return;
        }
        for index in 0..self.sequences.len() {
            let sequence = &mut self.sequences[index];
            let waiting = sequence.waiting.len();
            let Some(text) = sequence.waiting.pop_front() else { continue };
            let reported = sequence.ids.len() - waiting;
            let (id, position) = (sequence.ids[reported], sequence.prompt_len + reported);
            // Past the context no step could read the token in.
            let routes = routes.filter(|_| position < self.context).map(|routes| routes.token(index));
            let last = sequence.stopped.is_some() && waiting == 1;
            let token = Token { sequence: index, position, id, prompt: false, text, last, routes };
            if !self.tell(&token) {
                return;
            }
        }
    }

    /// Reports the prompt tokens of a step, with their routes.
    fn report_prompt(&mut self, runs: &[Run<'_>], routes: Option<&Routes>) {
        let Some(routes) = routes else { return };
        let tokens = runs.iter().flat_map(|&run| {
            let sequence = run.sequence() as usize;
            run.host_ids().iter().map(move |&id| (sequence, id))
        });
        for (row, (sequence, id)) in tokens.enumerate() {
            let own = &mut self.sequences[sequence];
            let position = own.prompt_reported;
            own.prompt_reported += 1;
            let last = position + 1 == own.prompt_len && self.options.max_new == 0;
            let (text, routes) = (own.writer.read(id, last), Some(routes.token(row)));
            if !self.tell(&Token { sequence, position, id, prompt: true, text, last, routes }) {
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

/// Watches over a step of `tokens` tokens behind `read` of the `total` tokens of the prompts.
fn watch(
    options: &Generate,
    read: usize,
    tokens: usize,
    total: usize,
) -> impl FnMut(u64, u64) -> ControlFlow<()> {
    move |submitted, of| {
        let now = read as f64 + tokens as f64 * submitted as f64 / of.max(1) as f64;
        if now > 0.0 {
            options.tell_progress(now as u64, total as u64);
        }
        options.cancel.flow()
    }
}
