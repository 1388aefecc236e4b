//! Any bytes as `tokenizer.json`: a tokenizer or an error, never a crash and never a wait.
//!
//!     cargo +nightly fuzz run tokenizer -- -max_len=20000 -timeout=60
//!
//! `tests/fixtures/tokenizers` is a corpus to begin with; `tests/hostile_files/tokenizer.rs` has more.
#![no_main]

use headwise::fuzzing::check_tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _ = check_tokenizer(input);
});
