//! Compiling a model's kernels before they are needed.

use std::{future::Future, ops::ControlFlow};

use super::{Generate, Image, Model, Translate};
use crate::{Result, models::Task};
#[cfg(not(target_arch = "wasm32"))]
use crate::{
    cancel::{Cancel, CancelOnDrop},
    gpu::{aside, block_on},
};

/// Tokens of the prompt: enough for the kernels of many rows; decoding compiles those of few.
const TOKENS: u32 = 16;

impl Model {
    /// Does a little of the model's task and drops it, so that the first real one does not wait for its kernels to be
    /// compiled.
    ///
    /// # Errors
    /// As those of the task.
    pub async fn warm_up(&self) -> Result<()> {
        let info = self.info();
        let ids = vec![info.mask.unwrap_or(0); info.context.min(TOKENS) as usize];
        match self.task {
            Task::Translate { .. } => {
                for beams in [1, 4] {
                    let options = Translate::new().beams(beams).max_new(2);
                    self.translate_ids(&[&ids], &options, |_, _| {}).await?;
                }
            }
            Task::FillMask { .. } => {
                self.fill_ids(&[&ids], 1).await?;
            }
            Task::Classify(_) => {
                self.classify(&[Image::new(1, 1, 1, vec![0])?], 1).await?;
            }
            Task::Generate => {
                for options in [Generate::new(), Generate::new().greedy()] {
                    self.generate_ids(&[&ids], &options.max_new(2), |_| ControlFlow::Continue(())).await?;
                }
            }
        }
        Ok(())
    }

    /// Loads, and meanwhile warms up with whatever the weights are by then. What fails there would fail again later, and is
    /// reported then.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) async fn warm_up_while(&self, loading: impl Future<Output = Result<()>>) -> Result<()> {
        let stop = CancelOnDrop(Cancel::new());
        let model = self.cancelled_by(&stop.0);
        let warming = aside("warm-up", move || block_on(model.warm_up()).is_ok());
        let loaded = loading.await;
        if loaded.is_err() {
            drop(stop);
        }
        warming.await;
        loaded
    }

    /// As natively, without threads: a browser compiles while both wait.
    #[cfg(target_arch = "wasm32")]
    pub(super) async fn warm_up_while(&self, loading: impl Future<Output = Result<()>>) -> Result<()> {
        use std::{
            future::poll_fn,
            pin::pin,
            task::Poll::{Pending, Ready},
        };

        let (mut loading, mut warming) = (pin!(loading), pin!(self.warm_up()));
        let (mut loaded, mut warm) = (None, false);
        poll_fn(|context| {
            warm = warm || warming.as_mut().poll(context).is_ready();
            if loaded.is_none()
                && let Ready(result) = loading.as_mut().poll(context)
            {
                loaded = Some(result);
            }
            match &loaded {
                Some(Err(_)) => Ready(()),
                Some(Ok(())) if warm => Ready(()),
                _ => Pending,
            }
        })
        .await;
        loaded.unwrap_or(Ok(()))
    }
}
