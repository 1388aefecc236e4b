//! `headwise adapters`

use clap::Args;
use headwise::{AdapterReport, Capabilities, Gpu, GpuOptions};

use super::{args::Shared, bytes, failure::Failure, output};

/// List the GPU adapters with their limits, features and kernels
#[derive(Args)]
#[command(
    after_help = "With --adapter, only those that fit it; their numbers stay the same. Exits with 1 if there is none.\n\n\
        Example:\n  headwise adapters --json"
)]
pub struct AdaptersArgs {
    /// Print one JSON array
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &AdaptersArgs, shared: &Shared) -> Result<(), Failure> {
    let selection = shared.selection();
    let mut reports = headwise::block_on(Gpu::adapters());
    reports.retain(|report| selection.matches(report.number, &report.capabilities));
    if reports.is_empty() {
        // Its error says what there is, or what to install.
        headwise::block_on(Gpu::new(GpuOptions::new().adapter(selection)))?;
    }
    if args.json {
        return output::json(&reports);
    }
    let texts: Vec<String> = reports.iter().map(describe).collect();
    output::line(&texts.join("\n\n"))
}

fn describe(report: &AdapterReport) -> String {
    let it = &report.capabilities;
    let kernels: Vec<String> =
        report.kernels.iter().map(|(kernel, variant)| format!("{kernel} {variant}")).collect();
    let source = match report.kernels_measured {
        true => "measured here before",
        false => "by capability, measured with the first model",
    };
    output::table(&[
        ("adapter", format!("{}: {}", report.number, it.name)),
        ("backend", it.backend.clone()),
        ("type", it.kind.clone()),
        ("driver", it.driver.clone()),
        (
            "limits",
            format!(
                "binding {}, buffer {}, {} storage buffers, workgroup of {} with {}",
                bytes::show(it.max_binding),
                bytes::show(it.max_buffer),
                it.max_storage_buffers,
                it.max_workgroup_invocations,
                bytes::show(u64::from(it.max_workgroup_memory)),
            ),
        ),
        ("features", features(it)),
        ("kernels", format!("{}; {}", kernels.join(", "), source)),
    ])
}

fn features(it: &Capabilities) -> String {
    let subgroups = it.subgroups.map(|(low, high)| match low == high {
        true => format!("subgroups of {low}"),
        false => format!("subgroups of {low} to {high}"),
    });
    let named = [(it.shader_f16, "f16 arithmetic"), (it.timestamps, "timestamps")];
    let named = named.iter().filter(|(on, _)| *on).map(|(_, name)| (*name).to_owned());
    let features: Vec<String> = subgroups.into_iter().chain(named).collect();
    if features.is_empty() { "none".to_owned() } else { features.join(", ") }
}
