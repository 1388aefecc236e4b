//! An answer of a conversation as a stream.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::{FusedStream, Stream};

use super::{
    Chat, Generate, Reply, Token,
    stream::{Event, Running},
};
use crate::{Error, Result};

/// The tokens of an answer, as they come: a [`Stream`] that owns the conversation, from [`Chat::stream`].
///
/// It works as a [`TokenStream`](super::TokenStream) does. [`stop`](Self::stop) gives the conversation back; dropping the stream drops
/// both.
#[must_use = "dropping a stream cancels its answer and drops the conversation"]
pub struct ReplyStream {
    running: Running<(Chat, Result<Reply>)>,
    chat: Option<Chat>,
    reply: Option<Reply>,
}

impl Chat {
    /// As [`Chat::reply`], for a reader who takes the tokens one by one.
    pub fn stream(self, text: impl Into<String>, options: &Generate) -> ReplyStream {
        let (mut chat, text) = (self, text.into());
        let running = Running::start(options, move |options, show| async move {
            let reply = chat.reply(&text, &options, show).await;
            (chat, reply)
        });
        ReplyStream { running, chat: None, reply: None }
    }
}

impl ReplyStream {
    /// The next token; `None` after the last one, and after an error.
    pub async fn next(&mut self) -> Option<Result<Token>> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// The answer, once the stream has come to its end without an error.
    pub fn reply(&self) -> Option<&Reply> {
        self.reply.as_ref()
    }

    /// Ends the answer, if it has not come to its end, and gives the conversation back. What was said stays in it; after an error
    /// it is as it was.
    ///
    /// # Errors
    /// [`Error::Panic`] where the thread of the stream could not start, or panicked.
    pub async fn stop(mut self) -> Result<Chat> {
        self.running.cancel();
        let mut failed = None;
        while let Some(token) = self.next().await {
            failed = token.err();
        }
        self.chat.ok_or(failed.unwrap_or(Error::Cancelled))
    }
}

impl Stream for ReplyStream {
    type Item = Result<Token>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Token>>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(this.running.poll_next(context)) {
            Some(Ok(Event::Token(token))) => Some(Ok(token)),
            Some(Ok(Event::End((chat, reply)))) => {
                this.chat = Some(chat);
                reply.map(|reply| this.reply = Some(reply)).err().map(Err)
            }
            Some(Err(error)) => Some(Err(error)),
            None => None,
        })
    }
}

impl FusedStream for ReplyStream {
    fn is_terminated(&self) -> bool {
        self.running.is_done()
    }
}

impl fmt::Debug for ReplyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyStream").field("reply", &self.reply).finish_non_exhaustive()
    }
}
