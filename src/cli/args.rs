//! What can be said on the command line.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use headwise::{
    AdapterSelection, CachePrecision, Error, Gpu, GpuOptions, KernelChoice, LoadOptions, Model, Precision,
    Source,
};

use super::{bytes, hub, ids::Ids, notes, numbers, progress};

/// Heading of the options that several commands share.
const COMMON: &str = "Model and adapter";

/// Run transformers whose attention heads are routed, on WebGPU
#[derive(Parser)]
#[command(
    name = "headwise",
    version,
    after_help = "Example:\n  headwise generate \"The king shall\" --show-heads"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub shared: Shared,
}

#[derive(Subcommand)]
pub enum Command {
    Generate(GenerateArgs),
    Chat(super::chat::ChatArgs),
    Translate(super::translate::TranslateArgs),
    Fill(super::fill::FillArgs),
    Classify(super::classify::ClassifyArgs),
    Logits(LogitsArgs),
    Routes(RoutesArgs),
    Info(InfoArgs),
    Bench(super::bench::BenchArgs),
    Adapters(AdaptersArgs),
    Convert(super::convert::ConvertArgs),
    Quantize(super::quantize::QuantizeArgs),
    Upcycle(super::upcycle::UpcycleArgs),
}

/// Options of every command.
#[derive(Args)]
pub struct Shared {
    /// GPU adapter: auto, software, discrete, integrated, its number among `headwise adapters`, or a part of its name
    /// [default: auto]
    #[arg(long, global = true, value_name = "NAME", help_heading = COMMON, display_order = 100)]
    pub adapter: Option<AdapterSelection>,
    /// Print nothing on stderr but errors
    #[arg(short, long, global = true, help_heading = COMMON, display_order = 101)]
    pub quiet: bool,
}

/// Options of the commands that have a model.
#[derive(Args)]
#[command(next_help_heading = COMMON)]
pub struct ModelArgs {
    /// Model folder, or owner/name[@revision] on a hub, or its address there [default: the command's built-in demo model]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// How the weights are stored on the GPU [default: as in the files, bf16 as f16]
    #[arg(long, value_enum)]
    precision: Option<PrecisionArg>,
    /// How the key/value cache holds its numbers; f16 takes half the memory
    #[arg(long, value_enum, default_value = "f32")]
    kv_cache: KvCacheArg,
    /// Kernels: auto measures, tuned goes by capability; f16, packed (8 bits) round
    #[arg(long, value_enum, default_value = "auto", env = "HEADWISE_KERNELS", hide_env = true)]
    kernels: KernelsArg,
    /// Refuse to use more GPU memory than this, such as 2GiB
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    pub memory_limit: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionArg {
    F32,
    F16,
    Q8,
    Q4,
}

#[derive(Clone, Copy, ValueEnum)]
enum KvCacheArg {
    F32,
    F16,
}

#[derive(Clone, Copy, ValueEnum)]
enum KernelsArg {
    Auto,
    Plain,
    Tuned,
    Broadcast,
    Workgroup,
    Subgroup,
    F16,
    Packed,
}

/// Continue a text
#[derive(Args)]
#[command(after_help = "The text goes to stdout as it comes, after the prompt; speeds go to stderr. \
        Ctrl-C ends the text.\n\n\
        Example:\n  headwise generate \"The king shall\" --max-new 40 --seed 7")]
pub struct GenerateArgs {
    /// Text to continue [default: read from stdin, less one line break at its end]
    #[arg(conflicts_with = "ids")]
    pub prompt: Option<String>,
    /// Tokens to generate at the most
    #[arg(long, value_name = "N", default_value = "64", value_parser = numbers::whole::<usize>)]
    pub max_new: usize,
    /// Divide the logits by T; 0 is greedy
    #[arg(long, value_name = "T", default_value = "0.8", value_parser = numbers::not_negative::<f32>)]
    pub temperature: f32,
    /// Sample from the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value = "40", value_parser = numbers::whole::<u32>)]
    pub top_k: u32,
    /// Sample from the likeliest tokens that together have probability P
    #[arg(long, value_name = "P", default_value = "0.95", value_parser = numbers::not_negative::<f32>)]
    pub top_p: f32,
    /// Same seed, same adapter: same text
    #[arg(long, value_name = "S", default_value = "0", value_parser = numbers::whole::<u64>)]
    pub seed: u64,
    /// Always take the likeliest token, whatever the options above say
    #[arg(long)]
    pub greedy: bool,
    /// Continue these token ids instead of a text
    #[arg(long, value_name = "1,2,3", allow_hyphen_values = true)]
    pub ids: Option<Ids>,
    /// Print only the new ids, on one line
    #[arg(long, conflicts_with_all = ["json", "show_heads"])]
    pub print_ids: bool,
    /// Colour each token by the head experts it chose; word[3,5] where there are no colours
    #[arg(long)]
    pub show_heads: bool,
    /// Layer whose head experts are shown, from 0
    #[arg(long, value_name = "N", default_value = "0", value_parser = numbers::whole::<usize>)]
    pub layer: usize,
    /// Print one JSON object at the end; with --show-heads it has the routes of every layer
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Say how much a text uses each expert
#[derive(Args)]
#[command(after_help = "For each router:
  load     each expert's share of the choices
  entropy  of these shares, in nats: at most ln(experts), when all are used alike
  balance  Switch Transformer's loss: 1 when all are used alike, at most the number of experts
  z        mean of (ln of the sum of exp(scores))^2 over the tokens: large when scores are
  mi       mean entropy at a token less the entropy over all, in nats: 0 when a token tells
           nothing about its experts, the lower the more it tells\n\n\
        --against q4 loads the model once more in that precision and adds, for each router,
  changed  tokens of which it chose another set of experts

        The heads of a translation: `headwise translate --json`.\n\n\
        Example:\n  headwise routes \"And the LORD said unto\" --against q4")]
pub struct RoutesArgs {
    /// Text to read [default: stdin, less one line break at its end]
    #[arg(conflicts_with = "ids")]
    pub text: Option<String>,
    /// Read these token ids instead of a text
    #[arg(long, value_name = "1,2,3", allow_hyphen_values = true)]
    pub ids: Option<Ids>,
    /// Count the choices that change when the weights are stored in this precision
    #[arg(long, value_enum)]
    against: Option<PrecisionArg>,
    /// Print one JSON object, with more statistics
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Write the logits and routes of given tokens to a file
#[derive(Args)]
#[command(
    after_help = "The file has `logits` [tokens, vocab] and, for each layer i and each of its routers (`attention`, \
        `values`, `mlp`), `layers.i.attention.experts` and `layers.i.attention.gates` [tokens, k]: shared experts, then \
        the others best first.\n\n\
        Example:\n  headwise logits --ids 1,2,3 --out logits.safetensors"
)]
pub struct LogitsArgs {
    /// Token ids
    #[arg(long, value_name = "1,2,3", allow_hyphen_values = true, required_unless_present = "ids_file")]
    pub ids: Option<Ids>,
    /// File with the token ids: [1,2,3], {"ids": [1,2,3]} or 1 2 3
    #[arg(long, value_name = "FILE", conflicts_with = "ids")]
    pub ids_file: Option<PathBuf>,
    /// File to write; it appears only when it is complete
    #[arg(long, value_name = "OUT.safetensors")]
    pub out: PathBuf,
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Say what a model is and what it needs; takes no GPU
#[derive(Args)]
#[command(after_help = "With --adapter or --memory-limit, also say whether it fits there.\n\n\
        Example:\n  headwise info --model my-model --memory-limit 2GiB")]
pub struct InfoArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
}

/// List the GPU adapters with their limits, features and kernels
#[derive(Args)]
#[command(
    after_help = "With --adapter, only those that fit it; their numbers stay the same. Exits with 1 if there is none.\n\n\
        Example:\n  headwise adapters --json"
)]
pub struct AdaptersArgs {
    /// Print one JSON array
    #[arg(long)]
    pub json: bool,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::F32 => Self::F32,
            PrecisionArg::F16 => Self::F16,
            PrecisionArg::Q8 => Self::Q8,
            PrecisionArg::Q4 => Self::Q4,
        }
    }
}

impl RoutesArgs {
    /// The precision to compare with.
    pub fn against(&self) -> Option<Precision> {
        self.against.map(Precision::from)
    }
}

impl Shared {
    /// The adapter to use.
    pub fn selection(&self) -> AdapterSelection {
        self.adapter.clone().unwrap_or_default()
    }
}

impl ModelArgs {
    /// The model's files, or those of the command's own model; headers stand for weights that are on a hub.
    pub fn source(&self, built_in: fn() -> Source) -> Result<Source, Error> {
        let Some(folder) = &self.model else { return Ok(built_in()) };
        match hub::repository(folder)? {
            Some(repository) => hub::preview(&repository),
            None => Self::folder(folder),
        }
    }

    fn folder(folder: &Path) -> Result<Source, Error> {
        let path = folder.display().to_string();
        match std::fs::metadata(folder) {
            Ok(found) if found.is_dir() => Ok(Source::folder(folder)),
            Ok(_) => Err(Error::BadFile {
                file: path,
                field: "--model".to_owned(),
                found: "a file".to_owned(),
                expected: "a folder with config.json and safetensors".to_owned(),
            }),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    /// How to store the weights, where the user says.
    pub fn precision(&self) -> Option<Precision> {
        self.precision.map(Precision::from)
    }

    /// How the key/value cache holds its numbers.
    pub fn kv_cache(&self) -> CachePrecision {
        match self.kv_cache {
            KvCacheArg::F32 => CachePrecision::F32,
            KvCacheArg::F16 => CachePrecision::F16,
        }
    }

    /// Opens the GPU.
    pub fn open(&self, shared: &Shared) -> Result<Gpu, Error> {
        let kernels = match self.kernels {
            KernelsArg::Auto => KernelChoice::Auto,
            KernelsArg::Tuned => KernelChoice::Tuned,
            KernelsArg::Plain => KernelChoice::Plain,
            KernelsArg::Broadcast => KernelChoice::Broadcast,
            KernelsArg::Workgroup => KernelChoice::Workgroup,
            KernelsArg::Subgroup => KernelChoice::Subgroup,
            KernelsArg::F16 => KernelChoice::F16,
            KernelsArg::Packed => KernelChoice::Packed,
        };
        let mut options = GpuOptions::new().adapter(shared.selection()).kernels(kernels);
        if let Some(limit) = self.memory_limit {
            options = options.memory_limit(limit);
        }
        pollster::block_on(Gpu::new(options))
    }

    /// Opens the GPU and loads the model, or the command's own; fetches it first where it is on a hub.
    pub fn load(&self, shared: &Shared, built_in: fn() -> Source) -> Result<Model, Error> {
        self.load_in(self.precision(), shared, built_in)
    }

    /// As [`load`](Self::load), in another precision.
    pub fn load_in(
        &self,
        precision: Option<Precision>,
        shared: &Shared,
        built_in: fn() -> Source,
    ) -> Result<Model, Error> {
        let (gpu, source) = match self.model.as_deref().map(hub::repository).transpose()?.flatten() {
            Some(repository) => {
                let gpu = self.open(shared)?;
                let source = hub::fetch(&repository, &gpu, precision, shared.quiet)?;
                (gpu, source)
            }
            None => {
                let source = self.source(built_in)?;
                (self.open(shared)?, source)
            }
        };
        let mut options =
            LoadOptions::new().progress(progress::bar(shared.quiet)).cache_precision(self.kv_cache());
        if let Some(precision) = precision {
            options = options.precision(precision);
        }
        let model = pollster::block_on(Model::load(&gpu, &source, options))?;
        notes::tell(model.info(), shared.quiet);
        Ok(model)
    }
}
