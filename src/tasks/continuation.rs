//! One call of `generate_ids`: prefill, decode steps in flight, reporting.

use std::{collections::VecDeque, ops::ControlFlow};

use tracing::Instrument as _;

use super::{Generate, Generation, StopReason, Token, TopToken, writer::Writer};
use crate::{
    Error, Result,
    gpu::Counters,
    sessions::{PendingTokens, Routes, Run, SampledTokens, Session, Wanted},
};

/// Decode steps submitted ahead of the one whose tokens are being read.
const STEPS_AHEAD: usize = 3;

/// One prompt's state.
struct Sequence<'a> {
    /// All ids, the prompt's first.
    ids: Vec<u32>,
    prompt_len: usize,
    prompt_reported: usize,
    /// The last ids, those that were not reported: with routes, a token waits for the step that reads it.
    waiting: VecDeque<NewToken>,
    writer: Writer<'a>,
    stopped: Option<StopReason>,
}

/// What is known of a token when it is chosen.
struct NewToken {
    text: String,
    logprob: Option<f32>,
    top: Vec<TopToken>,
}

impl<'a> Sequence<'a> {
    fn new(prompt: &[u32], writer: Writer<'a>) -> Self {
        let (ids, prompt_len, waiting) = (prompt.to_vec(), prompt.len(), VecDeque::new());
        Self { ids, prompt_len, prompt_reported: 0, waiting, writer, stopped: None }
    }

    /// Takes the next id, of which `logprob` and `top` are known where they are wanted.
    fn accept(&mut self, id: u32, logprob: Option<f32>, top: &[(u32, f32)], rules: &Rules<'_>) {
        // One number for one token: two kernels may round differently.
        let logprob = top.iter().find(|top| top.0 == id).map(|top| top.1).or(logprob);
        let named = |&(id, logprob): &(u32, f32)| {
            let text = self.writer.alternative(id);
            TopToken { id, text, logprob }
        };
        let top = top.iter().map(named).collect();
        self.ids.push(id);
        let mut text = self.writer.push(id);
        self.stopped = if rules.stop.contains(&id) {
            Some(StopReason::StopToken)
        } else if self.ids.len() - self.prompt_len >= rules.options.max_new {
            Some(StopReason::MaxNew)
        } else if self.ids.len() >= rules.context {
            Some(StopReason::Context)
        } else {
            None
        };
        if self.stopped.is_some() {
            text += &self.writer.end();
        }
        // What came out at the end may have one, too.
        if self.writer.is_stopped() {
            self.stopped = Some(StopReason::StopString);
        }
        self.waiting.push_back(NewToken { text, logprob, top });
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
    rules: Rules<'a>,
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
        let sequences = prompts.iter().zip(writers).map(|(ids, writer)| Sequence::new(ids, writer));
        let sequences = sequences.collect();
        let before = session.counters();
        let pending = VecDeque::new();
        Self { session, before, rules, pending, sequences, on_token, broken: false }
    }

    /// Every sequence of the session has read `kept` before these prompts.
    #[cfg(feature = "chat")]
    pub fn behind(mut self, kept: &[u32]) -> Self {
        for sequence in &mut self.sequences {
            sequence.ids.splice(..0, kept.iter().copied());
            sequence.prompt_len += kept.len();
            sequence.prompt_reported += kept.len();
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
        for mut sequence in self.sequences {
            generation.ids.push(sequence.ids.split_off(sequence.prompt_len));
            generation.text.push(sequence.writer.into_text());
            generation.stopped.push(sequence.stopped.unwrap_or(StopReason::Cancelled));
        }
        generation
    }

    /// Runs the prompts and samples the first new token of each. One that is cancelled ends without an error.
    pub async fn prefill(&mut self, prompts: &[&[u32]]) -> Result<()> {
        let tokens: usize = prompts.iter().map(|ids| ids.len()).sum();
        let span = tracing::debug_span!("prompt", sequences = prompts.len(), tokens);
        match self.read_prompts(prompts).instrument(span).await {
            Err(Error::Cancelled) => self.stop_all(),
            other => return other,
        }
        Ok(())
    }

    async fn read_prompts(&mut self, prompts: &[&[u32]]) -> Result<()> {
        let read: Vec<&[u32]> = self.sequences.iter().map(|sequence| &sequence.ids[..]).collect();
        self.session.set_penalties(self.rules.options.penalties(), &read)?;
        let total: usize = prompts.iter().map(|ids| ids.len()).sum();
        let runs: Vec<Run<'_>> = (0..).zip(prompts).map(|(sequence, ids)| Run::ids(sequence, ids)).collect();
        // The last step has the logits of all.
        let mut steps = self.session.steps(&runs);
        let Some(last) = steps.pop() else { return Ok(()) };
        let mut read = 0;
        for runs in steps {
            let tokens = runs.iter().map(Run::tokens).sum();
            let watch = watch(self.rules.options, read, tokens, total);
            self.session.forward(&runs)?;
            if self.rules.options.routes {
                let wanted = Wanted { logprobs: None, ..self.rules.options.wanted() };
                let read = self.session.read_tokens(wanted, watch).await?.wait_for_all().await?;
                self.report_prompt(&runs, read.routes.as_ref());
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
        let options = self.rules.options;
        let tokens = runs.iter().map(Run::tokens).sum();
        let watch = watch(options, total - tokens, tokens, total);
        let pending = match options.max_new {
            0 => self.session.read_tokens(options.wanted(), watch).await?,
            _ => self.choose(watch).await?,
        };
        let read = pending.wait_for_all().await?;
        options.tell_progress(total as u64, total as u64);
        self.report_prompt(runs, read.routes.as_ref());
        if options.max_new == 0 {
            self.sequences.iter_mut().for_each(|sequence| sequence.stopped = Some(StopReason::MaxNew));
            return Ok(());
        }
        self.accept(&read);
        if !options.routes {
            self.report(None);
        }
        Ok(())
    }

    /// Chooses a token for each sequence by the logits of the step that was recorded, which `watch` may end, and starts reading.
    async fn choose(&mut self, watch: impl FnMut(u64, u64) -> ControlFlow<()>) -> Result<PendingTokens> {
        let options = self.rules.options;
        let Some(filter) = &options.filter else {
            self.session.sample(&options.sampling)?;
            return self.session.read_tokens(options.wanted(), watch).await;
        };
        let mut logits = self.session.read_rows(watch).await?;
        let vocab = logits.len() / self.sequences.len();
        for (sequence, logits) in self.sequences.iter().zip(logits.chunks_mut(vocab)) {
            if sequence.stopped.is_none() {
                filter.change(&sequence.ids, logits, options.penalties())?;
            }
        }
        self.session.offer(&logits);
        self.session.sample(&options.sampling)?;
        self.session.read_tokens(options.wanted(), |_, _| options.cancel.flow()).await
    }

    /// Runs decode steps, a few ahead of the reads, until every sequence has stopped. `room` is how many
    /// positions the shortest prompt leaves.
    pub async fn decode(&mut self, room: usize) -> Result<()> {
        let options = self.rules.options;
        // A filter looks at all tokens before the next.
        let ahead = if options.filter.is_some() { 0 } else { STEPS_AHEAD };
        let mut recorded = 0;
        let mut failed = None;
        loop {
            // The first token came with the prompt. With routes, each needs one more step that reads it in.
            let wanted = options.max_new.min(room).saturating_sub(usize::from(!options.routes));
            let more = !self.done() && recorded < wanted && !self.broken && failed.is_none();
            if more && self.pending.len() <= ahead {
                recorded += 1;
                match self.next_step().await {
                    Ok(pending) => self.pending.push_back(pending),
                    Err(Error::Cancelled) => self.stop_all(),
                    // What is under way still arrives.
                    Err(error) => failed = Some(error),
                }
                continue;
            }
            let Some(pending) = self.pending.pop_front() else { break };
            if self.broken {
                continue;
            }
            let read = pending.wait_for_all().await?;
            if options.routes {
                self.report(read.routes.as_ref());
                self.accept(&read);
            } else {
                self.accept(&read);
                self.report(None);
            }
        }
        // With routes, the last token of a full context was never read in by a step.
        self.report(None);
        failed.map_or(Ok(()), Err)
    }

    /// Lets every sequence read its last token and choose the next.
    async fn next_step(&mut self) -> Result<PendingTokens> {
        self.session.decode()?;
        let cancel = &self.rules.options.cancel;
        self.choose(|_, _| cancel.flow()).await
    }

    fn done(&self) -> bool {
        self.sequences.iter().all(|s| s.stopped.is_some() && s.waiting.is_empty())
    }

    /// Takes the next id of every sequence that is still going.
    fn accept(&mut self, read: &SampledTokens) {
        for (row, (sequence, &id)) in self.sequences.iter_mut().zip(&read.ids).enumerate() {
            if sequence.stopped.is_none() {
                let top = read.top.get(row).map_or(&[][..], Vec::as_slice);
                sequence.accept(id, read.logprobs.get(row).copied(), top, &self.rules);
            }
        }
    }

    /// Reports the oldest unreported id of every sequence; `routes` is what the step chose that read them in.
    fn report(&mut self, routes: Option<&Routes>) {
        if self.broken {
            return;
        }
        for index in 0..self.sequences.len() {
            let sequence = &mut self.sequences[index];
            let position = sequence.ids.len() - sequence.waiting.len();
            let Some(NewToken { text, logprob, top }) = sequence.waiting.pop_front() else { continue };
            // Past the context no step could read the token in.
            let routes = routes.filter(|_| position < self.rules.context).map(|routes| routes.token(index));
            let last = sequence.stopped.is_some() && sequence.waiting.is_empty();
            let (id, prompt) = (sequence.ids[position], false);
            let token = Token { sequence: index, position, id, prompt, text, last, logprob, top, routes };
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
            let last = position + 1 == own.prompt_len && self.rules.options.max_new == 0;
            let (text, routes) = (own.writer.read(id, last), Some(routes.token(row)));
            let (prompt, logprob, top) = (true, None, Vec::new());
            if !self.tell(&Token { sequence, position, id, prompt, text, last, logprob, top, routes }) {
                return;
            }
        }
    }

    /// Shows a token to the caller; false when it wants no more.
    fn tell(&mut self, token: &Token) -> bool {
        let told = (self.on_token)(token).is_continue();
        if !told || self.rules.options.cancel.is_cancelled() {
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
