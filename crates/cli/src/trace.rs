//! `headwise trace`

use std::path::PathBuf;

use clap::Args;
use headwise::{
    Error,
    probes::{Address, Capture, Keys, Observe, Recorded, Trace, What},
};
use serde_json::{Value, json};

use super::{
    args::Shared,
    bytes,
    demo::Demo,
    edited::{TaskArgs, WithEdits, plan_file},
    failure::Failure,
    ids::Ids,
    output,
    prompt::Prompt,
};

/// Record what a model computes of a text
#[derive(Args)]
#[command(
    after_help = "A capture is ADDRESS[@POSITIONS]:WHAT. Of heads (L1H2, L*A3): q, k, v, z, pattern (how they weigh each \
        position), rows (entropy and more of that). Of layers (L1, L*): resid-pre, resid-mid, resid-post, router. \
        OUT gets trace.safetensors, tensors named as in TransformerLens, and trace.json, which says what they are.\n\n\
        Example:\n  headwise trace \"The king shall\" --capture L1H2:z --capture L*H*:rows"
)]
pub struct TraceArgs {
    /// Text to read [default: stdin, less one line break at its end]
    #[arg(conflicts_with = "ids")]
    pub text: Option<String>,
    /// Read these token ids instead of a text
    #[arg(long, value_name = "1,2,3", allow_hyphen_values = true)]
    pub ids: Option<Ids>,
    /// What to record [default: L*H*:rows]
    #[arg(long, value_name = "CAPTURE")]
    capture: Vec<Capture>,
    /// File that says what to record: captures, masses, budget
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["capture", "behind", "budget"])]
    observe: Option<PathBuf>,
    /// For rows: how much falls on the token so many places back
    #[arg(long, value_name = "N")]
    behind: Vec<u32>,
    /// Record at most so much, such as 2GiB [default: 1GiB]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    budget: Option<u64>,
    /// Folder to write; it appears only when it is complete
    #[arg(long, value_name = "OUT")]
    out: Option<PathBuf>,
    /// Print one JSON object: names, shapes, and of rows the means over the tokens
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: TaskArgs,
}

pub fn run(args: &TraceArgs, shared: &Shared) -> Result<(), Failure> {
    let prompt = Prompt::read("trace", args.text.as_ref(), args.ids.as_ref())?;
    let observe = observe(args)?;
    let model = args.model.load(shared, Demo::Write)?;
    let trace = headwise::block_on(model.trace(&[&prompt.ids(&model)?], &observe))?;
    if let Some(out) = &args.out {
        trace.save(out)?;
    }
    match args.json {
        true => {
            let one = |one: &Recorded| json!({"name": one.name, "rows": one.rows.len(), "heads": one.heads, "width": one.width});
            let recorded: Vec<Value> = trace.recorded.iter().map(one).collect();
            let mean = |(layer, head, tokens, means): &(u32, u32, usize, Vec<f64>)| json!({"at": Address::head(*layer, *head), "tokens": tokens, "means": means});
            let heads: Vec<Value> = means(&trace).iter().map(mean).collect();
            let report = json!({"observe": trace.observe, "recorded": recorded, "heads": heads});
            output::json(&WithEdits::new(report, &trace.edits))
        }
        false => output::line(&describe(&trace)),
    }
}

fn observe(args: &TraceArgs) -> Result<Observe, Error> {
    if let Some(file) = &args.observe {
        return plan_file(file, "observe", Observe::from_json);
    }
    let mut captures = args.capture.clone();
    if captures.is_empty() {
        captures.push("L*H*:rows".parse()?);
    }
    let observe = captures.into_iter().fold(Observe::new(), Observe::capture);
    let observe =
        args.behind.iter().fold(observe, |observe, &n| observe.mass(&format!("-{n}"), Keys::Behind(n)));
    let observe = args.budget.into_iter().fold(observe, Observe::budget);
    observe.check()?;
    Ok(observe)
}

/// Of each head whose rows were recorded: layer, head, tokens that chose it, and the means of their columns.
fn means(trace: &Trace) -> Vec<(u32, u32, usize, Vec<f64>)> {
    let Some(largest) = trace.column("argmax_weight") else { return Vec::new() };
    let mut all = Vec::new();
    for one in trace.of(What::Rows) {
        for (place, &head) in one.heads.iter().enumerate() {
            let rows =
                (0..one.rows.len()).map(|row| one.at(row, place)).filter(|columns| columns[largest] > 0.0);
            let (mut sums, mut count) = (vec![0.0; one.width], 0);
            for columns in rows {
                sums.iter_mut().zip(columns).for_each(|(sum, &value)| *sum += f64::from(value));
                count += 1;
            }
            sums.iter_mut().for_each(|sum| *sum /= f64::from(count.max(1)));
            all.push((one.layer, head, count as usize, sums));
        }
    }
    all
}

fn describe(trace: &Trace) -> String {
    let mut rows = vec![["name", "rows", "heads", "width"].map(str::to_owned).to_vec()];
    rows.extend(trace.recorded.iter().map(|one| {
        let heads = if one.heads.is_empty() { "-".to_owned() } else { one.heads.len().to_string() };
        vec![one.name.clone(), one.rows.len().to_string(), heads, one.width.to_string()]
    }));
    let mut text = output::columns(&rows, &[0]);
    let means = means(trace);
    if !means.is_empty() {
        let masses = trace.observe.masses().iter().map(|mass| mass.name.as_str());
        // The mean of a position says nothing.
        let columns: Vec<(usize, &str)> = headwise::probes::STATISTICS
            .into_iter()
            .chain(masses)
            .enumerate()
            .filter(|(_, name)| *name != "argmax")
            .collect();
        let names = columns.iter().map(|(_, name)| (*name).to_owned());
        let mut rows =
            vec![["head", "tokens"].map(str::to_owned).into_iter().chain(names).collect::<Vec<_>>()];
        rows.extend(means.iter().map(|(layer, head, tokens, sums)| {
            let cells = columns.iter().map(|(column, _)| format!("{:.3}", sums[*column]));
            [format!("L{layer}H{head}"), tokens.to_string()].into_iter().chain(cells).collect()
        }));
        text += &format!("\n\nMeans over the tokens that chose the head:\n{}", output::columns(&rows, &[0]));
    }
    text
}
