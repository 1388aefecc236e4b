//! The bars while a model loads or is written, while a long prompt is read, while lines are translated, and while a model is
//! measured.

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

/// Shows bytes read of bytes in all, on stderr if that is a terminal; gone when the last is read.
pub fn bar(quiet: bool) -> impl Fn(u64, u64) {
    bar_of("loading", quiet)
}

/// Likewise for other work, named by one word.
pub fn bar_of(work: &'static str, quiet: bool) -> impl Fn(u64, u64) {
    with_template(work, "{prefix} {bar:30} {bytes} of {total_bytes} {eta}", quiet)
}

/// Likewise for work that is counted in lines.
pub fn bar_of_lines(work: &'static str, quiet: bool) -> impl Fn(u64, u64) {
    with_template(work, "{prefix} {bar:30} {pos} of {len} lines {eta}", quiet)
}

/// Likewise for work that is counted in rounds.
pub fn bar_of_rounds(work: &'static str, quiet: bool) -> impl Fn(u64, u64) {
    with_template(work, "{prefix} {bar:30} {pos} of {len} rounds {eta}", quiet)
}

/// Likewise for work that is counted in tokens.
pub fn bar_of_tokens(work: &'static str, quiet: bool) -> impl Fn(u64, u64) {
    with_template(work, "{prefix} {bar:30} {pos} of {len} tokens {eta}", quiet)
}

/// Shows what is being done, on stderr if that is a terminal; gone at the end.
pub fn words(work: &'static str, quiet: bool) -> impl FnMut(&str) + Send {
    let spinner = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let spinner = spinner.with_prefix(work).with_finish(ProgressFinish::AndClear);
    if let Ok(style) = ProgressStyle::with_template("{prefix} {msg}") {
        spinner.set_style(style);
    }
    move |now| {
        spinner.set_message(now.to_owned());
        spinner.tick();
    }
}

fn with_template(work: &'static str, template: &str, quiet: bool) -> impl Fn(u64, u64) + use<> {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let bar = bar.with_prefix(work).with_finish(ProgressFinish::AndClear);
    move |read, total| {
        if read >= total {
            bar.finish_and_clear();
            return;
        }
        bar.set_length(total);
        bar.set_position(read);
    }
}
