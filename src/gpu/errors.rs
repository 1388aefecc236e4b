//! Whose error it is.
//!
//! A device tells an error to the scopes that its thread has open, else to one handler, and its loss to one other. On a device that
//! headwise opened, both are headwise's. A device that it was lent has an app's: there each of its calls has scopes of its own,
//! and a loss shows in what is asked for and does not come.

use std::sync::{Arc, Mutex};

use super::{Gpu, lock::lock};
use crate::{Error, Result};

/// What a device may report.
const FILTERS: [wgpu::ErrorFilter; 3] =
    [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];

/// Open scopes of this thread, one for each of them. Nothing may wait until they are closed: scopes close in their order.
pub(super) struct Scopes([wgpu::ErrorScopeGuard; 3]);

impl Scopes {
    pub fn open(device: &wgpu::Device) -> Self {
        Self(FILTERS.map(|filter| device.push_error_scope(filter)))
    }

    /// What they caught.
    pub fn close(self) -> [impl Future<Output = Option<wgpu::Error>> + use<>; 3] {
        let [outer, middle, inner] = self.0;
        [inner.pop(), middle.pop(), outer.pop()]
    }
}

/// The first error of the work that shares it.
pub(super) struct Errors {
    first: Mutex<Option<String>>,
    /// Whether every call has its scopes.
    scoped: bool,
}

impl Errors {
    /// Of all that anyone does with `device`, whose handler this becomes.
    pub fn of_device(device: &wgpu::Device) -> Arc<Self> {
        let errors = Arc::new(Self { first: Mutex::default(), scoped: false });
        let handler = errors.clone();
        device.on_uncaptured_error(Arc::new(move |error| handler.note(&error)));
        errors
    }

    /// Of the calls that are made with it and of no others.
    pub fn of_calls() -> Arc<Self> {
        Arc::new(Self { first: Mutex::default(), scoped: true })
    }

    fn note(&self, error: &wgpu::Error) {
        tracing::error!(%error, "GPU error");
        lock(&self.first).get_or_insert_with(|| error.to_string());
    }

    /// Takes note of what a scope caught, which natively is known at once.
    #[cfg(not(target_arch = "wasm32"))]
    fn note_caught(self: &Arc<Self>, caught: impl Future<Output = Option<wgpu::Error>>) {
        use std::{
            pin::pin,
            task::{Context, Poll, Waker},
        };
        if let Poll::Ready(Some(error)) = pin!(caught).poll(&mut Context::from_waker(Waker::noop())) {
            self.note(&error);
        }
    }

    /// Takes note of what a scope caught. Browsers tell it before they answer a readback that was asked for later.
    #[cfg(target_arch = "wasm32")]
    fn note_caught(self: &Arc<Self>, caught: impl Future<Output = Option<wgpu::Error>> + 'static) {
        let errors = self.clone();
        wasm_bindgen_futures::spawn_local(async move {
            if let Some(error) = caught.await {
                errors.note(&error);
            }
        });
    }
}

impl Gpu {
    /// Calls the device: all that it may report an error for goes through here.
    pub(super) fn call<T>(&self, work: impl FnOnce(&wgpu::Device, &wgpu::Queue) -> T) -> T {
        let (device, queue) = (self.device(), self.queue());
        if !self.errors.scoped {
            return work(device, queue);
        }
        let scopes = Scopes::open(device);
        let result = work(device, queue);
        scopes.close().into_iter().for_each(|caught| self.errors.note_caught(caught));
        result
    }

    /// The error that headwise's work on this device made since it was opened or lent, if any. Work with this handle, its clones
    /// and what was made from them is in vain from then on: the buffers behind it can no longer be trusted. Of a device that
    /// headwise opened, everybody's errors count, of one that it was lent, only those of headwise's own calls; there
    /// [`Gpu::from_wgpu`] makes a fresh handle.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], or [`Error::Gpu`] with `during` for what was being done.
    pub fn check(&self, during: &str) -> Result<()> {
        let message = lock(&self.errors.first).clone();
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
        lock(&self.errors.first).take();
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
