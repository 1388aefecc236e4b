//! `headwise upcycle`

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use headwise::{KvSharing, UpcycleOptions, upcycle_bam};

use super::{args::Shared, convert::report, failure::Failure, numbers, progress};

/// Make one mixture of several dense models, to train further; takes no GPU
#[derive(Args)]
#[command(
    after_help = "BAM (arXiv 2408.08274): each model's attention becomes an expert, and all of them run, \
        weighted by a router that begins at zero. Each model's MLP becomes an expert, and each token takes one; \
        that router begins at random. Embeddings, output head and norms are the means of the models'. Norms are \
        not folded into the matrices behind them, so models whose norms differ are approximated.\n\n\
        The models are folders of dense Llamas with the same sizes and the same tokenizer.\n\n\
        Example:\n  headwise upcycle --method bam --out mixture law code --kv shared"
)]
pub struct UpcycleArgs {
    /// Kind of mixture
    #[arg(long, value_enum)]
    method: Method,
    /// Folder to write; it must be new or empty, and appears only when it is complete
    #[arg(long, value_name = "OUT_DIR")]
    out: PathBuf,
    /// Keys and values: each attention expert's own, or one set for all, projected by the models' mean
    #[arg(long, value_enum, default_value = "expert")]
    kv: Kv,
    /// Same seed: same weights of the MLP routers
    #[arg(long, value_name = "S", default_value = "0", value_parser = numbers::whole::<u64>)]
    router_seed: u64,
    /// Print one JSON object: the files, the number of weights, the config
    #[arg(long)]
    json: bool,
    /// Folders of the dense models, two or more
    #[arg(value_name = "MODEL", required = true, num_args = 2..)]
    models: Vec<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Method {
    Bam,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kv {
    Expert,
    Shared,
}

pub fn run(args: &UpcycleArgs, shared: &Shared) -> Result<(), Failure> {
    let options = UpcycleOptions::new()
        .kv(match args.kv {
            Kv::Expert => KvSharing::Expert,
            Kv::Shared => KvSharing::Shared,
        })
        .router_seed(args.router_seed)
        .progress(progress::bar_of("writing", shared.quiet));
    let written = match args.method {
        Method::Bam => upcycle_bam(&args.models, &args.out, options)?,
    };
    report(&written, args.json)
}
