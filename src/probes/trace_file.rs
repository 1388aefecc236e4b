//! Traces as folders: `trace.json` says what there is, `trace.safetensors` has the values.

use std::{collections::HashMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors};

use super::{Edits, Observe, Recorded, Trace, What};
use crate::{
    Error, Result,
    weights::{NewFolder, TensorData, write_safetensors},
};

const DESCRIPTION: &str = "trace.json";
const VALUES: &str = "trace.safetensors";

/// The longest description.
const MAX_DESCRIPTION: u64 = 1 << 30;

/// `trace.json`.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    observe: Observe,
    #[serde(default, skip_serializing_if = "Edits::is_empty")]
    edits: Edits,
    recorded: Vec<Described>,
}

/// All of a [`Recorded`] but its values.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    name: String,
    layer: u32,
    what: What,
    rows: Vec<[u32; 2]>,
    heads: Vec<u32>,
    width: usize,
    /// The tensor that holds the values.
    tensor: String,
}

impl Recorded {
    /// `[rows, heads, width]`, or `[rows, width]` where the layer has it once.
    fn shape(&self) -> Vec<usize> {
        match self.heads.len() {
            0 => vec![self.rows.len(), self.width],
            heads => vec![self.rows.len(), heads, self.width],
        }
    }
}

impl Trace {
    /// Writes a new folder: `trace.safetensors`, a tensor for each capture of a layer under TransformerLens's name
    /// (`blocks.1.attn.hook_z` `[rows, heads, width]`), and `trace.json`, which says what was asked for, what was edited, and of each
    /// tensor its rows (sequence, position) and the numbers of its heads. The folder appears only once it is complete.
    ///
    /// # Errors
    /// When it cannot be written, or is there already.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = NewFolder::create(folder.as_ref(), &[])?;
        let mut names: HashMap<&str, usize> = HashMap::new();
        let (mut recorded, mut tensors) = (Vec::new(), Vec::new());
        for one in &self.recorded {
            let Recorded { name, layer, what, rows, heads, width, values } = one;
            // What is recorded twice, of other heads or tokens, has two tensors.
            let before = names.entry(name).or_default();
            let tensor = if *before == 0 { name.clone() } else { format!("{name}.{before}") };
            *before += 1;
            tensors.push((tensor.clone(), one.shape(), TensorData::F32(values.clone())));
            let (name, rows, heads) = (name.clone(), rows.clone(), heads.clone());
            recorded.push(Described { name, layer: *layer, what: *what, rows, heads, width: *width, tensor });
        }
        write_safetensors(&folder.path(VALUES), &tensors)?;
        let description = Description { observe: self.observe.clone(), edits: self.edits.clone(), recorded };
        let text = serde_json::to_vec(&description).unwrap_or_default();
        folder.write(DESCRIPTION, &text)?;
        folder.finish()
    }

    /// Reads such a folder.
    ///
    /// # Errors
    /// A file that is not there, [`Error::BadFile`] that names what is wrong with one.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let (description, values) = (folder.as_ref().join(DESCRIPTION), folder.as_ref().join(VALUES));
        let shown = |path: &Path| path.display().to_string();
        let read = |path: &Path| fs::read(path).map_err(|source| Error::Io { path: shown(path), source });
        let length = fs::metadata(&description)
            .map_err(|source| Error::Io { path: shown(&description), source })?
            .len();
        let bad = |path: &Path, field: String, found: String, expected: String| {
            Error::bad_file(shown(path), field, found, expected)
        };
        if length > MAX_DESCRIPTION {
            let found = format!("{length} bytes");
            return Err(bad(&description, "length".to_owned(), found, format!("at most {MAX_DESCRIPTION}")));
        }
        let parsed: Description = serde_json::from_slice(&read(&description)?).map_err(|error| {
            let expected = "what Trace::save writes".to_owned();
            bad(&description, "trace".to_owned(), error.to_string(), expected)
        })?;
        let bytes = read(&values)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| {
            bad(&values, "header".to_owned(), error.to_string(), "a safetensors file".to_owned())
        })?;
        let mut recorded = Vec::with_capacity(parsed.recorded.len());
        for Described { name, layer, what, rows, heads, width, tensor } in parsed.recorded {
            let mut one = Recorded { name, layer, what, rows, heads, width, values: Vec::new() };
            let view = tensors.tensor(&tensor).map_err(|error| {
                bad(
                    &values,
                    format!("tensor {tensor}"),
                    error.to_string(),
                    "one that trace.json names".to_owned(),
                )
            })?;
            let (shape, expected) = (view.shape(), one.shape());
            if view.dtype() != Dtype::F32 || shape != expected {
                let found = format!("{:?} {shape:?}", view.dtype());
                let expected = format!("F32 {expected:?}, as trace.json says");
                return Err(bad(&values, format!("tensor {tensor}"), found, expected));
            }
            one.values = bytemuck::pod_collect_to_vec(view.data());
            recorded.push(one);
        }
        Ok(Self { observe: parsed.observe, edits: parsed.edits, recorded })
    }
}
