//! `headwise routes`

use clap::Args;
use headwise::{Error, LayerRoutes, LayerUse, Model, Precision, TokenRoutes};
use serde::Serialize;

use super::{
    args::{PrecisionArg, Shared},
    demo::Demo,
    edited::{TaskArgs, WithEdits},
    failure::Failure,
    ids::Ids,
    output,
    prompt::Prompt,
};

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
    pub model: TaskArgs,
}

#[derive(Serialize)]
struct Report {
    tokens: usize,
    layers: Vec<LayerUse>,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Against>,
}

/// What changes in another precision.
#[derive(Serialize)]
struct Against {
    precision: Precision,
    /// One for each router, in the order of the layers and of the routers in them.
    routers: Vec<Changed>,
}

#[derive(Serialize)]
struct Changed {
    layer: usize,
    router: &'static str,
    /// Tokens of which the router chose another set of experts.
    changed: usize,
}

pub fn run(args: &RoutesArgs, shared: &Shared) -> Result<(), Failure> {
    let prompt = Prompt::read("routes", args.text.as_ref(), args.ids.as_ref())?;
    let model = args.model.load(shared, Demo::Write)?;
    check_task(&model)?;
    let edits = model.edits().clone();
    let ids = prompt.all_ids(&model)?;
    let layers = headwise::block_on(model.expert_use(&ids))?;
    let against =
        args.against.map(|precision| against(precision.into(), &ids, model, args, shared)).transpose()?;
    let report = Report { tokens: ids.len(), layers, against };
    if args.json { output::json(&WithEdits::new(report, &edits)) } else { output::line(&describe(&report)) }
}

/// Reads the text once more in `precision`, and compares. One model at a time is on the GPU.
fn against(
    precision: Precision,
    ids: &[u32],
    model: Model,
    args: &RoutesArgs,
    shared: &Shared,
) -> Result<Against, Error> {
    let before = headwise::block_on(model.routes(ids))?;
    drop(model);
    let model = args.model.load_in(Some(precision), shared, Demo::Write)?;
    let after = headwise::block_on(model.routes(ids))?;
    Ok(Against { precision, routers: compare(&before, &after) })
}

fn compare(before: &[TokenRoutes], after: &[TokenRoutes]) -> Vec<Changed> {
    let sets = |layer: &LayerRoutes| -> Vec<(&'static str, Vec<u32>)> {
        let routers = layer.routers().map(|(name, choices)| {
            let mut experts: Vec<u32> = choices.iter().map(|choice| choice.expert).collect();
            experts.sort_unstable();
            (name, experts)
        });
        routers.collect()
    };
    let mut all: Vec<Changed> = Vec::new();
    for (before, after) in before.iter().zip(after) {
        for (layer, (before, after)) in before.layers.iter().zip(&after.layers).enumerate() {
            for ((router, before), (_, after)) in sets(before).into_iter().zip(sets(after)) {
                let changed = usize::from(before != after);
                match all.iter_mut().find(|one| (one.layer, one.router) == (layer, router)) {
                    Some(one) => one.changed += changed,
                    None => all.push(Changed { layer, router, changed }),
                }
            }
        }
    }
    all
}

fn check_task(model: &Model) -> Result<(), Error> {
    let expected = match model.info().task {
        "translate" => "one that reads one text; the heads of a translation: headwise translate --json",
        "classify" => "one that reads a text",
        _ => return Ok(()),
    };
    let found = format!("one for the task {}", model.info().task);
    Err(Error::Argument { name: "model", found, expected: expected.to_owned() })
}

/// A table with a line for each router.
fn describe(report: &Report) -> String {
    let mut header =
        ["layer", "router", "load in %", "entropy", "balance", "z", "mi"].map(str::to_owned).to_vec();
    header.extend(report.against.iter().map(|_| "changed".to_owned()));
    let routers = report.layers.iter().enumerate().flat_map(|(layer, used)| {
        used.routers().map(move |(name, used)| {
            let load: Vec<String> = used.load.iter().map(|share| format!("{:3.0}", 100.0 * share)).collect();
            let most = (used.load.len() as f64).ln();
            let changed = report.against.iter().map(|against| {
                let this = against.routers.iter().find(|one| (one.layer, one.router) == (layer, name));
                this.map_or(0, |one| one.changed).to_string()
            });
            let row = [
                layer.to_string(),
                name.to_owned(),
                load.join(" "),
                format!("{:.2} of {most:.2}", used.entropy),
                format!("{:.2}", used.switch_balance),
                format!("{:.2}", used.router_z),
                format!("{:.2}", used.mutual_information),
            ];
            row.into_iter().chain(changed).collect()
        })
    });
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(routers).collect();
    let table = output::columns(&rows, &[1, 2]);
    let Some(against) = &report.against else { return format!("{} tokens\n\n{table}", report.tokens) };
    let changed: usize = against.routers.iter().map(|one| one.changed).sum();
    let choices = against.routers.len() * report.tokens;
    let percent = 100.0 * changed as f64 / choices.max(1) as f64;
    let precision = against.precision.name();
    format!(
        "{} tokens; in {precision} {changed} of {choices} choices change, {percent:.2} %\n\n{table}",
        report.tokens
    )
}
