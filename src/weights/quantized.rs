//! What a quantised model folder says of itself, and the checks that its tensors agree.
//!
//! `config.json` has `"headwise_quantization": {"version": 1, "scheme": "q4", "group": 32, "tensors": {NAME: SHAPE, …}}`:
//! the tensors that are quantised, with the shapes they had. What the GPU wants of them is in the weights' files, one
//! tensor for each matrix, U32 `[rows, words of a row]`, named as its first tensor with `.q8` or `.q4` behind; see
//! docs/quantization.md.

use serde_json::Value;

use super::{
    Checkpoint, Chunk, Fields, Form, Request, Source, TensorInfo,
    checkpoint::{Quantization, packed_ending},
    fields::shown,
    header::{MAX_NAME, MAX_RANK, MAX_TENSORS},
    limits::MOST_WIDE,
    quantize::scales,
    quote,
};
use crate::{
    Error, Result,
    ops::{MatrixShape, Precision, QUANTIZED_GROUP, padded},
};

/// The field of `config.json`.
pub(crate) const FIELD: &str = "headwise_quantization";
/// The version of the field and the layout.
pub(crate) const VERSION: u64 = 1;

impl Quantization {
    /// Reads the field, if it is there.
    fn read(fields: &Fields<'_>) -> Result<Option<Self>> {
        let Some((_, value)) = fields.get(&[FIELD])? else { return Ok(None) };
        const KNOWN: [&str; 4] = ["version", "scheme", "group", "tensors"];
        let Some(object) = value.as_object() else {
            return Err(fields.bad(FIELD, shown(value), "an object"));
        };
        if let Some(name) = object.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            return Err(fields.bad(
                &format!("{FIELD}.{}", quote(name)),
                "an unknown field",
                KNOWN.join(", "),
            ));
        }
        for name in ["headwise_quantization.version", "headwise_quantization.group"] {
            if fields.get(&[name])?.is_none() {
                return Err(fields.missing(&[name]));
            }
        }
        let layout = "this version of headwise reads version 1, groups of 32";
        fields.only(&["headwise_quantization.version"], &VERSION.into(), layout)?;
        fields.only(&["headwise_quantization.group"], &QUANTIZED_GROUP.into(), layout)?;
        let precision = match object.get("scheme").and_then(Value::as_str) {
            Some("q8") => Precision::Q8,
            Some("q4") => Precision::Q4,
            Some(other) => {
                let field = format!("{FIELD}.scheme = {}", quote(other));
                return Err(fields.unsupported(field, "the schemes are q8 and q4"));
            }
            None => return Err(fields.missing(&["headwise_quantization.scheme"])),
        };
        let Some(tensors) = object.get("tensors").and_then(Value::as_object) else {
            return Err(fields.missing(&["headwise_quantization.tensors"]));
        };
        if tensors.len() > MAX_TENSORS {
            let found = format!("{} tensors", tensors.len());
            return Err(fields.bad("headwise_quantization.tensors", found, format!("at most {MAX_TENSORS}")));
        }
        let shapes = tensors.iter().map(|(name, value)| match (shape(value), name.len() <= MAX_NAME) {
            (Some(shape), true) => Ok((name.clone(), shape)),
            _ => {
                let field = format!("{FIELD}.tensors, {}", quote(name));
                let expected = format!(
                    "at most {MAX_RANK} dimensions from 1 to {MOST_WIDE}, and a name of at most {MAX_NAME} bytes"
                );
                Err(fields.bad(&field, shown(value), expected))
            }
        });
        Ok(Some(Self { precision, shapes: shapes.collect::<Result<_>>()? }))
    }
}

/// A shape whose product can be computed.
fn shape(value: &Value) -> Option<Vec<usize>> {
    let list = value.as_array().filter(|list| (1..=MAX_RANK).contains(&list.len()))?;
    let size = |value: &Value| value.as_u64().filter(|n| (1..=MOST_WIDE as u64).contains(n));
    let shape: Vec<u64> = list.iter().map(size).collect::<Option<_>>()?;
    shape.iter().try_fold(1u64, |product, &d| product.checked_mul(d)).filter(|&product| product < 1 << 61)?;
    Some(shape.iter().map(|&d| d as usize).collect())
}

impl Checkpoint {
    /// Opens the weights that belong to a config, quantised ones as the config describes them.
    ///
    /// # Errors
    /// What is wrong with the headers or with the config's word on quantisation.
    pub(crate) async fn open_for(source: &Source, fields: &Fields<'_>) -> Result<Self> {
        // Before anything of the weights is read.
        let quantization = Quantization::read(fields)?;
        let checkpoint = Self::open(source).await?;
        match quantization {
            None => Ok(checkpoint),
            Some(quantization) => checkpoint.with_quantized(quantization, fields.file()),
        }
    }

    /// Compares what is quantised with what the model wants quantised: exactly that, each matrix with its rows.
    ///
    /// # Errors
    /// The first matrix that is missing, mis-shaped, unknown, or stored in another way.
    pub(crate) fn check_quantized(&self, requests: &[Request]) -> Result<()> {
        let Some(scheme) = self.quantization() else { return Ok(()) };
        let mut known = std::collections::HashSet::new();
        for request in requests {
            let packs = request.precision(scheme).is_quantized();
            for piece in &request.pieces {
                let Some(tensor) = self.tensor(&piece.name) else { continue };
                if tensor.quantized != packs {
                    let field = format!("tensor {}", quote(&tensor.name));
                    let stored = |packs| if packs { scheme.name() } else { "F32, F16 or BF16" };
                    let why =
                        "matrices with rows of whole groups are quantised, but not embeddings and routers";
                    let expected = format!("{}: {why}", stored(packs));
                    return Err(Error::bad_file(self.path(tensor), field, stored(!packs), expected));
                }
            }
            if let (Form::Matrix(shape, _), true) = (request.form, packs) {
                let key = request.key();
                self.check_packed(&key, &shape, scheme)?;
                known.insert(key);
            }
        }
        match self.all_packed().filter(|(key, _)| !known.contains(*key)).min_by_key(|(key, _)| *key) {
            None => Ok(()),
            Some((_, tensor)) => {
                let field = format!("tensor {}", quote(&tensor.name));
                let expected = "only the quantised matrices of the model";
                Err(Error::bad_file(self.path(tensor), field, "an unknown tensor", expected))
            }
        }
    }

    fn check_packed(&self, key: &str, shape: &MatrixShape, scheme: Precision) -> Result<()> {
        let name = format!("{key}{}", packed_ending(scheme));
        let field = |what: &str| format!("tensor {}{what}", quote(&name));
        let Some(tensor) = self.packed(key) else {
            let expected = format!("a tensor: the quantised form of {}", quote(key));
            return Err(Error::bad_file(self.all_paths(), field(""), "none", expected));
        };
        if tensor.stored != safetensors::Dtype::U32 {
            return Err(Error::bad_file(self.path(tensor), field(", dtype"), tensor.stored, "U32"));
        }
        let rows = u64::from(shape.experts) * u64::from(shape.halves) * u64::from(shape.outputs);
        let words = scheme.row_bytes(shape.inputs) / 4;
        if tensor.shape.iter().map(|&d| d as u64).ne([rows, words]) {
            let (inputs, groups) = (padded(shape.inputs), padded(shape.inputs) / QUANTIZED_GROUP);
            let expected = format!("[{rows}, {words}]: rows of {inputs} codes and {groups} scales");
            return Err(Error::bad_file(
                self.path(tensor),
                field(", shape"),
                format!("{:?}", tensor.shape),
                expected,
            ));
        }
        Ok(())
    }
}

/// Refuses scales and minima that are not finite, in rows of `inputs` weights: each would spoil a whole group.
pub(crate) fn check_scales(precision: Precision, inputs: u32, chunk: &Chunk<'_>) -> Result<()> {
    let row_bytes = precision.row_bytes(inputs) as usize;
    for (row, bytes) in (chunk.first_row..).zip(chunk.bytes.chunks_exact(row_bytes)) {
        if let Some((group, value)) = scales(precision, inputs, bytes).find(|(_, value)| !value.is_finite()) {
            let field = format!("tensor {}, row {row}, group {group}", quote(&chunk.tensor.name));
            return Err(Error::bad_file(chunk.file, field, format!("a scale of {value}"), "finite numbers"));
        }
    }
    Ok(())
}

/// The tensor of a file that will hold `request` in `precision`: its name and its shape.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn packed_plan(
    request: &Request,
    shape: &MatrixShape,
    precision: Precision,
) -> (String, [usize; 2]) {
    let rows = [shape.experts, shape.halves, shape.outputs].map(|n| n as usize).iter().product();
    let words = precision.row_bytes(shape.inputs) as usize / 4;
    (format!("{}{}", request.key(), packed_ending(precision)), [rows, words])
}

impl TensorInfo {
    /// As in a config: the tensor's name and shape.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn listed(&self) -> (String, Value) {
        (self.name.clone(), self.shape.clone().into())
    }
}
