//! Whether a device is lost.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex},
};

#[cfg(not(target_arch = "wasm32"))]
use super::errors::Scopes;
use super::lock::lock;

/// Why a device is lost, once that is known.
pub(super) struct Loss {
    reason: Arc<Mutex<Option<String>>>,
    probe: Option<Probe>,
}

impl Loss {
    /// Of a device that was opened here, whose callback this becomes.
    pub fn told_by(device: &wgpu::Device) -> Self {
        let reason = Arc::<Mutex<Option<String>>>::default();
        let told = reason.clone();
        device.set_device_lost_callback(move |why, message| {
            lock(&told).get_or_insert(format!("{why:?}: {message}"));
        });
        Self { reason, probe: None }
    }

    /// Of a device that tells another.
    pub fn seen_on(device: &wgpu::Device) -> Self {
        Self { reason: Arc::default(), probe: Probe::new(device) }
    }

    /// Why it is lost.
    pub fn reason(&self) -> Option<String> {
        lock(&self.reason).clone()
    }

    /// Takes note that it is lost. The first reason counts.
    pub fn note(&self, reason: &str) {
        lock(&self.reason).get_or_insert_with(|| reason.to_owned());
    }

    /// Drives the device; whether nothing is left for it to do. Where that itself fails since the device is lost, wgpu panics: here
    /// it is a loss as every other, which leaves nothing to do.
    pub fn poll(&self, device: &wgpu::Device, how: wgpu::PollType) -> Result<bool, wgpu::PollError> {
        match unless_lost(|| device.poll(how)) {
            Ok(polled) => polled.map(|status| status.is_queue_empty()),
            Err(why) => {
                self.note(&why);
                Ok(true)
            }
        }
    }

    /// Looks whether it is lost, where nobody tells.
    pub fn look(&self) {
        if self.probe.as_ref().is_some_and(Probe::is_lost) {
            self.note("it takes no work any more");
        }
    }
}

/// How wgpu's panic begins, natively.
const PANIC: &str = "Error in Device::poll";

/// What `poll` gives, or the message of wgpu's own panic in it. Others, of callbacks of an app for one, go on.
fn unless_lost<T>(poll: impl FnOnce() -> T) -> Result<T, String> {
    // Nothing of the device is held or half done when wgpu panics: all that is left of the call is its result.
    catch_unwind(AssertUnwindSafe(poll)).or_else(|panic| {
        let message = panic.downcast_ref::<String>().filter(|message| message.starts_with(PANIC));
        message.cloned().map_or_else(|| resume_unwind(panic), Err)
    })
}

/// A buffer from before the loss: natively, a lost device refuses at once to map it, and says no reason.
#[cfg(not(target_arch = "wasm32"))]
struct Probe {
    device: wgpu::Device,
    buffer: Mutex<wgpu::Buffer>,
}

#[cfg(not(target_arch = "wasm32"))]
impl Probe {
    fn new(device: &wgpu::Device) -> Option<Self> {
        let descriptor = wgpu::BufferDescriptor {
            label: Some("headwise.probe"),
            size: wgpu::MAP_ALIGNMENT,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        // Nobody needs to know why a buffer could not be made: it is refused, too.
        let scopes = Scopes::open(device);
        let buffer = Mutex::new(device.create_buffer(&descriptor));
        drop(scopes.close());
        Some(Self { device: device.clone(), buffer })
    }

    fn is_lost(&self) -> bool {
        use std::sync::atomic::{AtomicBool, Ordering};

        let buffer = lock(&self.buffer);
        let refused = Arc::new(AtomicBool::new(false));
        let answer = refused.clone();
        let _scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            answer.store(result.is_err(), Ordering::Release);
        });
        let lost = refused.load(Ordering::Acquire);
        if !lost {
            buffer.unmap();
        }
        lost
    }
}

/// There is none in a browser, which answers later: there the next readback fails.
#[cfg(target_arch = "wasm32")]
enum Probe {}

#[cfg(target_arch = "wasm32")]
impl Probe {
    fn new(_: &wgpu::Device) -> Option<Self> {
        None
    }

    fn is_lost(&self) -> bool {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_panic_of_a_lost_device_is_caught() {
        assert_eq!(unless_lost(|| 7), Ok(7));
        let lost = unless_lost(|| panic!("{PANIC}: Parent device is {}", "lost"));
        assert_eq!(lost, Err::<(), _>(format!("{PANIC}: Parent device is lost")));
        for other in ["an app's own", "in Device::poll"] {
            assert!(catch_unwind(|| unless_lost(|| panic!("{other}, {}", 3))).is_err());
        }
    }
}
