//! `headwise selftest`

use std::process::ExitCode;

use clap::Args;
use headwise::{Gpu, GpuOptions, Selftest, SelftestReport, SelftestRow, SelftestStatus};

use super::{args::Shared, failure::Failure, output, progress};

/// Test whether the GPU computes right: each kernel in each variant against 64-bit floats on the CPU
#[derive(Args)]
#[command(
    after_help = "What to paste into a report. Exits with 1 if a number is wrong or a kernel does not run.\n\n\
        Examples:\n  headwise selftest\n  headwise selftest --adapter 1 --filter routed_matmul --json"
)]
pub struct SelftestArgs {
    /// Only rows whose name contains this, such as routed_matvec, "routed_matmul packed", driver or text
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The report, and whether all is well.
pub fn run(args: &SelftestArgs, shared: &Shared) -> Result<ExitCode, Failure> {
    let gpu = headwise::block_on(Gpu::new(GpuOptions::new().adapter(shared.selection())))?;
    let mut testing = progress::words("testing", shared.quiet);
    let mut selftest =
        Selftest::new().progress(move |row| testing(&format!("{} {}", row.kernel, row.variant)));
    if let Some(filter) = &args.filter {
        selftest = selftest.filter(filter);
    }
    let report = headwise::block_on(gpu.selftest(selftest))?;
    if args.json {
        output::json(&report)?
    } else {
        output::line(&describe(&report))?
    }
    Ok(ExitCode::from(u8::from(!report.ok)))
}

fn describe(report: &SelftestReport) -> String {
    let it = &report.adapter;
    let kernels: Vec<String> =
        report.kernels.iter().map(|(kernel, variant)| format!("{kernel} {variant}")).collect();
    let head = output::table(&[
        ("headwise", report.version.to_owned()),
        ("adapter", format!("{} ({}, {}, {})", it.name, it.backend, it.kind, it.driver)),
        ("kernels", kernels.join(", ")),
    ]);
    let mut rows = vec![["", "", "", "cases", "error", "limit", "s", ""].map(str::to_owned).to_vec()];
    rows.extend(report.rows.iter().map(cells));
    let bad = report.rows.iter().filter(|row| row.status.is_bad()).count();
    let end = match bad {
        0 => format!("none of {} wrong, in {:.0} s", report.rows.len(), report.seconds),
        bad => format!("{bad} of {} WRONG, in {:.0} s", report.rows.len(), report.seconds),
    };
    let table = output::columns(&rows, &[0, 1, 2, 7]);
    let lines: Vec<&str> = table.lines().map(str::trim_end).collect();
    format!("{head}\n\n{}\n\n{end}", lines.join("\n"))
}

fn cells(row: &SelftestRow) -> Vec<String> {
    let status = match row.status {
        SelftestStatus::Ok => "ok",
        SelftestStatus::Wrong => "WRONG",
        SelftestStatus::Failed => "FAILED",
        SelftestStatus::Refused => "refused",
        _ => "note",
    };
    let number = |number: f64| if number == 0.0 { "0".to_owned() } else { format!("{number:.1e}") };
    let computed = row.cases > 0;
    let shown = |text: String| if computed { text } else { String::new() };
    vec![
        row.kernel.to_owned(),
        row.variant.clone(),
        status.to_owned(),
        shown(row.cases.to_string()),
        row.error.map(number).unwrap_or_default(),
        shown(number(row.limit)),
        shown(format!("{:.1}", row.seconds)),
        row.remark.clone().unwrap_or_default().replace('\n', " "),
    ]
}
