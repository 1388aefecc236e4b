//! A session: one batch of sequences with their key/value cache, working one step at a time.

use std::sync::Arc;

use super::Routes;
use crate::{
    Error, Result,
    gpu::{Buffer, Counters, Gpu, Pending, Recorder},
    layers::{KvCache, Step, Workspace},
    models::Decoder,
    ops::{Argmax, Sample, padded},
};

/// Positions of a sequence on a software adapter. Mesa's llvmpipe ends an invocation, without an error, after 65,535
/// turns of its loops, which row attention reaches between 14,000 and 16,000 keys.
const SOFTWARE_CAPACITY: u32 = 12_288;

/// How a session is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionLayout {
    /// Sequences worked on side by side.
    pub sequences: u32,
    /// Positions of each sequence.
    pub capacity: u32,
    /// Tokens of one step, over all sequences.
    pub step_tokens: u32,
    /// Rows of logits of one step.
    pub logit_rows: u32,
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sampling {
    /// 0 takes the largest logit.
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub seed: u64,
}

/// Where a step's input ids come from.
enum Ids<'a> {
    Host(&'a [u32]),
    /// What the last sampling left on the GPU.
    Sampled,
}

/// One batch of sequences on the GPU.
pub(crate) struct Session {
    decoder: Arc<Decoder>,
    recorder: Recorder,
    workspace: Workspace,
    cache: KvCache,
    layout: SessionLayout,
    /// The next position of each sequence.
    positions: Vec<u32>,
    last_step: Step,
}

impl Session {
    /// Plans the memory, then allocates it.
    ///
    /// # Errors
    /// [`Error::TooLarge`] before anything is allocated, [`Error::Gpu`] when the device refuses.
    pub fn new(gpu: &Gpu, decoder: &Arc<Decoder>, layout: SessionLayout) -> Result<Self> {
        let SessionLayout { sequences, capacity, step_tokens, logit_rows } = layout;
        if gpu.capabilities().software && capacity > SOFTWARE_CAPACITY {
            let expected = format!("at most {SOFTWARE_CAPACITY} on a software adapter");
            return Err(Error::argument("context", capacity, expected));
        }
        let spec = &decoder.spec;
        let dimensions = spec.dimensions(step_tokens, sequences, capacity, logit_rows);
        dimensions.check(gpu)?;
        let capabilities = gpu.capabilities();
        let max = capabilities.max_binding.min(capabilities.max_buffer);
        let largest =
            spec.attentions().map(|spec| spec.attention_shape(sequences, capacity).cache_bytes()).max();
        if let Some(need) = largest.filter(|&bytes| bytes > max) {
            return Err(Error::TooLarge {
                what: format!("the key cache of one layer for {sequences} × {capacity} positions"),
                need,
                have: max,
                limit: "one storage binding of the adapter".to_owned(),
            });
        }
        let need = dimensions.bytes(gpu) + KvCache::bytes(spec.attentions(), sequences, capacity);
        gpu.plan(&format!("a session of {sequences} × {capacity} positions"), need)?;

        let session = Self {
            recorder: Recorder::new(gpu),
            workspace: Workspace::new(gpu, &dimensions),
            cache: decoder.cache(gpu, sequences, capacity),
            decoder: Arc::clone(decoder),
            layout,
            positions: vec![0; sequences as usize],
            last_step: Step { tokens: 0, ranges: 0, longest: 0, last_position: 0, keys: 0, logit_rows: 0 },
        };
        gpu.check("allocating a session")?;
        Ok(session)
    }

    /// Exact counts of everything recorded so far.
    pub fn counters(&self) -> Counters {
        self.recorder.counters()
    }

    /// Records a step over `runs` of (sequence, ids), each sequence at most once and in order. `logit_rows` are
    /// the tokens of the step whose logits are wanted.
    ///
    /// # Errors
    /// An id outside the vocabulary, or a sequence longer than its room.
    pub fn forward(&mut self, runs: &[(u32, &[u32])], logit_rows: &[u32]) -> Result<()> {
        let vocab = self.decoder.spec.vocab;
        let ids: Vec<u32> = runs.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        if let Some(id) = ids.iter().find(|&&id| id >= vocab) {
            return Err(Error::argument("token id", id, format!("below the vocabulary size {vocab}")));
        }
        let lengths: Vec<(u32, u32)> =
            runs.iter().map(|(sequence, ids)| (*sequence, ids.len() as u32)).collect();
        self.step(&lengths, Ids::Host(&ids), logit_rows)
    }

    /// Records a step that feeds every sequence the token sampled for it. A sequence without room stays at its
    /// last position: it has ended, and what it computes is not read.
    ///
    /// # Errors
    /// None that a session of valid positions can meet.
    pub fn decode(&mut self) -> Result<()> {
        for position in &mut self.positions {
            *position = (*position).min(self.layout.capacity - 1);
        }
        let lengths: Vec<(u32, u32)> = (0..self.layout.sequences).map(|sequence| (sequence, 1)).collect();
        let rows: Vec<u32> = (0..self.layout.sequences).collect();
        self.step(&lengths, Ids::Sampled, &rows)
    }

    fn step(&mut self, lengths: &[(u32, u32)], ids: Ids<'_>, logit_rows: &[u32]) -> Result<()> {
        let capacity = self.layout.capacity;
        let mut spans = Vec::new();
        let mut ranges = Vec::new();
        let mut keys = 0;
        for &(sequence, count) in lengths {
            let position = self.positions[sequence as usize];
            if count > capacity - position {
                let found = format!("{} tokens", u64::from(position) + u64::from(count));
                return Err(Error::argument("sequence length", found, format!("at most {capacity}")));
            }
            ranges.push([spans.len() as u32, count]);
            spans.extend((position..position + count).map(|position| [position, sequence]));
            keys += (position..position + count).map(|position| u64::from(position) + 1).sum::<u64>();
            self.positions[sequence as usize] += count;
        }
        let step = Step {
            tokens: spans.len() as u32,
            ranges: ranges.len() as u32,
            longest: ranges.iter().map(|[_, count]| *count).max().unwrap_or(0),
            last_position: spans.iter().map(|[position, _]| *position).max().unwrap_or(0),
            keys,
            logit_rows: logit_rows.len() as u32,
        };
        debug_assert!(step.tokens <= self.layout.step_tokens && step.logit_rows <= self.layout.logit_rows);
        let workspace = &self.workspace;
        workspace.spans.write(0, &spans);
        workspace.ranges.write(0, &ranges);
        workspace.logit_rows.write(0, logit_rows);
        let ids = match ids {
            Ids::Host(ids) => {
                workspace.ids.write(0, ids);
                &workspace.ids
            }
            Ids::Sampled => &workspace.tokens,
        };
        self.decoder.record(&mut self.recorder, workspace, &self.cache, ids, &step);
        self.last_step = step;
        Ok(())
    }

    /// Records the choice of the next token for each row of logits.
    pub fn sample(&mut self, sampling: &Sampling) {
        let Workspace { logits, tokens, spans, logit_rows, .. } = &self.workspace;
        let (rows, vocab) = (self.last_step.logit_rows, self.decoder.spec.vocab);
        if sampling.temperature == 0.0 {
            Argmax { logits, tokens, rows, vocab }.record(&mut self.recorder);
            return;
        }
        Sample {
            logits,
            spans,
            rows_of: logit_rows,
            tokens,
            rows,
            vocab,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            seed: sampling.seed,
        }
        .record(&mut self.recorder);
    }

    /// Submits what was recorded and reads nothing back.
    pub fn submit(&mut self) {
        self.recorder.submit();
    }

    /// Submits what was recorded and starts reading the sampled tokens and, if wanted, the step's routes.
    pub fn read_tokens(&mut self, routes: bool) -> PendingTokens {
        let rows = self.last_step.logit_rows as usize;
        let mut ranges = vec![(&self.workspace.tokens, 0, 4 * rows as u64)];
        if routes {
            ranges.extend(route_ranges(&self.workspace, &self.decoder, &self.last_step));
        }
        let tokens = self.last_step.tokens as usize;
        PendingTokens { pending: self.recorder.submit_and_read(&ranges), rows, tokens, routes }
    }

    /// Submits what was recorded and reads the step's logits, `[rows, vocab]`, and routes.
    pub async fn read_logits(&mut self) -> Result<(Vec<f32>, Routes)> {
        let vocab = self.decoder.spec.vocab as usize;
        let row = padded(self.decoder.spec.vocab) as usize;
        let bytes = 4 * u64::from(self.last_step.logit_rows) * row as u64;
        let mut ranges = vec![(&self.workspace.logits, 0, bytes)];
        ranges.extend(route_ranges(&self.workspace, &self.decoder, &self.last_step));
        let read = self.recorder.submit_and_read(&ranges).wait("reading logits").await?;
        let (logits, routes) = read.split_at(bytes as usize);
        let logits: Vec<f32> = bytemuck::pod_collect_to_vec(logits);
        let logits = logits.chunks(row).flat_map(|row| row[..vocab].iter().copied()).collect();
        Ok((logits, Routes::new(&self.decoder.spec, self.last_step.tokens as usize, routes)))
    }

    /// The routes in `pending`'s answer.
    pub async fn wait_tokens(&self, pending: PendingTokens) -> Result<(Vec<u32>, Option<Routes>)> {
        let PendingTokens { pending, rows, tokens, routes } = pending;
        let read = pending.wait("generating").await?;
        let (ids, rest) = read.split_at(4 * rows);
        let routes = routes.then(|| Routes::new(&self.decoder.spec, tokens, rest));
        Ok((bytemuck::pod_collect_to_vec(ids), routes))
    }
}

/// Where the routes of a step are: its chosen experts, then their gates.
fn route_ranges<'a>(workspace: &'a Workspace, decoder: &Decoder, step: &Step) -> [(&'a Buffer, u64, u64); 2] {
    let bytes = 4 * u64::from(step.tokens) * u64::from(decoder.spec.routes_per_token());
    [(&workspace.chosen, 0, bytes), (&workspace.gates, 0, bytes)]
}

/// Sampled tokens on their way back.
pub(crate) struct PendingTokens {
    pending: Pending,
    rows: usize,
    tokens: usize,
    routes: bool,
}
