//! Submitting a session's work, and reading what it computed.

use std::{ops::ControlFlow, sync::Arc};

use super::{
    Routes, Session,
    readback::{
        chosen, length, logit_range, logits, ranked, record_top, route_ranges, top_ranges, unwatched,
    },
};
use crate::{Error, Result, gpu::Pending, models::Transformer, ops::padded};

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
            true => self.read_tokens(false, unwatched).await,
            false => Err(Error::argument("sampled tokens", "none of the last step", "a step to sample from")),
        }
    }

    /// Submits what was recorded and starts reading the sampled tokens, if there are any, and, if wanted, the step's routes.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub(crate) async fn read_tokens(
        &mut self,
        routes: bool,
        watch: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<PendingTokens> {
        self.submit_ahead(watch).await?;
        let step = &self.last.step;
        let rows = if self.last.sampled { step.logit_rows as usize } else { 0 };
        let mut ranges = vec![(&self.workspace.tokens, 0, 4 * rows as u64)];
        if routes {
            ranges.extend(route_ranges(&self.workspace, &self.transformer.spec.stack, step));
        }
        let tokens = step.tokens as usize;
        let transformer = Arc::clone(&self.transformer);
        Ok(PendingTokens {
            pending: self.recorder.submit_and_read(&ranges),
            rows,
            tokens,
            routes,
            transformer,
        })
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

/// Sampled tokens on their way back.
pub struct PendingTokens {
    pending: Pending,
    rows: usize,
    tokens: usize,
    routes: bool,
    transformer: Arc<Transformer>,
}

impl PendingTokens {
    /// Waits for the tokens: one for each row of logits of their step, in the order of its runs.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where a row of logits was, and what the GPU reports.
    pub async fn wait(self) -> Result<Vec<u32>> {
        Ok(self.wait_with_routes().await?.0)
    }

    /// As [`wait`](Self::wait), with the step's routes where they were asked for.
    pub(crate) async fn wait_with_routes(self) -> Result<(Vec<u32>, Option<Routes>)> {
        let Self { pending, rows, tokens, routes, transformer } = self;
        let read = pending.wait("generating").await?;
        let (ids, rest) = read.split_at(4 * rows);
        let routes = routes.then(|| Routes::new(&transformer.spec.stack, tokens, rest)).transpose()?;
        Ok((chosen(ids)?, routes))
    }
}
