//! A thread that does one thing after the other.

use std::{
    sync::{OnceLock, mpsc},
    thread,
};

/// What there is to do.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// There is no thread before something is to be done. It ends with this.
#[derive(Default)]
pub(super) struct Worker(OnceLock<Option<mpsc::Sender<Job>>>);

impl Worker {
    /// Has it done by the thread; none where the system has no thread for it.
    pub fn run(&self, job: Job) -> Option<()> {
        let start = || {
            let (sender, jobs) = mpsc::channel::<Job>();
            let work = move || jobs.into_iter().for_each(|job| job());
            thread::Builder::new().name("headwise.wait".to_owned()).spawn(work).ok()?;
            Some(sender)
        };
        self.0.get_or_init(start).as_ref()?.send(job).ok()
    }
}
