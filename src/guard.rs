//! Work that code of others does on the word of a file: its panics come back as values, and its time is bounded.

use std::time::Duration;

/// Why guarded work gave no answer.
#[derive(Debug)]
#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
pub(crate) enum Broken {
    /// It panicked, with this message.
    Panicked(String),
    /// It took longer than this. It may still be running: nothing can stop it.
    TooSlow(Duration),
}

/// The stack of guarded work: far more than what the checks before it let it need.
#[cfg(not(target_arch = "wasm32"))]
const STACK: usize = 16 << 20;

#[cfg(not(target_arch = "wasm32"))]
thread_local! {
    static CAUGHT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether a panic of this thread comes back as an error. A panic hook that ends the process asks first.
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
pub fn panic_is_caught() -> bool {
    CAUGHT.get()
}

/// Runs `work` on a thread of its own, for `limit` at the most.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn run<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Broken> {
    use std::{
        sync::mpsc::{RecvTimeoutError, sync_channel},
        thread,
    };

    let (sender, receiver) = sync_channel(1);
    let thread = thread::Builder::new().name("guarded".to_owned()).stack_size(STACK).spawn(move || {
        CAUGHT.set(true);
        // Whoever waited may have given up.
        let _ = sender.send(work());
    });
    let thread = thread.map_err(|error| Broken::Panicked(error.to_string()))?;
    match receiver.recv_timeout(limit) {
        Ok(answer) => Ok(answer),
        Err(RecvTimeoutError::Timeout) => Err(Broken::TooSlow(limit)),
        Err(RecvTimeoutError::Disconnected) => {
            let payload = thread.join().err();
            let text = payload.as_ref().and_then(|payload| {
                let owned = payload.downcast_ref::<String>().map(String::as_str);
                owned.or_else(|| payload.downcast_ref::<&str>().copied())
            });
            Err(Broken::Panicked(text.unwrap_or("no message").to_owned()))
        }
    }
}

/// Runs `work`. There are no threads here and a panic ends the program: what comes before must be thorough.
#[cfg(target_arch = "wasm32")]
pub(crate) fn run<T>(_limit: Duration, work: impl FnOnce() -> T) -> Result<T, Broken> {
    Ok(work())
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;

    #[test]
    fn panics_and_endless_work_come_back() {
        let second = Duration::from_secs(1);
        assert_eq!(run(second, || 7).unwrap(), 7);
        assert!(
            matches!(run(second, || panic!("no {}", 3)), Err::<(), _>(Broken::Panicked(text)) if text == "no 3")
        );
        let slow = || std::thread::sleep(Duration::from_secs(60));
        assert!(matches!(run(Duration::from_millis(20), slow), Err(Broken::TooSlow(_))));
        assert!(!panic_is_caught());
        assert!(run(second, panic_is_caught).unwrap());
    }
}
