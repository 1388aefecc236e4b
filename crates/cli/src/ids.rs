//! Token ids, on the command line and in files.

use std::{fs::File, io::Read, path::Path, str::FromStr};

use headwise::Error;
use serde_json::Value;

/// Token ids: `1,2,3`, `1 2 3` or `[1, 2, 3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids(pub Vec<u32>);

/// The largest file of ids that is read.
const MAX_BYTES: u64 = 64 << 20;

const FORMS: &str = "whole numbers from 0 to 4294967295, such as 1,2,3";
const FILE_FORMS: &str = "[1,2,3], {\"ids\": [1,2,3]} or 1 2 3";

impl FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        listed(text).map_err(|found| format!("found {found}, expected {FORMS}"))
    }
}

/// Reads a list of ids; an error is what was found in place of one.
fn listed(text: &str) -> Result<Ids, String> {
    let text = text.trim();
    let inside = match text.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(Some(inside)) => inside.trim(),
        None if !text.ends_with(']') => text,
        _ => return Err("one bracket without the other".to_owned()),
    };
    let mut ids = Vec::new();
    // A comma may end the list, as where each id is written with one.
    for field in inside.strip_suffix(',').unwrap_or(inside).split(',') {
        if field.trim().is_empty() {
            return Err("nothing in the place of an id".to_owned());
        }
        for piece in field.split_whitespace() {
            let shown = || format!("{:?}", piece.chars().take(40).collect::<String>());
            ids.push(piece.parse().map_err(|_| shown())?);
        }
    }
    Ok(Ids(ids))
}

impl Ids {
    /// Reads a file of ids: JSON `[1,2,3]`, or the same as `ids` or `input_ids` of an object, alone or as the only one of a
    /// list; or what the command line takes.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let file = path.display().to_string();
        let io = |source| Error::Io { path: file.clone(), source };
        let bad = |field: &str, found: String, expected: &str| Error::BadFile {
            file: file.clone(),
            field: field.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(io)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(bad("file length", "more".to_owned(), "at most 64 MiB"));
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let text = std::str::from_utf8(bytes)
            .map_err(|_| bad("content", "bytes that are no text".to_owned(), FILE_FORMS))?;
        if !text.trim_start().starts_with(['[', '{']) {
            return listed(text).map_err(|found| bad("content", found, FILE_FORMS));
        }
        let mut ids: Value = match (serde_json::from_str(text), listed(text)) {
            (Ok(json), _) => json,
            // `[1 2 3]`, as NumPy prints it.
            (Err(_), Ok(ids)) => return Ok(ids),
            (Err(error), Err(_)) => return Err(bad("content", error.to_string(), "JSON")),
        };
        if let Some(named) = ["ids", "input_ids"].iter().find_map(|name| ids.get(name)) {
            ids = named.clone();
        }
        let nested = |value: &Value| value.as_array().is_some_and(|all| all.iter().any(Value::is_array));
        if nested(&ids) {
            match ids.as_array_mut().map(std::mem::take).unwrap_or_default() {
                all if all.len() > 1 => return Err(bad("ids", format!("{} lists", all.len()), "one list")),
                all => ids = all.into_iter().next().unwrap_or_default(),
            }
        }
        let Value::Array(ids) = ids else {
            return Err(bad("content", "something else".to_owned(), FILE_FORMS));
        };
        let id = |(index, value): (usize, &Value)| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| {
                let found: String = value.to_string().chars().take(40).collect();
                bad(&format!("ids[{index}]"), found, "a token id")
            })
        };
        ids.iter().enumerate().map(id).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        for text in [
            "1,2,3",
            "[1,2,3]",
            "[1, 2, 3]",
            " 1 2 3\n",
            "1, 2\t3",
            "[ 1 2 3 ]",
            "1,2,3,",
            "[\n 1,\n 2,\n 3,\n]",
        ] {
            assert_eq!(text.parse(), Ok(Ids(vec![1, 2, 3])), "{text:?}");
        }
        assert_eq!("4294967295".parse(), Ok(Ids(vec![u32::MAX])));
    }

    #[test]
    fn what_is_no_id_is_named() {
        for (text, part) in [
            ("1,two", "found \"two\", expected whole numbers"),
            ("-1,2", "found \"-1\","),
            ("1,2.5", "\"2.5\""),
            ("4294967296", "\"4294967296\""),
            ("1;2", "\"1;2\""),
            ("[1,[2]]", "\"[2]\""),
            ("--out", "\"--out\""),
            ("1\u{7}", "\"1\\u{7}\""),
            ("1,,2", "nothing"),
            (",", "nothing"),
            ("", "nothing"),
            ("[]", "nothing"),
            ("[1,2", "bracket"),
            ("1]", "bracket"),
        ] {
            let message = text.parse::<Ids>().unwrap_err();
            assert!(message.contains(part) && message.contains("such as 1,2,3"), "{text:?}: {message}");
        }
    }
}
