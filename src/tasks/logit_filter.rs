//! A program's own say in what is chosen.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{Error, Result, ops::BANNED, sessions::Penalties};

/// Whoever changes logits on the host.
#[derive(Clone)]
pub(super) struct LogitFilter(Arc<Mutex<Change>>);

type Change = dyn FnMut(&[u32], &mut [f32]) + Send;

impl fmt::Debug for LogitFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogitFilter")
    }
}

impl LogitFilter {
    pub fn new(change: impl FnMut(&[u32], &mut [f32]) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(change)))
    }

    /// Changes the logits of the token behind `ids`, before `penalties` do.
    ///
    /// # Errors
    /// What comes back as NaN, as +∞, or leaves no token to choose.
    pub fn change(&self, ids: &[u32], logits: &mut [f32], penalties: Option<&Penalties>) -> Result<()> {
        // One that panicked before may be called again: whoever caught that has reason to.
        let mut change = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(ids, logits);
        let wrong = |found: String, expected| Err(Error::argument("logit filter", found, expected));
        let broken = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY);
        if let Some(id) = broken {
            let found = format!("{} for token {id}", logits[id]);
            return wrong(found, "a finite number, or -inf to ban the token");
        }
        let stays = |logit: &f32| *logit > BANNED;
        let unbiased = |id| penalties.is_none_or(|penalties| !penalties.bans(id));
        if (0..).zip(&*logits).any(|(id, logit)| stays(logit) && unbiased(id)) {
            return Ok(());
        }
        let that = if logits.iter().any(stays) { " that the logit bias leaves" } else { "" };
        wrong(format!("-inf for every token{that}"), "a token to choose")
    }
}
