//! The index of a checkpoint in several files: the list of the tensors to load, each with its file.

use super::header::MAX_TENSORS;
use super::names::stays_inside;
use super::{json, quote, shown};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Its name.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
/// The longest index that is read.
pub(super) const MAX_INDEX: u64 = 16 << 20;
/// The most files of one checkpoint; the largest public ones have under 200.
const MAX_FILES: usize = 512;

/// An index whose files lie in the model's folder, each by one spelling of its name. In order of tensor, so that
/// messages name the same one in every run.
pub(super) struct Index {
    path: String,
    listed: BTreeMap<String, String>,
}

impl Index {
    /// Reads `{"weight_map": {tensor: file, …}, …}`; `path` is the index's own, for messages.
    pub(super) fn parse(json: &[u8], path: &str) -> Result<Self> {
        let expected = "an object that maps each tensor to its file";
        let map = match json::object(json, path)?.remove("weight_map") {
            Some(Value::Object(map)) => map,
            None | Some(Value::Null) => {
                return Err(Error::bad_file(path, "weight_map", "no such field", expected));
            }
            Some(other) => return Err(Error::bad_file(path, "weight_map", shown(&other), expected)),
        };
        if map.len() > MAX_TENSORS {
            let found = format!("{} tensors", map.len());
            return Err(Error::bad_file(path, "weight_map", found, format!("at most {MAX_TENSORS}")));
        }
        let mut listed = BTreeMap::new();
        for (tensor, file) in map {
            let Value::String(file) = file else {
                let field = format!("weight_map, tensor {}", quote(&tensor));
                return Err(Error::bad_file(path, field, shown(&file), "the name of its file"));
            };
            let plain = plain(&file);
            if !stays_inside(&plain) {
                let field = format!("weight_map, tensor {}", quote(&tensor));
                return Err(Error::bad_file(
                    path,
                    field,
                    quote(&file),
                    "a plain file name inside the folder",
                ));
            }
            listed.insert(tensor, plain);
        }
        let index = Index { path: path.to_owned(), listed };
        match index.files().len() {
            0 => Err(Error::bad_file(path, "weight_map", "no tensors", "at least one")),
            1..=MAX_FILES => Ok(index),
            n => {
                Err(Error::bad_file(path, "weight_map", format!("{n} files"), format!("at most {MAX_FILES}")))
            }
        }
    }

    /// The files that it lists, in order of name.
    pub(super) fn files(&self) -> BTreeSet<&str> {
        self.listed.values().map(String::as_str).collect()
    }

    /// The file that holds a tensor.
    pub(super) fn file_of(&self, tensor: &str) -> Option<&str> {
        self.listed.get(tensor).map(String::as_str)
    }

    /// The tensors that it lists, in order of name.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &str> {
        self.listed.keys().map(String::as_str)
    }

    /// The error about a listed tensor that is not where it should be.
    pub(super) fn misplaced(&self, tensor: &str, found: impl ToString) -> Error {
        let file = self.file_of(tensor).unwrap_or_default();
        let field = format!("weight_map, tensor {}", quote(tensor));
        Error::bad_file(&self.path, field, found, format!("it in {file}, as this index says"))
    }
}

/// A file's name without the `./` that some tools write.
fn plain(file: &str) -> String {
    file.split('/').filter(|part| *part != ".").collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_name_however_it_is_spelled() {
        let json = r#"{"weight_map": {"a": "./x.safetensors", "b": "x.safetensors", "c": "sub/./y.safetensors",
            "d": "././sub/y.safetensors"}}"#;
        let index = Index::parse(json.as_bytes(), "i").unwrap();
        assert_eq!(index.files().into_iter().collect::<Vec<_>>(), ["sub/y.safetensors", "x.safetensors"]);
        assert_eq!(index.file_of("a"), Some("x.safetensors"));
        assert_eq!(index.file_of("d"), Some("sub/y.safetensors"));
        for file in [".", "./", "./.", "./..", "/x", "./../x", "sub//x", "sub/", ".\\x", "./.x"] {
            let json = serde_json::json!({"weight_map": {"a": file}}).to_string();
            let error = Index::parse(json.as_bytes(), "i").err().unwrap().to_string();
            let quoted = format!("{file:?}");
            assert!(error.contains("tensor \"a\"") && error.contains(&quoted), "{error}");
        }
    }
}
