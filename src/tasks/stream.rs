//! Tokens as a stream: natively from a thread of their own, in a browser as the stream is asked for them.

use std::{
    fmt,
    future::poll_fn,
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::{FusedStream, Stream};

use super::{Generate, Generation, Model, Token};
use crate::{
    Error, Result,
    cancel::{Cancel, CancelOnDrop},
    gpu::WasmNotSend,
};

/// Tokens that may wait for the reader of a stream, before its generation waits for him.
#[cfg(not(target_arch = "wasm32"))]
const AHEAD: usize = 16;

/// The tokens of a generation, as they come: a [`Stream`] that owns all it needs, from [`Model::stream`].
///
/// Natively the generation runs on a thread of its own, a few tokens ahead of who reads, and no further; in a browser it goes on
/// while the stream is polled. Dropping the stream cancels it: within one submission (a fifth of a second or less) the thread ends
/// and its GPU memory is free. [`stop`](Self::stop) waits for that.
///
/// ```
/// use headwise::{Generate, Gpu, GpuOptions, Model};
///
/// # fn main() -> headwise::Result<()> {
/// # headwise::block_on(async {
/// let gpu = Gpu::new(GpuOptions::new()).await?;
/// let model = Model::demo(&gpu).await?;
/// let mut tokens = model.stream("The king shall", &Generate::new().max_new(8));
/// while let Some(token) = tokens.next().await {
///     print!("{}", token?.text);
/// }
/// assert_eq!(tokens.generation().map(|all| all.ids[0].len()), Some(8));
/// # Ok(()) })
/// # }
/// ```
#[must_use = "dropping a stream cancels its generation"]
pub struct TokenStream {
    running: Running<Result<Generation>>,
    generation: Option<Generation>,
}

impl Model {
    /// As [`Model::generate`], for a reader who takes the tokens one by one: in an async program, beside other work, across
    /// threads. What is wrong with the prompt or the options is the stream's first item, and its last.
    #[cfg(feature = "tokenizer")]
    pub fn stream(&self, prompt: impl Into<String>, options: &Generate) -> TokenStream {
        let (model, prompt) = (self.clone(), prompt.into());
        TokenStream::start(options, move |options, show| async move {
            model.generate(&prompt, &options, show).await
        })
    }

    /// As [`Model::generate_ids`], for such a reader.
    pub fn stream_ids(&self, prompts: &[&[u32]], options: &Generate) -> TokenStream {
        let model = self.clone();
        let prompts: Vec<Vec<u32>> = prompts.iter().map(|ids| ids.to_vec()).collect();
        TokenStream::start(options, move |options, show| async move {
            let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
            model.generate_ids(&prompts, &options, show).await
        })
    }
}

impl TokenStream {
    fn start<F: Future<Output = Result<Generation>> + 'static>(
        options: &Generate,
        work: impl FnOnce(Generate, Show) -> F + WasmNotSend + 'static,
    ) -> Self {
        Self { running: Running::start(options, work), generation: None }
    }

    /// The next token; `None` after the last one, and after an error.
    pub async fn next(&mut self) -> Option<Result<Token>> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// What was generated in all, once the stream has come to its end without an error.
    pub fn generation(&self) -> Option<&Generation> {
        self.generation.as_ref()
    }

    /// Ends the generation, and waits until it has ended and freed its memory. Tokens that nobody has taken are among what
    /// was generated.
    ///
    /// # Errors
    /// The generation's own; [`Error::Cancelled`] where it was told already.
    pub async fn stop(mut self) -> Result<Generation> {
        self.running.cancel();
        while let Some(token) = self.next().await {
            token?;
        }
        self.generation.ok_or(Error::Cancelled)
    }
}

impl Stream for TokenStream {
    type Item = Result<Token>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Token>>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(this.running.poll_next(context)) {
            Some(Ok(Event::Token(token))) => Some(Ok(token)),
            Some(Ok(Event::End(Ok(generation)))) => {
                this.generation = Some(generation);
                None
            }
            Some(Ok(Event::End(Err(error))) | Err(error)) => Some(Err(error)),
            None => None,
        })
    }
}

impl FusedStream for TokenStream {
    fn is_terminated(&self) -> bool {
        self.running.is_done()
    }
}

impl fmt::Debug for TokenStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenStream").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// Shows a token to whoever reads; breaks where nobody does.
pub(super) type Show = Box<dyn FnMut(&Token) -> ControlFlow<()> + Send>;

/// What comes from a generation that goes on elsewhere; `E` is what comes of it.
pub(super) enum Event<E> {
    Token(Token),
    End(E),
}

#[cfg(not(target_arch = "wasm32"))]
type Events<E> = Pin<Box<dyn Stream<Item = Result<Event<E>>> + Send>>;
/// As natively, on the one thread of a browser.
#[cfg(target_arch = "wasm32")]
type Events<E> = Pin<Box<dyn Stream<Item = Result<Event<E>>>>>;

/// A generation that goes on elsewhere, until it ends or nobody wants it.
pub(super) struct Running<E> {
    /// None when it has ended.
    events: Option<Events<E>>,
    /// Its own handle: that of the options stays as it is.
    cancel: CancelOnDrop,
}

impl<E: WasmNotSend + Unpin + 'static> Running<E> {
    /// Starts `work`, with the options and with whom it shows its tokens to.
    pub fn start<F: Future<Output = E> + 'static>(
        options: &Generate,
        work: impl FnOnce(Generate, Show) -> F + WasmNotSend + 'static,
    ) -> Self {
        let cancel = Cancel::new();
        let options = options.cancelled_by(&cancel);
        let work = move |show| work(options, show);
        #[cfg(not(target_arch = "wasm32"))]
        let events = Box::pin(on_a_thread(work));
        #[cfg(target_arch = "wasm32")]
        let events = Box::pin(Driven::new(work));
        Self { events: Some(events), cancel: CancelOnDrop(cancel) }
    }

    /// Ends it; what is under way still comes.
    pub fn cancel(&self) {
        self.cancel.0.cancel();
    }

    /// Whether the end has come.
    pub fn is_done(&self) -> bool {
        self.events.is_none()
    }

    /// The next event, the last of which is the end.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Event<E>>>> {
        let Some(events) = &mut self.events else { return Poll::Ready(None) };
        let event = ready!(events.as_mut().poll_next(context));
        if !matches!(event, Some(Ok(Event::Token(_)))) {
            self.events = None;
        }
        Poll::Ready(Some(event.unwrap_or_else(|| Err(panicked("no thread could be started".to_owned())))))
    }
}

/// The error for a generation that came to no end.
fn panicked(message: String) -> Error {
    Error::Panic { during: "generating".to_owned(), message }
}

/// Does `work` on a thread of its own, which waits where [`AHEAD`] tokens do.
#[cfg(not(target_arch = "wasm32"))]
fn on_a_thread<E: Send + 'static, F: Future<Output = E>>(
    work: impl FnOnce(Show) -> F + Send + 'static,
) -> impl Stream<Item = Result<Event<E>>> + Send {
    use crate::gpu::{aside, block_on};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    let (sender, receiver) = futures_intrusive::channel::shared::channel(AHEAD);
    let tokens = sender.clone();
    let show = move |token: &Token| match block_on(tokens.send(Ok(Event::Token(token.clone())))) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    // Whoever reads sees the end of it.
    drop(aside("stream", move || {
        // All that the work had is free before its end is told. Nobody sees it again, however it was left.
        let end = match catch_unwind(AssertUnwindSafe(|| block_on(work(Box::new(show))))) {
            Ok(end) => Ok(Event::End(end)),
            Err(panic) => Err(panicked(words(panic.as_ref()))),
        };
        drop(block_on(sender.send(end)));
    }));
    receiver.into_stream()
}

/// What a panic says.
#[cfg(not(target_arch = "wasm32"))]
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "something that is no text".to_owned())
}

/// A generation that goes on as it is polled.
#[cfg(any(target_arch = "wasm32", test))]
struct Driven<F: Future> {
    work: Option<Pin<Box<F>>>,
    shown: std::sync::mpsc::Receiver<Token>,
    end: Option<F::Output>,
}

#[cfg(any(target_arch = "wasm32", test))]
impl<F: Future> Driven<F> {
    fn new(work: impl FnOnce(Show) -> F) -> Self {
        let (sender, shown) = std::sync::mpsc::channel();
        let show = move |token: &Token| match sender.send(token.clone()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        Self { work: Some(Box::pin(work(Box::new(show)))), shown, end: None }
    }
}

#[cfg(any(target_arch = "wasm32", test))]
impl<F: Future<Output: Unpin>> Stream for Driven<F> {
    type Item = Result<Event<F::Output>>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Ok(token) = this.shown.try_recv() {
            return Poll::Ready(Some(Ok(Event::Token(token))));
        }
        if let Some(work) = &mut this.work
            && let Poll::Ready(end) = work.as_mut().poll(context)
        {
            (this.work, this.end) = (None, Some(end));
        }
        match (this.shown.try_recv(), this.end.is_some() || this.work.is_none()) {
            (Ok(token), _) => Poll::Ready(Some(Ok(Event::Token(token)))),
            (Err(_), true) => Poll::Ready(this.end.take().map(|end| Ok(Event::End(end)))),
            (Err(_), false) => Poll::Pending,
        }
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::gpu::breathe;

    fn token(id: u32) -> Token {
        let (text, last, top) = (String::new(), id == 4, Vec::new());
        let (prompt, logprob, routes) = (false, None, None);
        Token { sequence: 0, position: id as usize, id, prompt, text, last, logprob, top, routes }
    }

    /// Shows tokens 0 to 4, two at a time, and says how many it showed.
    async fn five(mut show: Show) -> u32 {
        for id in 0..5 {
            if id % 2 == 0 {
                breathe().await;
            }
            if show(&token(id)).is_break() {
                return id;
            }
        }
        5
    }

    fn read(mut events: impl Stream<Item = Result<Event<u32>>> + Unpin) -> Vec<u32> {
        let mut read = Vec::new();
        crate::block_on(async {
            while let Some(event) = poll_fn(|context| Pin::new(&mut events).poll_next(context)).await {
                read.push(match event.unwrap() {
                    Event::Token(token) => token.id,
                    Event::End(shown) => 100 + shown,
                });
            }
        });
        read
    }

    #[test]
    fn tokens_come_in_order_and_then_the_end_once() {
        assert_eq!(read(Driven::new(five)), [0, 1, 2, 3, 4, 105]);
        assert_eq!(read(Box::pin(on_a_thread(five))), [0, 1, 2, 3, 4, 105]);
    }

    #[test]
    fn a_thread_waits_for_its_reader_and_ends_without_one() {
        let (shown, ended) = (Arc::new(Mutex::new(0)), std::sync::mpsc::channel());
        let (count, end) = (shown.clone(), ended.0);
        let mut events = Box::pin(on_a_thread(move |mut show: Show| async move {
            while show(&token(0)).is_continue() {
                *count.lock().unwrap() += 1;
            }
            end.send(()).unwrap();
        }));
        let first = crate::block_on(poll_fn(|context| events.as_mut().poll_next(context)));
        assert!(matches!(first, Some(Ok(Event::Token(_)))));
        // It can be no more ahead, however long nobody reads.
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(*shown.lock().unwrap() <= 1 + AHEAD);
        drop(events);
        ended.1.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn a_thread_that_panics_is_an_error_with_its_words_and_then_the_end() {
        for number in [None, Some(7)] {
            let work = move |_: Generate, _: Show| async move {
                match number {
                    None => panic!("as this test wants"),
                    Some(number) => panic!("as this test wants, {number} times"),
                }
            };
            let mut running = Running::<()>::start(&Generate::new(), work);
            let mut next = || crate::block_on(poll_fn(|context| running.poll_next(context)));
            let times = number.map_or(String::new(), |number| format!(", {number} times"));
            let Some(Err(error @ Error::Panic { .. })) = next() else { panic!("no error of a panic") };
            assert_eq!(error.to_string(), format!("a panic in generating: as this test wants{times}"));
            assert!(next().is_none());
        }
    }
}
