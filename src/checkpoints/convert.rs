//! From the layout in which the MoA repository saves its models to a model folder.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{
    fairseq::{Fairseq, Sizes},
    rewrite::{ModelWriter, Watch, WrittenModel, dtype, torch_name},
};
use crate::{
    Cancel, Error, Result,
    tasks::{MAX_TOKENIZER, TOKENIZER_FILE},
    weights::{Checkpoint, NewFolder, Source, TensorInfo, TensorPlan, limits::MOST_WIDE, plain_text},
};

/// Endings of files that hold Python pickles.
const PICKLES: [&str; 4] = ["pt", "pth", "bin", "ckpt"];

/// The tokens that every fairseq dictionary begins with: start, padding, end, unknown.
const SPECIAL: usize = 4;

/// What a fairseq state dict does not say.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(deny_unknown_fields)]
pub struct ConvertOptions<'a> {
    top_k: usize,
    #[serde(default)]
    gates: MoaGates,
    #[serde(default)]
    activation: MoaActivation,
    #[serde(default = "usual_positions")]
    max_positions: usize,
    #[serde(default)]
    tokenizer: Option<PathBuf>,
    #[serde(skip)]
    watch: Watch<'a>,
}

/// What the outputs of the chosen experts are weighted with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MoaGates {
    /// As the released code does: the probabilities as they are.
    #[default]
    Code,
    /// As the paper says: the probabilities over the sum of the chosen ones.
    Paper,
}

/// The activation of the MLPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MoaActivation {
    /// The greater of the value and 0.
    #[default]
    Relu,
    /// Gaussian error linear unit.
    Gelu,
}

/// Positions that the repository's models have unless they are told otherwise.
fn usual_positions() -> usize {
    1024
}

impl<'a> ConvertOptions<'a> {
    /// A model that keeps `top_k` experts for each token, otherwise with the repository's defaults.
    pub fn new(top_k: usize) -> Self {
        Self {
            top_k,
            gates: MoaGates::default(),
            activation: MoaActivation::default(),
            max_positions: usual_positions(),
            tokenizer: None,
            watch: Watch::default(),
        }
    }

    /// How gates are computed.
    pub fn gates(mut self, gates: MoaGates) -> Self {
        self.gates = gates;
        self
    }

    /// The activation of the MLPs.
    pub fn activation(mut self, activation: MoaActivation) -> Self {
        self.activation = activation;
        self
    }

    /// The longest text, in tokens.
    pub fn max_positions(mut self, positions: usize) -> Self {
        self.max_positions = positions;
        self
    }

    /// A `tokenizer.json` to put into the folder, instead of the one beside the weights.
    pub fn tokenizer(mut self, path: impl AsRef<Path>) -> Self {
        self.tokenizer = Some(path.as_ref().to_owned());
        self
    }

    /// Called with the bytes written so far and in all, from 0 to the end.
    pub fn progress(mut self, progress: impl FnMut(u64, u64) + 'a) -> Self {
        self.watch.progress = Some(Box::new(progress));
        self
    }

    /// Lets another thread or handler stop the writing, with [`Error::Cancelled`]; nothing is left of it then.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.watch.cancel = cancel.clone();
        self
    }
}

/// The `config.json` of a mixture of attention heads with an encoder.
#[derive(Serialize)]
struct MoaConfig {
    model_type: &'static str,
    task: &'static str,
    vocab_size: usize,
    d_model: usize,
    encoder_layers: usize,
    decoder_layers: usize,
    num_experts: usize,
    top_k: usize,
    heads_per_expert: usize,
    head_dim: usize,
    ffn_dim: usize,
    activation: &'static str,
    norm: &'static str,
    norm_position: &'static str,
    norm_eps: f64,
    positions: &'static str,
    position_offset: usize,
    max_positions: usize,
    scale_embedding: bool,
    tie_embeddings: bool,
    gate_weights: &'static str,
    gate_eps: f64,
    pad_token_id: u32,
    bos_token_id: u32,
    eos_token_id: u32,
    unk_token_id: u32,
    decoder_start_token_id: u32,
    torch_dtype: &'static str,
}

/// Writes a model folder from the state dict of a model that the MoA repository trained.
///
/// `input` is a safetensors file, or a folder with `model.safetensors` or shards and their index. `out` is a new or
/// an empty folder; it appears when it is complete. Weights keep their type and layout. Host memory does not grow
/// with the model.
///
/// Sizes come from the tensors; what these do not say comes from `options` and from fairseq: its first four tokens
/// are start, padding, end and unknown, a translation starts with the end token, and positions count from one after
/// the padding token.
///
/// # Errors
/// A pickle file, which is never opened; a tensor that is missing, unknown or contradicts another; embeddings that
/// are not shared; what the system reports.
pub fn convert_moa(
    input: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: ConvertOptions<'_>,
) -> Result<WrittenModel> {
    pollster::block_on(convert(input.as_ref(), out.as_ref(), options))
}

async fn convert(input: &Path, out: &Path, options: ConvertOptions<'_>) -> Result<WrittenModel> {
    let folder = NewFolder::create(out, &[input])?;
    let source = open(input)?;
    let checkpoint = Checkpoint::open(&source).await?;
    let model = Fairseq::read(&checkpoint)?;
    check(&model.sizes, &options)?;
    if model.sizes.vocab < SPECIAL {
        let (file, field) =
            (checkpoint.path(model.embedding), format!("tensor {:?}, rows", model.embedding.name));
        let expected = format!("at least {SPECIAL}, the special tokens of fairseq's dictionaries");
        return Err(Error::bad_file(file, field, model.sizes.vocab, expected));
    }
    for (copy, original) in &model.copies {
        compare(&source, &checkpoint, copy, original).await?;
    }
    let config = config(&model.sizes, &options, torch_name(dtype(&checkpoint, model.embedding)?));
    let tokenizer = tokenizer(options.tokenizer.as_deref(), &source).await?;

    // In the order of the file, but 4-byte types first, so that all values are aligned.
    let mut kept = model.kept;
    kept.sort_by_key(|(_, tensor)| {
        (std::cmp::Reverse(tensor.stored.bitsize()), tensor.file, tensor.offset, tensor.bytes)
    });
    let plans: Vec<_> =
        kept.iter().map(|(name, tensor)| TensorPlan::new(name, tensor.stored, &tensor.shape)).collect();
    let mut writer = ModelWriter::create(folder, &plans, options.watch)?;
    for (name, tensor) in &kept {
        writer.copy(name, &source, &checkpoint, tensor).await?;
    }
    if let Some(json) = tokenizer {
        writer.tokenizer(&json)?;
    }
    writer.side_files(&source).await?;
    if model.noise > 0 {
        writer.note(format!("{} tensors w_noise left out: noisy gating is for training", model.noise));
    }
    writer.finish(&config, &[&source])
}

/// The files of the state dict.
fn open(input: &Path) -> Result<Source> {
    let shown = || input.display().to_string();
    let data = std::fs::metadata(input).map_err(|source| Error::Io { path: shown(), source })?;
    if data.is_dir() {
        return Ok(Source::steady_folder(input));
    }
    let ending = input.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if PICKLES.contains(&ending.as_str()) {
        let why = "opening a pickle can run any code that is in it; export its tensors to a safetensors file first, \
                   as `headwise convert --help` shows";
        return Err(Error::Unsupported { file: shown(), field: "the pickle format".into(), why: why.into() });
    }
    Ok(Source::steady_file(input))
}

/// Compares the options with the model's sizes.
fn check(sizes: &Sizes, options: &ConvertOptions<'_>) -> Result<()> {
    if !(1..=sizes.experts).contains(&options.top_k) {
        let expected = format!("from 1 to the model's {} experts", sizes.experts);
        return Err(Error::argument("top-k", options.top_k, expected));
    }
    if !(1..=MOST_WIDE).contains(&options.max_positions) {
        return Err(Error::argument(
            "max-positions",
            options.max_positions,
            format!("from 1 to {MOST_WIDE}"),
        ));
    }
    Ok(())
}

fn config(sizes: &Sizes, options: &ConvertOptions<'_>, torch_dtype: &'static str) -> MoaConfig {
    MoaConfig {
        model_type: "moa",
        task: "translation",
        vocab_size: sizes.vocab,
        d_model: sizes.width,
        encoder_layers: sizes.encoder_layers,
        decoder_layers: sizes.decoder_layers,
        num_experts: sizes.experts,
        top_k: options.top_k,
        heads_per_expert: 1,
        head_dim: sizes.head_dim,
        ffn_dim: sizes.hidden,
        activation: match options.activation {
            MoaActivation::Relu => "relu",
            MoaActivation::Gelu => "gelu",
        },
        norm: "layer_norm",
        norm_position: if sizes.pre_norm { "pre" } else { "post" },
        norm_eps: 1e-5,
        positions: "sinusoidal",
        position_offset: 2,
        max_positions: options.max_positions,
        scale_embedding: true,
        tie_embeddings: true,
        gate_weights: match options.gates {
            MoaGates::Code => "softmax",
            MoaGates::Paper => "softmax_renormalized",
        },
        gate_eps: 1e-6,
        pad_token_id: 1,
        bos_token_id: 0,
        eos_token_id: 2,
        unk_token_id: 3,
        decoder_start_token_id: 2,
        torch_dtype,
    }
}

/// Refuses a copy that is none.
async fn compare(
    source: &Source,
    checkpoint: &Checkpoint,
    copy: &TensorInfo,
    original: &TensorInfo,
) -> Result<()> {
    let bad = |found: String, expected: String| {
        let field = format!("tensor {:?}", copy.name);
        Err(Error::bad_file(checkpoint.path(copy), field, found, expected))
    };
    let likeness = |tensor: &TensorInfo| format!("{} {:?}", tensor.stored, tensor.shape);
    if likeness(copy) != likeness(original) {
        let expected =
            format!("{}, as tensor {:?} has, of which it is a copy", likeness(original), original.name);
        return bad(likeness(copy), expected);
    }
    match checkpoint.first_difference(source, copy, original).await? {
        None => Ok(()),
        Some((first, last)) => bad(
            format!("other values in rows {first} to {last}"),
            format!("a copy of tensor {:?}: embeddings and the MLP are shared", original.name),
        ),
    }
}

/// The tokenizer that the user names, or else the one beside the weights. It must be one that loading the model will accept.
async fn tokenizer(named: Option<&Path>, source: &Source) -> Result<Option<Vec<u8>>> {
    let file = named.map_or_else(|| source.path_of(TOKENIZER_FILE), |path| path.display().to_string());
    let json = match named {
        Some(path) => Some(read_tokenizer(path, &file)?),
        None => source.read_text(TOKENIZER_FILE, MAX_TOKENIZER).await?,
    };
    #[cfg(feature = "tokenizer")]
    if let Some(json) = &json {
        crate::tasks::Tokenizer::parse(file, json.clone())?;
    }
    Ok(json)
}

fn read_tokenizer(path: &Path, file: &str) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: file.to_owned(), source };
    let data = std::fs::metadata(path).map_err(io)?;
    if !data.is_file() || data.len() > MAX_TOKENIZER {
        let found =
            if data.is_file() { format!("{} bytes", data.len()) } else { "no regular file".to_owned() };
        return Err(Error::bad_file(
            file,
            "tokenizer",
            found,
            format!("a file of at most {MAX_TOKENIZER} bytes"),
        ));
    }
    plain_text(std::fs::read(path).map_err(io)?, file)
}
