//! The model families: config and tensor names in, layers out.

mod decoder;
mod jetmoe;
pub(crate) mod jetmoe_config;

pub(crate) use decoder::{BlockNames, BlockSpec, Decoder, DecoderNames, DecoderSpec, NormNames, RouterNames};

use crate::{
    Result,
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
    /// Reads the configuration and the checkpoint's headers, and checks one against the other.
    ///
    /// # Errors
    /// When the family is unknown, a field is missing or absurd, or configuration and tensors contradict each
    /// other.
    pub async fn read(source: &Source) -> Result<(Self, Checkpoint)> {
        let json = source.read_small(CONFIG_FILE, jetmoe_config::Config::MAX_BYTES).await?;
        let json = json.ok_or_else(|| source.absent(CONFIG_FILE))?;
        let config = jetmoe_config::Config::parse(&json, &source.path_of(CONFIG_FILE))?;
        let checkpoint = Checkpoint::open(source).await?;
        let blueprint = jetmoe::blueprint(&config, &checkpoint)?;
        blueprint.spec.check()?;
        Ok((blueprint, checkpoint))
    }
}
