//! How much work one submission may hold, so that a slow device comes up for air.
//!
//! A submission cannot be stopped: while one runs, nothing is cancelled and no progress is seen, and a driver's watchdog may
//! take a very long one for a hang. Work is known beforehand by its multiply-accumulates; how fast a device does them is
//! measured where there is enough of it to be cut.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Clock, Gpu};
use crate::Result;

/// Seconds that a submission should take at the most.
const SECONDS: f64 = 0.2;
/// Multiply-accumulates a second before anything was measured: the least that is sold as a GPU, 0.05 TFLOP/s.
const FIRST_RATE: u64 = 25_000_000_000;
/// A rate below this says that the device was busy with something else.
const LEAST_RATE: u64 = FIRST_RATE / 64;
/// How far one measurement may move the rate.
const STEP: u64 = 4;
/// A wait this long, in seconds, ended when the work did: after a shorter one the work may have been done long since.
const A_WAIT: f64 = 1e-3;
/// Submissions under way, however little work they hold.
const MOST_UNDER_WAY: usize = 8;

/// How fast a device is. All of its recorders measure.
pub(super) struct Pace {
    /// Multiply-accumulates a second.
    rate: AtomicU64,
    /// What a submission may hold, where that is given.
    given: Option<u64>,
}

impl Pace {
    pub fn new(given: Option<u64>) -> Self {
        Self { rate: AtomicU64::new(FIRST_RATE), given }
    }

    /// Multiply-accumulates that one submission may hold.
    pub fn budget(&self) -> u64 {
        self.given.unwrap_or((self.rate.load(Ordering::Relaxed) as f64 * SECONDS) as u64)
    }

    /// Takes note of work that took so long at the most.
    fn measured(&self, macs: u64, seconds: f64) {
        let before = self.rate.load(Ordering::Relaxed);
        let rate = (macs as f64 / seconds.max(A_WAIT)) as u64;
        let rate = rate.clamp(before / STEP, before.saturating_mul(STEP)).max(LEAST_RATE);
        self.rate.store(rate, Ordering::Relaxed);
    }
}

/// A submission that nobody knows to be finished.
struct UnderWay {
    macs: u64,
    pushed: Clock,
    submission: wgpu::SubmissionIndex,
    #[cfg(target_arch = "wasm32")]
    done: futures_intrusive::channel::shared::OneshotReceiver<()>,
}

/// The submissions of a recorder that nobody knows to be finished, oldest first.
pub(super) struct Queue {
    under_way: VecDeque<UnderWay>,
    /// Since a submission was seen to end.
    ended: Clock,
}

impl Queue {
    pub fn new() -> Self {
        Self { under_way: VecDeque::new(), ended: Clock::start() }
    }

    /// Takes note of a submission.
    #[cfg_attr(not(target_arch = "wasm32"), allow(unused_variables))]
    pub fn push(&mut self, gpu: &Gpu, macs: u64, submission: wgpu::SubmissionIndex) {
        #[cfg(target_arch = "wasm32")]
        let done = {
            let (sender, done) = futures_intrusive::channel::shared::oneshot_channel();
            // The receiver is gone where nobody waits any more.
            gpu.queue().on_submitted_work_done(move || drop(sender.send(())));
            done
        };
        if self.under_way.len() == MOST_UNDER_WAY {
            // Whoever submits without asking for room does not wait; the others end later than this one.
            self.under_way.pop_front();
        }
        self.under_way.push_back(UnderWay {
            macs,
            pushed: Clock::start(),
            submission,
            #[cfg(target_arch = "wasm32")]
            done,
        });
    }

    /// Waits until the device has no more to do than one submission may hold, or one submission: so a new one waits for one
    /// other at the most, or for some that are small together.
    ///
    /// # Errors
    /// What the device reports.
    pub async fn make_room(&mut self, gpu: &Gpu) -> Result<()> {
        loop {
            let macs: u64 = self.under_way.iter().map(|one| one.macs).sum();
            let large = self.under_way.len() > 1 && macs > gpu.pace().budget();
            if !large && self.under_way.len() < MOST_UNDER_WAY {
                return Ok(());
            }
            let Some(oldest) = self.under_way.pop_front() else { return Ok(()) };
            let (macs, pushed, waiting) = (oldest.macs, oldest.pushed, Clock::start());
            oldest.wait(gpu).await?;
            if large {
                // It started when it was submitted, or when the one before it ended: no later than that is known to be.
                gpu.pace().measured(macs, pushed.seconds().min(self.ended.seconds()));
            }
            if waiting.seconds() >= A_WAIT {
                self.ended = Clock::start();
            }
        }
    }
}

impl UnderWay {
    async fn wait(self, gpu: &Gpu) -> Result<()> {
        const DURING: &str = "waiting for the GPU";
        // Natively somebody has to drive the device; in a browser this does nothing.
        let wait = wgpu::PollType::Wait { submission_index: Some(self.submission), timeout: None };
        let polled = gpu.loss().poll(gpu.device(), wait);
        #[cfg(target_arch = "wasm32")]
        super::web_nudge::nudging(gpu.queue(), self.done.receive()).await;
        gpu.check(DURING)?;
        polled.map_err(|error| gpu.refused(DURING, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_moves_the_budget_but_not_far() {
        let pace = Pace::new(None);
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
        assert_eq!(Pace::new(Some(7)).budget(), 7);
    }
}
