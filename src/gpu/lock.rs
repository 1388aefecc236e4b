//! Locks that outlive a panic.

use std::sync::{Mutex, MutexGuard};

/// A poisoned lock only means another thread panicked between two assignments; the value is still whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
