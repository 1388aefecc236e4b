//! Any text as a chat template: a text or an error, soon.
//!
//!     cargo +nightly fuzz run template -- -max_len=4000 -timeout=5
#![no_main]

use headwise::fuzzing::check_template;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|template: &str| {
    let _ = check_template(template);
});
