//! `headwise heads guide` and `headwise heads reinforce`.

use std::{ops::Range, path::PathBuf};

use clap::Args;
use headwise::{
    Edit, Edits, block_on,
    internal::NewFile,
    methods::{self, Guidance},
    probes::{Address, Change},
};

use super::{
    super::{args::Shared, demo::Demo, edited::TaskArgs, failure::Failure, output},
    range,
};

#[derive(Args)]
#[command(
    after_help = "Each token is the likeliest by (1 + w) * logits - w * logits without what these heads look for (SoftPAG). Too much of \
        it costs: try a change of a part, uniform=0.5, and a small weight first.\n\n\
        Example:\n  headwise heads guide \"The king shall\" --heads L1H2 --heads L2H* --weight 0.5"
)]
pub struct GuideArgs {
    /// The text
    text: String,
    /// The heads
    #[arg(long, value_name = "L1H2", required = true)]
    heads: Vec<Address>,
    /// What becomes of them in the worse model
    #[arg(long, value_name = "CHANGE", default_value = "uniform=0.5")]
    change: Change,
    /// w: how far away from it
    #[arg(short, long, value_name = "W", default_value_t = 0.5)]
    weight: f32,
    /// Tokens to write
    #[arg(long, value_name = "N", default_value_t = 16)]
    max_new: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: TaskArgs,
}

#[derive(Args)]
#[command(
    after_help = "Both texts end alike; --without lacks the context. What is printed is a file for --edit.\n\n\
        Example:\n  headwise heads reinforce --with \"Anne is tall. Anne is\" --without \"Anne is\" --out plan.json"
)]
pub struct ReinforceArgs {
    /// The text with its context
    #[arg(long, value_name = "TEXT")]
    with: String,
    /// The same without
    #[arg(long, value_name = "TEXT")]
    without: String,
    /// The layers whose heads are looked at, from the first to before the end [default: all]
    #[arg(long, value_name = "FIRST..END", value_parser = range::<u32>)]
    layers: Option<Range<u32>>,
    /// What multiplies the output of the heads that are found
    #[arg(long, value_name = "ALPHA", default_value_t = 2.0)]
    alpha: f32,
    /// File to write instead of printing
    #[arg(long, value_name = "PLAN.json")]
    out: Option<PathBuf>,
    #[command(flatten)]
    model: TaskArgs,
}

pub fn guide(args: &GuideArgs, shared: &Shared) -> Result<(), Failure> {
    let edits: Edits = args.heads.iter().map(|&at| Edit::new(at, args.change.clone())).collect();
    let guidance = Guidance::new(edits, args.weight)?;
    let model = args.model.load(shared, Demo::Write)?;
    let ids = model.encode(&args.text)?;
    let written = block_on(guidance.write(&model, &ids, args.max_new))?;
    let text = model.tokenizer()?.decode(&[&ids[..], &written].concat())?;
    match args.json {
        true => output::json(&serde_json::json!({
            "text": text, "ids": written, "weight": args.weight, "change": args.change, "heads": args.heads,
            "edits": model.edits(),
        })),
        false => {
            output::line(&output::fit_to_print(&text, std::io::IsTerminal::is_terminal(&std::io::stdout())))
        }
    }
}

pub fn reinforce(args: &ReinforceArgs, shared: &Shared) -> Result<(), Failure> {
    if let Some(out) = &args.out {
        NewFile::check(out)?;
    }
    let model = args.model.load(shared, Demo::Write)?;
    let (with, without) = (model.encode(&args.with)?, model.encode(&args.without)?);
    let layers = args.layers.clone().unwrap_or(0..model.info().layers);
    let edits = block_on(methods::reinforce(&model, [&with, &without], layers, args.alpha))?;
    match &args.out {
        Some(out) => {
            let text = serde_json::to_string(&edits).map_err(std::io::Error::from)?;
            Ok(NewFile::write(out, text.as_bytes())?)
        }
        None => output::json(&edits),
    }
}
