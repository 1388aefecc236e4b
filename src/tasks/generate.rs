//! Text generation: prompt in, tokens out, one at a time.

use std::ops::ControlFlow;

use super::{Generate, Generation, Model, Token, continuation::Continuation};
#[cfg(feature = "chat")]
use crate::sessions::Session;
use crate::{
    Error, Result,
    models::Task,
    sessions::{STEP_TOKENS, SessionOptions},
};

impl Model {
    /// Continues a text. `on_token` sees each token as it comes and may stop the generation.
    ///
    /// # Errors
    /// A prompt that is empty or longer than the model's context, options out of range, and what the GPU reports.
    #[cfg(feature = "tokenizer")]
    pub async fn generate(
        &self,
        prompt: &str,
        options: &Generate,
        mut on_token: impl FnMut(&Token) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let ids = self.encode(prompt)?;
        let mut stream = self.tokenizer()?.stream();
        // With routes, the prompt's own tokens come first.
        if !options.routes {
            stream.go_on_from(&ids);
        }
        self.generate_ids(&[&ids], options, |token| on_token(&token.with_text(&mut stream))).await
    }

    /// Continues a batch of token sequences side by side.
    ///
    /// The tokens of one step are reported in the order of the prompts. A batch gives each prompt the tokens it
    /// would get alone with greedy choice; sampling draws differently for each place in the batch.
    ///
    /// # Errors
    /// As [`Model::generate`], and an id outside the vocabulary.
    pub async fn generate_ids(
        &self,
        prompts: &[&[u32]],
        options: &Generate,
        on_token: impl FnMut(&Token) -> ControlFlow<()>,
    ) -> Result<Generation> {
        options.check()?;
        let options = &options.cancelled_by(&self.cancel);
        self.check_generates()?;
        self.check_prompts(prompts)?;
        let longest = prompts.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let context = self.info().context as usize;
        let capacity = context.min(longest.saturating_add(options.max_new));
        let total: usize = prompts.iter().map(|ids| ids.len()).sum();
        let layout = SessionOptions::new()
            .sequences(prompts.len() as u32)
            .positions(capacity as u32)
            .reserve(longest as u32)
            .step_tokens(total.min(STEP_TOKENS as usize).max(prompts.len()) as u32);
        let mut session = self.session(layout)?;
        let stop = options.stop.as_ref().unwrap_or(&self.info().eos);
        let mut run = Continuation::new(&mut session, options, stop, context, prompts, on_token);
        run.prefill(prompts).await?;
        let shortest = prompts.iter().map(|ids| ids.len()).min().unwrap_or(0);
        run.decode(capacity - shortest).await?;
        Ok(run.finish())
    }

    /// Continues `prompt`, whose first tokens `session` has read: as many as its position says, fewer than all.
    #[cfg(feature = "chat")]
    pub(super) async fn continue_session(
        &self,
        session: &mut Session,
        capacity: usize,
        prompt: &[u32],
        options: &Generate,
        stop: &[u32],
        on_token: impl FnMut(&Token) -> ControlFlow<()>,
    ) -> Result<Generation> {
        options.check()?;
        let options = &options.cancelled_by(&self.cancel);
        let kept = session.position(0)? as usize;
        let rest = [prompt.get(kept..).unwrap_or_default()];
        let mut run = Continuation::new(session, options, stop, capacity, &rest, on_token).behind(kept);
        run.prefill(&rest).await?;
        run.decode(capacity - prompt.len()).await?;
        Ok(run.finish())
    }

    /// Refuses a model that has no next token.
    pub(crate) fn check_generates(&self) -> Result<()> {
        if !matches!(self.task, Task::Generate) {
            return Err(self.wrong_task("generate"));
        }
        match self.transformer.spec.stack.whole_sequences() {
            None => Ok(()),
            Some(why) => {
                let found = format!("one of the family '{}': {why}", self.info().family);
                Err(Error::argument("model", found, "one that can write token by token"))
            }
        }
    }
}
