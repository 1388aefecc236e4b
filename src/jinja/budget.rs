//! What a rendering may cost: work, and room.
//!
//! Every visit of a value is a step, however often the value is shared: a value that holds another twice, a hundred levels
//! deep, is small, but going through it is not. Bytes that are made cost room and, as copying them takes time, steps.
//!
//! Steps never come back. Room comes back where a text that was made is certainly gone: it was an operand, or a name or an
//! attribute held it that is set anew, and nobody else does ([`Budget::release`]). So a template may add to a text at every
//! message, as Python's may: of the texts that this makes only the last takes room. For this to hold, whoever makes a text
//! that may be longer than [`SHORT`] pays for all of it; texts that were given, and those of the template itself, are
//! always held by somebody else.

use std::{cell::Cell, rc::Rc, sync::Arc};

use super::{
    Outcome, fault,
    value::{Function, Value},
};

/// Steps of a rendering: evaluated expressions, compared elements, every 16 bytes that are looked through. A turn of a
/// published template takes under a thousand.
const STEPS: u64 = 1_000_000;
/// Further steps for each byte that was given.
const STEPS_A_BYTE: u64 = 4;
/// Bytes that a rendering may make, all values and its output together, less those of texts that are known to be gone.
const BYTES: usize = 12 << 20;
/// Further bytes for each byte that was given.
const BYTES_A_BYTE: usize = 16;
/// Bytes that are copied in the time of a step.
const BYTES_A_STEP: usize = 512;
/// Texts up to this length are not always paid for, so they do not come back.
const SHORT: usize = 256;
/// Levels of evaluation: expressions in expressions, blocks in blocks, calls in calls.
const LEVELS: u32 = if cfg!(target_arch = "wasm32") { 250 } else { 500 };
/// How deep a value may be: lists in lists.
pub(super) const VALUE_DEPTH: u32 = 100;

/// What is left to a rendering.
pub(super) struct Budget {
    steps: Cell<u64>,
    bytes: Cell<usize>,
    level: Cell<u32>,
}

impl Budget {
    /// A budget for values of so many bytes.
    pub fn new(given: usize) -> Self {
        let steps = STEPS.saturating_add((given as u64).saturating_mul(STEPS_A_BYTE));
        let bytes = BYTES.saturating_add(given.saturating_mul(BYTES_A_BYTE));
        Self { steps: Cell::new(steps), bytes: Cell::new(bytes), level: Cell::new(0) }
    }

    /// Pays for work.
    pub fn spend(&self, steps: usize) -> Outcome<()> {
        match self.steps.get().checked_sub(steps as u64) {
            Some(left) => self.steps.set(left),
            None => return fault("the template does not come to an end in the steps that it has"),
        }
        Ok(())
    }

    /// Pays for looking through so many bytes.
    pub fn scan(&self, bytes: usize) -> Outcome<()> {
        self.spend(1 + bytes / 16)
    }

    /// Pays for bytes, before they are there where they could be many at once.
    pub fn take(&self, bytes: usize) -> Outcome<()> {
        match self.bytes.get().checked_sub(bytes) {
            Some(left) => self.bytes.set(left),
            None => return fault("the template makes more text or values than it may"),
        }
        self.spend(bytes / BYTES_A_STEP)
    }

    /// Drops a value. The room of a text that nobody else holds comes back.
    pub fn release(&self, value: Value) {
        match value {
            Value::Str(text) if text.len() > SHORT && Arc::strong_count(&text) == 1 => {
                self.bytes.set(self.bytes.get().saturating_add(text.len()));
            }
            // A method holds what it is a method of.
            Value::Function(function) => {
                if let Ok(Function::Method(value, _)) = Rc::try_unwrap(function) {
                    self.release(value);
                }
            }
            _ => {}
        }
    }

    /// Does something one level deeper.
    pub fn deeper<T>(&self, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        self.enter()?;
        let done = work();
        self.leave();
        done
    }

    /// Goes one level deeper; [`Self::leave`] follows.
    pub fn enter(&self) -> Outcome<()> {
        if self.level.get() == LEVELS {
            return fault(format!("calls or values within each other more than {LEVELS} deep"));
        }
        self.level.set(self.level.get() + 1);
        Ok(())
    }

    /// Comes back from [`Self::enter`].
    pub fn leave(&self) {
        self.level.set(self.level.get() - 1);
    }
}
