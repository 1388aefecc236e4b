//! Calls of a device, and what they report.

use super::{
    Gpu,
    errors::{Calls, Errors},
};
use crate::{Error, Result};

impl Gpu {
    /// What calls of the device go through.
    pub(super) fn calls(&self) -> Calls<'_> {
        Calls { device: self.device(), queue: self.queue(), errors: &self.errors }
    }

    /// Calls the device: all that it may report an error for goes through here.
    pub(super) fn call<T>(&self, work: impl FnOnce(&wgpu::Device, &wgpu::Queue) -> T) -> T {
        self.calls().call(work)
    }

    /// The error that headwise's work on this device made since it was opened or lent, if any. Work with this handle, its clones
    /// and what was made from them is in vain from then on: the buffers behind it can no longer be trusted. Of a device that
    /// headwise opened, everybody's errors count, of one that it was lent, only those of headwise's own calls; there
    /// [`Gpu::from_wgpu`] makes a fresh handle.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], or [`Error::Gpu`] with `during` for what was being done.
    pub fn check(&self, during: &str) -> Result<()> {
        let message = self.errors.first();
        if message.is_some() {
            // On a lost device everything else is wrong, too.
            self.loss().look();
        }
        if let Some(reason) = self.loss().reason() {
            return Err(Error::DeviceLost { reason });
        }
        match message {
            Some(message) => Err(Error::Gpu { during: during.to_owned(), message }),
            None => Ok(()),
        }
    }

    /// This device for work whose errors shall be nobody else's.
    pub(crate) fn apart(&self) -> Self {
        Self { inner: self.inner.clone(), errors: Errors::of_calls() }
    }

    /// Does work that the driver may refuse, on a handle [`apart`](Self::apart): later work on it starts without errors.
    ///
    /// # Errors
    /// The work's own, or what the device reported.
    pub(crate) async fn attempt<T>(&self, during: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let result = work.await;
        let checked = self.check(during);
        self.errors.forget();
        checked.and(result)
    }

    /// What it means that the device does not give a result and names no error: the loss of a lent one, as far as that can be
    /// looked at; browsers refuse for no other reason.
    pub(super) fn refused(&self, during: &str, why: &impl std::fmt::Display) -> Error {
        self.loss().look();
        if cfg!(target_arch = "wasm32") && self.is_lent() {
            self.loss().note("its results cannot be read any more");
        }
        let unknown = || Error::Gpu { during: during.to_owned(), message: why.to_string() };
        self.check(during).err().unwrap_or_else(unknown)
    }
}
