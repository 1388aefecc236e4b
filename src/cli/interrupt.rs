//! Ctrl-C.

use std::sync::{Arc, Mutex, PoisonError};

use headwise::Cancel;

/// The first Ctrl-C from here on cancels the work, the second ends the process.
pub fn cancel_on_ctrl_c() -> Cancel {
    let cancel = Cancel::new();
    let handle = cancel.clone();
    // Without a handler Ctrl-C still ends the process.
    let _ = ctrlc::set_handler(move || {
        if handle.is_cancelled() {
            std::process::exit(130);
        }
        handle.cancel();
    });
    cancel
}

/// Ctrl-C for a command that goes on after an answer: it ends the answer under way; without one, or a second time, the
/// process.
pub struct Interrupt(Arc<Mutex<Option<Cancel>>>);

impl Interrupt {
    pub fn new() -> Self {
        let current = Arc::new(Mutex::new(None::<Cancel>));
        let shared = current.clone();
        // Without a handler Ctrl-C still ends the process.
        let _ = ctrlc::set_handler(move || match &*shared.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(answer) if !answer.is_cancelled() => answer.cancel(),
            _ => std::process::exit(130),
        });
        Self(current)
    }

    /// What Ctrl-C cancels from here on.
    pub fn answer(&self) -> Cancel {
        let cancel = Cancel::new();
        self.set(Some(cancel.clone()));
        cancel
    }

    /// There is nothing to cancel from here on.
    pub fn done(&self) {
        self.set(None);
    }

    fn set(&self, cancel: Option<Cancel>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = cancel;
    }
}
