//! Ctrl-C.

use std::sync::{Mutex, MutexGuard, PoisonError};

use headwise::{Cancel, internal::remove_unfinished};

/// What Ctrl-C cancels.
static ANSWER: Mutex<Option<Cancel>> = Mutex::new(None);

fn current() -> MutexGuard<'static, Option<Cancel>> {
    ANSWER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on Ctrl-C ends the answer under way; without one, or a second time, the process, which leaves nothing half
/// written.
pub fn listen() {
    // Without a handler Ctrl-C still ends the process.
    let _ = ctrlc::set_handler(|| match &*current() {
        Some(answer) if !answer.is_cancelled() => answer.cancel(),
        _ => {
            remove_unfinished();
            std::process::exit(130);
        }
    });
}

/// What Ctrl-C cancels from here on.
pub fn answer() -> Cancel {
    let cancel = Cancel::new();
    *current() = Some(cancel.clone());
    cancel
}

/// There is nothing to cancel from here on.
pub fn done() {
    *current() = None;
}
