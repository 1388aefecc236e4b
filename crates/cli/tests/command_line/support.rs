//! Running the command and reading the references.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use safetensors::tensor::TensorView;
use serde_json::Value;

pub const PROSE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/prose");
pub const TRANSLATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/ui-en-de");
pub const FILLER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/ui-fill");
pub const CLASSIFIER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/fashion");
pub const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/jetmoe_tiny");

/// The command, as a script on a machine without a desktop would run it, with all that may make it talk.
pub fn headwise(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headwise"));
    for name in ["XDG_RUNTIME_DIR", "NO_COLOR", "CLICOLOR_FORCE", "COLORTERM", "RUST_LOG"] {
        command.env_remove(name);
    }
    // The same kernels in every run.
    command.env("HEADWISE_KERNELS", "tuned").env("HEADWISE_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command.env("RUST_BACKTRACE", "1").args(args).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code, stdout, stderr.
pub fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// What a successful run prints on stdout.
#[track_caller]
pub fn stdout(args: &[&str]) -> String {
    let (code, stdout, stderr) = run(&mut headwise(args));
    assert_eq!(code, 0, "{args:?}: {stderr}");
    stdout
}

#[track_caller]
pub fn json(args: &[&str]) -> Value {
    let text = stdout(args);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error} in {text}"))
}

/// Panics unless the run ends with code 1, nothing on stdout, and one message on stderr that has all of `parts`.
#[track_caller]
pub fn fails(args: &[&str], parts: &[&str]) {
    check_failure(run(&mut headwise(args)), parts);
}

/// Panics unless the run ends with code 1 and this message alone.
#[track_caller]
pub fn fails_with(args: &[&str], message: &str) {
    let expected = (1, String::new(), message.to_owned());
    assert_eq!(run(&mut headwise(args)), expected, "{args:?}");
}

/// The text of `word[3,5]…` and what was in the brackets.
pub fn without_brackets(text: &str) -> (String, Vec<Vec<u32>>) {
    let mut parts = text.split('[');
    let mut plain = parts.next().unwrap().to_owned();
    let mut routes = Vec::new();
    for part in parts {
        let (experts, rest) = part.split_once(']').unwrap();
        routes.push(experts.split(',').map(|expert| expert.parse().unwrap()).collect());
        plain += rest;
    }
    (plain, routes)
}

#[track_caller]
pub fn check_failure((code, stdout, stderr): (i32, String, String), parts: &[&str]) {
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "not one message: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    for noise in ["panic", "backtrace", "internal error"] {
        assert!(!stderr.contains(noise), "{noise:?} in {stderr}");
    }
}

/// A folder of its own for each test.
pub fn folder(test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("command-line-{test}"));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

pub fn read_json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The prompts of the reference with the text that greedy choice adds.
pub fn prompts() -> Vec<(String, String)> {
    let reference = read_json(&format!("{PROSE}/reference.json"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let prompts = reference["prompts"].as_array().unwrap().iter();
    prompts.map(|prompt| (text(&prompt["text"]), text(&prompt["greedy"]))).collect()
}

pub fn words(tensor: &TensorView) -> Vec<u32> {
    tensor.data().as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect()
}

pub fn floats(tensor: &TensorView) -> Vec<f64> {
    words(tensor).into_iter().map(|word| f64::from(f32::from_bits(word))).collect()
}

/// All numbers of nested arrays, in order.
pub fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

pub fn join(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

#[track_caller]
pub fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // Written so that a NaN fails.
        assert!((found - expected).abs() <= tolerance, "element {i}: {found}, not {expected}");
    }
}
