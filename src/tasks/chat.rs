//! A conversation with a model that keeps what it has read.

use std::{fmt, ops::ControlFlow};

use super::{
    ChatMessage, ChatTemplate, Generate, Model, StopReason, Token, continuation::Rules, writer::Writer,
};
use crate::{
    Error, Result,
    gpu::Counters,
    sessions::{Session, SessionOptions, most_positions},
};

/// A conversation.
///
/// Each turn renders the whole conversation with the model's template, but the model reads only what it has not read: keys
/// and values of the turns before stay on the GPU.
pub struct Chat {
    model: Model,
    template: ChatTemplate,
    messages: Vec<ChatMessage>,
    session: Session,
    /// Positions of the session.
    capacity: usize,
    /// The ids that the session has read, first to last.
    read: Vec<u32>,
}

/// An answer.
#[derive(Clone, Debug, serde::Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Reply {
    /// What it says, the text of its ids up to a stop string; it is the last of the conversation's messages. Where the caller ended
    /// it, it may have more than its tokens had: what was held back until then.
    pub text: String,
    /// Its tokens, a stop token or those of a stop string included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stopped: StopReason,
    /// Tokens of the conversation before the answer.
    pub prompt_tokens: usize,
    /// How many of these were in the cache; the others were read.
    pub kept_tokens: usize,
    /// Exact counts of this turn's GPU work.
    pub counters: Counters,
}

impl fmt::Debug for Chat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (messages, read) = (self.messages.len(), self.read.len());
        write!(f, "Chat({messages} messages, {read} of {} tokens read, {:?})", self.capacity, self.model)
    }
}

impl Chat {
    /// Starts a conversation of at most `context` tokens, or of the model's context.
    ///
    /// # Errors
    /// A model that does not write, or has no tokenizer, and [`Error::TooLarge`] when the cache does not fit.
    pub fn new(model: &Model, template: ChatTemplate, context: Option<u32>) -> Result<Self> {
        model.check_generates()?;
        model.tokenizer()?;
        let most = most_positions(&model.gpu, model.info().context);
        let capacity = context.unwrap_or(most);
        if capacity == 0 || capacity > most {
            return Err(Error::argument("context", capacity, format!("at least 1, at most {most}")));
        }
        // It grows with the conversation.
        let session = model.session(SessionOptions::new().positions(capacity))?;
        let (model, messages, read) = (model.clone(), Vec::new(), Vec::new());
        Ok(Self { model, template, messages, session, capacity: capacity as usize, read })
    }

    /// What was said, first to last.
    pub fn messages(&self) -> &[ChatMessage] {
        &self.messages
    }

    /// Replaces what was said: a system message to start with, an earlier conversation to go on with, nothing to start anew.
    /// What stays the same at the start is not read again.
    pub fn set_messages(&mut self, messages: impl Into<Vec<ChatMessage>>) {
        self.messages = messages.into();
    }

    /// Says `text` and lets the model answer. `on_token` sees each of the answer's tokens as it comes and may end the
    /// answer, as [`Generate::cancel`] may; what was said until then stays in the conversation.
    ///
    /// # Errors
    /// What the template objects to, a conversation that is longer than the context, and what the GPU reports. The
    /// conversation is then as it was, and so it is where the future is dropped.
    pub async fn reply(
        &mut self,
        text: &str,
        options: &Generate,
        on_token: impl FnMut(&Token) -> ControlFlow<()>,
    ) -> Result<Reply> {
        let mut messages = self.messages.clone();
        messages.push(ChatMessage::new("user", text));
        let reply = self.answer(&messages, options, on_token).await?;
        messages.push(ChatMessage::new("assistant", reply.text.as_str()));
        self.messages = messages;
        Ok(reply)
    }

    /// The answer to messages.
    async fn answer(
        &mut self,
        messages: &[ChatMessage],
        options: &Generate,
        on_token: impl FnMut(&Token) -> ControlFlow<()>,
    ) -> Result<Reply> {
        let tokenizer = self.model.tokenizer()?;
        let prompt = self.template.render(messages, true)?;
        let prompt = tokenizer.encode_as_it_is(&prompt, self.capacity)?;
        if prompt.is_empty() || prompt.len() >= self.capacity {
            let expected = format!("at least one and fewer than the {} of the context", self.capacity);
            return Err(Error::argument("conversation", format!("{} tokens", prompt.len()), expected));
        }
        // The last token is read in any case: its logits choose the answer's first.
        let same = self.read.iter().zip(&prompt).take_while(|(read, wanted)| read == wanted).count();
        let kept = same.min(prompt.len() - 1);
        self.session.rewind(0, kept as u32)?;
        // Until all went well nothing else is known of the session.
        self.read.truncate(kept);

        let mut stop = options.stop.clone().unwrap_or_else(|| self.model.info().eos.clone());
        if options.stop.is_none() {
            // The end of a message is not always the end of a text.
            stop.extend(self.template.token("eos_token").and_then(|token| tokenizer.id(token)));
        }
        // An answer is a text of its own: the template says what stands between it and what comes before. It writes the end of a
        // message itself, whatever token that is.
        let writer = Writer::new(Some(tokenizer.stream()), &options.stop_strings).without(&stop);
        let rules = Rules { options, stop: &stop, context: self.capacity };
        let run = self.model.continue_session(&mut self.session, &prompt, rules, writer, on_token);
        let mut generation = run.await?;
        let text = generation.text.pop().unwrap_or_default();
        let ids = generation.ids.pop().unwrap_or_default();
        let stopped = generation.stopped.pop().unwrap_or(StopReason::Cancelled);

        // A few steps may have run past the answer's end; the last position may then hold a token of theirs.
        let read = (self.session.position(0)? as usize).min(self.capacity - 1);
        self.read = prompt.iter().chain(&ids).copied().take(read).collect();
        self.session.rewind(0, self.read.len() as u32)?;
        Ok(Reply {
            text,
            ids,
            stopped,
            prompt_tokens: prompt.len(),
            kept_tokens: kept,
            counters: generation.counters,
        })
    }
}
