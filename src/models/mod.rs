//! The model families: config and tensor names in, layers out.

mod bam;
mod block;
mod decoder;
mod head_names;
mod jetmoe;
pub(crate) mod jetmoe_config;
mod llama;
mod moa;
mod molm;
mod plain_decoder;
mod transformer;
mod vit;

pub(crate) use block::{
    AttentionNames, BlockNames, BlockSpec, MlpNames, RouterNames, RouterPlace, layer_norm_names,
    rms_norm_names,
};
pub(crate) use decoder::DecoderSpec;
pub(crate) use head_names::HeadNames;
pub(crate) use transformer::{
    InputNames, InputSpec, PatchNames, StackNames, StackSpec, Transformer, TransformerNames, TransformerSpec,
};

use crate::{
    Result,
    weights::{Checkpoint, Fields, Source, check_shapes, quote},
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

/// What a model is for.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    /// Continue a text.
    Generate,
    /// Read a source, write its translation.
    Translate {
        /// What a translation starts with.
        start: u32,
        /// What ends a source and a translation.
        end: u32,
    },
    /// Say what stands behind masks.
    FillMask {
        /// The mask.
        mask: u32,
        /// What ends a text.
        #[cfg_attr(not(feature = "tokenizer"), expect(dead_code, reason = "only texts lack it"))]
        end: u32,
    },
    /// Name what an image shows.
    Classify(Classes),
}

impl Task {
    /// As in `info`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Translate { .. } => "translate",
            Self::FillMask { .. } => "fill",
            Self::Classify(_) => "classify",
        }
    }
}

/// What a classifier sees and what it can say.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    pub labels: Vec<String>,
    /// Pixels of an image's side and of a patch's.
    pub image_size: u32,
    pub patch_size: u32,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: u32,
    /// Of each channel; a pixel becomes `(byte / 255 − mean) / std`.
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
}

impl Classes {
    /// Patches of an image.
    pub fn patches(&self) -> u32 {
        (self.image_size / self.patch_size).pow(2)
    }
}

/// What a family knows about a checkpoint before anything is loaded.
pub(crate) struct Blueprint {
    pub family: &'static str,
    pub task: Task,
    pub spec: TransformerSpec,
    pub names: TransformerNames,
}

/// What is left to do once a config is read: compare it with the tensors.
type Describe = Box<dyn FnOnce(&Checkpoint) -> Result<Blueprint>>;

/// The largest `config.json` that is read.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;

impl Blueprint {
    /// Checks the parts of a blueprint against each other and against the tensors.
    ///
    /// # Errors
    /// When parameters contradict each other, or tensors are missing, mis-shaped or unknown; `config` is the file that
    /// says what they should be.
    fn checked(
        (family, task): (&'static str, Task),
        spec: TransformerSpec,
        mut names: TransformerNames,
        checkpoint: &Checkpoint,
        config: &str,
    ) -> Result<Self> {
        spec.check(config)?;
        let pair = names.find_tied(checkpoint);
        check_shapes(checkpoint, &spec.requests(&names), &pair, config)?;
        Ok(Self { family, task, spec, names })
    }

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
            "moa" => moa::read(&fields)?,
            "moduleformer" => molm::read(&fields)?,
            "vit" | "vit_moh" => vit::read(&fields)?,
            "bam" => bam::read(&fields)?,
            "switchhead" => plain_decoder::read_switch_head(&fields)?,
            "uoe" => plain_decoder::read_uoe(&fields)?,
            other => {
                let why = "the families are jetmoe, llama (also as MoH), moa, moduleformer (MoLM), vit and vit_moh, \
                           bam, switchhead and uoe";
                return Err(fields.unsupported(format!("model_type = {}", quote(other)), why));
            }
        };
        let checkpoint = Checkpoint::open_for(source, &fields).await?;
        let mut blueprint = describe(&checkpoint)?;
        blueprint.join_equal(source, &checkpoint).await?;
        checkpoint.check_quantized(&blueprint.spec.requests(&blueprint.names))?;
        Ok((blueprint, checkpoint))
    }
}
