//! The promise: q8 and q4 store what their formats say, the same whether packed at load or by `headwise quantize`, cost
//! little quality on held-out text, and a folder that cannot be quantised is refused and leaves nothing behind.

#[path = "command_line/support.rs"]
#[allow(dead_code)] // the command's own tests use the rest
mod command;
#[path = "../../../tests/support/files.rs"]
#[allow(dead_code)] // likewise
mod files;
#[path = "../../../tests/models/mod.rs"]
mod models;
use headwise_reference as reference;
#[path = "quantized/command.rs"]
mod the_command;

#[path = "quantized/folders.rs"]
mod folders;
#[path = "quantized/packing.rs"]
mod packing;
#[path = "quantized/quality.rs"]
mod quality;
#[path = "quantized/small_values.rs"]
mod small_values;
