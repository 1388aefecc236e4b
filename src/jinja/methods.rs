//! The methods of Python's values.

use std::{rc::Rc, sync::Arc};

use super::{
    Outcome,
    call::{Given, int, optional_text, text, truth},
    fault,
    format::padded,
    lexer::is_space,
    print::printable,
    run::Run,
    sequences::clamped,
    text as texts,
    value::{Map, SeqKind, Value},
};

const OF_STR: [&str; 46] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
    "encode",
    "translate",
];
const OF_DICT: [&str; 5] = ["copy", "get", "items", "keys", "values"];

/// Whether Python's type of a value has a method that a template may call.
pub(super) fn has(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => OF_STR.contains(&name),
        Value::Map(_) => OF_DICT.contains(&name),
        Value::Seq(seq) => match seq.kind {
            SeqKind::List => ["copy", "count", "index"].contains(&name),
            SeqKind::Tuple | SeqKind::Group | SeqKind::Range => ["count", "index"].contains(&name),
            _ => false,
        },
        Value::Float(_) => name == "is_integer",
        _ => false,
    }
}

/// Whether it is a method that would change the value, which sandboxed templates may not.
pub(super) fn changes(value: &Value, name: &str) -> bool {
    let all: &[&str] = match value {
        Value::Map(_) => &["clear", "pop", "popitem", "setdefault", "update"],
        Value::Seq(seq) if seq.kind == SeqKind::List => {
            &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"]
        }
        _ => &[],
    };
    all.contains(&name)
}

impl Run {
    /// Calls a method.
    pub(super) fn call_method(&self, value: &Value, name: &str, given: Given) -> Outcome<Value> {
        match value {
            Value::Str(text) => self.text_method(text, name, given),
            Value::Map(map) => self.map_method(map, name, given),
            Value::Seq(_) => self.seq_method(value, name, given),
            Value::Float(number) => {
                given.exactly::<0>(name, 0)?;
                Ok(Value::Bool(number.is_finite() && number.fract() == 0.0))
            }
            other => fault(format!("{} has no method {name}", other.type_name())),
        }
    }

    fn map_method(&self, map: &Rc<Map>, name: &str, given: Given) -> Outcome<Value> {
        if name == "get" {
            let [key, default] = given.bind(name, ["key", "default"])?;
            let Some(key) = key else { return fault("get takes a key") };
            return Ok(map.get(&key, &self.budget)?.or(default).unwrap_or(Value::None));
        }
        given.exactly::<0>(name, 0)?;
        self.budget.take(map.entries.len() * 64)?;
        let entries = map.entries.iter();
        match name {
            "keys" => self.budget.seq(SeqKind::Keys, entries.map(|(key, _)| key.clone()).collect()),
            "values" => self.budget.seq(SeqKind::Values, entries.map(|(_, value)| value.clone()).collect()),
            "items" => self.pairs(map, SeqKind::Items),
            _ => Ok(Value::Map(Rc::clone(map))),
        }
    }

    /// A dict's keys with their values.
    pub(super) fn pairs(&self, map: &Map, kind: SeqKind) -> Outcome<Value> {
        let pair =
            |(key, value): &(Value, Value)| self.budget.seq(SeqKind::Tuple, vec![key.clone(), value.clone()]);
        let pairs = map.entries.iter().map(pair).collect::<Outcome<_>>()?;
        self.budget.seq(kind, pairs)
    }

    fn seq_method(&self, value: &Value, name: &str, given: Given) -> Outcome<Value> {
        if name == "copy" {
            given.exactly::<0>(name, 0)?;
            return Ok(value.clone());
        }
        let [wanted] = given.exactly(name, 1)?;
        let wanted = wanted.unwrap_or(Value::None);
        let mut count = 0;
        for (place, item) in value.items().unwrap_or_default().iter().enumerate() {
            if self.budget.equal(item, &wanted)? {
                if name == "index" {
                    return Ok(Value::Int(place as i64));
                }
                count += 1;
            }
        }
        if name == "index" { fault("index: the value is not in the list") } else { Ok(Value::Int(count)) }
    }

    fn text_method(&self, own: &Arc<str>, name: &str, given: Given) -> Outcome<Value> {
        // Stripping goes no further than what it takes away, and pays for that.
        if !name.ends_with("strip") {
            self.budget.scan(own.len())?;
        }
        match name {
            "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => {
                self.split_method(own, name, given)
            }
            "startswith" | "endswith" | "find" | "rfind" | "index" | "rindex" | "count" => {
                self.search_method(own, name, given)
            }
            "center" | "ljust" | "rjust" | "zfill" | "expandtabs" => self.pad_method(own, name, given),
            "strip" | "lstrip" | "rstrip" => {
                let [chars] = given.exactly(name, 0)?;
                let chars = optional_text(name, chars)?;
                let (left, right) = (name != "rstrip", name != "lstrip");
                self.budget.text(self.stripped(own, chars.as_deref(), left, right)?)
            }
            "replace" => {
                let [old, new, count] = given.bind(name, ["", "", "count"])?;
                let (old, new) = (text(name, old)?, text(name, new)?);
                self.replaced(own, &old, &new, int(name, count, -1)?)
            }
            "removeprefix" => {
                let [part] = given.exactly(name, 1)?;
                self.budget.text(own.strip_prefix(&*text(name, part)?).unwrap_or(own))
            }
            "removesuffix" => {
                let [part] = given.exactly(name, 1)?;
                self.budget.text(own.strip_suffix(&*text(name, part)?).unwrap_or(own))
            }
            "join" => {
                let [items] = given.exactly(name, 1)?;
                let items = items.unwrap_or(Value::None);
                let items = self.iterate(&items)?;
                for item in items.iter() {
                    if item.as_str().is_none() {
                        item.defined()?;
                        return fault(format!("join takes strings, not {}", item.type_name()));
                    }
                }
                self.joined(own, &items)
            }
            "format" => self.format(own, &given),
            "format_map" => {
                let [values] = given.exactly(name, 1)?;
                let Some(Value::Map(map)) = values else { return fault("format_map takes a dict") };
                self.budget.take(map.entries.len() * 64)?;
                self.budget.spend(map.entries.len())?;
                let named = map.entries.iter();
                let named =
                    named.filter_map(|(key, value)| Some((key.as_str()?.into(), value.clone()))).collect();
                self.format(own, &Given { positional: Vec::new(), named })
            }
            "encode" | "translate" => fault(format!("templates cannot call {name}")),
            _ => {
                given.exactly::<0>(name, 0)?;
                // Another case may be longer, by a few times at most.
                self.budget.take(own.len())?;
                let made = plain_method(own, name)?;
                let length = made.as_str().map_or(0, str::len);
                self.budget.take(length.saturating_sub(own.len()))?;
                Ok(made)
            }
        }
    }

    /// A text without characters at its ends: spaces, or those that are given.
    pub(super) fn stripped<'t>(
        &self,
        own: &'t str,
        chars: Option<&str>,
        left: bool,
        right: bool,
    ) -> Outcome<&'t str> {
        self.budget.take(chars.map_or(0, str::len).saturating_mul(4))?;
        let set: Option<Vec<char>> = chars.map(|chars| chars.chars().collect());
        self.budget.spend(match &set {
            None => 1 + own.len() / 128,
            Some(set) => (1 + set.len() / 16).saturating_mul(1 + own.len() / 16),
        })?;
        let out = |char: char| set.as_ref().map_or_else(|| is_space(char), |set| set.contains(&char));
        let own = if left { own.trim_start_matches(out) } else { own };
        Ok(if right { own.trim_end_matches(out) } else { own })
    }

    /// Replaces a part, all times or the first `count`.
    pub(super) fn replaced(&self, own: &str, old: &str, new: &str, count: i64) -> Outcome<Value> {
        let found = if old.is_empty() { own.chars().count() + 1 } else { own.matches(old).count() };
        let found = usize::try_from(count).map_or(found, |count| found.min(count));
        self.budget.scan(own.len())?;
        self.budget.take(found.saturating_mul(new.len()).saturating_add(own.len()))?;
        Ok(Value::Str(own.replacen(old, new, found).into()))
    }

    /// Texts of values with one between them.
    pub(super) fn joined(&self, between: &str, items: &[Value]) -> Outcome<Value> {
        let mut out = String::new();
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.budget.take(between.len())?;
                out.push_str(between);
            }
            self.write(item, &mut out)?;
        }
        Ok(Value::Str(out.into()))
    }

    fn parts<'t>(&self, parts: impl IntoIterator<Item = &'t str>) -> Outcome<Vec<Value>> {
        parts.into_iter().map(|part| self.budget.text(part)).collect()
    }

    /// A text's lines; their places are paid for first.
    pub(super) fn lines<'t>(&self, own: &'t str, keep: bool) -> Outcome<Vec<&'t str>> {
        self.budget.scan(own.len())?;
        self.budget.take(own.chars().filter(|char| texts::ends_line(*char)).count().saturating_mul(16))?;
        Ok(texts::split_lines(own, keep))
    }

    fn split_method(&self, own: &Arc<str>, name: &str, given: Given) -> Outcome<Value> {
        if name == "splitlines" {
            let [keep] = given.bind(name, ["keepends"])?;
            let lines = self.lines(own, truth(keep, false))?;
            return self.budget.list(self.parts(lines)?);
        }
        if let "partition" | "rpartition" = name {
            let [separator] = given.exactly(name, 1)?;
            let separator = nonempty(name, text(name, separator)?)?;
            let cut =
                if name == "partition" { own.split_once(&*separator) } else { own.rsplit_once(&*separator) };
            let parts = match cut {
                Some((before, after)) => [before, &*separator, after],
                None if name == "partition" => [own, "", ""],
                None => ["", "", own],
            };
            return self.budget.seq(SeqKind::Tuple, self.parts(parts)?);
        }
        let [separator, most] = given.bind(name, ["sep", "maxsplit"])?;
        let most = usize::try_from(int(name, most, -1)?).ok();
        let separator = optional_text(name, separator)?;
        if separator.is_none() {
            // The places of words, of which there may be one in two bytes.
            self.budget.take(own.len().saturating_mul(8))?;
        }
        let parts = match separator {
            None if name == "split" => self.parts(texts::split_space(own, most))?,
            None => self.parts(texts::rsplit_space(own, most))?,
            Some(separator) => {
                let separator = nonempty(name, separator)?;
                match (name, most) {
                    ("split", None) => self.parts(own.split(&*separator))?,
                    ("split", Some(most)) => self.parts(own.splitn(most.saturating_add(1), &*separator))?,
                    (_, most) => {
                        let mut parts = self.parts(
                            own.rsplitn(most.unwrap_or(usize::MAX - 1).saturating_add(1), &*separator),
                        )?;
                        parts.reverse();
                        parts
                    }
                }
            }
        };
        self.budget.list(parts)
    }

    fn search_method(&self, own: &Arc<str>, name: &str, given: Given) -> Outcome<Value> {
        let [wanted, start, stop] = given.exactly(name, 1)?;
        let bound = |value: Option<Value>| match value {
            None | Some(Value::None) => Ok(None),
            some => int(name, some, 0).map(Some),
        };
        let (start, stop) = (bound(start)?, bound(stop)?);
        let whole = start.is_none() && stop.is_none();
        let (first, part) = if whole { (0, &**own) } else { clamped(own, start, stop) };
        if let "startswith" | "endswith" = name {
            let meets = |wanted: &Value| match wanted {
                Value::Str(wanted) => {
                    self.budget.scan(wanted.len().min(part.len()) / 4)?;
                    Ok(match name {
                        "startswith" => part.starts_with(&**wanted),
                        _ => part.ends_with(&**wanted),
                    })
                }
                other => {
                    other.defined()?;
                    fault(format!("{name} takes a string or a tuple of strings, not {}", other.type_name()))
                }
            };
            let found = match &wanted {
                Some(Value::Seq(seq)) if seq.kind == SeqKind::Tuple => {
                    let mut found = false;
                    for wanted in &seq.items {
                        found = meets(wanted)?;
                        if found {
                            break;
                        }
                    }
                    found
                }
                Some(wanted) => meets(wanted)?,
                None => false,
            };
            return Ok(Value::Bool(found));
        }
        let wanted = text(name, wanted)?;
        self.budget.scan(own.len())?;
        if name == "count" {
            return Ok(Value::Int(part.matches(&*wanted).count() as i64));
        }
        let at = if name.starts_with('r') { part.rfind(&*wanted) } else { part.find(&*wanted) };
        match at.and_then(|at| part.get(..at)) {
            Some(before) => Ok(Value::Int((first + before.chars().count()) as i64)),
            None if name.ends_with("index") => fault(format!("{name}: the part is not in the string")),
            None => Ok(Value::Int(-1)),
        }
    }

    fn pad_method(&self, own: &Arc<str>, name: &str, given: Given) -> Outcome<Value> {
        if name == "expandtabs" {
            let [size] = given.bind(name, ["tabsize"])?;
            let size = usize::try_from(int(name, size, 8)?).unwrap_or(0);
            let spaces = own.matches('\t').count().saturating_mul(size);
            self.budget.take(spaces)?;
            self.budget.scan(spaces)?;
            let (mut out, mut column) = (String::new(), 0);
            for char in own.chars() {
                match char {
                    '\t' => {
                        let spaces = if size == 0 { 0 } else { size - column % size };
                        out.extend(std::iter::repeat_n(' ', spaces));
                        column += spaces;
                    }
                    _ => {
                        out.push(char);
                        column = if matches!(char, '\n' | '\r') { 0 } else { column + 1 };
                    }
                }
            }
            return self.budget.text(out);
        }
        let [width, fill] = given.exactly(name, 1)?;
        let width = self.budget.width(int(name, width, 0)?)?;
        let fill = optional_text(name, fill)?.unwrap_or(" ".into());
        let mut fills = fill.chars();
        let (Some(fill), None) = (fills.next(), fills.next()) else {
            return fault(format!("{name} fills with one character"));
        };
        let out = match name {
            "ljust" => padded(own, width, fill, '<'),
            "rjust" => padded(own, width, fill, '>'),
            "center" => {
                let length = own.chars().count();
                let missing = width.saturating_sub(length);
                // Where the sides differ, Python gives the odd width's odd place to the left.
                let left = missing / 2 + (missing & width & 1);
                padded(&padded(own, length + left, fill, '>'), width, fill, '<')
            }
            _ => {
                let sign = own.starts_with(['+', '-']);
                let (sign, digits) = own.split_at(usize::from(sign));
                sign.to_owned() + &padded(digits, width.saturating_sub(sign.len()), '0', '>')
            }
        };
        self.budget.text(out)
    }
}

fn nonempty(name: &str, separator: Arc<str>) -> Outcome<Arc<str>> {
    if separator.is_empty() { fault(format!("{name}: the separator is empty")) } else { Ok(separator) }
}

/// The methods without arguments.
fn plain_method(own: &str, name: &str) -> Outcome<Value> {
    let all = |test: fn(char) -> bool| Ok(Value::Bool(!own.is_empty() && own.chars().all(test)));
    let superscript =
        |char| matches!(char, '²' | '³' | '¹' | '\u{2070}'..='\u{2079}' | '\u{2080}'..='\u{2089}');
    match name {
        "upper" => Ok(Value::Str(own.to_uppercase().into())),
        "lower" => Ok(Value::Str(own.to_lowercase().into())),
        "casefold" => Ok(Value::Str(own.to_lowercase().replace('ß', "ss").into())),
        "capitalize" => Ok(Value::Str(texts::capitalised(own).into())),
        "title" => Ok(Value::Str(texts::titled(own).into())),
        "swapcase" => Ok(Value::Str(texts::swapped(own).into())),
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(|char| char.is_alphabetic() && !char.is_numeric()),
        "isascii" => Ok(Value::Bool(own.is_ascii())),
        "isdecimal" => {
            all(|char| char.is_ascii_digit() || !char.is_ascii() && char.is_numeric() && !is_fraction(char))
        }
        "isdigit" => Ok(Value::Bool(
            !own.is_empty()
                && own.chars().all(|char| {
                    char.is_ascii_digit()
                        || superscript(char)
                        || !char.is_ascii() && char.is_numeric() && !is_fraction(char)
                }),
        )),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isprintable" => Ok(Value::Bool(own.chars().all(printable))),
        "islower" => Ok(Value::Bool(texts::is_lower(own))),
        "isupper" => Ok(Value::Bool(texts::is_upper(own))),
        "istitle" => Ok(Value::Bool(texts::is_title(own))),
        "isidentifier" => Ok(Value::Bool(texts::is_identifier(own))),
        _ => fault(format!("str has no method {name}")),
    }
}

/// Numbers that are no digits: fractions, Roman numerals, circled and raised ones.
fn is_fraction(char: char) -> bool {
    matches!(char, '\u{b2}'..='\u{be}' | '\u{2070}'..='\u{218b}' | '\u{2460}'..='\u{24ff}' | '\u{2776}'..='\u{2793}' | '\u{3007}'..='\u{33ff}')
}
