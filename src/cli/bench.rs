//! `headwise bench`

use std::time::Instant;

use clap::Args;
use headwise::{Bench, BenchReport, BenchRow, LoadOptions, Model, Source, Spread};
use serde::Serialize;

use super::{
    args::{ModelArgs, Shared},
    failure::Failure,
    notes, numbers,
    output::{self, thousands},
    progress,
};

/// Measure a model, and what the adapter does at best in the same run
#[derive(Args)]
#[command(after_help = "A ratio says how much of the adapter's best a row reaches:
  decode                bytes of weights that its tokens need, in its time, against a plain copy,
                        whose bytes read and bytes written both count
  prefill, first token  floating-point operations of the prompt, in its time, against the best
                        dense product
Times are medians of rounds that alternate with the limit; docs/performance.md says more.\n\n\
        Example:\n  headwise bench --json")]
pub struct BenchArgs {
    /// Rounds of each measurement, of which the median counts; those of long ones may be fewer
    #[arg(long, value_name = "N", default_value = "7", value_parser = numbers::whole::<usize>)]
    rounds: usize,
    /// Tokens to decode in each round
    #[arg(long, value_name = "N", default_value = "64", value_parser = numbers::whole::<usize>)]
    tokens: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    bench: BenchReport,
    cold_start: ColdStart,
}

/// Seconds from the start of the process to the first token, in parts.
#[derive(Serialize)]
struct ColdStart {
    open_seconds: f64,
    load_seconds: f64,
    first_token_seconds: f64,
    seconds: f64,
}

pub fn run(args: &BenchArgs, shared: &Shared) -> Result<(), Failure> {
    let start = Instant::now();
    let source = args.model.source(Source::demo)?;
    let gpu = args.model.open(shared)?;
    let opened = start.elapsed().as_secs_f64();
    let mut options = LoadOptions::new().progress(progress::bar(shared.quiet));
    if let Some(precision) = args.model.precision() {
        options = options.precision(precision);
    }
    let model = headwise::block_on(Model::load(&gpu, &source, options))?;
    let loaded = start.elapsed().as_secs_f64();
    notes::tell(model.info(), shared.quiet);

    let progress = progress::bar_of_rounds("measuring", shared.quiet);
    let options = Bench::new().rounds(args.rounds).tokens(args.tokens).progress(progress);
    let bench = headwise::block_on(model.bench(options))?;
    let cold_start = ColdStart {
        open_seconds: opened,
        load_seconds: loaded - opened,
        first_token_seconds: bench.first_run_seconds,
        seconds: loaded + bench.first_run_seconds,
    };
    let report = Report { bench, cold_start };
    if args.json { output::json(&report) } else { output::line(&describe(&report)) }
}

fn describe(Report { bench, cold_start }: &Report) -> String {
    let kernels: Vec<String> =
        bench.kernels.iter().map(|(kernel, variant)| format!("{kernel} {variant}")).collect();
    let model = format!(
        "{}, {} parameters, {} active per token, {}",
        bench.family,
        thousands(bench.parameters),
        thousands(bench.active_parameters),
        format!("{:?}", bench.precision).to_lowercase()
    );
    let head = output::table(&[
        ("headwise", format!("{}, {} UTC", bench.version, bench.date)),
        ("adapter", format!("{} ({}, {})", bench.adapter, bench.backend, bench.driver)),
        ("kernels", kernels.join(", ")),
        ("model", model),
    ]);
    let mut rows = vec![
        ["", "tokens/s", "ms", "least", "most", "dispatches", "MB", "M MAC", "reached", "limit", "ratio"]
            .map(str::to_owned),
    ];
    rows.extend(bench.rows.iter().map(cells));
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    let table = output::columns(&rows, &[0]);

    let host = &bench.host_seconds;
    let micro = |seconds: f64| format!("{:.0}", 1e6 * seconds);
    let mut foot = vec![
        ("copy", format!("{}, {}", speed("copy", bench.copy.per_second.median), bench.copy.name)),
        ("matmul", format!("{}, {}", speed("matmul", bench.matmul.per_second.median), bench.matmul.name)),
        (
            "host",
            format!(
                "{} µs to record and submit a decode step ({} to {})",
                micro(host.median),
                micro(host.least),
                micro(host.most)
            ),
        ),
        (
            "cold start",
            format!(
                "{:.2} s to the first token: open {:.2}, load {:.2}, first token {:.2}",
                cold_start.seconds,
                cold_start.open_seconds,
                cold_start.load_seconds,
                cold_start.first_token_seconds
            ),
        ),
    ];
    foot.extend(bench.remarks.iter().map(|remark| ("left out", remark.clone())));
    format!("{head}\n\n{table}\n(dispatches, MB and M MAC for each token)\n\n{}", output::table(&foot))
}

fn cells(row: &BenchRow) -> [String; 11] {
    let name = match row.what {
        "prefill" => format!("prefill {}", row.prompt),
        what => what.to_owned(),
    };
    let Spread { median, least, most, .. } = row.seconds;
    let ms = |seconds: f64| format!("{:.1}", 1e3 * seconds);
    let per_token = |count: u64| count as f64 / row.tokens as f64;
    [
        name,
        format!("{:.1}", row.tokens_per_second),
        ms(median),
        ms(least),
        ms(most),
        format!("{:.1}", per_token(row.counters.dispatches)),
        format!("{:.2}", per_token(row.counters.bytes) / 1e6),
        format!("{:.2}", per_token(row.counters.macs) / 1e6),
        speed(row.limit, row.needed_per_second),
        speed(row.limit, row.limit_per_second),
        format!("{:.3}", row.ratio),
    ]
}

/// A speed in the unit of its limit.
fn speed(limit: &str, per_second: f64) -> String {
    let unit = if limit == "copy" { "GB/s" } else { "GFLOP/s" };
    format!("{:.2} {unit}", per_second / 1e9)
}
