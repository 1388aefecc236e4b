//! How the next token is chosen.

use crate::{Error, Result};

/// How the next token is chosen from a row of logits.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    pub(super) temperature: f32,
    pub(super) top_k: Option<u32>,
    pub(super) top_p: f32,
    pub(super) seed: u64,
}

impl Default for Sampling {
    /// Temperature 0.8, top-k 40, top-p 0.95, seed 0.
    fn default() -> Self {
        Self { temperature: 0.8, top_k: Some(40), top_p: 0.95, seed: 0 }
    }
}

impl Sampling {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Always the likeliest token; ties go to the lower id.
    pub fn greedy(self) -> Self {
        self.temperature(0.0)
    }

    /// Divides the logits before sampling; 0 is greedy.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Samples from the `k` likeliest tokens (those tied with the last stay too); `None` keeps all.
    pub fn top_k(mut self, k: impl Into<Option<u32>>) -> Self {
        self.top_k = k.into();
        self
    }

    /// Samples from the likeliest tokens that together have probability `p`; 1 keeps all.
    pub fn top_p(mut self, p: f32) -> Self {
        self.top_p = p;
        self
    }

    /// Seeds the generator (Philox4x32-10, counted by position and sequence): same seed, same device, same text.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Refuses what is out of range, as everything that samples does.
    ///
    /// # Errors
    /// [`Error::Argument`] for the first such option.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::argument("temperature", self.temperature, "a finite number of 0 or more"));
        }
        if self.top_k == Some(0) {
            return Err(Error::argument("top-k", 0, "at least 1"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::argument("top-p", self.top_p, "above 0, at most 1"));
        }
        Ok(())
    }
}
