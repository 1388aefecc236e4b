//! The model families: config and tensor names in, layers out.

mod decoder;
mod jetmoe;
pub(crate) mod jetmoe_config;

pub(crate) use decoder::{BlockNames, BlockSpec, Decoder, DecoderNames, DecoderSpec};

use crate::{
    Error, Result,
    weights::{Checkpoint, Source},
};

/// The name of a model folder's configuration.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// What a family knows about a checkpoint before anything is loaded.
pub(crate) struct Blueprint {
    pub family: &'static str,
    pub spec: DecoderSpec,
    pub names: DecoderNames,
}

impl Blueprint {
    /// Reads the configuration and checks it against the checkpoint's headers.
    ///
    /// # Errors
    /// When the family is unknown, a field is missing or absurd, or configuration and tensors contradict each
    /// other.
    pub async fn read(source: &Source, checkpoint: &Checkpoint) -> Result<Self> {
        let file = source.path_of(CONFIG_FILE);
        let json = source.read_small(CONFIG_FILE, jetmoe_config::Config::MAX_BYTES).await?.ok_or_else(|| {
            Error::bad_file(&file, "file", "nothing", "the model's configuration")
        })?;
        let blueprint = jetmoe::blueprint(&json, &file, checkpoint)?;
        blueprint.spec.check()?;
        Ok(blueprint)
    }
}
