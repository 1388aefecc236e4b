//! The model families: config and tensor names in, layers out.

mod decoder;
mod jetmoe;
pub(crate) mod jetmoe_config;
mod llama;
mod molm;

pub(crate) use decoder::{BlockNames, BlockSpec, Decoder, DecoderNames, DecoderSpec, NormNames, RouterNames};

use crate::{
    Result,
    weights::{Checkpoint, Fields, Source, quote},
};

/// The name of a model folder's configuration.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// The largest sizes that a config may state. No published model comes near them; what exceeds them is damage.
pub(crate) mod limits {
    pub(crate) const MOST_WIDE: usize = 1 << 24;
    pub(crate) const MOST_LAYERS: usize = 1024;
    pub(crate) const MOST_HEADS: usize = 1024;
    pub(crate) const MOST_EXPERTS: usize = 256;
}

/// What a family knows about a checkpoint before anything is loaded.
pub(crate) struct Blueprint {
    pub family: &'static str,
    pub spec: DecoderSpec,
    pub names: DecoderNames,
}

/// What is left to do once a config is read: compare it with the tensors.
type Describe = Box<dyn FnOnce(&Checkpoint) -> Result<Blueprint>>;

/// The largest `config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

impl Blueprint {
    /// Reads the configuration and the checkpoint's headers, and checks one against the other.
    ///
    /// # Errors
    /// When the family is unknown, a field is missing or absurd, or configuration and tensors contradict each
    /// other.
    pub async fn read(source: &Source) -> Result<(Self, Checkpoint)> {
        let json = source.read_small(CONFIG_FILE, MAX_CONFIG_BYTES).await?;
        let json = json.ok_or_else(|| source.absent(CONFIG_FILE))?;
        let file = source.path_of(CONFIG_FILE);
        let fields = Fields::parse(&json, &file)?;
        // Each family checks its config in itself before any tensor is looked at.
        let describe = match fields.text("model_type")? {
            "jetmoe" => jetmoe::read(&fields)?,
            "llama" => llama::read(&fields)?,
            "moduleformer" => molm::read(&fields)?,
            other => {
                let why = "the families are jetmoe, llama (also as MoH) and moduleformer (MoLM)";
                return Err(fields.unsupported(format!("model_type = {}", quote(other)), why));
            }
        };
        let checkpoint = Checkpoint::open(source).await?;
        let blueprint = describe(&checkpoint)?;
        Ok((blueprint, checkpoint))
    }
}
