//! A handle that stops work.

use std::{fmt, future::poll_fn, ops::ControlFlow, pin::pin, sync::Arc, task::Poll};

use futures_intrusive::sync::ManualResetEvent;

use crate::{Error, Result};

/// Stops work from outside: from another thread, a handler, a task. Clones share it.
///
/// There is one rule for all that takes a handle: everything that is asked of a
/// [`Model::cancelled_by`](crate::Model::cancelled_by), and the `cancel` of [`Generate`](crate::Generate::cancel),
/// [`Translate`](crate::Translate::cancel), [`Score`](crate::Score::cancel), [`Embed`](crate::Embed::cancel),
/// [`LoadOptions`](crate::LoadOptions::cancel), `HubModel`, `QuantizeOptions`, `ConvertOptions` and `UpcycleOptions`:
/// - It is asked before anything is submitted, before each step, and within a prompt before each part, which is a fifth of a
///   second of the device's time or less. So work ends one submission late at the most. A load that waits for a host ends at once.
/// - What is there by then is kept. The call returns it without an error, in the form that it always has: one result for each text
///   or image, in order, from which finished ones can be told.
///   What was written says why it ended, with [`StopReason::Cancelled`](crate::StopReason::Cancelled).
///   What has an entry for each token (logits, routes, log-probabilities) has those of the tokens that were read, fewer than
///   the text has ([`Scored::is_whole`](crate::Scored::is_whole)).
///   What is of a whole text or image (masks, classes, a vector) is complete, or has nothing in it.
/// - Only where a part is of no use (a model, a step of a session, a trace and what [`methods`](crate::methods) make of several, a bench, the logits of a translation,
///   files) it is
///   [`Error::Cancelled`], and everything is as it was; a download goes on another time.
/// - A handle that was cancelled stays so, [`is_cancelled`](Self::is_cancelled) tells, and ends whatever is given it next at once.
///   New work wants a new one, or a [`child`](Self::child).
#[derive(Clone)]
pub struct Cancel {
    own: Arc<ManualResetEvent>,
    /// Those that cancel this one, too.
    above: Vec<Arc<ManualResetEvent>>,
}

impl Default for Cancel {
    fn default() -> Self {
        Self::below([])
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}

impl Cancel {
    /// Not cancelled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle that is cancelled with this one, and by itself without this one: for a part of the work.
    pub fn child(&self) -> Self {
        Self::below([self])
    }

    /// A handle that is cancelled with any of `handles`.
    pub(crate) fn below<'a>(handles: impl IntoIterator<Item = &'a Self>) -> Self {
        let events = handles.into_iter().flat_map(Self::events);
        Self { own: Arc::new(ManualResetEvent::new(false)), above: events.cloned().collect() }
    }

    /// Each cancels this one.
    fn events(&self) -> impl Iterator<Item = &Arc<ManualResetEvent>> {
        self.above.iter().chain([&self.own])
    }

    /// Stops whatever was given this handle.
    pub fn cancel(&self) {
        self.own.set();
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.events().any(|event| event.is_set())
    }

    /// Whether work goes on, as those who watch over it answer.
    pub fn flow(&self) -> ControlFlow<()> {
        if self.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// # Errors
    /// [`Error::Cancelled`] once it is.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Does `work` to its end, or drops it as soon as this is cancelled while it waits.
    ///
    /// # Errors
    /// [`Error::Cancelled`], and those of `work`.
    pub(crate) async fn ends<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = pin!(work);
        let mut ends: Vec<_> = self.events().map(|event| Box::pin(event.wait())).collect();
        poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Pending if ends.iter_mut().any(|end| end.as_mut().poll(context).is_ready()) => {
                Poll::Ready(Err(Error::Cancelled))
            }
            polled => polled,
        })
        .await
    }
}

/// Cancels when it is dropped: for work that goes on elsewhere and that nobody wants then.
#[derive(Debug)]
pub(crate) struct CancelOnDrop(pub Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_cancels_those_below_it_alone() {
        let (one, other) = (Cancel::new(), Cancel::new());
        let both = Cancel::below([&one, &other]);
        let (part, deeper) = (both.child(), both.child().child());
        part.cancel();
        assert!(part.is_cancelled() && part.clone().is_cancelled() && part.child().is_cancelled());
        assert!(![&one, &other, &both, &deeper].iter().any(|handle| handle.is_cancelled()));
        other.cancel();
        assert!([&both, &deeper].iter().all(|handle| handle.is_cancelled()) && !one.is_cancelled());
        drop(CancelOnDrop(one.clone()));
        assert!(one.is_cancelled());
    }

    #[cfg(not(target_arch = "wasm32"))]
    #[test]
    fn work_that_waits_ends_with_its_handle_and_with_those_above_it() {
        let never = || std::future::pending::<Result<()>>();
        for above in [false, true] {
            let (whole, part) = (Cancel::new(), Cancel::new());
            let both = Cancel::below([&whole, &part]);
            let end = if above { whole } else { both.clone() };
            let later = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(20));
                end.cancel();
            });
            assert!(matches!(crate::block_on(both.ends(never())), Err(Error::Cancelled)));
            later.join().unwrap();
            // What has ended by itself has.
            assert_eq!(crate::block_on(both.ends(async { Ok(5) })).unwrap(), 5);
        }
    }
}
