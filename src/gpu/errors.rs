//! Whose error it is.
//!
//! A device tells an error to the scopes that its thread has open, else to one handler, and its loss to one other. On a device that
//! headwise opened, both are headwise's. A device that it was lent has an app's: there each of its calls has scopes of its own,
//! and a loss shows in what is asked for and does not come.

use std::sync::{Arc, Mutex};

use super::lock::lock;

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

    /// The first, if there was one.
    pub fn first(&self) -> Option<String> {
        lock(&self.first).clone()
    }

    /// Forgets it.
    pub fn forget(&self) {
        lock(&self.first).take();
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

/// A device, and whose the errors are that calls of it may report.
#[derive(Clone, Copy)]
pub(super) struct Calls<'a> {
    pub device: &'a wgpu::Device,
    pub queue: &'a wgpu::Queue,
    pub errors: &'a Arc<Errors>,
}

impl Calls<'_> {
    /// Calls the device: all that it may report an error for goes through here.
    pub fn call<T>(self, work: impl FnOnce(&wgpu::Device, &wgpu::Queue) -> T) -> T {
        if !self.errors.scoped {
            return work(self.device, self.queue);
        }
        let scopes = Scopes::open(self.device);
        let result = work(self.device, self.queue);
        scopes.close().into_iter().for_each(|caught| self.errors.note_caught(caught));
        result
    }
}
