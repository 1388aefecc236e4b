//! Quantised files: what the config says of them and what they hold.

use serde_json::{Value, json};

use crate::build::{CONFIG, Model, WEIGHTS, refused};

const KV: &str = "model.layers.0.self_attention.kv_proj.weight";

/// A whole quantised model: every matrix has rows of one group of 32. `bytes` are those of such a row.
fn quantized(scheme: &str, bytes: usize) -> Model {
    let mut model = Model::small();
    for name in ["hidden_size", "kv_channels", "ffn_hidden_size"] {
        model.config[name] = json!(32);
    }
    let matrices = ["kv_proj.weight", "input_linear.weight", "output_linear.weight"];
    let mut listed = json!({});
    for (name, dtype, shape, data) in &mut model.tensors {
        // What was 4 wide is 32 wide; keys with values, and gate with up, are two widths.
        for size in shape.iter_mut().filter(|size| **size >= 4) {
            *size *= 8;
        }
        if name.contains("mlp.input_linear") {
            *shape = vec![2, 64, 32];
        }
        if name.contains("mlp.output_linear") {
            *shape = vec![2, 32, 32];
        }
        let elements = shape.iter().product::<u64>();
        *data = vec![0; 2 * elements as usize];
        if matrices.iter().any(|end| name.ends_with(end)) {
            listed[name.as_str()] = json!(shape);
            let rows = elements / 32;
            *name = format!("{name}.{scheme}");
            *dtype = "U32".to_owned();
            *shape = vec![rows, bytes as u64 / 4];
            *data = vec![0; rows as usize * bytes];
        }
    }
    model.config["headwise_quantization"] =
        json!({"version": 1, "scheme": scheme, "group": 32, "tensors": listed});
    model
}

fn q4() -> Model {
    quantized("q4", 32)
}

fn q8() -> Model {
    quantized("q8", 48)
}

#[test]
fn whole_quantized_models_are_accepted() {
    q4().check().unwrap();
    q8().check().unwrap();
}

#[test]
fn a_config_that_describes_another_format_is_refused() {
    let field = "headwise_quantization";
    let set = |path: &'static str, value: Value| {
        let mut model = q4();
        model.config[field][path] = value;
        model.check()
    };
    for (path, value, part) in [
        (
            "scheme",
            json!("q3"),
            "headwise_quantization.scheme = \"q3\" is not supported: the schemes are q8 and q4",
        ),
        ("scheme", json!(4), "headwise_quantization.scheme: found no such field"),
        ("scheme", Value::Null, "headwise_quantization.scheme: found no such field"),
        ("version", json!(2), "headwise_quantization.version = 2 is not supported"),
        ("version", Value::Null, "headwise_quantization.version: found no such field"),
        ("group", json!(64), "headwise_quantization.group = 64 is not supported"),
        ("group", Value::Null, "headwise_quantization.group: found no such field"),
        ("tensors", json!([]), "headwise_quantization.tensors: found no such field"),
        ("bits", json!(4), "headwise_quantization.\"bits\": found an unknown field"),
    ] {
        refused(set(path, value), &[CONFIG, part]);
    }
    for (value, shown) in
        [(json!("q4"), "found \"q4\", expected an object"), (json!([1]), "found a list of 1")]
    {
        let mut model = q4();
        model.config[field] = value;
        refused(model.check(), &[CONFIG, "headwise_quantization: ", shown]);
    }
    // A file of the other scheme: its matrices have names that nothing asks for.
    refused(set("scheme", json!("q8")), &[WEIGHTS, "kv_proj.weight.q4\": found an unknown tensor"]);
    // And one that is not described at all is no checkpoint.
    let mut silent = q4();
    silent.config.as_object_mut().unwrap().remove(field);
    refused(silent.check(), &["input_linear.weight\": found none"]);
}

#[test]
fn shapes_in_the_config_are_compared_before_they_are_used() {
    for (shape, parts) in [
        (json!([64, 64]), [WEIGHTS_OR_CONFIG, "kv_proj.weight\", shape: found [64, 64], expected [64, 32]"]),
        (json!([32, 64]), [WEIGHTS_OR_CONFIG, "found [32, 64], expected [64, 32]"]),
        (
            json!([64, 0]),
            [CONFIG, "kv_proj.weight\": found a list of 2, expected at most 8 dimensions from 1"],
        ),
        (json!([64, -1]), [CONFIG, "expected at most 8 dimensions from 1"]),
        (json!([64, 1e30]), [CONFIG, "expected at most 8 dimensions from 1"]),
        (json!([]), [CONFIG, "found a list of 0"]),
        (json!("64x32"), [CONFIG, "found \"64x32\""]),
        (json!([16777216, 16777216, 16777216]), [CONFIG, "found a list of 3"]),
        (json!([1, 1, 1, 1, 1, 1, 1, 1, 1]), [CONFIG, "found a list of 9"]),
    ] {
        let mut model = q4();
        model.config["headwise_quantization"]["tensors"][KV] = shape;
        refused(model.check(), &parts);
    }
    let mut model = q4();
    model.config["headwise_quantization"]["tensors"].as_object_mut().unwrap().remove(KV);
    refused(model.check(), &["kv_proj.weight\": found none"]);
    let mut model = q4();
    model.config["headwise_quantization"]["tensors"]["model.layers.0.mlp.other"] = json!([32]);
    refused(model.check(), &[CONFIG, "model.layers.0.mlp.other\": found an unknown tensor"]);
    // What is there both ways could be either.
    let mut model = q4();
    model.config["headwise_quantization"]["tensors"]["model.norm.weight"] = json!([32]);
    refused(
        model.check(),
        &[CONFIG, "headwise_quantization.tensors, \"model.norm.weight\": found the tensor of "],
    );
}

/// For shapes of the config, which the message about the tensor names.
const WEIGHTS_OR_CONFIG: &str = "/config.json: ";

#[test]
fn rows_that_lack_scales_or_are_of_another_type_are_refused() {
    for (mut model, name, row) in [(q4(), "kv_proj.weight.q4", 32), (q8(), "kv_proj.weight.q8", 48)] {
        let whole = model.clone();
        // Codes without their scales.
        let (_, _, shape, data) = model.tensor(name);
        shape[1] -= 4;
        data.truncate(data.len() - 64 * 16);
        let expected = format!("expected [64, {}]: rows of 32 codes and 1 scales", row / 4);
        refused(model.check(), &[WEIGHTS, name, "shape: found [64, ", &expected]);

        let mut model = whole.clone();
        model.tensor(name).2 = vec![row / 4, 64];
        refused(model.check(), &[WEIGHTS, name, &expected]);
        let mut model = whole.clone();
        model.tensor(name).2 = vec![64 * row / 4];
        refused(model.check(), &[WEIGHTS, name, &expected]);

        let mut model = whole.clone();
        model.tensor(name).1 = "F32".to_owned();
        refused(model.check(), &[WEIGHTS, &format!("{name}\", dtype: found F32, expected U32")]);

        let mut model = whole.clone();
        let (found, ..) = model.tensor(name);
        *found = found.replace("kv_proj", "kv_prog");
        refused(model.check(), &[name, "found none, expected a tensor: the quantised form of"]);

        let mut model = whole.clone();
        let mut extra = model.tensor(name).clone();
        extra.0 = extra.0.replace("kv_proj", "kv_prog");
        model.tensors.push(extra);
        refused(
            model.check(),
            &[WEIGHTS, "kv_prog.weight.q", "found an unknown tensor, expected only the quantised"],
        );
    }
}

#[test]
fn scales_that_are_not_numbers_are_refused() {
    for (bits, shown) in [(0x7e00u16, "NaN"), (0x7c00, "inf"), (0xfc00, "-inf")] {
        // Row 3's scale, and with q4 its minimum.
        for (mut model, name, at) in [
            (q4(), "kv_proj.weight.q4", 3 * 32 + 16),
            (q4(), "kv_proj.weight.q4", 3 * 32 + 18),
            (q8(), "kv_proj.weight.q8", 3 * 48 + 32),
        ] {
            model.tensor(name).3[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            let part = format!("{name}\", row 3, group 0: found a scale of {shown}, expected finite numbers");
            refused(model.check(), &[WEIGHTS, &part]);
        }
        // Every other byte is a code or padding, and any of those is good.
        let mut model = q8();
        model.tensor("kv_proj.weight.q8").3[34..36].copy_from_slice(&bits.to_le_bytes());
        model.tensor("kv_proj.weight.q8").3[..2].copy_from_slice(&bits.to_le_bytes());
        model.check().unwrap();
    }
}

#[test]
fn embeddings_and_routers_are_not_quantized() {
    for name in ["model.embed_tokens.weight", "model.layers.0.mlp.router.layer.weight"] {
        let mut model = q4();
        let (found, dtype, shape, data) = model.tensor(name);
        let (rows, original) = (shape[0], json!(shape));
        (*found, *dtype, *shape) = (format!("{found}.q4"), "U32".to_owned(), vec![rows, 8]);
        *data = vec![0; rows as usize * 32];
        model.config["headwise_quantization"]["tensors"][name] = original;
        let part = format!(
            "tensor {name:?}: found q4, expected F32, F16 or BF16: matrices with rows of whole groups"
        );
        refused(model.check(), &[CONFIG, &part]);
    }
    // A matrix that was left as it is.
    let mut model = q4();
    model.config["headwise_quantization"]["tensors"].as_object_mut().unwrap().remove(KV);
    let (found, dtype, shape, data) = model.tensor("kv_proj.weight.q4");
    (*found, *dtype, *shape, *data) = (KV.to_owned(), "F16".to_owned(), vec![64, 32], vec![0; 64 * 64]);
    refused(model.check(), &[WEIGHTS, "kv_proj.weight\": found F32, F16 or BF16, expected q4"]);
}
