//! What is recorded of given tokens.

use super::Model;
use crate::{
    Result,
    probes::{Observe, Trace},
    sessions::{LogitRows, Room, Run, STEP_TOKENS, SessionOptions, steps},
};

impl Model {
    /// Records what `observe` says of `sequences`, each its own text; edited, where the model is.
    ///
    /// Values are what the model computed, a NaN or an infinity, too: to see where one begins is what a trace is for.
    ///
    /// ```
    /// # fn main() -> headwise::Result<()> {
    /// # headwise::block_on(async {
    /// use headwise::{Gpu, GpuOptions, Model, probes::Observe};
    ///
    /// let model = Model::demo(&Gpu::new(GpuOptions::new()).await?).await?;
    /// let ids = model.encode("The king shall")?;
    /// let trace = model.trace(&[&ids], &Observe::new().capture("L*H*:rows".parse()?)).await?;
    /// let (rows, entropy) = (trace.get("blocks.1.attn.hook_rows").unwrap(), trace.column("entropy").unwrap());
    /// println!("the last token's head 0: {} nats", rows.at(ids.len() - 1, 0)[entropy]);
    /// # Ok(()) })
    /// # }
    /// ```
    ///
    /// # Errors
    /// An empty sequence, one longer than the model's context, an id outside the vocabulary; a capture of what the model does not
    /// have; more bytes than the budget, before anything runs; what the GPU reports, and [`Error::Cancelled`](crate::Error::Cancelled).
    pub async fn trace(&self, sequences: &[&[u32]], observe: &Observe) -> Result<Trace> {
        self.check_reads_text()?;
        self.check_prompts(sequences)?;
        let longest = sequences.iter().map(|ids| ids.len()).max().unwrap_or(0) as u32;
        let runs =
            (0..).zip(sequences).map(|(sequence, ids)| Run::ids(sequence, ids).logits(LogitRows::None));
        let runs: Vec<Run<'_>> = runs.collect();
        let room = Room { tokens: STEP_TOKENS as usize, rows: 1 };
        let plan = steps(&self.transformer.spec.stack, &runs, room);
        let most = plan.iter().map(|runs| runs.iter().map(Run::tokens).sum::<usize>()).max();
        let layout = SessionOptions::new()
            .sequences(sequences.len() as u32)
            .positions(longest)
            .reserve(longest)
            .step_tokens(most.unwrap_or(1) as u32)
            .logit_rows(1);
        let mut session = self.session(layout)?;
        session.set_observe(Some(observe))?;
        session.check_observe(&sequences.iter().map(|ids| ids.len() as u32).collect::<Vec<_>>())?;
        for runs in plan {
            session.forward(&runs)?;
            session.submit(|_, _| std::ops::ControlFlow::Continue(())).await?;
        }
        session.observed().await
    }
}
