//! The tensors of a model folder, over all its files.

use super::header::{self, MAX_TENSORS, TensorInfo};
use super::quantized::Quantization;
use super::source::check_name;
use super::stream::TensorStream;
use super::{Dtype, Source, quote};
use crate::{Error, Result, ops::Precision};
use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

/// A checkpoint in one file.
pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";
/// The list of files of a checkpoint in several.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
/// The most files of one checkpoint; the largest public ones have under 200.
const MAX_FILES: usize = 512;
/// The longest index that is read.
pub(super) const MAX_INDEX: u64 = 16 << 20;

/// The headers of all files of a checkpoint.
pub(crate) struct Checkpoint {
    files: Vec<String>,
    paths: Vec<String>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    quantized: Option<Quantized>,
}

/// What a quantised checkpoint has besides its plain tensors.
struct Quantized {
    precision: Precision,
    /// The config that says so.
    config: String,
    /// Quantised matrices by their keys, which are their names without the ending `.q8` or `.q4`.
    packed: HashMap<String, TensorInfo>,
}

impl Checkpoint {
    /// Reads the headers of `model.safetensors`, or of the files that `model.safetensors.index.json` lists.
    pub(crate) async fn open(source: &Source) -> Result<Self> {
        let mut checkpoint = Checkpoint {
            files: vec![],
            paths: vec![],
            tensors: vec![],
            by_name: HashMap::new(),
            quantized: None,
        };
        if let Some(reader) = source.find(WEIGHTS_FILE).await? {
            checkpoint.add(WEIGHTS_FILE, reader).await?;
            return Ok(checkpoint);
        }
        let Some(json) = source.read_small(INDEX_FILE, MAX_INDEX).await? else {
            let expected = format!("{WEIGHTS_FILE} or {INDEX_FILE}");
            return Err(Error::bad_file(source.path_of(""), "weights", "neither file", expected));
        };
        let index = source.path_of(INDEX_FILE);
        let listed = parse_index(&json, &index)?;
        for file in shards(&listed, &index)? {
            checkpoint.add(file, source.open(file).await?).await?;
        }
        checkpoint.compare(&listed, &index)?;
        Ok(checkpoint)
    }

    /// Reads this checkpoint as the quantised one that `config` describes: the tensors it lists are there, with
    /// their original shapes, and the matrices that hold them are apart, under [`packed`](Self::packed).
    pub(super) fn with_quantized(mut self, quantization: Quantization, config: &str) -> Result<Self> {
        let Quantization { precision, shapes } = quantization;
        let (mut packed, mut plain) = (HashMap::new(), Vec::new());
        for tensor in std::mem::take(&mut self.tensors) {
            match tensor.name.strip_suffix(packed_ending(precision)) {
                Some(key) => drop(packed.insert(key.to_owned(), tensor)),
                None => plain.push(tensor),
            }
        }
        for (name, shape) in shapes {
            plain.push(TensorInfo {
                name,
                file: usize::MAX,
                stored: safetensors::Dtype::U32,
                shape,
                offset: 0,
                bytes: 0,
                quantized: true,
            });
        }
        self.quantized = Some(Quantized { precision, config: config.to_owned(), packed });
        self.by_name.clear();
        for (at, tensor) in plain.iter().enumerate() {
            if let Some(first) = self.by_name.insert(tensor.name.clone(), at) {
                let first = plain.get(first).map_or("", |first| self.path(first));
                let field = format!("headwise_quantization.tensors, {}", quote(&tensor.name));
                return Err(Error::bad_file(config, field, format!("the tensor of {first}"), "another name"));
            }
        }
        self.tensors = plain;
        Ok(self)
    }

    /// How the matrices of a quantised checkpoint are stored.
    pub(crate) fn quantization(&self) -> Option<Precision> {
        self.quantized.as_ref().map(|quantized| quantized.precision)
    }

    /// The tensor that holds a quantised matrix.
    pub(crate) fn packed(&self, key: &str) -> Option<&TensorInfo> {
        self.quantized.as_ref().and_then(|quantized| quantized.packed.get(key))
    }

    /// All of them, with their keys.
    pub(super) fn all_packed(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        let packed = self.quantized.iter().flat_map(|quantized| &quantized.packed);
        packed.map(|(key, tensor)| (key.as_str(), tensor))
    }

    /// How a tensor's bytes are read.
    pub(super) fn dtype(&self, tensor: &TensorInfo) -> Result<Dtype> {
        let packed = self.quantized.as_ref().is_some_and(|quantized| {
            let key = tensor.name.strip_suffix(packed_ending(quantized.precision));
            key.is_some_and(|key| quantized.packed.contains_key(key))
        });
        match packed {
            true => Ok(Dtype::Packed),
            false => Dtype::of(tensor.stored).ok_or_else(|| self.unreadable(tensor)),
        }
    }

    /// The tensor of this name.
    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).and_then(|&at| self.tensors.get(at))
    }

    /// All tensors, in the order of their bytes.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// The path or address of the file that holds a tensor.
    pub(crate) fn path(&self, tensor: &TensorInfo) -> &str {
        let config = self.quantized.as_ref().map_or("", |quantized| &quantized.config);
        self.paths.get(tensor.file).map_or(config, String::as_str)
    }

    /// The name of the file that holds a tensor.
    pub(super) fn file(&self, tensor: &TensorInfo) -> &str {
        self.files.get(tensor.file).map_or("", String::as_str)
    }

    /// The tensor of this name, which must have this shape and a type that can be read.
    /// `why` says where the expected shape comes from.
    pub(crate) fn require(&self, name: &str, shape: &[usize], why: &str) -> Result<&TensorInfo> {
        let tensor = self.present(name, why)?;
        match tensor.shape == shape {
            true => Ok(tensor),
            false => Err(self.misshaped(tensor, format!("{shape:?}"), why)),
        }
    }

    /// Like [`require`](Self::require), for a shape of which some dimensions (`None`) are any positive number.
    pub(crate) fn require_like(&self, name: &str, like: &[Option<usize>], why: &str) -> Result<&TensorInfo> {
        let tensor = self.present(name, why)?;
        let fits = |(&d, want): (&usize, &Option<usize>)| want.map_or(d > 0, |want| d == want);
        if tensor.shape.len() == like.len() && tensor.shape.iter().zip(like).all(fits) {
            return Ok(tensor);
        }
        let like: Vec<_> = like.iter().map(|d| d.map_or("any".to_owned(), |d| d.to_string())).collect();
        Err(self.misshaped(tensor, format!("[{}]", like.join(", ")), why))
    }

    /// Refuses tensors that nothing asks for: they would change the model and not be applied.
    ///
    /// `ignorable` lists names that do no harm; one that starts with `*` stands for all names with that end.
    pub(crate) fn refuse_unexpected(
        &self,
        known: impl Fn(&str) -> bool,
        ignorable: &[&str],
        expected: &str,
    ) -> Result<()> {
        let harmless = |name: &str| {
            ignorable.iter().any(|pattern| match pattern.strip_prefix('*') {
                Some(end) => name.ends_with(end),
                None => name == *pattern,
            })
        };
        match self.tensors.iter().find(|t| !known(&t.name) && !harmless(&t.name)) {
            None => Ok(()),
            Some(extra) => {
                let field = format!("tensor {}", quote(&extra.name));
                Err(Error::bad_file(self.path(extra), field, "an unknown tensor", expected))
            }
        }
    }

    /// Streams the bytes of some of this checkpoint's tensors, in the order in which the files hold them.
    pub(crate) fn stream<'a>(&'a self, source: &'a Source, wanted: Vec<&'a TensorInfo>) -> TensorStream<'a> {
        TensorStream::new(self, source, wanted)
    }

    /// All files of the checkpoint, for messages.
    pub(super) fn all_paths(&self) -> String {
        match self.paths.as_slice() {
            [one] => one.clone(),
            [first, .., last] => format!("{first} … {last}"),
            [] => String::new(),
        }
    }

    async fn add(&mut self, file: &str, mut reader: super::Reader<'_>) -> Result<()> {
        let tensors = header::read(&mut reader, self.files.len()).await?;
        let path = reader.path().to_owned();
        if self.tensors.len() + tensors.len() > MAX_TENSORS {
            let found = self.tensors.len() + tensors.len();
            return Err(Error::bad_file(
                path,
                "number of tensors so far",
                found,
                format!("at most {MAX_TENSORS}"),
            ));
        }
        self.files.push(file.to_owned());
        self.paths.push(path);
        for tensor in tensors {
            match self.by_name.entry(tensor.name.clone()) {
                Entry::Vacant(place) => place.insert(self.tensors.len()),
                Entry::Occupied(first) => {
                    let first = self.tensors.get(*first.get()).map_or("", |t| self.path(t));
                    let found = format!("the tensor a second time, after {first}");
                    let field = format!("tensor {}", quote(&tensor.name));
                    return Err(Error::bad_file(self.path(&tensor), field, found, "each tensor once"));
                }
            };
            self.tensors.push(tensor);
        }
        Ok(())
    }

    /// The index and the files must tell the same.
    fn compare(&self, listed: &HashMap<String, String>, index: &str) -> Result<()> {
        for (name, file) in listed {
            let found = match self.tensor(name) {
                Some(tensor) if self.file(tensor) == file => continue,
                Some(tensor) => format!("the tensor in {}", self.path(tensor)),
                None => "no such tensor in any file".to_owned(),
            };
            let field = format!("weight_map, tensor {}", quote(name));
            return Err(Error::bad_file(index, field, found, format!("it in {file}, as this index says")));
        }
        match self.tensors.iter().find(|t| !listed.contains_key(&t.name)) {
            None => Ok(()),
            Some(tensor) => {
                let field = format!("weight_map, tensor {}", quote(&tensor.name));
                Err(Error::bad_file(
                    index,
                    field,
                    "no entry",
                    format!("{}, which holds it", self.path(tensor)),
                ))
            }
        }
    }

    fn present(&self, name: &str, why: &str) -> Result<&TensorInfo> {
        let Some(tensor) = self.tensor(name) else {
            let expected = format!("a tensor: {why}");
            return Err(Error::bad_file(
                self.all_paths(),
                format!("tensor {}", quote(name)),
                "none",
                expected,
            ));
        };
        match tensor.quantized || Dtype::of(tensor.stored).is_some() {
            true => Ok(tensor),
            false => Err(self.unreadable(tensor)),
        }
    }

    pub(super) fn unreadable(&self, tensor: &TensorInfo) -> Error {
        let field = format!("tensor {}, dtype", quote(&tensor.name));
        Error::bad_file(self.path(tensor), field, tensor.stored, "F32, F16 or BF16")
    }

    fn misshaped(&self, tensor: &TensorInfo, expected: String, why: &str) -> Error {
        let field = format!("tensor {}, shape", quote(&tensor.name));
        Error::bad_file(self.path(tensor), field, format!("{:?}", tensor.shape), format!("{expected}: {why}"))
    }
}

/// How the name of a quantised matrix ends.
pub(super) fn packed_ending(precision: Precision) -> &'static str {
    if precision == Precision::Q8 { ".q8" } else { ".q4" }
}

// -- the index -------------------------------------------------------------------------------------

/// `{"weight_map": {tensor: file, …}, …}`
fn parse_index(json: &[u8], path: &str) -> Result<HashMap<String, String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: WeightMap,
    }
    let index: Index = serde_json::from_slice(json)
        .map_err(|e| Error::bad_file(path, "weight_map", e, "JSON that maps each tensor to its file"))?;
    Ok(index.weight_map.0)
}

/// The names of an index's files.
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
pub(super) fn shard_names(json: &[u8], path: &str) -> Result<Vec<String>> {
    Ok(shards(&parse_index(json, path)?, path)?.into_iter().map(str::to_owned).collect())
}

/// The files that the index lists, in order of name.
fn shards<'a>(listed: &'a HashMap<String, String>, index: &str) -> Result<Vec<&'a str>> {
    for (tensor, file) in listed {
        if let Err(found) = check_name(file) {
            let field = format!("weight_map, tensor {}", quote(tensor));
            return Err(Error::bad_file(index, field, found, "a plain file name in the same folder"));
        }
    }
    let mut files: Vec<&str> = listed.values().map(String::as_str).collect();
    files.sort_unstable();
    files.dedup();
    match files.len() {
        0 => Err(Error::bad_file(index, "weight_map", "no tensors", "at least one")),
        n if n > MAX_FILES => {
            Err(Error::bad_file(index, "weight_map", format!("{n} files"), format!("at most {MAX_FILES}")))
        }
        _ => Ok(files),
    }
}

struct WeightMap(HashMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that maps tensor names to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut listed = HashMap::new();
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    if listed.len() == MAX_TENSORS {
                        return Err(de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let name = quote(&tensor);
                    if listed.insert(tensor, file).is_some() {
                        return Err(de::Error::custom(format!("tensor {name} twice")));
                    }
                }
                Ok(WeightMap(listed))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::weights::testing::file;
    use pollster::block_on;

    fn source() -> Source {
        let bytes = |n| vec![0; n];
        let model = file(&[
            ("a", "BF16", &[2, 3], bytes(12)),
            ("b", "I8", &[3], bytes(3)),
            ("c", "F32", &[0, 4], bytes(0)),
            ("x.inv_freq", "F32", &[1], bytes(4)),
        ]);
        Source::memory("m", vec![(WEIGHTS_FILE.into(), model)])
    }

    #[test]
    fn a_required_tensor_has_its_shape_and_a_readable_type() {
        let checkpoint = block_on(Checkpoint::open(&source())).unwrap();
        assert_eq!(checkpoint.tensors().count(), 4);
        assert_eq!(checkpoint.require("a", &[2, 3], "why").unwrap().bytes, 12);
        assert_eq!(checkpoint.require_like("a", &[None, Some(3)], "why").unwrap().name, "a");
        for (error, expected) in [
            (checkpoint.require("a", &[3, 2], "w"), "\"a\", shape: found [2, 3], expected [3, 2]: w"),
            (checkpoint.require("b", &[3], "w"), "\"b\", dtype: found I8, expected F32, F16 or BF16"),
            (checkpoint.require("d", &[3], "w"), "\"d\": found none, expected a tensor: w"),
            (checkpoint.require_like("a", &[None], "w"), "\"a\", shape: found [2, 3], expected [any]: w"),
            (checkpoint.require_like("c", &[None, Some(4)], "w"), "found [0, 4], expected [any, 4]: w"),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(
                error.starts_with("m/model.safetensors: tensor ") && error.ends_with(expected),
                "{error}"
            );
        }
    }

    #[test]
    fn tensors_that_nothing_asks_for_are_refused() {
        let checkpoint = block_on(Checkpoint::open(&source())).unwrap();
        let refuse = |known: &[&str], ignorable: &[&str]| {
            checkpoint.refuse_unexpected(|name| known.contains(&name), ignorable, "only these")
        };
        refuse(&["a", "b", "c"], &["*.inv_freq"]).unwrap();
        refuse(&["a", "b"], &["*.inv_freq", "c"]).unwrap();
        let error = refuse(&["a", "b", "c"], &["inv_freq", ".inv_freq"]).unwrap_err().to_string();
        let expected =
            "m/model.safetensors: tensor \"x.inv_freq\": found an unknown tensor, expected only these";
        assert_eq!(error, expected);
    }
}
