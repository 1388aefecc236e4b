//! A handle that stops work.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{Error, Result};

/// Stops work from outside: from another thread, a handler, a task. Clones share it.
///
/// There is one rule for all that takes a handle: everything that is asked of a
/// [`Model::cancelled_by`](crate::Model::cancelled_by), and the `cancel` of [`Generate`](crate::Generate::cancel),
/// [`Translate`](crate::Translate::cancel), [`Score`](crate::Score::cancel), [`Embed`](crate::Embed::cancel),
/// [`LoadOptions`](crate::LoadOptions::cancel), `HubModel`, `QuantizeOptions`, `ConvertOptions` and `UpcycleOptions`:
/// - It is asked before anything is submitted, before each step, and within a prompt before each part, which is a fifth of a
///   second of the device's time or less. So work ends one submission late at the most.
/// - What is there by then is kept. The call returns it without an error, in the form that it always has: tokens so far, with
///   [`StopReason::Cancelled`](crate::StopReason::Cancelled); one result for each text or image, those that were not reached with
///   nothing in it; scores and vectors of the texts up to the first that was not.
/// - Only where a part is of no use (a model, a step of a session, the logits of a translation, files) it is
///   [`Error::Cancelled`], and everything is as it was; a download goes on another time.
/// - A handle that was cancelled stays so, [`is_cancelled`](Self::is_cancelled) tells, and ends whatever is given it next at once.
///   New work wants a new one, or a [`child`](Self::child).
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    own: Arc<AtomicBool>,
    /// Those that cancel this one, too.
    above: Vec<Arc<AtomicBool>>,
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
        let flags = handles.into_iter().flat_map(|handle| handle.above.iter().chain([&handle.own]));
        Self { own: Arc::default(), above: flags.cloned().collect() }
    }

    /// Stops whatever was given this handle.
    pub fn cancel(&self) {
        self.own.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.above.iter().chain([&self.own]).any(|flag| flag.load(Ordering::Relaxed))
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
}
