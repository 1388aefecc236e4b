//! The `headwise` command: parses, dispatches, and turns what went wrong into one message and an exit code.

mod adapters;
mod args;
mod bench;
mod bytes;
mod chat;
mod choosing;
mod classify;
mod convert;
mod demo;
mod doctor;
mod edited;
mod failure;
mod fill;
mod generate;
mod heads;
#[cfg(feature = "hub")]
mod hub;
#[cfg(not(feature = "hub"))]
#[path = "no_hub.rs"]
mod hub;
mod ids;
mod image;
mod info;
mod interrupt;
mod licenses;
mod lines;
mod logits;
mod methods;
mod notes;
mod numbers;
mod output;
mod progress;
mod prompt;
mod quantize;
mod quiet_driver;
mod report;
mod routes;
mod score;
mod selftest;
mod tokens;
mod trace;
mod transcript;
mod translate;
mod upcycle;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use args::Shared;
use failure::Failure;

/// Run transformers whose attention heads are routed, on WebGPU
#[derive(Parser)]
#[command(
    name = "headwise",
    version,
    after_help = "Example:\n  headwise generate \"The king shall\" --show-heads"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    shared: Shared,
}

#[derive(Subcommand)]
enum Command {
    Generate(generate::GenerateArgs),
    Chat(chat::ChatArgs),
    Translate(translate::TranslateArgs),
    Fill(fill::FillArgs),
    Classify(classify::ClassifyArgs),
    Logits(logits::LogitsArgs),
    #[command(visible_alias = "score-data")]
    Score(score::ScoreArgs),
    Routes(routes::RoutesArgs),
    Trace(trace::TraceArgs),
    Heads(methods::HeadsArgs),
    Experts(methods::ExpertsArgs),
    Task(methods::TaskCommand),
    Info(info::InfoArgs),
    Bench(bench::BenchArgs),
    Adapters(adapters::AdaptersArgs),
    Selftest(selftest::SelftestArgs),
    Doctor(doctor::DoctorArgs),
    Licenses(licenses::LicensesArgs),
    Convert(convert::ConvertArgs),
    Quantize(quantize::QuantizeArgs),
    Upcycle(upcycle::UpcycleArgs),
}

fn main() -> ExitCode {
    // A panic is a bug of headwise: still one message and exit code 1.
    std::panic::set_hook(Box::new(|panic| {
        if headwise::panic_is_caught() {
            return;
        }
        let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        failure::print(&format!("internal error{place}, please report it: {message}"));
        headwise::internal::remove_unfinished();
        std::process::exit(1);
    }));
    interrupt::listen();
    let matches = numbers::allow_negative(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    quiet_driver::hush();
    log_if_asked();
    match run(&cli) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    match &cli.command {
        // Says by its code what it found.
        Command::Selftest(args) => return selftest::run(args, &cli.shared),
        Command::Generate(args) => generate::run(args, &cli.shared),
        Command::Chat(args) => chat::run(args, &cli.shared),
        Command::Translate(args) => translate::run(args, &cli.shared),
        Command::Fill(args) => fill::run(args, &cli.shared),
        Command::Classify(args) => classify::run(args, &cli.shared),
        Command::Logits(args) => logits::run(args, &cli.shared),
        Command::Score(args) => score::run(args, &cli.shared),
        Command::Routes(args) => routes::run(args, &cli.shared),
        Command::Trace(args) => trace::run(args, &cli.shared),
        Command::Heads(args) => methods::heads(args, &cli.shared),
        Command::Experts(args) => methods::experts(args, &cli.shared),
        Command::Task(args) => methods::task(args, &cli.shared),
        Command::Info(args) => info::run(args, &cli.shared),
        Command::Bench(args) => bench::run(args, &cli.shared),
        Command::Adapters(args) => adapters::run(args, &cli.shared),
        Command::Doctor(args) => doctor::run(args),
        Command::Licenses(args) => licenses::run(args),
        Command::Convert(args) => convert::run(args, &cli.shared),
        Command::Quantize(args) => quantize::run(args, &cli.shared),
        Command::Upcycle(args) => upcycle::run(args, &cli.shared),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Logs to stderr what `RUST_LOG` asks for; nothing without it.
fn log_if_asked() {
    if std::env::var_os("RUST_LOG").is_some_and(|filter| !filter.is_empty())
        && let Ok(filter) = EnvFilter::try_from_default_env()
    {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
}
