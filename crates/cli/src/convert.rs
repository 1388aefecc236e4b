//! `headwise convert`

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use headwise::{ConvertOptions, MoaActivation, MoaGates, WrittenModel, convert_moa};

use super::{
    args::Shared,
    failure::Failure,
    numbers,
    output::{self, thousands},
    progress,
};

/// Turn a state dict of the MoA repository (fairseq) into a model folder; takes no GPU
#[derive(Args)]
#[command(after_help = "The repository saves pickles (.pt), which are never opened: a pickle can run code. \
        Export the tensors first:

  import argparse, torch
  from safetensors.torch import save_file
  torch.serialization.add_safe_globals([argparse.Namespace])
  state = torch.load(\"checkpoint.pt\", map_location=\"cpu\", weights_only=True)[\"model\"]
  save_file({name: t.clone().contiguous() for name, t in state.items()}, \"checkpoint.safetensors\")

Sizes come from the tensors; --top-k and the other options are what these do not say. \
        Special tokens and positions are fairseq's. The MLPs must be dense and the embeddings shared.\n\n\
        Example:\n  headwise convert checkpoint.safetensors --out my-model --top-k 4 --tokenizer tokenizer.json")]
pub struct ConvertArgs {
    /// Safetensors file with the state dict, or a folder with model.safetensors or shards
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Folder to write; it must be new or empty, and appears only when it is complete
    #[arg(long, value_name = "OUT_DIR")]
    out: PathBuf,
    /// Experts that each token keeps
    #[arg(long, value_name = "K", value_parser = numbers::whole::<usize>)]
    top_k: usize,
    /// Gates: as in the released code, probabilities as they are; or as in the paper, over their sum
    #[arg(long, value_enum, default_value = "code")]
    gate: Gate,
    /// Activation of the MLPs
    #[arg(long, value_enum, default_value = "relu")]
    activation: Activation,
    /// The longest text, in tokens
    #[arg(long, value_name = "N", default_value = "1024", value_parser = numbers::whole::<usize>)]
    max_positions: usize,
    /// tokenizer.json to put into the folder
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Print one JSON object: the files, the number of weights, the config
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Gate {
    Code,
    Paper,
}

#[derive(Clone, Copy, ValueEnum)]
enum Activation {
    Relu,
    Gelu,
}

pub fn run(args: &ConvertArgs, shared: &Shared) -> Result<(), Failure> {
    let mut options = ConvertOptions::new(args.top_k)
        .gates(match args.gate {
            Gate::Code => MoaGates::Code,
            Gate::Paper => MoaGates::Paper,
        })
        .activation(match args.activation {
            Activation::Relu => MoaActivation::Relu,
            Activation::Gelu => MoaActivation::Gelu,
        })
        .max_positions(args.max_positions)
        .progress(progress::bar_of("writing", shared.quiet));
    if let Some(tokenizer) = &args.tokenizer {
        options = options.tokenizer(tokenizer);
    }
    report(&convert_moa(&args.input, &args.out, options)?, args.json)
}

/// Says what was written.
pub fn report(written: &WrittenModel, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(written);
    }
    let mut rows = vec![
        ("folder", written.folder.clone()),
        ("files", written.files.join(", ")),
        ("tensors", written.tensors.to_string()),
        ("parameters", thousands(written.parameters)),
    ];
    rows.extend(written.notes.iter().map(|note| ("note", note.clone())));
    output::line(&output::table(&rows))
}
