//! `headwise logits`

use std::path::PathBuf;

use clap::Args;
use headwise::internal::NewFile;

use super::{args::Shared, demo::Demo, edited::TaskArgs, failure::Failure, ids::Ids};

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
    pub model: TaskArgs,
}

pub fn run(args: &LogitsArgs, shared: &Shared) -> Result<(), Failure> {
    let ids = match (&args.ids, &args.ids_file) {
        (Some(Ids(ids)), _) => ids.clone(),
        (None, Some(file)) => Ids::read(file)?.0,
        // clap asks for one of them.
        (None, None) => Vec::new(),
    };
    NewFile::check(&args.out)?;
    let model = args.model.load(shared, Demo::Write)?;
    let logits = headwise::block_on(model.logits(&[&ids]))?;
    for sequence in logits {
        sequence.save(&args.out)?;
    }
    Ok(())
}
