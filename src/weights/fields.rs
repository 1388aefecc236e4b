//! The small JSON files of a model, `config.json` first, read field by field; one fact may go by several names.
//!
//! What a file may say is decided here once: `null` is as good as absent, 4.0 is a whole number, the last of equal keys
//! counts, and what nobody asks for may be anything.

use super::{Source, json, quote};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::{borrow::Cow, ops::RangeInclusive};

/// The most token ids that one field lists.
const MAX_TOKENS: usize = 64;
/// The most labels of a classifier.
const MAX_LABELS: usize = 1 << 16;

/// The fields of a file. A field that is `null` counts as absent.
///
/// Methods take all names of one fact; a name with a dot looks inside an object. If several are present they
/// must agree, and the error names both.
pub(crate) struct Fields<'a> {
    json: Map<String, Value>,
    file: Cow<'a, str>,
}

impl Fields<'static> {
    /// Reads a file of at most `cap` bytes, if there is one.
    pub(crate) async fn read(source: &Source, name: &str, cap: u64) -> Result<Option<Self>> {
        let Some(text) = source.read_text(name, cap).await? else { return Ok(None) };
        let file = source.path_of(name);
        Ok(Some(Self { json: json::object(&text, &file)?, file: file.into() }))
    }
}

impl<'a> Fields<'a> {
    /// Parses what a file holds. `file` is its path, for messages.
    #[cfg(test)]
    pub(crate) fn parse(text: &[u8], file: &'a str) -> Result<Self> {
        Ok(Self { json: json::object(text, file)?, file: file.into() })
    }

    /// All of it.
    #[cfg(any(feature = "chat", not(target_arch = "wasm32")))]
    pub(crate) fn into_object(self) -> Map<String, Value> {
        self.json
    }

    /// The names of all fields.
    #[cfg(feature = "chat")]
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.json.keys().map(String::as_str)
    }

    /// The value of a field whose name is known only now.
    #[cfg(feature = "chat")]
    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.find(name)
    }

    /// The field's value and the name it goes by here.
    pub(crate) fn get(&self, names: &[&'static str]) -> Result<Option<(&'static str, &Value)>> {
        let mut present = names.iter().filter_map(|&name| Some((name, self.find(name)?)));
        let Some((first, value)) = present.next() else { return Ok(None) };
        match present.find(|(_, other)| !same(value, other)) {
            None => Ok(Some((first, value))),
            Some((second, other)) => {
                let found = format!("{} and {}", shown(value), shown(other));
                Err(self.bad(&format!("{first} and {second}"), found, "the same value in both"))
            }
        }
    }

    /// A count of 1 to `most`, if present.
    pub(crate) fn optional_size(&self, names: &[&'static str], most: usize) -> Result<Option<usize>> {
        let Some((name, value)) = self.get(names)? else { return Ok(None) };
        match whole(value).and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=most).contains(&n) => Ok(Some(n)),
            _ => Err(self.bad(name, shown(value), format!("a whole number from 1 to {most}"))),
        }
    }

    /// A count of 0 to `most`, if present.
    pub(crate) fn optional_count(&self, names: &[&'static str], most: usize) -> Result<Option<usize>> {
        let Some((name, value)) = self.get(names)? else { return Ok(None) };
        match whole(value).and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n <= most => Ok(Some(n)),
            _ => Err(self.bad(name, shown(value), format!("a whole number from 0 to {most}"))),
        }
    }

    /// A count of 1 to `most`.
    pub(crate) fn size(&self, names: &[&'static str], most: usize) -> Result<usize> {
        self.optional_size(names, most)?.ok_or_else(|| self.missing(names))
    }

    /// A number in a range, if present.
    pub(crate) fn optional_number(
        &self,
        names: &[&'static str],
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>> {
        let Some((name, value)) = self.get(names)? else { return Ok(None) };
        match value.as_f64() {
            Some(n) if range.contains(&n) => Ok(Some(n as f32)),
            _ => {
                let expected = format!("a number from {:e} to {:e}", range.start(), range.end());
                Err(self.bad(name, shown(value), expected))
            }
        }
    }

    /// A number in a range.
    pub(crate) fn number(&self, names: &[&'static str], range: RangeInclusive<f64>) -> Result<f32> {
        self.optional_number(names, range)?.ok_or_else(|| self.missing(names))
    }

    /// A text.
    pub(crate) fn text(&self, name: &'static str) -> Result<&str> {
        match self.find(name) {
            None => Err(self.missing(&[name])),
            Some(Value::String(text)) => Ok(text),
            Some(value) => Err(self.bad(name, shown(value), "a text")),
        }
    }

    /// What a text stands for: one of two.
    pub(crate) fn one_of<T>(&self, name: &'static str, values: [(&'static str, T); 2]) -> Result<T> {
        let text = self.text(name)?;
        let expected = values.each_ref().map(|(text, _)| *text).join(" or ");
        let found = values.into_iter().find(|(value, _)| *value == text);
        found.map(|(_, value)| value).ok_or_else(|| self.bad(name, quote(text), expected))
    }

    /// The file's path, for messages.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// A flag, if present.
    pub(crate) fn flag(&self, name: &'static str) -> Result<Option<bool>> {
        match self.find(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => Err(self.bad(name, shown(value), "true or false")),
        }
    }

    /// Token ids: one number, a list, or nothing. They need not be in any vocabulary: some configs have -1 for none.
    pub(crate) fn tokens(&self, name: &'static str) -> Result<Vec<i64>> {
        let ids = match self.find(name) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) if list.len() <= MAX_TOKENS => list.iter().map(whole).collect(),
            Some(value) => whole(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| {
            let value = self.find(name).map(shown).unwrap_or_default();
            self.bad(name, value, format!("a token id or a list of at most {MAX_TOKENS}"))
        })
    }

    /// As many numbers as there are channels, each in a range.
    pub(crate) fn numbers(
        &self,
        name: &'static str,
        count: usize,
        range: RangeInclusive<f64>,
    ) -> Result<Vec<f32>> {
        let value = self.find(name).ok_or_else(|| self.missing(&[name]))?;
        let list = value.as_array().filter(|list| list.len() == count);
        let number = |value: &Value| value.as_f64().filter(|n| range.contains(n)).map(|n| n as f32);
        list.and_then(|list| list.iter().map(number).collect()).ok_or_else(|| {
            let expected = format!("{count} numbers from {:e} to {:e}", range.start(), range.end());
            self.bad(name, shown(value), expected)
        })
    }

    /// Texts by their number, from 0 on: `{"0": "cat", "1": "dog"}`.
    pub(crate) fn labels(&self, name: &'static str) -> Result<Vec<String>> {
        let value = self.find(name).ok_or_else(|| self.missing(&[name]))?;
        let wrong = || self.bad(name, shown(value), format!("1 to {MAX_LABELS} texts numbered from 0"));
        let map = value.as_object().filter(|map| (1..=MAX_LABELS).contains(&map.len())).ok_or_else(wrong)?;
        let label = |index: usize| map.get(&index.to_string())?.as_str().map(str::to_owned);
        (0..map.len()).map(label).collect::<Option<_>>().ok_or_else(wrong)
    }

    /// Refuses a field that is present with any other value than the one that headwise runs.
    pub(crate) fn only(&self, names: &[&'static str], run: &Value, why: &str) -> Result<()> {
        self.refuse_unless(names, |value| same(value, run), why)
    }

    /// As [`only`](Self::only), for a text that has several spellings.
    pub(crate) fn only_text(&self, names: &[&'static str], run: &[&str], why: &str) -> Result<()> {
        self.refuse_unless(names, |value| value.as_str().is_some_and(|text| run.contains(&text)), why)
    }

    fn refuse_unless(&self, names: &[&'static str], runs: impl Fn(&Value) -> bool, why: &str) -> Result<()> {
        match self.get(names)? {
            Some((name, value)) if !runs(value) => {
                Err(self.unsupported(format!("{name} = {}", shown(value)), why))
            }
            _ => Ok(()),
        }
    }

    /// An [`Error::BadFile`] about a field.
    pub(crate) fn bad(&self, field: &str, found: impl ToString, expected: impl ToString) -> Error {
        Error::bad_file(self.file(), field, found, expected)
    }

    /// An [`Error::Unsupported`] about a field.
    pub(crate) fn unsupported(&self, field: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Unsupported { file: self.file().to_owned(), field: field.into(), why: why.into() }
    }

    /// The error for a field that must be there and is not.
    pub(crate) fn missing(&self, names: &[&'static str]) -> Error {
        self.bad(&names.join(" or "), "no such field", "a value")
    }

    fn find(&self, name: &str) -> Option<&Value> {
        let (first, inner) = name.split_once('.').map_or((name, None), |(first, inner)| (first, Some(inner)));
        let value = self.json.get(first)?;
        let value = inner.map_or(Some(value), |inner| value.get(inner))?;
        (!value.is_null()).then_some(value)
    }
}

/// A whole number, in whatever form: 4 is 4.0.
fn whole(value: &Value) -> Option<i64> {
    /// Below it an f64 has every whole number.
    const EXACT: f64 = (1u64 << 53) as f64;
    let float = || value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() <= EXACT);
    value.as_i64().or_else(|| float().map(|n| n as i64))
}

/// Equal as values: 10000 is 10000.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// A value, cut to a length fit for an error message.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
        plain => plain.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields<'_> {
        Fields::parse(json.as_bytes(), "c.json").unwrap()
    }

    #[test]
    fn aliases_agree_or_are_both_named() {
        let f = fields(r#"{"a": 3, "b": 3.0, "c": 4, "d": null, "o": {"a": 3}}"#);
        assert_eq!(f.size(&["a", "b", "d", "o.a", "o.x", "a.x"], 9).unwrap(), 3);
        assert_eq!(f.optional_size(&["d", "e"], 9).unwrap(), None);
        let error = f.size(&["a", "c"], 9).unwrap_err().to_string();
        assert_eq!(error, "c.json: a and c: found 3 and 4, expected the same value in both");
        let error = f.size(&["d", "e"], 9).unwrap_err().to_string();
        assert_eq!(error, "c.json: d or e: found no such field, expected a value");
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let json = r#"{"zero": 0, "ten": 10, "minus": -1, "half": 0.5, "text": "x", "huge": 1e300,
            "vast": 18446744073709551616, "list": [1, 2], "mixed": [1, "x"], "flag": true, "object": {}}"#;
        let f = fields(json);
        for name in ["zero", "ten", "minus", "half", "text", "huge", "vast", "list", "flag", "object"] {
            let error = f.size(&[name], 9).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("c.json: {name}: found")) && error.contains("1 to 9"),
                "{error}"
            );
        }
        assert_eq!(f.number(&["half"], 0.0..=1.0).unwrap(), 0.5);
        for name in ["huge", "minus", "text", "flag"] {
            assert!(f.number(&[name], 0.0..=1.0).is_err(), "{name}");
        }
        assert_eq!(f.tokens("ten").unwrap(), [10]);
        assert_eq!(f.tokens("list").unwrap(), [1, 2]);
        assert!(f.tokens("none").unwrap().is_empty());
        assert_eq!(f.tokens("minus").unwrap(), [-1]);
        for name in ["half", "text", "vast", "mixed", "flag"] {
            assert!(f.tokens(name).is_err(), "{name}");
        }
        let many = format!(r#"{{"ids": {:?}}}"#, [1; MAX_TOKENS + 1]);
        assert!(fields(&many).tokens("ids").is_err());
        assert!(f.flag("zero").is_err());
        assert_eq!(f.flag("flag").unwrap(), Some(true));
    }

    #[test]
    fn numbers_that_are_whole_are_whole_in_any_form() {
        let f = fields(
            r#"{"four": 4.0, "many": 4e3, "half": 4.5, "vast": 1e300, "none": NaN, "ids": [2.0, 269]}"#,
        );
        assert_eq!(f.size(&["four"], 9).unwrap(), 4);
        assert_eq!(f.optional_count(&["many"], 5000).unwrap(), Some(4000));
        assert_eq!(f.tokens("ids").unwrap(), [2, 269]);
        for name in ["half", "vast", "none"] {
            assert!(f.size(&[name], usize::MAX).is_err() && f.tokens(name).is_err(), "{name}");
        }
        let error = f.number(&["none"], 0.0..=1.0).unwrap_err().to_string();
        assert_eq!(error, "c.json: none: found \"NaN\", expected a number from 0e0 to 1e0");
    }
}
