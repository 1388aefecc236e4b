//! `headwise routes`

use headwise::{LayerUse, ModelInfo, RouterUse};
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
    let model = args.model.load(shared)?;
    let routes = pollster::block_on(model.routes(&prompt.ids(&model)?))?;
    let report = Report { tokens: routes.len(), layers: model.expert_use(&routes) };
    if args.json { output::json(&report) } else { output::line(&describe(&report, model.info())) }
}

fn describe(report: &Report, info: &ModelInfo) -> String {
    let mut lines = vec![format!("{} tokens; load: each expert's share of the choices, in %", report.tokens)];
    for (layer, used) in report.layers.iter().enumerate() {
        for (name, experts, used) in
            [("attention", info.attention.experts, &used.attention), ("mlp", info.mlp.experts, &used.mlp)]
        {
            lines.extend(used.as_ref().map(|used| describe_router(layer, name, experts, used)));
        }
    }
    lines.join("\n")
}

fn describe_router(layer: usize, name: &str, experts: u32, used: &RouterUse) -> String {
    let load: Vec<String> = used.load.iter().map(|share| format!("{:3.0}", 100.0 * share)).collect();
    let most = f64::from(experts).ln();
    format!("layer {layer:2} {name:9}  {}  entropy {:.2} of {most:.2}", load.join(" "), used.entropy)
}
