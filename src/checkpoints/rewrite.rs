//! What the tasks that only rewrite files share: writing a model folder through small buffers, and the report.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::{
    Cancel, Error, Result,
    models::CONFIG_FILE,
    tasks::{MAX_TOKENIZER, TOKENIZER_FILE},
    weights::{
        Checkpoint, Dtype, NewFolder, SafetensorsWriter, Source, TensorInfo, TensorPlan, WEIGHTS_FILE,
    },
};

/// A model folder that was written.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct WrittenModel {
    /// The folder.
    pub folder: String,
    /// The names of its files.
    pub files: Vec<String>,
    /// Tensors in `model.safetensors`.
    pub tensors: usize,
    /// Weights in all.
    pub parameters: u64,
    /// The content of `config.json`.
    #[cfg_attr(feature = "typescript", ts(type = "unknown"))]
    pub config: Value,
    /// What is worth knowing about the result.
    pub notes: Vec<String>,
}

/// Whoever watches while a model is written.
#[derive(Default)]
pub(super) struct Watch<'a> {
    /// Told the bytes written so far and in all.
    pub progress: Option<Box<dyn FnMut(u64, u64) + 'a>>,
    pub cancel: Cancel,
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

impl Watch<'_> {
    /// Tells how far it is.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    fn tell(&mut self, done: u64, total: u64) -> Result<()> {
        self.progress.iter_mut().for_each(|told| told(done, total));
        self.cancel.check()
    }
}

/// Files beside config, weights and tokenizer that say how a model is used.
pub(super) const SIDE_FILES: [&str; 6] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
];

/// A model folder while it is written. It appears when it is complete; after an error nothing is left of it.
pub(super) struct ModelWriter<'a> {
    // Before `folder`: a file is closed before its folder is removed.
    weights: SafetensorsWriter,
    folder: NewFolder,
    report: WrittenModel,
    done: u64,
    total: u64,
    watch: Watch<'a>,
}

impl<'a> ModelWriter<'a> {
    /// Starts the weights in a folder; names, types and shapes are known.
    pub fn create(folder: NewFolder, tensors: &[TensorPlan], mut watch: Watch<'a>) -> Result<Self> {
        let weights = SafetensorsWriter::create(&folder.path(WEIGHTS_FILE), tensors)?;
        let elements = |tensor: &TensorPlan| tensor.shape.iter().map(|&d| d as u64).product::<u64>();
        let report = WrittenModel {
            folder: folder.shown().to_owned(),
            files: vec![CONFIG_FILE.to_owned(), WEIGHTS_FILE.to_owned()],
            tensors: tensors.len(),
            parameters: tensors.iter().map(elements).sum(),
            config: Value::Null,
            notes: Vec::new(),
        };
        let total = tensors.iter().filter_map(TensorPlan::bytes).map(|bytes| bytes as u64).sum();
        watch.tell(0, total)?;
        Ok(Self { weights, folder, report, done: 0, total, watch })
    }

    /// Writes the next bytes of the tensor `name`.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.weights.write(name, bytes)?;
        self.done += bytes.len() as u64;
        self.watch.tell(self.done, self.total)
    }

    /// Writes all of `tensor` as the next bytes of the tensor `name`.
    pub async fn copy(
        &mut self,
        name: &str,
        source: &Source,
        checkpoint: &Checkpoint,
        tensor: &TensorInfo,
    ) -> Result<()> {
        let mut stream = checkpoint.stream(source, vec![tensor]);
        while let Some(chunk) = stream.next().await? {
            self.write(name, chunk.bytes)?;
        }
        Ok(())
    }

    /// Adds `tokenizer.json`.
    pub fn tokenizer(&mut self, json: &[u8]) -> Result<()> {
        self.file(TOKENIZER_FILE, json)
    }

    /// Adds the [`SIDE_FILES`] that `source` has.
    pub async fn side_files(&mut self, source: &Source) -> Result<()> {
        for name in SIDE_FILES {
            if let Some(text) = source.read_text(name, MAX_TOKENIZER).await? {
                self.file(name, &text)?;
            }
        }
        Ok(())
    }

    /// Adds a small file.
    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.report.files.push(name.to_owned());
        self.folder.write(name, bytes)
    }

    /// Says how many weights the model has, where tensors hold codes.
    pub fn parameters(&mut self, parameters: u64) {
        self.report.parameters = parameters;
    }

    /// Adds a note to the report.
    pub fn note(&mut self, note: impl Into<String>) {
        self.report.notes.push(note.into());
    }

    /// Adds `config.json` and gives the folder its name, if the `sources` are still what was read of them.
    pub fn finish(mut self, config: &impl Serialize, sources: &[&Source]) -> Result<WrittenModel> {
        let text = serde_json::to_value(config)
            .and_then(|value| Ok((value, serde_json::to_string_pretty(config)? + "\n")))
            .map_err(|e| Error::bad_file(CONFIG_FILE, "JSON", e, "a config that can be written"));
        let (value, text) = text?;
        self.report.config = value;
        self.weights.finish()?;
        self.folder.write(CONFIG_FILE, text.as_bytes())?;
        sources.iter().try_for_each(|source| pollster::block_on(source.check_unchanged()))?;
        self.folder.finish()?;
        Ok(self.report)
    }
}

/// The type of a tensor that can be read; the checkpoint has checked that.
pub(super) fn dtype(checkpoint: &Checkpoint, tensor: &TensorInfo) -> Result<Dtype> {
    let field = || format!("tensor {}, dtype", tensor.name);
    Dtype::of(tensor.stored)
        .ok_or_else(|| Error::bad_file(checkpoint.path(tensor), field(), tensor.stored, "F32, F16 or BF16"))
}

/// The name of a type in a config.
pub(super) fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        Dtype::Packed => "uint32",
    }
}
