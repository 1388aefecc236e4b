//! How much work one submission may hold, so that a slow device comes up for air.
//!
//! A submission cannot be stopped: while one runs, nothing is cancelled and no progress is seen, and a driver's watchdog may
//! take a very long one for a hang. Work is known beforehand by its multiply-accumulates; how fast a device does them is
//! measured where there is enough of it to be cut.

use std::sync::atomic::{AtomicU64, Ordering};

/// Seconds that a submission should take at the most.
const SECONDS: f64 = 0.2;
/// Multiply-accumulates a second before anything was measured: the least that is sold as a GPU, 0.05 TFLOP/s.
const FIRST_RATE: u64 = 25_000_000_000;
/// The same of an adapter that computes on a CPU: what two of its cores do beside other work.
const FIRST_SOFTWARE_RATE: u64 = FIRST_RATE / 8;
/// A rate below this says that the device was busy with something else.
const LEAST_RATE: u64 = FIRST_RATE / 64;
/// How far one measurement may move the rate.
const STEP: u64 = 4;
/// A wait this long, in seconds, ended when the work did: after a shorter one the work may have been done long since.
pub(super) const A_WAIT: f64 = 1e-3;

/// How fast a device is. All of its recorders measure.
pub(super) struct Pace {
    /// Multiply-accumulates a second.
    rate: AtomicU64,
    /// What a submission may hold, where that is given.
    given: Option<u64>,
}

impl Pace {
    pub fn new(software: bool, given: Option<u64>) -> Self {
        let rate = if software { FIRST_SOFTWARE_RATE } else { FIRST_RATE };
        Self { rate: AtomicU64::new(rate), given }
    }

    /// Multiply-accumulates that one submission may hold.
    pub fn budget(&self) -> u64 {
        self.given.unwrap_or((self.rate.load(Ordering::Relaxed) as f64 * SECONDS) as u64)
    }

    /// Takes note of work that took so long at the most.
    pub fn measured(&self, macs: u64, seconds: f64) {
        let before = self.rate.load(Ordering::Relaxed);
        let rate = (macs as f64 / seconds.max(A_WAIT)) as u64;
        let rate = rate.clamp(before / STEP, before.saturating_mul(STEP)).max(LEAST_RATE);
        self.rate.store(rate, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_moves_the_budget_but_not_far() {
        let pace = Pace::new(false, None);
        assert_eq!(pace.budget(), 5_000_000_000);
        // Ten times as fast, twice: a factor of four each time at the most.
        pace.measured(10 * FIRST_RATE, 1.0);
        assert_eq!(pace.budget(), 20_000_000_000);
        pace.measured(10 * FIRST_RATE, 1.0);
        assert_eq!(pace.budget(), 50_000_000_000);
        // A device that does nothing at all, for long.
        for _ in 0..100 {
            pace.measured(1, 1e9);
        }
        assert_eq!(pace.budget(), 5_000_000_000 / 64);
        pace.measured(u64::MAX, 1e-3);
        assert_eq!(pace.budget(), 5_000_000_000 / 16);
        assert_eq!(Pace::new(true, Some(7)).budget(), 7);
    }
}
