//! An app's own device, and wgpu's handles below a [`Gpu`].

use super::{Gpu, GpuOptions, adapter, device::Origin};
#[cfg(any(doc, not(target_arch = "wasm32")))]
use crate::Error;
use crate::Result;

impl Gpu {
    /// Works on a device that an app has made, beside the app's own work on it.
    ///
    /// headwise never destroys it and leaves its handlers alone, those of uncaptured errors and of its loss: what goes wrong in
    /// headwise's own calls comes back from these as [`Error::Gpu`], what goes wrong in the app's goes where it went before. When the
    /// device is lost, the next result that headwise waits for is an [`Error::DeviceLost`]. Natively, whoever waits for headwise
    /// drives the device, so callbacks of the app may be called from there.
    ///
    /// It runs on a device with [`wgpu::Limits::default`] and no features; [`wanted_features`](Self::wanted_features) and
    /// [`wanted_limits`](Self::wanted_limits) are what it makes use of. `queue` is the one that came with `device`. Of the options,
    /// those that choose an adapter and limits mean nothing here.
    ///
    /// # Errors
    /// [`Error::Argument`] where `adapter` is not the device's or cannot compute, a limit of `device` is too low, by its name, or
    /// `queue` is another device's; [`Error::DeviceLost`] where that is known.
    ///
    /// # Panics
    /// Natively wgpu panics, or tells the other device's handler of errors, when work is handed to a queue of another device. That
    /// such a queue is refused here takes a `device` with nothing under way; in a browser it is not known.
    pub fn from_wgpu(
        adapter: &wgpu::Adapter,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        options: GpuOptions,
    ) -> Result<Self> {
        adapter::is_of(adapter, device)?;
        adapter::suffices(adapter, &device.limits())?;
        let handles = (adapter.clone(), device.clone(), queue.clone());
        let gpu = Self::of(Origin::Lent, handles, options);
        gpu.look_for_loss("borrowing a device")?;
        #[cfg(not(target_arch = "wasm32"))]
        gpu.check_queue()?;
        Ok(gpu)
    }

    /// The optional features that headwise makes use of, as far as `adapter` has them: an app that will lend its device asks for
    /// these and its own.
    ///
    /// In a browser, wgpu 30 knows nothing of subgroups; a device that has them all the same is used with them.
    pub fn wanted_features(adapter: &wgpu::Adapter) -> wgpu::Features {
        adapter.features() & adapter::WANTED_FEATURES
    }

    /// An app's `limits` where these are enough, else raised: to what headwise needs, which is no more than
    /// [`wgpu::Limits::default`], and, as far as `adapter` has them, the largest bindings and buffers, so that large matrices need not
    /// be cut.
    pub fn wanted_limits(adapter: &wgpu::Adapter, limits: wgpu::Limits) -> wgpu::Limits {
        adapter::wanted_limits(adapter, limits)
    }

    /// The adapter that the device is of.
    pub fn adapter(&self) -> &wgpu::Adapter {
        &self.inner.adapter
    }

    /// The instance that headwise looked for an adapter in; none where an app lent its device.
    pub fn instance(&self) -> Option<&wgpu::Instance> {
        match &self.inner.origin {
            Origin::Opened(instance) => Some(instance),
            Origin::Lent => None,
        }
    }

    /// The device. On one that headwise opened, an error that nobody captures is headwise's, whoever made it: an app that
    /// works on the device itself had better open and lend it.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The device's queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// Refuses a queue of another device: what it was handed never ends for this one. wgpu has no other way to tell that harms
    /// nobody. While the app's work is under way there is nothing to see.
    #[cfg(not(target_arch = "wasm32"))]
    fn check_queue(&self) -> Result<()> {
        use std::{thread, time::Duration};

        let handed = super::waiting::Submission::up_to_now(self.queue());
        // The app may be driving its device, too, and about to tell.
        for _ in 0..20 {
            match self.loss().poll(self.device(), wgpu::PollType::Poll) {
                Ok(true) if !handed.is_finished() => thread::sleep(Duration::from_millis(1)),
                // What else is wrong is seen by whoever waits for a result.
                _ => return Ok(()),
            }
        }
        Err(Error::argument("queue", "one of another device", "the one that came with the device"))
    }

    pub(super) fn is_lent(&self) -> bool {
        matches!(self.inner.origin, Origin::Lent)
    }

    /// Learns whether the device is lost, also where nobody tells.
    ///
    /// # Errors
    /// As [`Gpu::check`].
    pub(super) fn look_for_loss(&self, during: &str) -> Result<()> {
        self.loss().look();
        self.check(during)
    }
}
