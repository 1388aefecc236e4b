//! What is known of a model before anything is loaded: its config, read by its family and checked against its tensors.

use super::{
    Description, Ends, Task, TransformerNames, TransformerSpec,
    families::{self, FAMILIES},
};
use crate::{
    Result,
    weights::{Checkpoint, Fields, Request, Source, check_shapes, quote},
};

/// The name of a model folder's configuration.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// The largest `config.json` that is read.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The fields of a model's `config.json`.
pub(crate) async fn read_config(source: &Source) -> Result<Fields<'static>> {
    let fields = Fields::read(source, CONFIG_FILE, MAX_CONFIG_BYTES).await?;
    fields.ok_or_else(|| source.absent(CONFIG_FILE))
}

/// What is known of a model before anything is loaded.
pub(crate) struct Blueprint {
    pub family: &'static str,
    pub task: Task,
    pub spec: TransformerSpec,
    pub names: TransformerNames,
    /// All that the model wants of its files.
    pub requests: Vec<Request>,
    /// The tokens that start and end a text. No family's reader knows them: they stand in two files.
    pub ends: Ends,
}

impl Blueprint {
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
        let kind = fields.text("model_type")?;
        let Some((_, read)) = FAMILIES.iter().find(|(name, _)| *name == kind) else {
            let why = format!("the families are {}", families::list());
            return Err(fields.unsupported(format!("model_type = {}", quote(kind)), why));
        };
        let describe = read(&fields)?;
        let checkpoint = Checkpoint::open_for(source, &fields).await?;
        let mut blueprint = Self::checked(describe(&checkpoint)?, &checkpoint, fields.file())?;
        if blueprint.names.join_equal(source, &checkpoint).await? {
            blueprint.requests = blueprint.spec.requests(&blueprint.names)?;
        }
        let vocab = blueprint.spec.outputs;
        blueprint.ends = match blueprint.task {
            Task::Generate => Ends::of_writer(source, &fields, vocab).await?,
            Task::Classify(_) => Ends::default(),
            _ => Ends::read(&fields, vocab)?,
        };
        checkpoint.check_quantized(&blueprint.requests)?;
        Ok((blueprint, checkpoint))
    }

    /// Checks the parts of a description against each other and against the tensors.
    ///
    /// # Errors
    /// When parameters contradict each other, or tensors are missing, mis-shaped or unknown; `config` is the file that
    /// says what they should be.
    pub(super) fn checked(described: Description, checkpoint: &Checkpoint, config: &str) -> Result<Self> {
        let Description { family, task, spec, mut names } = described;
        spec.check(config)?;
        let pair = names.find_tied(checkpoint);
        let requests = spec.requests(&names)?;
        check_shapes(checkpoint, &requests, &pair, config)?;
        Ok(Self { family, task, spec, names, requests, ends: Ends::default() })
    }
}
