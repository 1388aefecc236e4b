//! A session: sequences with their key/value cache, working one step at a time.

use std::sync::Arc;

use super::{
    Run, Sampling, SessionOptions,
    options::{Layout, PAGE, SOFTWARE_POSITIONS},
    runs::{Input, steps},
};
use crate::{
    Error, Result,
    gpu::{Buffer, BufferCopy, Counters, Gpu, Recorder},
    layers::{CacheSize, HeadMixtureSpec, KvCache, Step, Workspace},
    models::{InputSpec, Transformer},
    ops::{Argmax, Sample, Span},
};

/// Sequences on the GPU that read and write side by side, one step at a time.
///
/// [`forward`](Self::forward) records a step over runs of some of the sequences: ids, or the tokens that were sampled for them.
/// [`sample`](Self::sample) lets the GPU choose what follows. [`tokens`](Self::tokens), [`logits`](Self::logits) and
/// [`routes`](Self::routes) submit what was recorded and read.
///
/// A call that returns an error leaves the session as it was; so does a step that is cancelled, but for its logits, which are
/// gone. What the GPU itself reports ([`Error::Gpu`], [`Error::DeviceLost`]) ends a session.
pub struct Session {
    pub(super) transformer: Arc<Transformer>,
    /// Which model that is.
    pub(super) model: u64,
    pub(super) recorder: Recorder,
    pub(super) workspace: Workspace,
    pub(super) cache: KvCache,
    pub(super) layout: Layout,
    pub(super) sequences: Vec<Sequence>,
    /// What they were before what is recorded and not submitted.
    before: Vec<Sequence>,
    /// `[sequences]` u32: tokens that were sampled for sequences which sit out while others get theirs
    parked: Buffer,
    /// Bytes of everything but the cache.
    fixed_bytes: u64,
    pub(super) last: LastStep,
}

/// How far a sequence is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sequence {
    /// The next position.
    pub position: u32,
    /// Where the token is that was sampled for it, until it is read.
    pub sampled: Option<Sampled>,
}

/// Where a sampled token is on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sampled {
    /// Among the workspace's tokens, which the next sampling writes over.
    Row(u32),
    /// In its sequence's place among those that are kept.
    Parked,
}

/// What the last step computed.
#[derive(Default)]
pub(super) struct LastStep {
    pub step: Step,
    /// One for each row of logits.
    pub rows: Vec<LogitRow>,
    /// Whether tokens were sampled from them.
    pub sampled: bool,
}

/// Whose logits a row holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogitRow {
    pub sequence: u32,
    /// Whether they are of the last token that the sequence has read.
    pub newest: bool,
}

/// A step as it is written down for the GPU.
#[derive(Default)]
struct Written {
    spans: Vec<Span>,
    /// (first token, tokens) of each run.
    ranges: Vec<[u32; 2]>,
    /// Input ids; anything where the token was sampled.
    ids: Vec<u32>,
    /// Tokens of the step that were sampled, and where they are.
    sampled: Vec<(u32, u32, Sampled)>,
    /// The tokens that want logits.
    logit_rows: Vec<u32>,
    rows: Vec<LogitRow>,
}

impl Session {
    /// Plans the memory, then allocates it. `model` is a number that tells the transformer's model from others.
    ///
    /// # Errors
    /// An option out of range, [`Error::TooLarge`] before anything is allocated, [`Error::Gpu`] when the device refuses.
    pub(crate) fn new(
        gpu: &Gpu,
        transformer: &Arc<Transformer>,
        model: u64,
        options: SessionOptions,
    ) -> Result<Self> {
        let spec = &transformer.spec;
        let layout = options.layout(gpu, spec.context)?;
        let Layout { sequences, capacity, step_tokens, logit_rows, .. } = layout;
        check_cache(gpu, spec.stack.attentions(), transformer.cache_size(sequences, capacity))?;
        let dimensions = spec.dimensions(step_tokens, sequences, capacity, logit_rows);
        dimensions.check(gpu)?;
        let size = transformer.cache_size(sequences, layout.first_capacity());
        let (attentions, cache_use) = (|| spec.stack.attentions(), spec.stack.cache_use());
        let parked_bytes = 4 * u64::from(sequences);
        let fixed_bytes = dimensions.bytes(gpu) + parked_bytes;
        let need = fixed_bytes + KvCache::bytes(attentions(), size, cache_use);
        gpu.plan(&format!("a session of {sequences} × {} positions", size.capacity), need)?;

        let session = Self {
            recorder: Recorder::new(gpu),
            workspace: Workspace::new(gpu, &dimensions),
            cache: KvCache::new(gpu, attentions(), size, cache_use),
            transformer: Arc::clone(transformer),
            model,
            layout,
            sequences: vec![Sequence::default(); sequences as usize],
            before: vec![Sequence::default(); sequences as usize],
            parked: Buffer::new(gpu, "parked", parked_bytes),
            fixed_bytes,
            last: LastStep::default(),
        };
        gpu.check("allocating a session")?;
        Ok(session)
    }

    /// The next position of a sequence: as many tokens as it has read.
    ///
    /// # Errors
    /// A sequence that the session does not have.
    pub fn position(&self, sequence: u32) -> Result<u32> {
        Ok(self.sequence(sequence)?.position)
    }

    /// Bytes of GPU memory that it holds: activations, keys and values. These grow with the longest sequence.
    pub fn bytes(&self) -> u64 {
        let stack = &self.transformer.spec.stack;
        let sequences = self.layout.sequences;
        let size = self.transformer.cache_size(sequences, self.cache.capacity());
        self.fixed_bytes + KvCache::bytes(stack.attentions(), size, stack.cache_use())
    }

    /// Exact counts of everything recorded so far.
    pub fn counters(&self) -> Counters {
        self.recorder.counters()
    }

    /// Cuts runs that are more tokens than a step of this session holds into steps, for [`forward`](Self::forward) one after
    /// the other. Where runs want the logits of their last tokens alone, these come together in the last step, so that all
    /// can be sampled from there. A model whose tokens see those that follow them reads each sequence, or all, in one step.
    pub fn steps<'a>(&self, runs: &[Run<'a>]) -> Vec<Vec<Run<'a>>> {
        steps(&self.transformer.spec.stack, runs, self.layout.step_tokens as usize)
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
        let ends =
            runs.iter().map(|run| self.sequences[run.sequence as usize].position + run.tokens() as u32);
        self.reserve(ends.max().unwrap_or(0))?;
        // The buffers it reads are about to be written.
        self.submit_recorded();
        let written = self.write_down(runs);
        let from_tokens = self.place_ids(&written);
        let workspace = &self.workspace;
        let logit_rows = written.logit_rows.len() as u32;
        let step = Step { logit_rows, ..workspace.begin(&written.spans, &written.ranges) };
        workspace.logit_rows.write(0, &written.logit_rows);
        let ids = if from_tokens { &workspace.tokens } else { &workspace.ids };
        self.transformer.record(&mut self.recorder, workspace, &self.cache, None, ids, &step);
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
    /// An option out of range, and a last step without logits.
    pub fn sample(&mut self, sampling: &Sampling) -> Result<()> {
        sampling.check()?;
        self.rows_of_last_step()?;
        self.settle();
        let Workspace { logits, tokens, spans, logit_rows, .. } = &self.workspace;
        let (rows, vocab) = (self.last.step.logit_rows, self.transformer.spec.outputs);
        let Sampling { temperature, top_k, top_p, seed } = *sampling;
        if temperature == 0.0 {
            Argmax { logits, tokens, rows, vocab }.record(&mut self.recorder);
        } else {
            let top_k = top_k.unwrap_or(u32::MAX);
            let rows_of = logit_rows;
            Sample { logits, spans, rows_of, tokens, rows, vocab, temperature, top_k, top_p, seed }
                .record(&mut self.recorder);
        }
        self.last.sampled = true;
        for (row, of) in (0..).zip(&self.last.rows) {
            if of.newest {
                self.sequences[of.sequence as usize].sampled = Some(Sampled::Row(row));
            }
        }
        Ok(())
    }

    /// Goes back to an earlier position of a sequence: what it has read from there on is forgotten, and so is the token that
    /// was sampled for it.
    ///
    /// # Errors
    /// A sequence that the session does not have, and a position behind its own.
    pub fn rewind(&mut self, sequence: u32, position: u32) -> Result<()> {
        let now = self.position(sequence)?;
        if position > now {
            return Err(Error::argument("position", position, format!("at most {now}, where it is")));
        }
        self.settle();
        // Later keys stay where they are until new ones take their place; no row sees them.
        self.move_to(sequence, position);
        Ok(())
    }

    /// Lets a sequence stand at a position, whatever it read before.
    pub(super) fn move_to(&mut self, sequence: u32, position: u32) {
        let before = self.before[sequence as usize].position;
        self.before[sequence as usize] = Sequence { position: before.min(position), sampled: None };
        self.sequences[sequence as usize] = Sequence { position, sampled: None };
        for row in self.last.rows.iter_mut().filter(|row| row.sequence == sequence) {
            row.newest = false;
        }
    }

    /// # Errors
    /// A sequence that the session does not have.
    pub(super) fn sequence(&self, sequence: u32) -> Result<&Sequence> {
        self.sequences.get(sequence as usize).ok_or_else(|| {
            Error::argument(
                "sequence",
                sequence,
                format!("below the {} of the session", self.layout.sequences),
            )
        })
    }

    /// # Errors
    /// A last step without logits.
    pub(super) fn rows_of_last_step(&self) -> Result<&[LogitRow]> {
        match self.last.rows.is_empty() {
            false => Ok(&self.last.rows),
            true => Err(Error::argument("rows of logits", "none in the last step", "at least one")),
        }
    }

    /// Submits what was recorded, if anything was.
    pub(super) fn submit_recorded(&mut self) {
        if !self.recorder.is_empty() {
            self.recorder.submit();
        }
        self.settle();
    }

    /// Keeps what was submitted: a step that is cancelled later does not undo it.
    fn settle(&mut self) {
        if self.recorder.is_empty() {
            self.before.clone_from(&self.sequences);
        }
    }

    /// Forgets what was recorded and then dropped.
    pub(super) fn undo(&mut self) {
        // Keys that were written are written again before a row sees them.
        self.sequences.clone_from(&self.before);
        self.last = LastStep::default();
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

    /// Makes room for the first `positions` positions, twice as many as there was room for or more: what has been written is
    /// copied on the GPU after everything recorded so far.
    pub(super) fn reserve(&mut self, positions: u32) -> Result<()> {
        let now = self.cache.capacity();
        if positions <= now {
            return Ok(());
        }
        let capacity = positions.max(now.saturating_mul(2)).next_multiple_of(PAGE).min(self.layout.capacity);
        let attentions = || self.transformer.spec.stack.attentions();
        let need = self.cache.bytes_to_grow(attentions(), capacity);
        let gpu = self.recorder.gpu();
        gpu.plan(&format!("growing the cache from {now} to {capacity} positions"), need)?;
        self.cache.grow(&mut self.recorder, attentions(), capacity);
        self.recorder.gpu().check("growing the cache")
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
                let place = self.sequences[sequence as usize].sampled;
                written.sampled.extend(place.map(|place| (first, sequence, place)));
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
        (position..end).map(move |position| {
            let keys = whole.unwrap_or(position + 1);
            Span { position, sequence, keys }
        })
    }

    /// Brings the input ids of a step together. Whether they are the tokens of the last sampling as these are, so that there
    /// is nothing to copy.
    fn place_ids(&mut self, written: &Written) -> bool {
        let in_place = |(token, _, place): &(u32, u32, Sampled)| *place == Sampled::Row(*token);
        let from_tokens = written.sampled.len() == written.ids.len() && written.sampled.iter().all(in_place);
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
            copies.extend(written.sampled.iter().map(|&(token, sequence, place)| match place {
                Sampled::Row(row) => word(tokens, row, ids, token),
                Sampled::Parked => word(&self.parked, sequence, ids, token),
            }));
        }
        // What was sampled for others has to outlive the next sampling.
        if !written.rows.is_empty() {
            let reads = |sequence| written.spans.iter().any(|span| span.sequence == sequence);
            for (sequence, state) in (0..).zip(&mut self.sequences) {
                if let Some(Sampled::Row(row)) = state.sampled
                    && !reads(sequence)
                {
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

/// Refuses a key/value cache that the device cannot bind, or whose attention a software adapter cannot compute.
pub(crate) fn check_cache<'a>(
    gpu: &Gpu,
    attentions: impl Iterator<Item = &'a HeadMixtureSpec>,
    size: CacheSize,
) -> Result<()> {
    let CacheSize { sequences, capacity, .. } = size;
    if gpu.capabilities().software && capacity > SOFTWARE_POSITIONS {
        let expected = format!("at most {SOFTWARE_POSITIONS} on a software adapter");
        return Err(Error::argument("context", capacity, expected));
    }
    let largest = attentions.map(|spec| size.shape(spec).cache_bytes()).max();
    let what = format!("the key cache of one layer for {sequences} × {capacity} positions");
    gpu.fits(&what, largest.unwrap_or(0))
}

/// Refuses an id outside the vocabulary.
pub(crate) fn check_ids(ids: &[u32], vocab: u32) -> Result<()> {
    match ids.iter().find(|&&id| id >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::argument("token id", id, format!("below the vocabulary size {vocab}"))),
    }
}
