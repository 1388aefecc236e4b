//! Checkpoints made of numbers, and folders that watch what is left in them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use half::{bf16, f16};
use headwise::{Error, WrittenModel};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

pub const DTYPES: [(Dtype, &str); 3] =
    [(Dtype::F32, "float32"), (Dtype::F16, "float16"), (Dtype::BF16, "bfloat16")];

/// A tensor: type, shape, bytes.
pub type Tensor = (Dtype, Vec<usize>, Vec<u8>);
/// The tensors of a checkpoint by name.
pub type Tensors = BTreeMap<String, Tensor>;

pub fn encode(values: &[f64], dtype: Dtype) -> Vec<u8> {
    let bytes = |&v: &f64| match dtype {
        Dtype::F32 => (v as f32).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f64(v).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f64(v).to_le_bytes().to_vec(),
        other => panic!("no values of type {other}"),
    };
    values.iter().flat_map(bytes).collect()
}

pub fn decode((dtype, _, bytes): &Tensor) -> Vec<f64> {
    let pairs = || bytes.chunks(2).map(|b| u16::from_le_bytes(b.try_into().unwrap()));
    match dtype {
        Dtype::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::F16 => pairs().map(|bits| f16::from_bits(bits).to_f64()).collect(),
        Dtype::BF16 => pairs().map(|bits| bf16::from_bits(bits).to_f64()).collect(),
        other => panic!("no values of type {other}"),
    }
}

/// A tensor of numbers that every type holds, of which name and `seed` decide where they begin.
pub fn numbers(name: &str, shape: &[usize], dtype: Dtype, seed: usize) -> Tensor {
    let start = name.bytes().fold(seed, |sum, byte| (sum * 31 + usize::from(byte)) % 10_007);
    let values: Vec<f64> =
        (0..shape.iter().product()).map(|i| ((start + i * 7) % 61) as f64 / 8.0 - 3.75).collect();
    (dtype, shape.to_vec(), encode(&values, dtype))
}

pub fn write(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

pub fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: &TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.iter().map(|(name, view)| (name.to_owned(), tensor(&view))).collect()
}

/// A number for each call: tests run side by side, and each needs a folder of its own.
pub fn unique() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Writes a model folder.
pub fn write_model(folder: &Path, config: &Value, tensors: &Tensors) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    write(&folder.join("model.safetensors"), tensors);
}

/// Splits a checkpoint into two files and their index.
pub fn write_shards(folder: &Path, tensors: &Tensors) {
    fs::create_dir_all(folder).unwrap();
    let mut parts = [Tensors::new(), Tensors::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        parts[i % 2].insert(name.clone(), tensor.clone());
        map.insert(name.clone(), format!("part-{}.safetensors", i % 2).into());
    }
    for (i, part) in parts.iter().enumerate() {
        write(&folder.join(format!("part-{i}.safetensors")), part);
    }
    let index = json!({ "weight_map": map }).to_string();
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

pub fn file_names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Asserts that a task failed with a message that has all `parts`, and wrote nothing beside `out`.
#[track_caller]
pub fn refused(result: Result<WrittenModel, Error>, out: &Path, parts: &[&str]) {
    let message = match result {
        Err(error) => error.to_string(),
        Ok(_) => panic!("accepted, though not {parts:?}"),
    };
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    assert_clean(out);
}

/// Asserts that there is neither `out` nor a part of it.
#[track_caller]
pub fn assert_clean(out: &Path) {
    let left = file_names(out.parent().unwrap());
    let name = out.file_name().unwrap().to_str().unwrap();
    assert!(!left.iter().any(|left| left == name || left.ends_with(".partial")), "left behind: {left:?}");
}

/// A path of a file that is cut short, at the first call of the closure: a source that vanishes under the reader.
pub fn cut(path: PathBuf) -> impl FnMut(u64, u64) {
    move |_, _| {
        let length = fs::metadata(&path).unwrap().len();
        fs::File::options().write(true).open(&path).unwrap().set_len(length.min(5_000)).unwrap();
    }
}

/// A path of a file that is replaced by a copy, at the first call of the closure: another version of a source.
pub fn replaced(path: PathBuf) -> impl FnMut(u64, u64) {
    move |_, _| {
        let copy = path.with_extension("copy");
        fs::copy(&path, &copy).unwrap();
        fs::rename(&copy, &path).unwrap();
    }
}
