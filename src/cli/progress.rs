//! The bar while a model loads.

use indicatif::{ProgressBar, ProgressStyle};

/// Shows bytes read of bytes in all, on stderr if that is a terminal; gone when the last is read.
pub fn bar(quiet: bool) -> impl FnMut(u64, u64) {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
    if let Ok(style) = ProgressStyle::with_template("loading {bar:30} {bytes} of {total_bytes} {eta}") {
        bar.set_style(style);
    }
    move |read, total| {
        bar.set_length(total);
        bar.set_position(read);
        if read >= total {
            bar.finish_and_clear();
        }
    }
}
