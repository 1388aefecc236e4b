//! Jinja's filters: `value | name(arguments)`. Those that take names of filters and tests are in [`super::each`].

use std::borrow::Cow;

use super::{
    Outcome,
    call::{Given, int, optional_text, truth},
    fault, number,
    run::Run,
    text as texts,
    value::{SeqKind, Value},
};

/// The filters' names.
pub(super) const NAMES: [&str; 49] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
];

impl Run {
    /// Filters a value.
    pub(super) fn filtered(&self, name: &str, value: &Value, given: Given) -> Outcome<Value> {
        match name {
            "tojson" => self.to_json(value, given),
            "default" | "d" => {
                let [default, boolean] = given.bind(name, ["default_value", "boolean"])?;
                let missing = matches!(value, Value::Undefined(_)) || truth(boolean, false) && !value.truth();
                Ok(if missing { default.unwrap_or_else(|| Value::text("")) } else { value.clone() })
            }
            "attr" => {
                let [name] = given.exactly(name, 1)?;
                match name {
                    Some(Value::Str(name)) => self.attribute_alone(value, &name),
                    _ => fault("attr takes a name"),
                }
            }
            "map" | "select" | "reject" | "selectattr" | "rejectattr" => self.filter_each(name, value, given),
            "abs" | "int" | "float" | "round" | "filesizeformat" => self.number_filter(name, value, given),
            "batch" | "slice" | "first" | "last" | "list" | "items" | "length" | "count" | "reverse"
            | "join" | "sum" | "min" | "max" | "sort" | "unique" | "groupby" | "dictsort" => {
                self.list_filter(name, value, given)
            }
            _ => self.text_filter(name, value, given),
        }
    }

    fn text_filter(&self, name: &str, value: &Value, given: Given) -> Outcome<Value> {
        let own: Cow<'_, str> = match value {
            Value::Str(text) => Cow::Borrowed(text),
            other => Cow::Owned(self.to_text(other)?),
        };
        if name == "trim" {
            let [chars] = given.bind(name, ["chars"])?;
            let chars = optional_text(name, chars)?;
            return self.budget.text(self.stripped(&own, chars.as_deref(), true, true)?);
        }
        self.budget.scan(own.len())?;
        match name {
            "replace" => {
                let [old, new, count] = given.bind(name, ["old", "new", "count"])?;
                let (Some(old), Some(new)) = (old, new) else { return fault("replace takes two strings") };
                let count = count.filter(|count| !matches!(count, Value::None));
                let count = int(name, count, -1)?;
                return self.replaced(&own, &self.to_text(&old)?, &self.to_text(&new)?, count);
            }
            "indent" => return self.indented(&own, given),
            "truncate" => return self.truncated(&own, given),
            "center" => {
                let [width] = given.bind(name, ["width"])?;
                let width = Value::Int(int(name, width, 80)?);
                return self.call_method(&Value::Str(own.into()), name, Given::only(vec![width]));
            }
            "format" => {
                let values = match given.named.is_empty() {
                    true => self.budget.seq(SeqKind::Tuple, given.positional)?,
                    false => {
                        let named =
                            given.named.into_iter().map(|(name, value)| (Value::Str(name), value)).collect();
                        self.budget.map(named)?
                    }
                };
                return self.percent(&own, &values);
            }
            _ => given.exactly::<0>(name, 0)?,
        };
        // Escapes are longer than what they stand for.
        let length = own.len();
        self.budget.take(length)?;
        let out = match name {
            "string" | "safe" => own.into_owned(),
            "upper" => own.to_uppercase(),
            "lower" => own.to_lowercase(),
            "capitalize" => texts::capitalised(&own),
            "title" => texts::title_words(&own),
            "striptags" => texts::without_tags(&own),
            "e" | "escape" | "forceescape" => {
                self.budget.take(5 * own.matches(['&', '<', '>', '\'', '"']).count())?;
                texts::escaped(&own)
            }
            "urlencode" => {
                self.budget.take(2 * own.len())?;
                texts::url_quoted(&own)
            }
            "wordcount" => {
                let word = |char: char| char.is_alphanumeric() || char == '_';
                let count = own.split(|char| !word(char)).filter(|word| !word.is_empty()).count();
                return Ok(Value::Int(count as i64));
            }
            _ => {
                let name: String = name.chars().take(40).collect();
                return fault(format!("no filter named {name:?}"));
            }
        };
        self.budget.take(out.len().saturating_sub(length))?;
        Ok(Value::Str(out.into()))
    }

    /// So many spaces.
    pub(super) fn spaces(&self, width: i64) -> Outcome<String> {
        Ok(" ".repeat(self.budget.width(width)?))
    }

    fn indented(&self, own: &str, given: Given) -> Outcome<Value> {
        let [width, first, blank] = given.bind("indent", ["width", "first", "blank"])?;
        let indent = match width {
            Some(Value::Str(text)) => text.to_string(),
            width => self.spaces(int("indent", width, 4)?)?,
        };
        let (first, blank) = (truth(first, false), truth(blank, false));
        self.budget.take(own.len())?;
        // As jinja2, which counts a line more than Python.
        let whole = format!("{own}\n");
        let mut out = String::new();
        for (index, line) in self.lines(&whole, false)?.into_iter().enumerate() {
            let with = if index == 0 { first } else { blank || !line.is_empty() };
            self.budget.take(1 + line.len() + if with { indent.len() } else { 0 })?;
            if index > 0 {
                out.push('\n');
            }
            if with {
                out.push_str(&indent);
            }
            out.push_str(line);
        }
        Ok(Value::Str(out.into()))
    }

    fn truncated(&self, own: &str, given: Given) -> Outcome<Value> {
        let [length, kill, end, leeway] = given.bind("truncate", ["length", "killwords", "end", "leeway"])?;
        let length = usize::try_from(int("truncate", length, 255)?).unwrap_or(0);
        let leeway =
            usize::try_from(int("truncate", leeway.filter(|leeway| !matches!(leeway, Value::None)), 5)?);
        let end = optional_text("truncate", end)?.unwrap_or("...".into());
        let count = own.chars().count();
        if length < end.chars().count() {
            return fault("truncate: the length is less than that of what ends the text");
        }
        if count <= length.saturating_add(leeway.unwrap_or(0)) {
            return self.budget.text(own);
        }
        let most = length.saturating_sub(end.chars().count());
        let mut kept: String = own.chars().take(most).collect();
        if !truth(kill, false) {
            kept.truncate(kept.rfind(' ').unwrap_or(kept.len()));
        }
        self.budget.text(kept + &end)
    }

    fn number_filter(&self, name: &str, value: &Value, given: Given) -> Outcome<Value> {
        match name {
            "abs" => {
                given.exactly::<0>(name, 0)?;
                let negative = value.as_number().is_some_and(|number| number < 0.0);
                self.signed(negative, value)
            }
            "int" => {
                let [default, base] = given.bind(name, ["default", "base"])?;
                let base = u32::try_from(int(name, base, 10)?).unwrap_or(10);
                value.defined()?;
                let parsed = match value {
                    Value::Str(text) => {
                        self.budget.scan(text.len())?;
                        let float = || number::parse_float(text).filter(|number| number.is_finite());
                        number::parse_int(text, base).or_else(|| float().map(|number| number as i64))
                    }
                    Value::Float(number) if number.is_finite() => Some(*number as i64),
                    other => other.as_int(),
                };
                Ok(parsed.map(Value::Int).or(default).unwrap_or(Value::Int(0)))
            }
            "float" => {
                let [default] = given.bind(name, ["default"])?;
                value.defined()?;
                let parsed = match value {
                    Value::Str(text) => {
                        self.budget.scan(text.len())?;
                        number::parse_float(text)
                    }
                    other => other.as_number(),
                };
                Ok(parsed.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
            }
            "round" => {
                let [precision, method] = given.bind(name, ["precision", "method"])?;
                rounded(
                    value,
                    int(name, precision, 0)?,
                    optional_text(name, method)?.as_deref().unwrap_or("common"),
                )
            }
            _ => {
                let [binary] = given.bind(name, ["binary"])?;
                let bytes = match value {
                    Value::Str(text) => {
                        self.budget.scan(text.len())?;
                        number::parse_float(text)
                    }
                    other => other.as_number(),
                };
                match bytes {
                    Some(bytes) => self.budget.text(file_size(bytes, truth(binary, false))),
                    None => fault("filesizeformat takes a number"),
                }
            }
        }
    }
}

fn rounded(value: &Value, precision: i64, method: &str) -> Outcome<Value> {
    value.defined()?;
    let Some(number) = value.as_number() else {
        return fault(format!("{} cannot be rounded", value.type_name()));
    };
    let places = i32::try_from(precision).unwrap_or(0).clamp(-300, 300);
    let scale = 10f64.powi(places);
    match method {
        "ceil" => Ok(Value::Float((number * scale).ceil() / scale)),
        "floor" => Ok(Value::Float((number * scale).floor() / scale)),
        "common" => match value.as_int() {
            Some(whole) if places >= 0 => Ok(Value::Int(whole)),
            Some(whole) => Ok(Value::Int(((whole as f64 * scale).round_ties_even() / scale) as i64)),
            None if places >= 0 => {
                let digits = places as usize;
                Ok(Value::Float(format!("{number:.digits$}").parse().unwrap_or(number)))
            }
            None => Ok(Value::Float((number * scale).round_ties_even() / scale)),
        },
        _ => fault("round: the method is common, ceil or floor"),
    }
}

fn file_size(bytes: f64, binary: bool) -> String {
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return "1 Byte".to_owned();
    }
    if bytes < base {
        return format!("{} Bytes", bytes as i64);
    }
    let names = if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    };
    let mut power = 1;
    while power < 8 && bytes >= base.powi(power + 1) {
        power += 1;
    }
    let name = names.get(power as usize - 1).copied().unwrap_or_default();
    format!("{:.1} {name}", bytes / base.powi(power))
}
