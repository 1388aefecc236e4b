//! `headwise quantize`

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use headwise::{Precision, QuantizeOptions, quantize};

use super::{args::Shared, convert::report, failure::Failure, progress};

/// Write a model folder with smaller weights; takes no GPU
#[derive(Args)]
#[command(
    after_help = "Matrices become q8 (8.5 bits a weight or little more), q4 (5) or f16. Embeddings and routers of \
        two layers stay f16, and so do matrices whose rows are no multiple of 32; everything else stays as it is. \
        Loading the folder gives the same bits as loading the original with --precision. The tokenizer and other \
        small files are copied. Host memory holds one tensor at a time.\n\n\
        Example:\n  headwise quantize my-model my-model-q4 --scheme q4"
)]
pub struct QuantizeArgs {
    /// Model folder
    #[arg(value_name = "IN_DIR")]
    input: PathBuf,
    /// Folder to write; it must be new or empty, and appears only when it is complete
    #[arg(value_name = "OUT_DIR")]
    out: PathBuf,
    /// How matrices are stored
    #[arg(long, value_enum)]
    scheme: Scheme,
    /// Print one JSON object: the files, the number of weights, the config
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scheme {
    Q8,
    Q4,
    F16,
}

pub fn run(args: &QuantizeArgs, shared: &Shared) -> Result<(), Failure> {
    let scheme = match args.scheme {
        Scheme::Q8 => Precision::Q8,
        Scheme::Q4 => Precision::Q4,
        Scheme::F16 => Precision::F16,
    };
    let options = QuantizeOptions::new(scheme).progress(progress::bar_of("writing", shared.quiet));
    report(&quantize(&args.input, &args.out, options)?, args.json)
}
