//! `headwise doctor`

mod adapters;
mod drivers;
mod machine;

use clap::Args;
use serde::Serialize;

use self::{
    adapters::Tried,
    drivers::Drivers,
    machine::{Cache, Memory, Variable},
};
use super::{bytes, failure::Failure, output};

/// Say what headwise finds on this machine: drivers, adapters, memory, caches, environment
#[derive(Args)]
#[command(
    after_help = "What to paste into a report, beside `headwise selftest`. Never fails because something is missing.\n\n\
        Example:\n  headwise doctor --json"
)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    /// As rustc names it.
    system: String,
    features: Vec<&'static str>,
    adapters: Vec<Tried>,
    drivers: Drivers,
    memory: Memory,
    caches: Vec<Cache>,
    variables: Vec<Variable>,
    advice: Vec<String>,
}

pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let adapters = headwise::block_on(adapters::try_all());
    let drivers = Drivers::find();
    let caches = machine::caches();
    let advice = advice(&adapters, &drivers, &caches);
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        features: features(),
        adapters,
        drivers,
        memory: Memory::read(),
        caches,
        variables: machine::variables(),
        advice,
    };
    if args.json { output::json(&report) } else { output::line(&describe(&report)) }
}

/// What the command was built with that it need not be.
fn features() -> Vec<&'static str> {
    let all = [
        (cfg!(feature = "demo-model"), "demo-model"),
        (cfg!(feature = "gles"), "gles"),
        (cfg!(feature = "hub"), "hub"),
        (cfg!(debug_assertions), "debug"),
    ];
    all.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect()
}

fn advice(adapters: &[Tried], drivers: &Drivers, caches: &[Cache]) -> Vec<String> {
    let wrong = machine::wrong_values();
    // No driver that is missing, then.
    let no_backend = wrong.iter().any(|(name, _)| *name == machine::BACKEND);
    let mut advice: Vec<String> = wrong.into_iter().map(|(_, text)| text).collect();
    advice.extend(drivers.advice());
    let works = |tried: &&Tried| tried.refused.is_none();
    if no_backend && adapters.is_empty() {
        advice.push("no adapter was looked for".to_owned());
    } else if !adapters.iter().any(|tried| works(&tried)) {
        advice.push(
            "no adapter works: install a Vulkan driver (on Debian and Ubuntu, mesa-vulkan-drivers brings a software one)".into(),
        );
    } else if adapters.iter().filter(works).all(|tried| tried.kind == "software") {
        advice.push(
            "only software adapters work: a GPU's Vulkan driver is missing, refused, or there is no GPU"
                .into(),
        );
    }
    let lost = caches.iter().filter(|cache| !cache.writable);
    advice.extend(lost.map(|cache| format!("the {} cannot be written: {}", cache.name, cache.path)));
    advice
}

fn describe(report: &Report) -> String {
    let memory = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), bytes::show);
    let mut parts = vec![output::table(&[
        ("headwise", format!("{}, {}, {}", report.version, report.system, list(&report.features))),
        (
            "memory",
            format!("{} of {} available", memory(report.memory.available), memory(report.memory.total)),
        ),
    ])];
    let mut rows: Vec<(&str, String)> =
        report.adapters.iter().map(|tried| ("adapter", tried.describe())).collect();
    if rows.is_empty() {
        rows.push(("adapter", "none".to_owned()));
    }
    rows.extend(report.drivers.describe());
    parts.push(output::table(&rows));
    let cache = |cache: &Cache| {
        let writable = if cache.writable { "" } else { ", not writable" };
        (cache.name, format!("{}, {}{writable}", cache.path, bytes::show(cache.bytes)))
    };
    parts.push(output::table(&report.caches.iter().map(cache).collect::<Vec<_>>()));
    let variables: Vec<(&str, String)> =
        report.variables.iter().map(|variable| (&*variable.name, variable.value.clone())).collect();
    if !variables.is_empty() {
        parts.push(output::table(&variables));
    }
    let advice: Vec<(&str, String)> = report.advice.iter().map(|text| ("advice", text.clone())).collect();
    if !advice.is_empty() {
        parts.push(output::table(&advice));
    }
    parts.join("\n\n")
}

/// Words with commas, or `none`.
fn list(words: &[&str]) -> String {
    if words.is_empty() { "no features".to_owned() } else { words.join(", ") }
}
