//! `headwise info`

use clap::Args;
use headwise::{Error, ModelInfo};
use serde::Serialize;

use super::{
    args::{ModelArgs, Shared},
    bytes,
    demo::Demo,
    failure::Failure,
    output::{self, thousands},
};

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

/// What the model is and, if asked, whether it fits.
#[derive(Serialize)]
struct Info {
    #[serde(flatten)]
    model: ModelInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    fit: Option<Fit>,
}

#[derive(Serialize)]
struct Fit {
    adapter: String,
    fits: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub fn run(args: &InfoArgs, shared: &Shared) -> Result<(), Failure> {
    let mut model = headwise::block_on(ModelInfo::read(&args.model.source(Demo::Write)?))?;
    model.cache_bytes_per_token = model.cache_bytes(args.model.kv_cache());
    let asked = shared.adapter.is_some() || args.model.memory_limit.is_some();
    let fit = if asked { Some(fit(args, shared, &model)?) } else { None };
    let info = Info { model, fit };
    if args.json { output::json(&info) } else { output::line(&describe(&info)) }
}

/// Plans the weights and one full context, as loading and generating do.
fn fit(args: &InfoArgs, shared: &Shared, model: &ModelInfo) -> Result<Fit, Error> {
    let gpu = args.model.open(shared)?;
    let precision = model.precision(args.model.precision())?;
    let need = model.weight_bytes(precision) + cache_bytes(model);
    let reason = match gpu.plan("the model with the cache of a full context", need) {
        Ok(()) => None,
        Err(error @ Error::TooLarge { .. }) => Some(error.to_string()),
        Err(error) => return Err(error),
    };
    Ok(Fit { adapter: gpu.capabilities().name.clone(), fits: reason.is_none(), reason })
}

fn cache_bytes(model: &ModelInfo) -> u64 {
    model.cache_bytes_per_token.saturating_mul(u64::from(model.context))
}

fn describe(Info { model, fit }: &Info) -> String {
    let (attention, mlp) = (&model.attention, &model.mlp);
    let memory: Vec<String> = model
        .memory
        .iter()
        .map(|memory| {
            let mark = if memory.precision == model.default_precision { " (default)" } else { "" };
            format!("{} {}{mark}", memory.precision.name(), bytes::show(memory.bytes))
        })
        .collect();
    let layers = match model.encoder_layers {
        0 => model.layers.to_string(),
        encoder => format!("{encoder} of an encoder, {} of a decoder", model.layers),
    };
    let outputs = if model.task == "classify" { "classes" } else { "vocabulary" };
    let experts = match mlp.experts {
        1 => String::new(),
        experts => format!("{} of {experts} experts per token, ", mlp.active),
    };
    let ends = match &*model.eos.iter().map(u32::to_string).collect::<Vec<_>>().join(" or ") {
        "" => "nowhere by itself".to_owned(),
        tokens => format!("at token {tokens}"),
    };
    let mut rows = vec![
        ("family", model.family.clone()),
        ("task", model.task.to_owned()),
        ("layers", layers),
        ("width", model.width.to_string()),
        (outputs, model.vocab.to_string()),
        ("context", format!("{} tokens", model.context)),
        ("ends", ends),
        (
            "attention",
            format!(
                "{} of {} experts per token, {} of {} channels each; {} for all",
                attention.active,
                attention.experts,
                counted(attention.heads_per_expert, "head"),
                attention.head_dim,
                counted(attention.kv_heads, "key/value head")
            ),
        ),
        (
            "mlp",
            if mlp.hidden == 0 { "none".to_owned() } else { format!("{experts}hidden width {}", mlp.hidden) },
        ),
        (
            "parameters",
            format!(
                "{} in all, {} active per token",
                thousands(model.parameters),
                thousands(model.active_parameters)
            ),
        ),
        ("memory", memory.join(", ")),
        (
            "cache",
            format!(
                "{} per token, {} for a full context",
                bytes::show(model.cache_bytes_per_token),
                bytes::show(cache_bytes(model))
            ),
        ),
    ];
    if !model.kept_f16.is_empty() {
        rows.push(("kept", kept(model)));
    }
    rows.extend(model.notes.iter().map(|note| ("note", note.clone())));
    if let Some(fit) = fit {
        let answer = fit.reason.clone().unwrap_or_else(|| "fits".to_owned());
        rows.push(("fit", format!("{}: {answer}", fit.adapter)));
    }
    output::table(&rows)
}

/// What stays f16 when the rest is quantised.
fn kept(model: &ModelInfo) -> String {
    const SHOWN: usize = 2;
    let mut names = model.kept_f16.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if let Some(more @ 1..) = model.kept_f16.len().checked_sub(SHOWN) {
        names += &format!(" and {more} more");
    }
    let head = if model.tied_head { ", of which the first is the output head too" } else { "" };
    let when = if model.quantized { "" } else { " with q8 and q4" };
    format!("f16{when}: {names}{head}")
}

/// `1 head`, `3 heads`.
fn counted(number: u32, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}
