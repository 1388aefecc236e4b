//! `tojson`: Python's `json.dumps`, with transformers' default of leaving characters as they are.

use super::{
    Outcome,
    call::Given,
    fault, number,
    run::Run,
    value::{Map, SeqKind, Value},
};

/// How JSON is laid out.
struct Style {
    ascii: bool,
    /// What each level is indented by; nothing is on one line.
    indent: Option<String>,
    between: String,
    after_key: String,
    sort: bool,
}

impl Run {
    /// The filter.
    pub(super) fn to_json(&self, value: &Value, given: Given) -> Outcome<Value> {
        let [ascii, indent, separators, sort] =
            given.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
        let truth = |value: Option<Value>| value.is_some_and(|value| value.truth());
        let indent = match indent {
            None | Some(Value::None) => None,
            Some(Value::Str(text)) => Some(text.to_string()),
            Some(other) => match other.as_int() {
                Some(width) => Some(self.spaces(width)?),
                None => {
                    return fault(format!(
                        "tojson: indent is a number or a string, not {}",
                        other.type_name()
                    ));
                }
            },
        };
        let comma = if indent.is_some() { "," } else { ", " };
        let (between, after_key) = match separators.as_ref().filter(|value| !matches!(value, Value::None)) {
            None => (comma.to_owned(), ": ".to_owned()),
            Some(given) => match given.items() {
                Some([Value::Str(between), Value::Str(after_key)]) => {
                    (between.to_string(), after_key.to_string())
                }
                _ => return fault("tojson: separators are two strings"),
            },
        };
        let style = Style { ascii: truth(ascii), indent, between, after_key, sort: truth(sort) };
        let mut out = String::new();
        self.write_json(value, &style, 0, &mut out)?;
        Ok(Value::Str(out.into()))
    }

    fn write_json(&self, value: &Value, style: &Style, level: usize, out: &mut String) -> Outcome<()> {
        match value {
            Value::None => self.json_part("null", out),
            Value::Bool(truth) => self.json_part(if *truth { "true" } else { "false" }, out),
            Value::Int(number) => self.json_part(&number.to_string(), out),
            Value::Float(number) => self.json_part(&json_float(*number), out),
            Value::Str(text) => self.json_text(text, style, out),
            Value::Seq(seq) if matches!(seq.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Group) => {
                self.budget.deeper(|| {
                    self.json_part("[", out)?;
                    for (index, item) in seq.items.iter().enumerate() {
                        self.json_break(index > 0, style, level + 1, out)?;
                        self.write_json(item, style, level + 1, out)?;
                    }
                    self.json_close(seq.items.is_empty(), "]", style, level, out)
                })
            }
            Value::Map(map) => self.budget.deeper(|| self.json_map(map, style, level, out)),
            other => {
                other.defined()?;
                fault(format!("tojson: {} has no JSON", other.type_name()))
            }
        }
    }

    fn json_map(&self, map: &Map, style: &Style, level: usize, out: &mut String) -> Outcome<()> {
        let mut entries: Vec<&(Value, Value)> = map.entries.iter().collect();
        if style.sort {
            let keys = entries.iter().map(|(key, _)| key.clone()).collect();
            entries =
                self.sorted_by(keys, false)?.into_iter().filter_map(|index| map.entries.get(index)).collect();
        }
        self.json_part("{", out)?;
        for (index, (key, value)) in entries.iter().enumerate() {
            self.json_break(index > 0, style, level + 1, out)?;
            let name = match key {
                Value::Str(name) => name.to_string(),
                Value::Int(number) => number.to_string(),
                Value::Float(number) => json_float(*number),
                Value::Bool(truth) => truth.to_string(),
                Value::None => "null".to_owned(),
                other => return fault(format!("tojson: {} is no key", other.type_name())),
            };
            self.json_text(&name, style, out)?;
            self.json_part(&style.after_key, out)?;
            self.write_json(value, style, level + 1, out)?;
        }
        self.json_close(entries.is_empty(), "}", style, level, out)
    }

    fn json_break(&self, comma: bool, style: &Style, level: usize, out: &mut String) -> Outcome<()> {
        if comma {
            self.json_part(&style.between, out)?;
        }
        self.json_indent(style, level, out)
    }

    fn json_indent(&self, style: &Style, level: usize, out: &mut String) -> Outcome<()> {
        let Some(indent) = &style.indent else { return Ok(()) };
        self.json_part("\n", out)?;
        (0..level).try_for_each(|_| self.json_part(indent, out))
    }

    fn json_close(
        &self,
        empty: bool,
        close: &str,
        style: &Style,
        level: usize,
        out: &mut String,
    ) -> Outcome<()> {
        if !empty {
            self.json_indent(style, level, out)?;
        }
        self.json_part(close, out)
    }

    fn json_part(&self, text: &str, out: &mut String) -> Outcome<()> {
        self.budget.spend(1)?;
        self.budget.take(text.len())?;
        out.push_str(text);
        Ok(())
    }

    fn json_text(&self, text: &str, style: &Style, out: &mut String) -> Outcome<()> {
        self.budget.take(2 + text.len())?;
        self.budget.scan(text.len())?;
        out.push('"');
        for char in text.chars() {
            if matches!(char, '"' | '\\' | '\n' | '\r' | '\t' | '\x08' | '\x0c') {
                self.budget.take(1)?;
            }
            match char {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                ..'\x20' => {
                    self.budget.take(5)?;
                    out.push_str(&format!("\\u{:04x}", u32::from(char)));
                }
                _ if style.ascii && !char.is_ascii() => {
                    self.budget.take(9)?;
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => out.push(char),
            }
        }
        out.push('"');
        Ok(())
    }
}

fn json_float(number: f64) -> String {
    match number {
        _ if number.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => number::repr(number),
    }
}
