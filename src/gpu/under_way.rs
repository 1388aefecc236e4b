//! Submissions that nobody knows to be finished.

use std::collections::VecDeque;

use super::{
    Clock, Gpu,
    pace::A_WAIT,
    waiting::{Submission, done},
};
use crate::Result;

/// Submissions under way, however little work they hold.
const MOST_UNDER_WAY: usize = 8;

/// A submission that nobody knows to be finished.
struct UnderWay {
    macs: u64,
    pushed: Clock,
    submission: Submission,
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
    pub fn push(&mut self, gpu: &Gpu, macs: u64, submission: Submission) {
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
        done(gpu, self.submission, DURING).await?;
        #[cfg(target_arch = "wasm32")]
        super::web_nudge::nudging(gpu.queue(), self.done.receive()).await;
        gpu.check(DURING)
    }
}
