//! Submitting a session's work, and reading what it computed.

use std::{fmt, ops::ControlFlow, sync::Arc};

use super::{
    Routes, Session,
    readback::{
        chosen, length, logit_range, logits, ranked, record_top, route_ranges, top_ranges, unwatched,
    },
};
use crate::{
    Error, Result,
    gpu::Pending,
    layers::Workspace,
    models::Transformer,
    ops::{TokenLogprob, padded},
};

impl Session {
    /// Submits what was recorded, in parts where it is much, and reads nothing back. `watch` is told before each part how much
    /// of the work was submitted, of how much, and may end the step: `|_, _| cancel.flow()` lets a
    /// [`Cancel`](crate::Cancel) do so.
    ///
    /// # Errors
    /// [`Error::Cancelled`] where `watch` ends the step, or the handle of the model
    /// ([`Model::cancelled_by`](crate::Model::cancelled_by)): the sequences are as before it. What the GPU reports.
    pub async fn submit(&mut self, watch: impl FnMut(u64, u64) -> ControlFlow<()>) -> Result<()> {
        self.submit_ahead(watch).await?;
        self.submit_recorded();
        Ok(())
    }

    /// As [`submit`](Self::submit), and leaves the last part for a readback to submit.
    pub(super) async fn submit_ahead(
        &mut self,
        mut watch: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<()> {
        let cancel = self.cancel.clone();
        let watch = |submitted, of| match cancel.flow() {
            ControlFlow::Continue(()) => watch(submitted, of),
            stop => stop,
        };
        if !self.recorder.is_empty() && self.recorder.submit_ahead(watch).await?.is_break() {
            self.undo();
            return Err(Error::Cancelled);
        }
        Ok(())
    }

    /// Submits what was recorded and starts reading the tokens that were sampled. Steps to come can be recorded before they
    /// are waited for.
    ///
    /// # Errors
    /// A last step that nothing was sampled from, and what the GPU reports.
    pub async fn tokens(&mut self) -> Result<PendingTokens> {
        match self.last.sampled {
            true => self.read_tokens(Wanted::default(), unwatched).await,
            false => Err(Error::argument("sampled tokens", "none of the last step", "a step to sample from")),
        }
    }

    /// Submits what was recorded and starts reading the sampled tokens, if there are any, and what else of the step is wanted.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub(crate) async fn read_tokens(
        &mut self,
        wanted: Wanted,
        watch: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<PendingTokens> {
        let logprobs = wanted.logprobs.filter(|_| self.last.sampled);
        if let Some(n) = logprobs {
            self.record_logprobs(n);
        }
        self.submit_ahead(watch).await?;
        let (workspace, step) = (&self.workspace, &self.last.step);
        let rows = if self.last.sampled { step.logit_rows as usize } else { 0 };
        let mut ranges = vec![(&workspace.tokens, 0, 4 * rows as u64)];
        if let Some(n) = logprobs {
            ranges.push((&workspace.target_logprobs, 0, 4 * rows as u64));
            ranges.extend(top_ranges(workspace, step, n));
        }
        if wanted.routes {
            ranges.extend(route_ranges(workspace, &self.transformer.spec.stack, step));
        }
        let tokens = step.tokens as usize;
        let transformer = Arc::clone(&self.transformer);
        let wanted = Wanted { logprobs, ..wanted };
        Ok(PendingTokens {
            pending: self.recorder.submit_and_read(&ranges),
            rows,
            tokens,
            wanted,
            transformer,
        })
    }

    /// Records how likely the sampled tokens are by the logits of the model, and the `n` likeliest.
    fn record_logprobs(&mut self, n: u32) {
        let Self { recorder, workspace, last, .. } = self;
        let (rows, vocab) = (last.step.logit_rows, self.transformer.spec.outputs);
        let Workspace { logits, tokens: targets, target_logprobs: values, .. } = &*workspace;
        TokenLogprob { logits, targets, values, rows, vocab }.record(recorder);
        if n > 0 {
            record_top(recorder, workspace, vocab, &last.step, n);
        }
    }

    /// Submits what was recorded and reads all logits of the last step, `[rows, vocabulary]`.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), and [`Error::NotFinite`].
    pub(crate) async fn read_rows(
        &mut self,
        watch: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Vec<f32>> {
        self.submit_ahead(watch).await?;
        let outputs = self.transformer.spec.outputs;
        let range = logit_range(&self.workspace, outputs, &self.last.step);
        logits(&self.recorder.submit_and_read(&[range]).wait("reading logits").await?, outputs)
    }

    /// Submits what was recorded and reads a sequence's logits of the last step, `[rows, vocabulary]`: a row for each token
    /// that wanted some.
    ///
    /// # Errors
    /// A sequence that the session does not have, or that wanted no logits in the last step; a session of hidden states;
    /// [`Error::NotFinite`] where one is not; what the GPU reports.
    pub async fn logits(&mut self, sequence: u32) -> Result<Vec<f32>> {
        self.check_rows(false)?;
        let [before, count] = self.rows_of(sequence)?;
        self.submit_ahead(unwatched).await?;
        let outputs = self.transformer.spec.outputs;
        let row = 4 * u64::from(padded(outputs));
        let range = (&self.workspace.logits, row * before, row * count);
        logits(&self.recorder.submit_and_read(&[range]).wait("reading logits").await?, outputs)
    }

    /// Submits what was recorded and reads the experts that each token of the last step chose, run after run, with the scores
    /// that they were chosen by.
    ///
    /// # Errors
    /// Before the first step; [`Error::NotFinite`]; what the GPU reports.
    pub async fn routes(&mut self) -> Result<Routes> {
        let tokens = self.last.step.tokens;
        if tokens == 0 {
            return Err(Error::argument("routes", "no step", "a step that chose experts"));
        }
        self.submit_ahead(unwatched).await?;
        let stack = &self.transformer.spec.stack;
        let scores = 4 * u64::from(tokens) * u64::from(stack.scores_per_token());
        let mut ranges = route_ranges(&self.workspace, stack, &self.last.step).to_vec();
        ranges.push((&self.workspace.route_scores, 0, scores));
        let read = self.recorder.submit_and_read(&ranges).wait("reading routes").await?;
        Routes::new(stack, tokens as usize, &read)
    }

    /// Submits what was recorded and reads all logits of the last step, `[rows, vocab]`, and its routes, in one readback.
    pub(crate) async fn read_logits(&mut self) -> Result<(Vec<f32>, Routes)> {
        self.submit_ahead(unwatched).await?;
        let (spec, step) = (&self.transformer.spec, &self.last.step);
        let mut ranges = vec![logit_range(&self.workspace, spec.outputs, step)];
        let logit_bytes = length(&ranges);
        ranges.extend(route_ranges(&self.workspace, &spec.stack, step));
        let read = self.recorder.submit_and_read(&ranges).wait("reading logits").await?;
        let (values, routes) = read.split_at(logit_bytes);
        Ok((logits(values, spec.outputs)?, Routes::new(&spec.stack, step.tokens as usize, routes)?))
    }

    /// Records the choice of the `n` largest logits of each row, submits what was recorded, and reads, for each row, these
    /// outputs with their log-probabilities, and the step's routes.
    pub(crate) async fn read_top(&mut self, n: u32) -> Result<(Vec<Vec<(u32, f32)>>, Routes)> {
        let outputs = self.transformer.spec.outputs;
        record_top(&mut self.recorder, &self.workspace, outputs, &self.last.step, n);
        self.submit_ahead(unwatched).await?;
        let (spec, step) = (&self.transformer.spec, &self.last.step);
        let mut ranges = top_ranges(&self.workspace, step, n).to_vec();
        let top_bytes = length(&ranges);
        ranges.extend(route_ranges(&self.workspace, &spec.stack, step));
        let read = self.recorder.submit_and_read(&ranges).wait("reading the likeliest outputs").await?;
        let (top, routes) = read.split_at(top_bytes);
        Ok((ranked(top, n)?, Routes::new(&spec.stack, step.tokens as usize, routes)?))
    }
}

/// What is read of a step beside its tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    /// The experts of each token of the step.
    pub routes: bool,
    /// How likely each sampled token is, and so many of the likeliest.
    pub logprobs: Option<u32>,
}

/// What was read of a step.
#[derive(Default)]
pub(crate) struct SampledTokens {
    /// One for each row of logits.
    pub ids: Vec<u32>,
    pub routes: Option<Routes>,
    /// `ln p` of each id, where wanted.
    pub logprobs: Vec<f32>,
    /// The likeliest ids of each row with theirs.
    pub top: Vec<Vec<(u32, f32)>>,
}

/// Sampled tokens on their way back.
pub struct PendingTokens {
    pending: Pending,
    rows: usize,
    tokens: usize,
    wanted: Wanted,
    transformer: Arc<Transformer>,
}

impl fmt::Debug for PendingTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingTokens").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl PendingTokens {
    /// Waits for the tokens: one for each row of logits of their step, in the order of its runs.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where a row of logits was, and what the GPU reports.
    pub async fn wait(self) -> Result<Vec<u32>> {
        Ok(self.wait_for_all().await?.ids)
    }

    /// As [`wait`](Self::wait), with what else was wanted.
    pub(crate) async fn wait_for_all(self) -> Result<SampledTokens> {
        let Self { pending, rows, tokens, wanted, transformer } = self;
        let read = pending.wait("generating").await?;
        let (ids, mut rest) = read.split_at(4 * rows);
        let mut sampled = SampledTokens { ids: chosen(ids)?, ..SampledTokens::default() };
        if let Some(n) = wanted.logprobs {
            let (logprobs, behind) = rest.split_at(4 * rows);
            let (top, behind) = behind.split_at(8 * rows * n as usize);
            sampled.logprobs = bytemuck::pod_collect_to_vec(logprobs);
            if n > 0 {
                sampled.top = ranked(top, n)?;
            }
            rest = behind;
        }
        if wanted.routes {
            sampled.routes = Some(Routes::new(&transformer.spec.stack, tokens, rest)?);
        }
        Ok(sampled)
    }
}
