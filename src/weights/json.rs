//! JSON as the files of models have it: as Python writes and reads it.
//!
//! Of keys that stand twice in an object the last counts. `NaN`, `Infinity` and `-Infinity`, which Python writes for numbers
//! that are none, become texts of these names: where nobody uses them they do no harm, and no number's reader takes a text.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::stand_in::begins;
use crate::{Error, Result};

/// The most values in a file, so that what is made of it cannot be a hundred times its length. Published files of 30,000
/// added tokens have some 300,000.
const MAX_VALUES: usize = 1 << 19;
/// What Python writes for numbers that are none.
const NO_NUMBERS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// The object that a file holds; `path` is for messages.
///
/// Values are nested at most 128 deep.
pub(crate) fn object(text: &[u8], path: &str) -> Result<Map<String, Value>> {
    let bad = |found: String| Error::bad_file(path, "JSON", found, "a JSON object");
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(bad(if text.is_empty() { "an empty file".to_owned() } else { begins(text) }));
    }
    let text = without_no_numbers(text).ok_or_else(|| {
        Error::bad_file(path, "JSON", format!("more than {MAX_VALUES} values"), "a file of a model")
    })?;
    serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))
}

/// The text with texts in the place of numbers that are none; `None` if it has more than [`MAX_VALUES`].
fn without_no_numbers(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut out = Vec::new();
    let (mut at, mut copied, mut values) = (0, 0, 0);
    while let Some(&byte) = text.get(at) {
        let rest = &text[at..];
        at += match byte {
            b'"' => string_length(rest),
            b',' | b'[' | b'{' => {
                values += 1;
                1
            }
            _ => match NO_NUMBERS.iter().find(|name| rest.starts_with(name.as_bytes())) {
                Some(name) => {
                    out.extend_from_slice(&text[copied..at]);
                    out.extend_from_slice(format!("\"{name}\"").as_bytes());
                    copied = at + name.len();
                    name.len()
                }
                None => 1,
            },
        };
        if values > MAX_VALUES {
            return None;
        }
    }
    if copied == 0 {
        return Some(text.into());
    }
    out.extend_from_slice(&text[copied..]);
    Some(out.into())
}

/// Bytes of a string that starts here, its quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    loop {
        match text.get(at) {
            Some(b'\\') => at += 2,
            Some(b'"') => return at + 1,
            Some(_) => at += 1,
            None => return text.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Value> {
        object(text.as_bytes(), "m/c.json").map(Value::Object)
    }

    #[test]
    fn what_python_writes_is_read() {
        // json.dumps({'a': float('nan'), 'b': [-float('inf'), float('inf')], 'NaN': '"NaN, \\', 'big': 10**30})
        let text = r#"{"a": NaN, "b": [-Infinity, Infinity], "NaN": "\"NaN, \\", "big": 1000000000000000000000000000000}"#;
        let value = parsed(text).unwrap();
        assert_eq!(value["a"], "NaN");
        assert_eq!(value["b"], serde_json::json!(["-Infinity", "Infinity"]));
        assert_eq!(value["NaN"], "\"NaN, \\");
        assert_eq!(value["big"], 1e30);
        // json.loads('{"a": 1, "a": 2}') is {'a': 2}
        assert_eq!(parsed(r#" {"a": 1, "b": 0, "a": 2}"#).unwrap(), serde_json::json!({"a": 2, "b": 0}));
    }

    #[test]
    fn what_is_no_object_is_refused_in_a_few_words() {
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(1000), "]".repeat(1000));
        let wide = format!("{{\"a\": [{}0]}}", "0,".repeat(MAX_VALUES));
        let broken = "{\"a\": \"\\";
        for text in [
            "",
            "[]",
            "Entry not found",
            "{",
            "{} {}",
            "{\"a\": NaNN}",
            "{\"a\": +Infinity}",
            "{\"a\": xNaN}",
            broken,
            &deep,
            &wide,
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.starts_with("m/c.json: JSON: found ") && error.len() < 200, "{error}");
        }
        let error = parsed("Entry not found").unwrap_err().to_string();
        assert!(
            error.contains("a text that begins with \"Entry not found\", expected a JSON object"),
            "{error}"
        );
        assert!(object(b"{\"a\": \"\xff\"}", "m/c.json").is_err());
    }
}
