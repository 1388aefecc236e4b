//! Text generation: prompt in, tokens out, one at a time.

use std::ops::ControlFlow;

#[cfg(feature = "tokenizer")]
use super::Tokenizer;
use super::{
    Generate, Generation, Model, Token,
    continuation::{Continuation, Rules},
    writer::Writer,
};
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
        on_token: impl FnMut(&Token) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let ids = self.encode(prompt)?;
        let mut stream = self.tokenizer()?.stream();
        // With routes, the prompt's own tokens come first.
        if !options.routes {
            stream.go_on_from(&ids);
        }
        let writer = Writer::new(Some(stream), &options.stop_strings).reading(options.routes);
        self.continue_prompts(&[&ids], options, vec![writer], on_token).await
    }

    /// Continues a batch of token sequences side by side.
    ///
    /// The tokens of one step are reported in the order of the prompts. A batch gives each prompt the tokens it
    /// would get alone with greedy choice; sampling draws differently for each place in the batch. Where the model has a
    /// tokenizer, tokens have what they add to the text of all ids, the prompt's included.
    ///
    /// # Errors
    /// As [`Model::generate`], an id outside the vocabulary, and stop strings for a model without a tokenizer.
    pub async fn generate_ids(
        &self,
        prompts: &[&[u32]],
        options: &Generate,
        on_token: impl FnMut(&Token) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let writers = self.writers(prompts, options)?;
        self.continue_prompts(prompts, options, writers, on_token).await
    }

    /// Who writes the texts that go on from ids.
    #[cfg(feature = "tokenizer")]
    fn writers<'a>(&'a self, prompts: &[&[u32]], options: &'a Generate) -> Result<Vec<Writer<'a>>> {
        let tokenizer = match options.stop_strings.is_empty() {
            true => self.tokenizer().ok(),
            false => Some(self.tokenizer()?),
        };
        let writer = |ids: &&[u32]| {
            let mut stream = tokenizer.map(Tokenizer::stream);
            // With routes, the prompt's own tokens come first.
            if let Some(stream) = stream.as_mut().filter(|_| !options.routes) {
                ids.iter().for_each(|&id| drop(stream.push(id)));
            }
            Writer::new(stream, &options.stop_strings).reading(options.routes)
        };
        Ok(prompts.iter().map(writer).collect())
    }

    /// Nobody, where there are no tokenizers.
    #[cfg(not(feature = "tokenizer"))]
    fn writers<'a>(&'a self, prompts: &[&[u32]], options: &'a Generate) -> Result<Vec<Writer<'a>>> {
        if !options.stop_strings.is_empty() {
            return Err(Error::argument("stop", "texts", "none, without the feature tokenizer"));
        }
        Ok(prompts.iter().map(|_| Writer::new(None, &[]).reading(options.routes)).collect())
    }

    async fn continue_prompts(
        &self,
        prompts: &[&[u32]],
        options: &Generate,
        writers: Vec<Writer<'_>>,
        on_token: impl FnMut(&Token) -> ControlFlow<()>,
    ) -> Result<Generation> {
        options.check_for(self.info().vocab)?;
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
        let rules = Rules { options, stop, context };
        let mut run = Continuation::new(&mut session, rules, prompts, writers, on_token);
        run.prefill(prompts).await?;
        let shortest = prompts.iter().map(|ids| ids.len()).min().unwrap_or(0);
        run.decode(capacity - shortest).await?;
        Ok(run.finish())
    }

    /// Continues `prompt`, whose first tokens `session` has read: as many as its position says, fewer than all. `rules` have the
    /// positions of the session.
    #[cfg(feature = "chat")]
    pub(super) async fn continue_session(
        &self,
        session: &mut Session,
        prompt: &[u32],
        rules: Rules<'_>,
        writer: Writer<'_>,
        on_token: impl FnMut(&Token) -> ControlFlow<()>,
    ) -> Result<Generation> {
        rules.options.check_for(self.info().vocab)?;
        let options = &rules.options.cancelled_by(&self.cancel);
        let (read, context) = (session.position(0)? as usize, rules.context);
        let (kept, rest) = prompt.split_at(read.min(prompt.len()));
        let rest = [rest];
        let rules = Rules { options, ..rules };
        let mut run = Continuation::new(session, rules, &rest, vec![writer], on_token).behind(kept);
        run.prefill(&rest).await?;
        run.decode(context - prompt.len()).await?;
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
