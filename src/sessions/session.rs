//! A session: one batch of sequences with their key/value cache, working one step at a time.

use std::{ops::ControlFlow, sync::Arc};

use super::{
    Routes,
    readback::{
        chosen, length, logit_range, logits, ranked, record_top, route_ranges, top_ranges, unwatched,
    },
};
use crate::{
    Error, Result,
    gpu::{Counters, Gpu, Pending, Recorder},
    layers::{CacheSize, HeadMixtureSpec, KvCache, Pass, Step, Workspace},
    models::Transformer,
    ops::{Argmax, Sample, Span},
};

/// Positions of a sequence on a software adapter. Mesa's llvmpipe ends an invocation, without an error, after 65,535
/// turns of its loops, which row attention reaches between 14,000 and 16,000 keys.
const SOFTWARE_CAPACITY: u32 = 12_288;

/// How a session is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionLayout {
    /// Sequences worked on side by side.
    pub sequences: u32,
    /// Positions of each sequence at the most.
    pub capacity: u32,
    /// Positions that are wanted for sure; the cache grows where there are more.
    pub first: u32,
    /// Tokens of one step, over all sequences.
    pub step_tokens: u32,
    /// Rows of logits of one step.
    pub logit_rows: u32,
}

/// Positions by which a cache grows.
const PAGE: u32 = 64;

impl SessionLayout {
    /// Positions to start with: whole pages.
    fn first_capacity(&self) -> u32 {
        self.first.next_multiple_of(PAGE).min(self.capacity)
    }
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
    /// No ids: an image's patches, which are there already.
    Patches,
}

/// One batch of sequences on the GPU.
pub(crate) struct Session {
    transformer: Arc<Transformer>,
    recorder: Recorder,
    workspace: Workspace,
    cache: KvCache,
    layout: SessionLayout,
    /// The next position of each sequence.
    positions: Vec<u32>,
    /// What they were before the last step.
    positions_before: Vec<u32>,
    last_step: Step,
}

impl Session {
    /// Plans the memory, then allocates it.
    ///
    /// # Errors
    /// [`Error::TooLarge`] before anything is allocated, [`Error::Gpu`] when the device refuses.
    pub fn new(gpu: &Gpu, transformer: &Arc<Transformer>, layout: SessionLayout) -> Result<Self> {
        let SessionLayout { sequences, capacity, step_tokens, logit_rows, .. } = layout;
        let spec = &transformer.spec;
        let most = transformer.cache_size(sequences, capacity);
        check_cache(gpu, spec.stack.attentions(), most)?;
        let dimensions = spec.dimensions(step_tokens, sequences, capacity, logit_rows);
        dimensions.check(gpu)?;
        let size = CacheSize { capacity: layout.first_capacity(), ..most };
        let (attentions, cache_use) = (|| spec.stack.attentions(), spec.stack.cache_use());
        let need = dimensions.bytes(gpu) + KvCache::bytes(attentions(), size, cache_use);
        gpu.plan(&format!("a session of {sequences} × {} positions", size.capacity), need)?;

        let session = Self {
            recorder: Recorder::new(gpu),
            workspace: Workspace::new(gpu, &dimensions),
            cache: KvCache::new(gpu, attentions(), size, cache_use),
            transformer: Arc::clone(transformer),
            layout,
            positions: vec![0; sequences as usize],
            positions_before: Vec::new(),
            last_step: Step::default(),
        };
        gpu.check("allocating a session")?;
        Ok(session)
    }

    /// Exact counts of everything recorded so far.
    pub fn counters(&self) -> Counters {
        self.recorder.counters()
    }

    /// Goes back to an earlier position of a sequence: what it has read from there on is forgotten.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn rewind(&mut self, sequence: u32, position: u32) {
        if let Some(now) = self.positions.get_mut(sequence as usize) {
            // Later keys stay where they are until new ones take their place; no row sees them.
            *now = position.min(*now);
        }
    }

    /// The next position of a sequence.
    #[cfg(feature = "chat")]
    pub fn position(&self, sequence: u32) -> u32 {
        self.positions.get(sequence as usize).copied().unwrap_or(0)
    }

    /// Records a step over `runs` of (sequence, ids), each sequence at most once and in order. `logit_rows` are
    /// the tokens of the step whose logits are wanted.
    ///
    /// # Errors
    /// An id outside the vocabulary, a sequence longer than its room, or [`Error::TooLarge`] where the cache cannot grow.
    pub fn forward(&mut self, runs: &[(u32, &[u32])], logit_rows: &[u32]) -> Result<()> {
        let vocab = self.transformer.spec.outputs;
        let ids: Vec<u32> = runs.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        check_ids(&ids, vocab)?;
        let lengths: Vec<(u32, u32)> =
            runs.iter().map(|(sequence, ids)| (*sequence, ids.len() as u32)).collect();
        self.step(&lengths, Ids::Host(&ids), logit_rows)
    }

    /// Records a step over whole images: `patches` `[images, 1 + patches, values]`, rows padded, the first of each image
    /// for its class token. The class tokens want logits.
    ///
    /// # Errors
    /// None for a session that has room for the images.
    pub fn forward_images(&mut self, images: u32, tokens_each: u32, patches: &[f32]) -> Result<()> {
        self.workspace.patches.write(0, patches);
        let lengths: Vec<(u32, u32)> = (0..images).map(|image| (image, tokens_each)).collect();
        let rows: Vec<u32> = (0..images).map(|image| image * tokens_each).collect();
        self.step(&lengths, Ids::Patches, &rows)
    }

    /// Records the choice of the `n` largest logits of each row, submits what was recorded, and reads, for each row, these
    /// outputs with their log-probabilities, and the step's routes.
    pub async fn read_top(&mut self, n: u32) -> Result<(Vec<Vec<(u32, f32)>>, Routes)> {
        record_top(&mut self.recorder, &self.workspace, self.transformer.spec.outputs, &self.last_step, n);
        self.submit_ahead(unwatched).await?;
        let (spec, step) = (&self.transformer.spec, &self.last_step);
        let mut ranges = top_ranges(&self.workspace, step, n).to_vec();
        let top_bytes = length(&ranges);
        ranges.extend(route_ranges(&self.workspace, &spec.stack, step));
        let read = self.recorder.submit_and_read(&ranges).wait("reading the likeliest outputs").await?;
        let (top, routes) = read.split_at(top_bytes);
        Ok((ranked(top, n)?, Routes::new(&spec.stack, step.tokens as usize, routes)?))
    }

    /// Records a step that feeds every sequence the token sampled for it. A sequence without room stays at its
    /// last position: it has ended, and what it computes is not read.
    ///
    /// # Errors
    /// [`Error::TooLarge`] where the cache cannot grow; what was recorded before stands.
    pub fn decode(&mut self) -> Result<()> {
        for position in &mut self.positions {
            *position = (*position).min(self.layout.capacity - 1);
        }
        let lengths: Vec<(u32, u32)> = (0..self.layout.sequences).map(|sequence| (sequence, 1)).collect();
        let rows: Vec<u32> = (0..self.layout.sequences).collect();
        self.step(&lengths, Ids::Sampled, &rows)
    }

    /// Makes room for the first `positions` positions, twice as many as there was room for or more: what has been written is
    /// copied on the GPU after everything recorded so far.
    fn reserve(&mut self, positions: u32) -> Result<()> {
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

    fn step(&mut self, lengths: &[(u32, u32)], ids: Ids<'_>, logit_rows: &[u32]) -> Result<()> {
        let capacity = self.layout.capacity;
        let ends =
            lengths.iter().map(|&(sequence, count)| self.positions[sequence as usize].saturating_add(count));
        self.reserve(ends.max().unwrap_or(0).min(capacity))?;
        self.positions_before.clone_from(&self.positions);
        let mut spans = Vec::new();
        let mut ranges = Vec::new();
        for &(sequence, count) in lengths {
            let position = self.positions[sequence as usize];
            if count > capacity - position {
                let found = format!("{} tokens", u64::from(position) + u64::from(count));
                return Err(Error::argument("sequence length", found, format!("at most {capacity}")));
            }
            ranges.push([spans.len() as u32, count]);
            let end = position + count;
            let whole = (!self.transformer.spec.stack.causal).then_some(end);
            spans.extend(
                (position..end)
                    .map(|position| Span::seeing(position, sequence, whole.unwrap_or(position + 1))),
            );
            self.positions[sequence as usize] += count;
        }
        let workspace = &self.workspace;
        let step = Step { logit_rows: logit_rows.len() as u32, ..workspace.begin(&spans, &ranges) };
        debug_assert!(step.tokens <= self.layout.step_tokens && step.logit_rows <= self.layout.logit_rows);
        workspace.logit_rows.write(0, logit_rows);
        let ids = match ids {
            Ids::Host(ids) => {
                workspace.ids.write(0, ids);
                &workspace.ids
            }
            Ids::Sampled => &workspace.tokens,
            Ids::Patches => &workspace.ids,
        };
        let pass = Pass::new(&mut self.recorder, workspace, &step);
        self.transformer.record(pass, &self.cache, None, ids);
        self.last_step = step;
        Ok(())
    }

    /// Records the choice of the next token for each row of logits.
    pub fn sample(&mut self, sampling: &Sampling) {
        let Workspace { logits, tokens, spans, logit_rows, .. } = &self.workspace;
        let (rows, vocab) = (self.last_step.logit_rows, self.transformer.spec.outputs);
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

    /// Submits what was recorded, in parts where it is much, and reads nothing back. `watch` is told before each part how much
    /// of the work was submitted, of how much, and may end the step.
    ///
    /// # Errors
    /// [`Error::Cancelled`] where `watch` ends the step: the session is as before it. What the GPU reports.
    pub async fn submit(&mut self, watch: impl FnMut(u64, u64) -> ControlFlow<()>) -> Result<()> {
        let flow = self.recorder.submit_in_parts(watch).await?;
        self.done_or_undone(flow)
    }

    /// As [`submit`](Self::submit), and leaves the last part for a readback to submit.
    async fn submit_ahead(&mut self, watch: impl FnMut(u64, u64) -> ControlFlow<()>) -> Result<()> {
        let flow = self.recorder.submit_ahead(watch).await?;
        self.done_or_undone(flow)
    }

    fn done_or_undone(&mut self, flow: ControlFlow<()>) -> Result<()> {
        if flow.is_continue() {
            return Ok(());
        }
        // Keys that were written are written again before a row sees them.
        self.positions.clone_from(&self.positions_before);
        Err(Error::Cancelled)
    }

    /// Submits what was recorded and starts reading the sampled tokens and, if wanted, the step's routes.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub async fn read_tokens(
        &mut self,
        routes: bool,
        watch: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<PendingTokens> {
        self.submit_ahead(watch).await?;
        let rows = self.last_step.logit_rows as usize;
        let mut ranges = vec![(&self.workspace.tokens, 0, 4 * rows as u64)];
        if routes {
            ranges.extend(route_ranges(&self.workspace, &self.transformer.spec.stack, &self.last_step));
        }
        let tokens = self.last_step.tokens as usize;
        Ok(PendingTokens { pending: self.recorder.submit_and_read(&ranges), rows, tokens, routes })
    }

    /// Submits what was recorded and reads the step's logits, `[rows, vocab]`, and routes.
    pub async fn read_logits(&mut self) -> Result<(Vec<f32>, Routes)> {
        self.submit_ahead(unwatched).await?;
        let (spec, step) = (&self.transformer.spec, &self.last_step);
        let mut ranges = vec![logit_range(&self.workspace, spec.outputs, step)];
        let logit_bytes = length(&ranges);
        ranges.extend(route_ranges(&self.workspace, &spec.stack, step));
        let read = self.recorder.submit_and_read(&ranges).wait("reading logits").await?;
        let (values, routes) = read.split_at(logit_bytes);
        Ok((logits(values, spec.outputs)?, Routes::new(&spec.stack, step.tokens as usize, routes)?))
    }

    /// Submits what was recorded and reads the step's routes with the scores they were chosen by.
    pub async fn read_routes(&mut self) -> Result<Routes> {
        self.submit_ahead(unwatched).await?;
        let (stack, tokens) = (&self.transformer.spec.stack, self.last_step.tokens);
        let scores = 4 * u64::from(tokens) * u64::from(stack.scores_per_token());
        let mut ranges = route_ranges(&self.workspace, stack, &self.last_step).to_vec();
        ranges.push((&self.workspace.route_scores, 0, scores));
        let read = self.recorder.submit_and_read(&ranges).wait("reading routes").await?;
        Routes::new(stack, tokens as usize, &read)
    }

    /// The tokens in `pending`'s answer, and the routes, if wanted.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where a row of logits was, and what the GPU reports.
    pub async fn wait_tokens(&self, pending: PendingTokens) -> Result<(Vec<u32>, Option<Routes>)> {
        let PendingTokens { pending, rows, tokens, routes } = pending;
        let read = pending.wait("generating").await?;
        let (ids, rest) = read.split_at(4 * rows);
        let routes = routes.then(|| Routes::new(&self.transformer.spec.stack, tokens, rest)).transpose()?;
        Ok((chosen(ids)?, routes))
    }
}

/// The most positions of a sequence on a device, for a model of this context.
#[cfg(feature = "chat")]
pub(crate) fn most_positions(gpu: &Gpu, context: u32) -> u32 {
    if gpu.capabilities().software { context.min(SOFTWARE_CAPACITY) } else { context }
}

/// Refuses a key/value cache that the device cannot bind, or whose attention a software adapter cannot compute.
pub(crate) fn check_cache<'a>(
    gpu: &Gpu,
    attentions: impl Iterator<Item = &'a HeadMixtureSpec>,
    size: CacheSize,
) -> Result<()> {
    let capacity = size.capacity;
    if gpu.capabilities().software && capacity > SOFTWARE_CAPACITY {
        let expected = format!("at most {SOFTWARE_CAPACITY} on a software adapter");
        return Err(Error::argument("context", capacity, expected));
    }
    let largest = attentions.map(|spec| size.layout(spec).least_window_bytes()).max();
    let what = format!("the keys and values of one head for {capacity} positions");
    gpu.fits(&what, largest.unwrap_or(0))
}

/// Refuses an id outside the vocabulary.
pub(crate) fn check_ids(ids: &[u32], vocab: u32) -> Result<()> {
    match ids.iter().find(|&&id| id >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::argument("token id", id, format!("below the vocabulary size {vocab}"))),
    }
}

/// Sampled tokens on their way back.
pub(crate) struct PendingTokens {
    pending: Pending,
    rows: usize,
    tokens: usize,
    routes: bool,
}
