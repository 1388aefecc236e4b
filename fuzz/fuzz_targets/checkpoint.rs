//! Any bytes as `config.json` and `model.safetensors`: an answer, never a crash.
//!
//!     cargo +nightly fuzz run checkpoint -- -max_len=200000
//!
//! The input is the config, a zero byte, and the weights. Where the config is empty a good one stands in.
#![no_main]

use headwise::fuzzing::check_checkpoint;
use libfuzzer_sys::fuzz_target;

const CONFIG: &[u8] = include_bytes!("../../tests/fixtures/jetmoe_tiny/config.json");

fuzz_target!(|input: &[u8]| {
    let end = input.iter().position(|&byte| byte == 0).unwrap_or(0);
    let (config, weights) = input.split_at(end);
    let config = if config.is_empty() { CONFIG } else { config };
    let _ = check_checkpoint(weights.get(1..).unwrap_or_default(), config);
});
