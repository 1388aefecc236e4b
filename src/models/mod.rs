//! The model families: config and tensor names in, layers out.

mod bam;
mod block;
mod custom_code;
mod decoder;
mod ends;
mod head_names;
mod jetmoe;
pub(crate) mod jetmoe_config;
mod llama;
mod moa;
mod molm;
mod plain_decoder;
mod rope;
mod transformer;
mod vit;

pub(crate) use block::{
    AttentionNames, BlockNames, BlockSpec, MlpNames, RouterNames, RouterPlace, layer_norm_names,
    rms_norm_names,
};
pub(crate) use decoder::DecoderSpec;
pub(crate) use ends::Ends;
pub(crate) use head_names::HeadNames;
pub(crate) use transformer::{
    InputNames, InputSpec, PatchNames, StackNames, StackSpec, Transformer, TransformerNames, TransformerSpec,
};

use crate::{
    Result,
    weights::{Checkpoint, Fields, Source, check_shapes, limits, quote},
};

/// The name of a model folder's configuration.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// The names that transformers has for each activation.
mod activations {
    pub(super) const SILU: [&str; 2] = ["silu", "swish"];
    pub(super) const GELU: [&str; 2] = ["gelu", "gelu_python"];
    pub(super) const GELU_TANH: [&str; 4] =
        ["gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh"];
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
    /// The tokens that start and end a text. No family's reader knows them: they stand in two files.
    pub ends: Ends,
}

/// What is left to do once a config is read: compare it with the tensors.
type Describe = Box<dyn FnOnce(&Checkpoint) -> Result<Blueprint>>;

/// The largest `config.json` that is read.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The fields of a model's `config.json`.
pub(crate) async fn read_config(source: &Source) -> Result<Fields<'static>> {
    let fields = Fields::read(source, CONFIG_FILE, MAX_CONFIG_BYTES).await?;
    fields.ok_or_else(|| source.absent(CONFIG_FILE))
}

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
        Ok(Self { family, task, spec, names, ends: Ends::default() })
    }

    /// Reads the configuration and the checkpoint's headers, and checks one against the other.
    ///
    /// # Errors
    /// When the family is unknown, a field is missing or absurd, or configuration and tensors contradict each
    /// other.
    pub async fn read(source: &Source) -> Result<(Self, Checkpoint)> {
        let fields = read_config(source).await?;
        if fields.get(&["quantization_config"])?.is_some() {
            let why = "headwise quantises by itself and reads checkpoints in F32, F16 or BF16";
            return Err(fields.unsupported("quantization_config", why));
        }
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
        let vocab = blueprint.spec.outputs;
        blueprint.ends = match blueprint.task {
            Task::Generate => Ends::of_writer(source, &fields, vocab).await?,
            Task::Classify(_) => Ends::default(),
            _ => Ends::read(&fields, vocab)?,
        };
        checkpoint.check_quantized(&blueprint.spec.requests(&blueprint.names))?;
        Ok((blueprint, checkpoint))
    }
}
