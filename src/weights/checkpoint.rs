//! The tensors of a model folder, over all its files.

use super::header::{self, MAX_TENSORS, TensorInfo};
use super::index::{INDEX_FILE, Index, MAX_INDEX};
use super::names::WEIGHTS_FILE;
use super::{Dtype, Source, quote, surplus};
use crate::{Error, Result, ops::Precision};
use std::collections::{BTreeMap, HashMap};

/// The headers of all files of a checkpoint.
pub(crate) struct Checkpoint {
    files: Vec<String>,
    paths: Vec<String>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    index: Option<Index>,
    unlisted: Vec<String>,
    quantized: Option<Quantized>,
}

/// What a quantised folder's config says of its tensors.
pub(super) struct Quantization {
    /// Q8 or Q4.
    pub precision: Precision,
    /// Names and original shapes of the tensors.
    pub shapes: Vec<(String, Vec<usize>)>,
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
    /// Reads the headers of `model.safetensors`, or of the files that `model.safetensors.index.json` lists. The index is
    /// the list of what to load: other tensors in its files are left out, and one that no file has is missed only if
    /// the model wants it.
    pub(crate) async fn open(source: &Source) -> Result<Self> {
        let mut checkpoint = Checkpoint {
            files: vec![],
            paths: vec![],
            tensors: vec![],
            by_name: HashMap::new(),
            index: None,
            unlisted: vec![],
            quantized: None,
        };
        if let Some(reader) = source.find(WEIGHTS_FILE).await? {
            checkpoint.tensors = checkpoint.add(WEIGHTS_FILE, reader).await?;
        } else if let Some(json) = source.read_text(INDEX_FILE, MAX_INDEX).await? {
            checkpoint.add_listed(source, Index::parse(&json, &source.path_of(INDEX_FILE))?).await?;
        } else {
            let expected = format!("{WEIGHTS_FILE} or {INDEX_FILE}");
            return Err(Error::bad_file(source.path_of(""), "weights", "neither file", expected));
        }
        let names = checkpoint.tensors.iter().enumerate();
        checkpoint.by_name = names.map(|(at, tensor)| (tensor.name.clone(), at)).collect();
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
        match self.holds_packed(&tensor.name) {
            true => Ok(Dtype::Packed),
            false => Dtype::of(tensor.stored).ok_or_else(|| self.unreadable(tensor)),
        }
    }

    /// Whether the tensor of this name holds a quantised matrix.
    fn holds_packed(&self, name: &str) -> bool {
        self.quantized.as_ref().is_some_and(|quantized| {
            let key = name.strip_suffix(packed_ending(quantized.precision));
            key.is_some_and(|key| quantized.packed.contains_key(key))
        })
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

    /// Refuses tensors that nothing asks for, save the [`surplus`] that says nothing: they would change the model and
    /// not be applied.
    pub(crate) fn refuse_unexpected(&self, known: impl Fn(&str) -> bool, expected: &str) -> Result<()> {
        let harmless = |name: &str| known(name) || surplus::says_nothing(name);
        if let Some(extra) = self.tensors.iter().find(|tensor| !harmless(&tensor.name)) {
            let field = format!("tensor {}", quote(&extra.name));
            return Err(Error::bad_file(self.path(extra), field, "an unknown tensor", expected));
        }
        match self.index.as_ref().and_then(|index| Some((index, self.absent().find(|name| !harmless(name))?)))
        {
            Some((index, name)) => Err(index.misplaced(name, ABSENT)),
            None => Ok(()),
        }
    }

    /// Tensors that the index lists and no file has.
    fn absent(&self) -> impl Iterator<Item = &str> {
        let listed = self.index.iter().flat_map(Index::tensors);
        listed.filter(|name| self.tensor(name).is_none() && !self.holds_packed(name))
    }

    /// Tensors in the files that the index does not list, and that are left out.
    pub(crate) fn unlisted(&self) -> &[String] {
        &self.unlisted
    }

    /// All files of the checkpoint, for messages.
    pub(super) fn all_paths(&self) -> String {
        match self.paths.as_slice() {
            [one] => one.clone(),
            [first, .., last] => format!("{first} … {last}"),
            [] => String::new(),
        }
    }

    /// Reads the headers of an index's files. Each tensor comes from the file that the index names, and from no other.
    async fn add_listed(&mut self, source: &Source, index: Index) -> Result<()> {
        let mut elsewhere = BTreeMap::new();
        let mut seen = 0;
        for file in index.files() {
            let tensors = self.add(file, source.open(file).await?).await?;
            seen += tensors.len();
            if seen > MAX_TENSORS {
                let expected = format!("at most {MAX_TENSORS}");
                return Err(Error::bad_file(
                    source.path_of(file),
                    "number of tensors so far",
                    seen,
                    expected,
                ));
            }
            for tensor in tensors {
                match index.file_of(&tensor.name) {
                    Some(listed) if listed == file => self.tensors.push(tensor),
                    Some(_) => _ = elsewhere.insert(tensor.name, tensor.file),
                    None => self.unlisted.push(tensor.name),
                }
            }
        }
        for tensor in &self.tensors {
            elsewhere.remove(&tensor.name);
        }
        if let Some((tensor, file)) = elsewhere.first_key_value() {
            let found = self.paths.get(*file).map_or("", String::as_str);
            return Err(index.misplaced(tensor, format!("the tensor in {found}")));
        }
        self.index = Some(index);
        Ok(())
    }

    /// Reads one file's header.
    async fn add(&mut self, file: &str, mut reader: super::Reader<'_>) -> Result<Vec<TensorInfo>> {
        let tensors = header::read(&mut reader, self.files.len()).await?;
        self.files.push(file.to_owned());
        self.paths.push(reader.path().to_owned());
        Ok(tensors)
    }

    fn present(&self, name: &str, why: &str) -> Result<&TensorInfo> {
        let Some(tensor) = self.tensor(name) else {
            if let Some(index) = self.index.as_ref().filter(|index| index.file_of(name).is_some()) {
                return Err(index.misplaced(name, ABSENT));
            }
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

/// What an index's error says of a tensor that is in none of its files.
const ABSENT: &str = "no such tensor in any file";

/// How the name of a quantised matrix ends.
pub(super) fn packed_ending(precision: Precision) -> &'static str {
    if precision == Precision::Q8 { ".q8" } else { ".q4" }
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
            ("x.rotary_emb.inv_freq", "F32", &[1], bytes(4)),
        ]);
        Source::memory("m", vec![(WEIGHTS_FILE, model)])
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
        let refuse =
            |known: &[&str]| checkpoint.refuse_unexpected(|name| known.contains(&name), "only these");
        refuse(&["a", "b", "c"]).unwrap();
        let error = refuse(&["a", "c"]).unwrap_err().to_string();
        let expected = "m/model.safetensors: tensor \"b\": found an unknown tensor, expected only these";
        assert_eq!(error, expected);
    }
}
