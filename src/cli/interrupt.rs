//! Ctrl-C.

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
