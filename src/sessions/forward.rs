//! Recording a step of a session, and the choice of the tokens that follow it.

use super::{
    Run, Sampling, Session,
    options::Layout,
    runs::{Input, Room, steps},
    session::{LastStep, LogitRow, Sampled, Sequence},
};
use crate::{
    Error, Result,
    gpu::BufferCopy,
    layers::{Hook, Pass, Step, Workspace},
    models::InputSpec,
    ops::{Argmax, Sample, Span},
};

/// The span of a step that is recorded. It ends before the GPU does the work.
pub(super) fn step_span(sequences: usize, tokens: impl Fn() -> usize) -> tracing::span::EnteredSpan {
    tracing::debug_span!("step", sequences, tokens = tokens()).entered()
}

/// A step as it is written down for the GPU.
#[derive(Default)]
struct Written {
    spans: Vec<Span>,
    /// (first token, tokens) of each run.
    ranges: Vec<[u32; 2]>,
    /// Input ids; anything where the token was sampled.
    ids: Vec<u32>,
    fed: Vec<Fed>,
    /// The tokens that want logits.
    logit_rows: Vec<u32>,
    rows: Vec<LogitRow>,
}

/// A token of a step that was sampled for its sequence.
struct Fed {
    token: u32,
    sequence: u32,
    from: Sampled,
}

impl Session {
    /// Cuts runs that are more tokens, or more rows of logits, than a step of this session holds into steps, for
    /// [`forward`](Self::forward) one after the other. Where runs want the logits of their last tokens alone, these come
    /// together in the last step, so that all can be sampled from there, if a step has room for all. A run with rows of its own
    /// ([`LogitRows::At`](super::LogitRows::At)) stays whole. A model whose tokens see those that follow them reads each sequence, or all, in one step.
    pub fn steps<'a>(&self, runs: &[Run<'a>]) -> Vec<Vec<Run<'a>>> {
        let Layout { step_tokens, logit_rows, .. } = self.layout;
        let room = Room { tokens: step_tokens as usize, rows: logit_rows as usize };
        steps(&self.transformer.spec.stack, runs, room)
    }

    /// Records a step over `runs`, each of another sequence.
    ///
    /// Nothing is submitted but what was recorded before. Runs may be prompts, or parts of them, beside sequences that read
    /// the token that was sampled for them.
    ///
    /// # Errors
    /// - A sequence that the session does not have, that comes twice, or has no room for its run.
    /// - No tokens, or more than one step has room for ([`steps`](Self::steps) cuts); too many rows of logits.
    /// - An id outside the vocabulary, or a sampled token where none was sampled.
    /// - [`Error::TooLarge`] where the cache cannot grow.
    pub fn forward(&mut self, runs: &[Run<'_>]) -> Result<()> {
        self.check(runs)?;
        let _span = step_span(runs.len(), || runs.iter().map(Run::tokens).sum());
        let ends =
            runs.iter().map(|run| self.sequences[run.sequence as usize].position + run.tokens() as u32);
        self.reserve(ends.max().unwrap_or(0))?;
        // The buffers it reads are about to be written.
        self.submit_recorded();
        self.read_observed();
        let written = self.write_down(runs);
        if let Some(observing) = &mut self.observing {
            observing.begin(self.recorder.gpu(), &self.transformer.spec, &written.spans)?;
        }
        let from_tokens = self.place_ids(&written);
        let workspace = &self.workspace;
        let logit_rows = written.logit_rows.len() as u32;
        let begun = workspace.begin(&written.spans, &written.ranges);
        let step = Step { logit_rows, hidden: self.layout.hidden, ..begun };
        workspace.logit_rows.write(0, &written.logit_rows);
        let ids = if from_tokens { &workspace.tokens } else { &workspace.ids };
        if let Some(replay) = &self.replay {
            replay.begin(&written.spans);
        }
        let edits = self.edited.as_mut().map(|edited| &mut edited.hook as &mut dyn Hook);
        let hook = self.hook.as_mut().map(|hook| &mut **hook as &mut dyn Hook);
        let replay = self.replay.as_mut().map(|replay| replay as &mut dyn Hook);
        let captures = self.observing.as_mut().map(|observing| &mut observing.captures as &mut dyn Hook);
        let pass = Pass::new(&mut self.recorder, workspace, &step);
        let pass = pass.with_hook(edits).with_hook(replay).with_hook(captures).with_hook(hook);
        self.transformer.record(pass, &self.cache, None, ids);
        for run in runs {
            let sequence = &mut self.sequences[run.sequence as usize];
            *sequence = Sequence { position: sequence.position + run.tokens() as u32, sampled: None };
        }
        self.last = LastStep { step, rows: written.rows, sampled: false };
        Ok(())
    }

    /// Records a step over whole images: `patches` `[images, 1 + patches, values]`, rows padded, the first of each image
    /// for its class token. The class tokens want logits.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub(crate) fn forward_images(&mut self, images: u32, tokens_each: u32, patches: &[f32]) -> Result<()> {
        let runs: Vec<Run<'_>> = (0..images).map(|image| Run::image(image, tokens_each)).collect();
        self.check(&runs)?;
        self.submit_recorded();
        self.workspace.patches.write(0, patches);
        self.forward(&runs)
    }

    /// Records a step that feeds every sequence the token sampled for it. A sequence without room stays at its
    /// last position: it has ended, and what it computes is not read.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); what was recorded before stands.
    pub(crate) fn decode(&mut self) -> Result<()> {
        let held = self.sequences.clone();
        for sequence in &mut self.sequences {
            sequence.position = sequence.position.min(self.layout.capacity - 1);
        }
        let runs: Vec<Run<'_>> = (0..self.layout.sequences).map(Run::sampled).collect();
        self.forward(&runs).inspect_err(|_| self.sequences = held)
    }

    /// Records the choice of a next token for each row of logits of the last step. It stays on the GPU, for
    /// [`Run::sampled`]; [`tokens`](Self::tokens) reads it. Draws are counted by position and sequence.
    ///
    /// # Errors
    /// An option out of range, a last step without logits or, under penalties, with several rows of one sequence, and a session of
    /// hidden states.
    pub fn sample(&mut self, sampling: &Sampling) -> Result<()> {
        sampling.check()?;
        if self.last.rows.is_empty() {
            return Err(Error::argument("rows of logits", "none in the last step", "at least one"));
        }
        self.check_rows(false)?;
        if let Some(adjusting) = &self.adjusting {
            adjusting.check_rows(&self.last.rows)?;
        }
        self.settle();
        let Self { recorder, workspace, adjusting, .. } = self;
        let (rows, vocab) = (self.last.step.logit_rows, self.transformer.spec.outputs);
        let logits = match adjusting {
            Some(adjusting) => adjusting.record(recorder, workspace, rows),
            None => &workspace.logits,
        };
        let Workspace { tokens, spans, logit_rows, .. } = &*workspace;
        let Sampling { temperature, top_k, top_p, seed } = *sampling;
        if temperature == 0.0 {
            Argmax { logits, tokens, rows, vocab }.record(recorder);
        } else {
            let top_k = top_k.unwrap_or(u32::MAX);
            let rows_of = logit_rows;
            Sample { logits, spans, rows_of, tokens, rows, vocab, temperature, top_k, top_p, seed }
                .record(recorder);
        }
        if let Some(adjusting) = adjusting {
            adjusting.record_chosen(recorder, workspace, rows);
        }
        self.last.sampled = true;
        for (row, of) in (0..).zip(&self.last.rows) {
            if of.newest {
                self.sequences[of.sequence as usize].sampled = Some(Sampled::Row(row));
            }
        }
        Ok(())
    }

    /// Refuses runs that are no step of this session.
    fn check(&self, runs: &[Run<'_>]) -> Result<()> {
        let Layout { capacity, step_tokens, logit_rows, .. } = self.layout;
        let mut seen = vec![false; self.sequences.len()];
        let (mut tokens, mut rows) = (0, 0);
        for run in runs {
            let (count, position) = (run.tokens(), self.position(run.sequence)?);
            if std::mem::replace(&mut seen[run.sequence as usize], true) {
                let found = format!("{} twice", run.sequence);
                return Err(Error::argument("sequence", found, "each at most once in a step"));
            }
            self.check_input(run)?;
            if count as u64 > u64::from(capacity - position) {
                let found = format!("{} tokens", u64::from(position) + count as u64);
                return Err(Error::argument("sequence length", found, format!("at most {capacity}")));
            }
            let wanted = run.rows();
            if let Some(row) = wanted.iter().find(|&&row| row as usize >= count) {
                let expected = format!("one of the run's {count} tokens");
                return Err(Error::argument("row of logits", row, expected));
            }
            tokens += count;
            rows += wanted.len();
        }
        if tokens == 0 || tokens > step_tokens as usize {
            let expected = format!("at least 1, at most {step_tokens}");
            return Err(Error::argument("tokens of a step", tokens, expected));
        }
        if rows > logit_rows as usize {
            return Err(Error::argument("rows of logits of a step", rows, format!("at most {logit_rows}")));
        }
        Ok(())
    }

    /// Refuses what a sequence cannot read.
    fn check_input(&self, run: &Run<'_>) -> Result<()> {
        let (spec, sequence) = (&self.transformer.spec, &self.sequences[run.sequence as usize]);
        match (run.input, spec.input) {
            (Input::Patches(_), InputSpec::Patches { .. }) => {}
            (Input::Ids([]), _) => return Err(Error::argument("run", "no tokens", "at least one token")),
            (Input::Ids(ids), InputSpec::Tokens { .. }) => check_ids(ids, spec.outputs)?,
            (Input::Sampled, InputSpec::Tokens { .. }) if sequence.sampled.is_some() => {}
            (Input::Sampled, InputSpec::Tokens { .. }) => {
                let found = format!("none for sequence {}", run.sequence);
                return Err(Error::argument("sampled token", found, "one that was sampled and not read yet"));
            }
            _ => return Err(Error::argument("model", "one that reads images", "one that reads tokens")),
        }
        match spec.stack.whole_sequences() {
            Some(why) if sequence.position > 0 => {
                let found = format!("{} of sequence {}", sequence.position, run.sequence);
                Err(Error::argument(
                    "position",
                    found,
                    format!("0, for the model reads whole sequences: {why}"),
                ))
            }
            _ => Ok(()),
        }
    }

    fn write_down(&self, runs: &[Run<'_>]) -> Written {
        let mut written = Written::default();
        for run in runs {
            let (sequence, first, count) = (run.sequence, written.spans.len() as u32, run.tokens() as u32);
            written.ranges.push([first, count]);
            written.spans.extend(self.spans(sequence, count));
            let rows = run.rows();
            let row = |row: &u32| LogitRow { sequence, newest: row + 1 == count };
            written.rows.extend(rows.iter().map(row));
            written.logit_rows.extend(rows.iter().map(|row| first + row));
            if let Input::Sampled = run.input {
                let from = self.sequences[sequence as usize].sampled;
                written.fed.extend(from.map(|from| Fed { token: first, sequence, from }));
            }
            written.ids.extend(run.host_ids());
            written.ids.resize(written.spans.len(), 0);
        }
        written
    }

    /// Where the next `count` tokens of a sequence stand, and what they see.
    fn spans(&self, sequence: u32, count: u32) -> impl Iterator<Item = Span> {
        let position = self.sequences[sequence as usize].position;
        let end = position + count;
        let whole = (!self.transformer.spec.stack.causal).then_some(end);
        (position..end).map(move |position| Span::seeing(position, sequence, whole.unwrap_or(position + 1)))
    }

    /// Brings the input ids of a step together, what was sampled by a copy on the GPU. True where they are the tokens of the
    /// last sampling as these lie: then there is nothing to bring, as in every step in which all sequences decode.
    fn place_ids(&mut self, written: &Written) -> bool {
        let in_place = |fed: &Fed| fed.from == Sampled::Row(fed.token);
        let from_tokens = written.fed.len() == written.ids.len() && written.fed.iter().all(in_place);
        let word = |from, from_index: u32, to, to_index: u32| BufferCopy {
            from,
            from_offset: 4 * u64::from(from_index),
            to,
            to_offset: 4 * u64::from(to_index),
            bytes: 4,
        };
        let Workspace { tokens, ids, .. } = &self.workspace;
        let mut copies = Vec::new();
        if !from_tokens {
            ids.write(0, &written.ids);
            copies.extend(written.fed.iter().map(|fed| match fed.from {
                Sampled::Row(row) => word(tokens, row, ids, fed.token),
                Sampled::Parked => word(&self.parked, fed.sequence, ids, fed.token),
            }));
        }
        // What was sampled for others has to outlive the next sampling.
        if !written.rows.is_empty() {
            let mut reads = vec![false; self.sequences.len()];
            written.spans.iter().for_each(|span| reads[span.sequence as usize] = true);
            for ((sequence, state), reads) in (0..).zip(&mut self.sequences).zip(reads) {
                if let (Some(Sampled::Row(row)), false) = (state.sampled, reads) {
                    copies.push(word(tokens, row, &self.parked, sequence));
                    state.sampled = Some(Sampled::Parked);
                }
            }
        }
        if !copies.is_empty() {
            self.recorder.copy_among(&copies);
        }
        from_tokens
    }
}

/// Refuses an id outside the vocabulary.
pub(crate) fn check_ids(ids: &[u32], vocab: u32) -> Result<()> {
    match ids.iter().find(|&&id| id >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::argument("token id", id, format!("below the vocabulary size {vocab}"))),
    }
}
