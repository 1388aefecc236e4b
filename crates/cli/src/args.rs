//! Options that several commands share.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use headwise::{
    AdapterSelection, CachePrecision, Error, Gpu, GpuOptions, KernelChoice, LoadOptions, Model, Precision,
    Source,
};

use super::{bytes, demo::Demo, hub, notes, progress};

/// What names the kernels where `--kernels` does not.
pub const KERNELS: &str = "HEADWISE_KERNELS";

/// Heading of the options that several commands share.
pub const COMMON: &str = "Model and adapter";

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
    /// Kernels: auto measures, tuned goes by capability; f16, packed (8 bits) round [default: auto]
    #[arg(long, value_enum)]
    kernels: Option<KernelsArg>,
    /// Refuse to use more GPU memory than this, such as 2GiB
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    pub memory_limit: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum PrecisionArg {
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
pub enum KernelsArg {
    Auto,
    Plain,
    Tuned,
    Broadcast,
    Workgroup,
    Subgroup,
    F16,
    Packed,
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

/// The kernels that a variable names, automatic ones where it is empty; else all that it could name.
pub fn kernels_of(name: &str) -> Result<KernelsArg, String> {
    if name.is_empty() {
        return Ok(KernelsArg::Auto);
    }
    KernelsArg::from_str(name, true).map_err(|_| {
        let values = KernelsArg::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        values.map(|value| value.get_name().to_owned()).collect::<Vec<_>>().join(", ")
    })
}

impl Shared {
    /// The adapter to use.
    pub fn selection(&self) -> AdapterSelection {
        self.adapter.clone().unwrap_or_default()
    }
}

impl ModelArgs {
    /// The model's files, or those of the command's own model; headers stand for weights that are on a hub.
    pub fn source(&self, built_in: Demo) -> Result<Source, Error> {
        let Some(folder) = &self.model else { return built_in.source() };
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

    /// The kernels that the user names, or else the environment.
    fn kernels(&self) -> Result<KernelsArg, Error> {
        let variable = std::env::var_os(KERNELS).unwrap_or_default();
        let named = || {
            kernels_of(&variable.to_string_lossy()).map_err(|expected| Error::Argument {
                name: KERNELS,
                found: format!("{variable:?}"),
                expected,
            })
        };
        self.kernels.map_or_else(named, Ok)
    }

    /// Opens the GPU.
    pub fn open(&self, shared: &Shared) -> Result<Gpu, Error> {
        let kernels = match self.kernels()? {
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
        headwise::block_on(Gpu::new(options))
    }

    /// Opens the GPU and loads the model, or the command's own, in a precision; fetches it first where it is on a hub.
    pub fn load_in(
        &self,
        precision: Option<Precision>,
        shared: &Shared,
        built_in: Demo,
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
        let model = headwise::block_on(Model::load(&gpu, &source, options))?;
        notes::tell(model.info(), shared.quiet);
        Ok(model)
    }
}
