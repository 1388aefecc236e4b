//! Waiting for the device, without keeping a thread from other work.
//!
//! Natively a device tells nothing by itself: a thread has to ask it. Below [`block_on`] that is the caller's own, as quick as
//! it can be. Elsewhere, on an async runtime, it is one thread for each [`Gpu`], which wakes whoever waits.
//!
//! Nobody waits inside wgpu. It keeps all buffers from being destroyed meanwhile, an app's too; and its waits with a timeout
//! panic now and then where an app drives its device at the same time (wgpu-core 30.0.1, `Device::maintain`: the timeout
//! passes, another thread takes note of the end, and "the queue is empty" contradicts what the first had read).

use super::Gpu;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::aside;
#[cfg(not(target_arch = "wasm32"))]
pub use native::block_on;
#[cfg(not(target_arch = "wasm32"))]
pub(super) use native::{Submission, done};
use std::{future::poll_fn, task::Poll};

use crate::Result;

/// Lets other tasks of this thread have their turn, once.
pub(crate) async fn breathe() {
    let mut rested = false;
    poll_fn(|context| match std::mem::replace(&mut rested, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

/// All that a device was handed up to some moment. In a browser, nothing: what is read from it says when it is done.
#[cfg(target_arch = "wasm32")]
#[derive(Clone)]
pub(super) struct Submission;

#[cfg(target_arch = "wasm32")]
impl Submission {
    pub fn up_to_now(_queue: &wgpu::Queue) -> Self {
        Self
    }
}

/// In a browser the device drives itself.
#[cfg(target_arch = "wasm32")]
pub(super) async fn done(gpu: &Gpu, _submission: Submission, during: &str) -> Result<()> {
    gpu.check(during)
}

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::{
        cell::Cell,
        future::IntoFuture,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        thread,
        time::{Duration, Instant},
    };

    use futures_intrusive::channel::shared::oneshot_channel;

    use super::{Gpu, Result, breathe};

    /// Between two questions whether the device is done lies a part of the time waited so far, and no less or more than this.
    const PART: u32 = 32;
    const LEAST_PAUSE: Duration = Duration::from_micros(50);
    const MOST_PAUSE: Duration = Duration::from_millis(1);

    thread_local! {
        /// Whether this thread has nothing else to do.
        static IDLE: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs one of the async functions to its end, for programs without an async runtime.
    ///
    /// It waits for the GPU on this very thread. Other executors do as well: there a thread of the [`Gpu`]'s waits and wakes them.
    pub fn block_on<F: IntoFuture>(future: F) -> F::Output {
        /// What it was before, when all is done, or a panic passes.
        struct Before(bool);
        impl Drop for Before {
            fn drop(&mut self) {
                IDLE.set(self.0);
            }
        }
        let _before = Before(IDLE.replace(true));
        pollster::block_on(future)
    }

    /// Does `work` on a thread of its own, which starts at once; what comes of it, or nothing where there is no thread or it
    /// panicked.
    pub fn aside<T: Send + 'static>(
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Option<T>> + Send {
        let (sender, result) = oneshot_channel();
        // Whoever waits may have gone away.
        let work = move || drop(sender.send(work()));
        // Where there is no thread, the sender is gone.
        let _ = thread::Builder::new().name(format!("headwise.{name}")).spawn(work);
        async move { result.receive().await }
    }

    /// All that a device was handed up to some moment.
    #[derive(Clone)]
    pub struct Submission(Arc<AtomicBool>);

    impl Submission {
        pub fn up_to_now(queue: &wgpu::Queue) -> Self {
            let finished = Arc::new(AtomicBool::new(false));
            let told = finished.clone();
            queue.on_submitted_work_done(move || told.store(true, Ordering::Release));
            Self(finished)
        }

        /// Whether somebody who drove the device has seen its end.
        pub fn is_finished(&self) -> bool {
            self.0.load(Ordering::Acquire)
        }
    }

    type Answer = std::result::Result<(), wgpu::PollError>;

    /// Blocks until the device has done all of `submission`, and tells those whose buffers are mapped then.
    fn wait(gpu: &Gpu, submission: &Submission) -> Answer {
        let start = Instant::now();
        loop {
            let nothing_left = gpu.loss().poll(gpu.device(), wgpu::PollType::Poll)?;
            if nothing_left || submission.is_finished() {
                return Ok(());
            }
            thread::sleep((start.elapsed() / PART).clamp(LEAST_PAUSE, MOST_PAUSE));
        }
    }

    /// Waits until the device has done all of `submission`. Other tasks have a turn in any case.
    ///
    /// # Errors
    /// What the device reports.
    pub async fn done(gpu: &Gpu, submission: Submission, during: &str) -> Result<()> {
        let (sender, answer) = oneshot_channel();
        let asked = if IDLE.get() {
            None
        } else {
            let (this, gpu, submission) = (gpu, gpu.clone(), submission.clone());
            let work = move || {
                let done = wait(&gpu, &submission);
                // Whoever has the last handle closes the device, never this thread: the program may be at its end.
                drop(gpu);
                // Whoever asked may have gone away.
                let _ = sender.send(done);
            };
            this.worker().run(Box::new(work))
        };
        breathe().await;
        let done = match asked {
            Some(()) => answer.receive().await,
            None => Some(wait(gpu, &submission)),
        };
        gpu.check(during)?;
        let done =
            done.ok_or_else(|| gpu.refused(during, &"the thread that waits for the device has ended"))?;
        done.map_err(|error| gpu.refused(during, &error))
    }
}
