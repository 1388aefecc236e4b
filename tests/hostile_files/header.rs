//! The header of a safetensors file.

use super::build::{Model, WEIGHTS, file, refused};
use headwise::fuzzing::check_checkpoint;
use serde_json::{Value, json};

#[test]
fn lying_lengths_are_refused_before_memory_is_taken() {
    let before = peak_memory();
    let config = Model::small().config();
    for length in [1u64 << 63, u64::MAX, u64::MAX - 7, 1 << 40, 16 << 20, 100_000_000] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{}                                  ");
        refused(check_checkpoint(&bytes, &config), &[WEIGHTS, "header length", &length.to_string()]);
    }
    let mut vast = Model::small();
    vast.config["vocab_size"] = json!(1 << 24);
    vast.config["hidden_size"] = json!(1 << 24);
    refused(vast.check(), &[WEIGHTS, "shape"]);
    let mut header = vast.header();
    header["model.embed_tokens.weight"]["shape"] = json!([1u64 << 24, 1u64 << 24]);
    refused(
        check_checkpoint(&file(&header.to_string(), &vast.data()), &vast.config()),
        &[WEIGHTS, "embed_tokens"],
    );
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        // The other tests run at the same time; a lie that is believed would take gigabytes. Systems count roughly.
        let more = after.saturating_sub(before);
        assert!(more < 256 << 20, "{} MiB", more >> 20);
    }
}

/// The most memory that this process has held, where the system says.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

#[test]
fn offsets_that_overlap_leave_gaps_or_point_outside_are_refused() {
    let model = Model::small();
    let bias = "model.layers.0.mlp.bias";
    let end = model.data().len() as u64;
    for (range, part) in [
        (json!([0, 8]), "data_offsets"),
        (json!([end - 9, end - 1]), "data_offsets"),
        (json!([end - 7, end + 1]), "data_offsets"),
        (json!([end, end + 8]), "data_offsets"),
        (json!([end - 8, end + 8]), "16 bytes"),
        (json!([end - 8, u64::MAX]), "data_offsets"),
        (json!([u64::MAX - 8, u64::MAX]), "data_offsets"),
        (json!([end, end - 8]), "data_offsets"),
        (json!([-8, 0]), bias),
        (json!([end - 8]), bias),
        (json!([end - 8, end, end]), bias),
        (json!("0-8"), bias),
        (json!([0.0, 8.0]), bias),
        (Value::Null, bias),
    ] {
        let mut header = model.header();
        header[bias]["data_offsets"] = range;
        refused(
            check_checkpoint(&file(&header.to_string(), &model.data()), &model.config()),
            &[WEIGHTS, part],
        );
    }
}

#[test]
fn shapes_whose_product_overflows_are_refused() {
    let model = Model::small();
    for shape in [
        json!([1u64 << 32, 1u64 << 32]),
        json!([u64::MAX]),
        json!([u64::MAX, u64::MAX]),
        json!([u64::MAX, 0]),
        json!([1u64 << 63, 2]),
        json!([(1u64 << 62) + 1, 4]),
        json!([1, 1, 1, 1, 1, 1, 1, 1, 4]),
        json!([-4]),
        json!([4.0]),
        json!([1e300]),
        json!(["4"]),
        json!(4),
        json!([5]),
        json!([]),
        json!([0]),
    ] {
        let mut header = model.header();
        header["model.norm.weight"]["shape"] = shape;
        let result = check_checkpoint(&file(&header.to_string(), &model.data()), &model.config());
        refused(result, &[WEIGHTS, "model.norm.weight"]);
    }
}

#[test]
fn types_that_are_unknown_or_no_weights_are_refused() {
    for dtype in ["I16", "U16"] {
        let mut model = Model::small();
        model.tensor("norm.weight").1 = dtype.to_owned();
        refused(model.check(), &[WEIGHTS, "model.norm.weight\", dtype", dtype, "F32, F16 or BF16"]);
    }
    for dtype in ["F17", "f16", "", "F16\u{0}"] {
        let mut model = Model::small();
        model.tensor("norm.weight").1 = dtype.to_owned();
        refused(model.check(), &[WEIGHTS, "model.norm.weight", "unknown dtype"]);
    }
    let mut model = Model::small();
    model.tensor("norm.weight").1 = "F32".to_owned();
    refused(model.check(), &[WEIGHTS, "model.norm.weight", "16, for F32 [4]"]);
}

#[test]
fn seventy_thousand_tensors_are_refused() {
    let entry = |i: usize| format!(r#""{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1);
    let entries: Vec<String> = (0..70_000).map(entry).collect();
    let many = file(&format!("{{{}}}", entries.join(",")), &vec![0; 70_000]);
    refused(
        check_checkpoint(&many, &Model::small().config()),
        &[WEIGHTS, "header", "more than 65536 tensors"],
    );
}

#[test]
fn duplicates_are_refused() {
    let model = Model::small();
    let header = model.header().to_string();
    let again = r#","model.norm.weight":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}"#;
    let twice = header.strip_suffix('}').unwrap().to_owned() + again;
    refused(
        check_checkpoint(&file(&twice, &model.data()), &model.config()),
        &[WEIGHTS, "model.norm.weight", "two tensors of this name"],
    );
    let field = header.replacen(r#""dtype":"F16""#, r#""dtype":"F16","dtype":"F16""#, 1);
    refused(check_checkpoint(&file(&field, &model.data()), &model.config()), &[WEIGHTS, "duplicate field"]);
}

#[test]
fn text_that_is_not_a_header_is_refused() {
    let config = Model::small().config();
    let deep = "[".repeat(2_000_000);
    let nested = format!(r#"{{"a":{}"#, r#"{"a":"#.repeat(500_000));
    let metadata = format!(r#"{{"__metadata__":{deep}}}"#);
    for header in ["", "null", "[]", "{", "{]", "\"{}\"", "{}{}", &deep, &nested, &metadata, "{\"a\":\u{0}}"]
    {
        refused(check_checkpoint(&file(header, &[]), &config), &[WEIGHTS, "header"]);
    }
    let mut bytes = Model::small().weights();
    let at = bytes.windows(4).position(|w| w == b"norm").unwrap();
    bytes[at] = 0xff;
    refused(check_checkpoint(&bytes, &config), &[WEIGHTS, "header"]);
    refused(check_checkpoint(&file("{}", &[]), &config), &[WEIGHTS, "found none"]);
}

#[test]
fn names_of_any_length_and_kind_give_short_printable_messages() {
    for name in ["n".repeat(513), "\u{1b}[2J\n".into(), "é".repeat(200), "n".repeat(5_000_000)] {
        let mut model = Model::small();
        model.tensors.push((name.clone(), "F16".into(), vec![1], vec![0; 2]));
        refused(model.check(), &[WEIGHTS]);
        let message = model.check().unwrap_err().to_string();
        assert!(!message.contains(['\u{1b}', '\n']), "{message:?}");
    }
}
