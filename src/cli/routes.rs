//! `headwise routes`

use headwise::{Error, LayerUse, Model, Source};
use serde::Serialize;

use super::{
    args::{RoutesArgs, Shared},
    failure::Failure,
    output,
    prompt::Prompt,
};

#[derive(Serialize)]
struct Report {
    tokens: usize,
    layers: Vec<LayerUse>,
}

pub fn run(args: &RoutesArgs, shared: &Shared) -> Result<(), Failure> {
    let prompt = Prompt::read("routes", args.text.as_ref(), args.ids.as_ref())?;
    let model = args.model.load(shared, Source::demo)?;
    check_task(&model)?;
    let ids = prompt.ids(&model)?;
    let report = Report { tokens: ids.len(), layers: pollster::block_on(model.expert_use(&ids))? };
    if args.json { output::json(&report) } else { output::line(&describe(&report)) }
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
    let header = ["layer", "router", "load in %", "entropy", "balance", "z", "mi"].map(str::to_owned);
    let routers = report.layers.iter().enumerate().flat_map(|(layer, used)| {
        used.routers().map(move |(name, used)| {
            let load: Vec<String> = used.load.iter().map(|share| format!("{:3.0}", 100.0 * share)).collect();
            let most = (used.load.len() as f64).ln();
            [
                layer.to_string(),
                name.to_owned(),
                load.join(" "),
                format!("{:.2} of {most:.2}", used.entropy),
                format!("{:.2}", used.switch_balance),
                format!("{:.2}", used.router_z),
                format!("{:.2}", used.mutual_information),
            ]
        })
    });
    let rows: Vec<[String; 7]> = std::iter::once(header).chain(routers).collect();
    format!("{} tokens\n\n{}", report.tokens, output::columns(&rows, &[1, 2]))
}
