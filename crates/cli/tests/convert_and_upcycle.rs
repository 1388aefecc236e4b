//! The promise: `convert` and `upcycle` write exactly the tensors and the config that their documentation says,
//! refuse what they cannot write with a message that names file and field, and leave nothing behind after an error.

#[path = "command_line/support.rs"]
#[allow(dead_code)] // the command's own tests use the rest
mod command;
#[path = "convert_and_upcycle/convert.rs"]
mod convert;
#[path = "../../../tests/support/files.rs"]
mod files;
#[path = "convert_and_upcycle/upcycle.rs"]
mod upcycle;
