//! One batch of translations on the GPU: the sources are read once, then targets grow step by step.

use std::sync::Arc;

use super::{
    Resolved, Routes,
    forward::step_span,
    readback::{length, logit_range, logits, ranked, record_top, route_ranges, top_ranges},
    session::check_cache,
};
use crate::{
    Cancel, Error, Result,
    gpu::{Counters, Gpu, Recorder},
    layers::{CacheUse, Edited, Hook, KvCache, Pass, Step, Workspace},
    models::{StackSpec, Transformer},
    ops::{Span, Visible},
    probes::Edits,
};

/// A hypothesis that grows in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Its place in the cache, `source · beams + …`.
    pub sequence: u32,
    pub source: u32,
    /// The token it reads now.
    pub token: u32,
}

/// How targets are laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TargetLayout {
    /// Hypotheses of each source.
    pub beams: u32,
    /// Tokens of a target.
    pub capacity: u32,
    /// Tokens of a step, if more than one for each hypothesis.
    pub step_tokens: u32,
    /// Whether the tokens' choices are read back.
    pub with_routes: bool,
}

/// What a step found for each row: the likeliest tokens with their log-probabilities, and the choices it made, where
/// they are wanted.
pub(crate) struct Found {
    pub top: Vec<Vec<(u32, f32)>>,
    pub routes: Option<Routes>,
}

/// One batch of sources and the targets that grow from them.
pub(crate) struct TranslationSession {
    transformer: Arc<Transformer>,
    recorder: Recorder,
    workspace: Workspace,
    reading: KvCache,
    memory: KvCache,
    cache: KvCache,
    /// Where the cache goes when hypotheses change places.
    spare: Option<KvCache>,
    source_lengths: Vec<u32>,
    /// The position that the next step fills.
    position: u32,
    with_routes: bool,
    edited: Option<Edited>,
    cancel: Cancel,
}

impl TranslationSession {
    /// Plans the memory, allocates it, and reads the sources; returns their tokens' choices, where they are wanted.
    ///
    /// # Errors
    /// As [`Session::new`](super::Session::new), [`Error::Cancelled`] as in every step, and what the GPU reports.
    pub async fn read(
        gpu: &Gpu,
        transformer: &Arc<Transformer>,
        encoder: &StackSpec,
        sources: &[&[u32]],
        layout: TargetLayout,
        (edits, cancel): (&Edits, &Cancel),
    ) -> Result<(Self, Option<Routes>)> {
        let TargetLayout { beams, capacity, step_tokens, with_routes } = layout;
        let spec = &transformer.spec;
        let count = sources.len() as u32;
        let tokens: u32 = sources.iter().map(|ids| ids.len() as u32).sum();
        let longest = sources.iter().map(|ids| ids.len() as u32).max().unwrap_or(0);
        let rows = count * beams;
        let steps = rows.max(step_tokens);
        let (sources_size, own_size) =
            (transformer.cache_size(count, longest), transformer.cache_size(rows, capacity));
        let mut dimensions = spec.dimensions(tokens.max(steps), rows, longest.max(capacity), steps);
        dimensions.sections = (sources_size.sections(gpu, encoder.attentions()))
            .or(sources_size.sections(gpu, spec.stack.cross_attentions()))
            .or(own_size.sections(gpu, spec.stack.attentions()));
        dimensions.check(gpu)?;
        check_cache(gpu, encoder.attentions(), sources_size)?;
        check_cache(gpu, spec.stack.cross_attentions(), sources_size)?;
        check_cache(gpu, spec.stack.attentions(), own_size)?;
        let copies = if beams > 1 { 2 } else { 1 };
        let need = dimensions.bytes(gpu)
            + KvCache::bytes(encoder.attentions(), sources_size, CacheUse::OneStep)
            + KvCache::bytes(spec.stack.cross_attentions(), sources_size, CacheUse::Kept)
            + copies * KvCache::bytes(spec.stack.attentions(), own_size, CacheUse::Kept);
        gpu.plan(&format!("translating {count} texts at once"), need)?;
        let own = || KvCache::new(gpu, spec.stack.attentions(), own_size, CacheUse::Kept);
        let mut session = Self {
            recorder: Recorder::new(gpu),
            workspace: Workspace::new(gpu, &dimensions),
            reading: KvCache::new(gpu, encoder.attentions(), sources_size, CacheUse::OneStep),
            memory: KvCache::new(gpu, spec.stack.cross_attentions(), sources_size, CacheUse::Kept),
            cache: own(),
            spare: (beams > 1).then(own),
            transformer: Arc::clone(transformer),
            source_lengths: sources.iter().map(|ids| ids.len() as u32).collect(),
            position: 0,
            with_routes,
            edited: Resolved::new(spec, edits)?.upload(gpu)?,
            cancel: cancel.clone(),
        };
        gpu.check("allocating a translation")?;
        let step = session.encode(sources);
        session.submit_ahead().await?;
        if !with_routes {
            session.recorder.submit();
            return Ok((session, None));
        }
        let ranges = route_ranges(&session.workspace, encoder, &step);
        let read = session.recorder.submit_and_read(&ranges).wait("reading sources").await?;
        Ok((session, Some(Routes::new(encoder, tokens as usize, &read)?)))
    }

    /// Submits all but the last part of what was recorded.
    async fn submit_ahead(&mut self) -> Result<()> {
        let flow = self.recorder.submit_ahead(|_, _| self.cancel.flow()).await?;
        if flow.is_continue() { Ok(()) } else { Err(Error::Cancelled) }
    }

    fn encode(&mut self, sources: &[&[u32]]) -> Step {
        let ids: Vec<u32> = sources.concat();
        let mut spans = Vec::with_capacity(ids.len());
        let mut ranges = Vec::with_capacity(sources.len());
        for (sequence, source) in (0..).zip(sources) {
            let keys = source.len() as u32;
            ranges.push([spans.len() as u32, keys]);
            spans.extend((0..keys).map(|position| Span::seeing(position, sequence, keys)));
        }
        let workspace = &self.workspace;
        let step = workspace.begin(&spans, &ranges);
        workspace.ids.write(0, &ids);
        let edits = self.edited.as_mut().map(|edited| edited as &mut dyn Hook);
        let pass = Pass::new(&mut self.recorder, workspace, &step).with_hook(edits);
        self.transformer.record_encoder(pass, &self.reading, &self.memory, &workspace.ids);
        step
    }

    /// Feeds every row its token, at the next position, and finds the `n` likeliest tokens to follow.
    pub async fn step(&mut self, rows: &[Row], n: u32) -> Result<Found> {
        let placed: Vec<(Row, u32)> = rows.iter().map(|&row| (row, self.position)).collect();
        self.position += 1;
        let step = self.record(&placed);
        record_top(&mut self.recorder, &self.workspace, self.transformer.spec.outputs, &step, n);
        self.submit_ahead().await?;
        let spec = &self.transformer.spec;
        let mut ranges = top_ranges(&self.workspace, &step, n).to_vec();
        let top_bytes = length(&ranges);
        if self.with_routes {
            ranges.extend(route_ranges(&self.workspace, &spec.stack, &step));
        }
        let read = self.recorder.submit_and_read(&ranges).wait("translating").await?;
        let (top, routes) = read.split_at(top_bytes);
        let routes = self.with_routes.then(|| Routes::new(&spec.stack, rows.len(), routes)).transpose()?;
        Ok(Found { top: ranked(top, n)?, routes })
    }

    /// Feeds the first source's target a run of tokens at once; returns logits `[tokens, vocab]` and choices.
    pub async fn follow(&mut self, target: &[u32]) -> Result<(Vec<f32>, Routes)> {
        let rows = (self.position..).zip(target);
        let placed: Vec<(Row, u32)> =
            rows.map(|(position, &token)| (Row { sequence: 0, source: 0, token }, position)).collect();
        self.position += target.len() as u32;
        let step = self.record(&placed);
        self.submit_ahead().await?;
        let spec = &self.transformer.spec;
        let mut ranges = vec![logit_range(&self.workspace, spec.outputs, &step)];
        let logit_bytes = length(&ranges);
        ranges.extend(route_ranges(&self.workspace, &spec.stack, &step));
        let read = self.recorder.submit_and_read(&ranges).wait("reading logits").await?;
        let (values, routes) = read.split_at(logit_bytes);
        Ok((logits(values, spec.outputs)?, Routes::new(&spec.stack, target.len(), routes)?))
    }

    /// Records a step over rows and their positions, those of one sequence together; all want logits.
    fn record(&mut self, rows: &[(Row, u32)]) -> Step {
        let _span = step_span(rows.len(), || rows.len());
        let own: Vec<Span> =
            rows.iter().map(|(row, position)| Span::causal(*position, row.sequence)).collect();
        let memory: Vec<Span> = rows
            .iter()
            .map(|&(row, position)| {
                let keys = self.source_lengths[row.source as usize];
                Span::seeing(position, row.source, keys)
            })
            .collect();
        let runs = rows.chunk_by(|(a, _), (b, _)| a.sequence == b.sequence);
        let ranges: Vec<[u32; 2]> = runs
            .scan(0, |next, run| {
                let first = *next;
                *next += run.len() as u32;
                Some([first, run.len() as u32])
            })
            .collect();
        let count = rows.len() as u32;
        let workspace = &self.workspace;
        let begun = workspace.begin(&own, &ranges);
        let step = Step { memory: Visible::of(&memory), logit_rows: count, ..begun };
        workspace.ids.write(0, &rows.iter().map(|(row, _)| row.token).collect::<Vec<_>>());
        workspace.memory_spans.write(0, &Span::words(&memory));
        workspace.logit_rows.write(0, &(0..count).collect::<Vec<_>>());
        let edits = self.edited.as_mut().map(|edited| edited as &mut dyn Hook);
        let pass = Pass::new(&mut self.recorder, workspace, &step).with_hook(edits);
        self.transformer.record(pass, &self.cache, Some(&self.memory), &workspace.ids);
        step
    }

    /// Lets each sequence of the cache go on from another's: `parents` names one for every sequence.
    pub fn reorder(&mut self, parents: &[u32]) {
        let Some(spare) = &mut self.spare else { return };
        if parents.iter().enumerate().all(|(sequence, parent)| sequence as u32 == *parent) {
            return;
        }
        self.workspace.parents.write(0, parents);
        self.cache.reorder(&mut self.recorder, &self.workspace.parents, self.position, spare);
        // The next reordering writes other parents.
        self.recorder.submit();
    }

    /// Exact counts of everything recorded so far.
    pub fn counters(&self) -> Counters {
        self.recorder.counters()
    }
}
