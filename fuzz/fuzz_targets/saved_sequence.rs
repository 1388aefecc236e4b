//! Any bytes as a saved sequence: a sequence or an error.
//!
//!     cargo +nightly fuzz run saved_sequence
#![no_main]

use headwise::fuzzing::check_saved;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|saved: &[u8]| {
    let _ = check_saved(saved);
});
