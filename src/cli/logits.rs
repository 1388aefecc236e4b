//! `headwise logits`

use std::{fs::File, io::Read, path::Path};

use headwise::{Error, Source, internal::NewFile};
use serde_json::Value;

use super::{
    args::{LogitsArgs, Shared},
    failure::Failure,
};

/// The largest file of ids that is read.
const MAX_BYTES: u64 = 64 << 20;

pub fn run(args: &LogitsArgs, shared: &Shared) -> Result<(), Failure> {
    let ids = match (&args.ids, &args.ids_file) {
        (Some(ids), _) => ids.clone(),
        (None, Some(file)) => read_ids(file)?,
        // clap asks for one of them.
        (None, None) => Vec::new(),
    };
    NewFile::check(&args.out)?;
    let model = args.model.load(shared, Source::demo)?;
    let logits = pollster::block_on(model.logits(&[&ids]))?;
    for sequence in logits {
        sequence.save(&args.out)?;
    }
    Ok(())
}

/// Reads `[1,2,3]` or `{"ids": [1,2,3]}`.
fn read_ids(path: &Path) -> Result<Vec<u32>, Error> {
    let file = path.display().to_string();
    let io = |source| Error::Io { path: file.clone(), source };
    let bad = |field: &str, found: String, expected: &str| Error::BadFile {
        file: file.clone(),
        field: field.to_owned(),
        found,
        expected: expected.to_owned(),
    };
    let mut json = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut json)).map_err(io)?;
    if json.len() as u64 > MAX_BYTES {
        return Err(bad("file length", "more".to_owned(), "at most 64 MiB"));
    }
    let mut json: Value = serde_json::from_slice(&json).map_err(|e| bad("content", e.to_string(), "JSON"))?;
    let ids = match json.get_mut("ids") {
        Some(ids) => ids.take(),
        None => json,
    };
    let Value::Array(ids) = ids else {
        return Err(bad("content", "something else".to_owned(), "[1,2,3] or {\"ids\": [1,2,3]}"));
    };
    let id = |(index, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| {
            let found: String = value.to_string().chars().take(40).collect();
            bad(&format!("ids[{index}]"), found, "a token id")
        })
    };
    ids.iter().enumerate().map(id).collect()
}
