//! What a step says of given tokens, and the hidden states it says it by.

use std::{fmt, ops::ControlFlow};

use super::{
    Session, check_ids,
    readback::{chosen, rows, unwatched},
};
use crate::{
    Error, Result,
    gpu::Pending,
    layers::Workspace,
    ops::{TokenLogprob, padded},
};

impl Session {
    /// Lets the GPU look up how likely a given token is at each row of logits of the last step, `ln p` in nats: `targets` has
    /// an id for each row, in the order of the step's runs. Submits what was recorded and starts reading, four bytes a row.
    /// Steps to come can be recorded before they are waited for.
    ///
    /// # Errors
    /// As many targets as there are no rows, an id outside the vocabulary, a session of hidden states, and what the GPU
    /// reports.
    pub async fn token_logprobs(&mut self, targets: &[u32]) -> Result<PendingValues> {
        self.read_token_logprobs(targets, unwatched).await
    }

    /// As [`token_logprobs`](Self::token_logprobs), for a `watch` as [`submit`](Self::submit) has.
    pub(crate) async fn read_token_logprobs(
        &mut self,
        targets: &[u32],
        watch: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<PendingValues> {
        self.check_rows(false)?;
        let (rows, vocab) = (self.last.rows.len(), self.transformer.spec.outputs);
        if rows == 0 || rows != targets.len() {
            let expected = format!("one for each of the last step's {rows} rows of logits, at least one");
            return Err(Error::argument("targets", targets.len(), expected));
        }
        check_ids(targets, vocab)?;
        self.settle();
        let Workspace { logits, targets: given, target_logprobs: values, .. } = &self.workspace;
        given.write(0, targets);
        TokenLogprob { logits, targets: given, values, rows: rows as u32, vocab }.record(&mut self.recorder);
        self.submit_ahead(watch).await?;
        let range = (&self.workspace.target_logprobs, 0, 4 * rows as u64);
        Ok(PendingValues { pending: self.recorder.submit_and_read(&[range]), form: Form::Logprobs })
    }

    /// Submits what was recorded and reads a sequence's hidden states of the last step, `[rows, width]`, as the last norm left
    /// them: a row for each token that wanted one. For sessions of [`SessionOptions::hidden`](super::SessionOptions::hidden).
    ///
    /// # Errors
    /// A sequence that the session does not have, or that wanted none in the last step; a session with logits;
    /// [`Error::NotFinite`]; what the GPU reports.
    pub async fn hidden(&mut self, sequence: u32) -> Result<Vec<f32>> {
        self.check_rows(true)?;
        let [first, count] = self.rows_of(sequence)?;
        self.read_states(first, count, unwatched).await?.wait().await
    }

    /// Submits what was recorded and starts reading all hidden states of the last step, if there are any.
    pub(crate) async fn read_all_states(
        &mut self,
        watch: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<PendingValues> {
        self.check_rows(true)?;
        let count = self.last.rows.len() as u64;
        self.read_states(0, count, watch).await
    }

    async fn read_states(
        &mut self,
        first: u64,
        count: u64,
        watch: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<PendingValues> {
        self.submit_ahead(watch).await?;
        let width = self.transformer.spec.width;
        let row = 4 * u64::from(padded(width));
        let range = (&self.workspace.last, row * first, row * count);
        Ok(PendingValues { pending: self.recorder.submit_and_read(&[range]), form: Form::States { width } })
    }
}

/// Numbers on their way back.
pub struct PendingValues {
    pending: Pending,
    form: Form,
}

/// In which form they come.
#[derive(Debug)]
enum Form {
    /// f32 by their bits, or that a row of logits was not finite
    Logprobs,
    /// `[rows, width]`, rows padded
    States { width: u32 },
}

impl fmt::Debug for PendingValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingValues").field("form", &self.form).finish_non_exhaustive()
    }
}

impl PendingValues {
    /// Waits for them: of [`Session::token_logprobs`], `ln p` in nats for each row of logits of its step.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where a row of logits was not, and what the GPU reports.
    pub async fn wait(self) -> Result<Vec<f32>> {
        match self.form {
            Form::Logprobs => {
                let bits = chosen(&self.pending.wait("reading log-probabilities").await?)?;
                Ok(bits.into_iter().map(f32::from_bits).collect())
            }
            Form::States { width } => {
                rows("the hidden states", &self.pending.wait("reading hidden states").await?, width)
            }
        }
    }
}
