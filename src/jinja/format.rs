//! `'…'.format(values)` and its little language of widths and kinds.

use super::{Outcome, call::Given, fault, number, run::Run, value::Value};

/// `[[fill]align][sign][#][0][width][,][.precision][kind]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    pub fill: char,
    /// `<`, `>`, `^` or `=`; a space where it was not said.
    pub align: char,
    pub sign: char,
    pub alternate: bool,
    pub width: usize,
    pub separator: Option<char>,
    pub precision: Option<usize>,
    /// A space where it was not said.
    pub kind: char,
}

/// The largest precision.
const MOST_DIGITS: usize = 4096;

impl Default for Spec {
    fn default() -> Self {
        let (fill, align, sign, kind) = (' ', ' ', '-', ' ');
        Self { fill, align, sign, alternate: false, width: 0, separator: None, precision: None, kind }
    }
}

/// A text of `width` places at least.
pub(super) fn padded(text: &str, width: usize, fill: char, align: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = match align {
        '>' => missing,
        '^' => missing / 2,
        _ => 0,
    };
    let fill = |count: usize| std::iter::repeat_n(fill, count);
    fill(left).chain(text.chars()).chain(fill(missing - left)).collect()
}

impl Run {
    /// Python's `str.format`.
    pub(super) fn format(&self, format: &str, given: &Given) -> Outcome<Value> {
        let mut automatic = 0;
        let text = self.format_part(format, given, &mut automatic, 2)?;
        self.budget.text(text)
    }

    /// Formats, with fields in fields' widths up to a level.
    fn format_part(&self, format: &str, given: &Given, automatic: &mut usize, level: u32) -> Outcome<String> {
        if level == 0 {
            return fault("format: too many fields within each other");
        }
        self.budget.scan(format.len())?;
        let (mut out, mut rest) = (String::new(), format);
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                out.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return fault("format: a single '}'");
            }
            let Some(end) = field_end(rest) else { return fault("format: a single '{'") };
            let (field, spec) = split_field(&rest[..end]);
            rest = &rest[end + 1..];
            let (field, conversion) = match field.rsplit_once('!') {
                Some((field, conversion)) => (field, Some(conversion)),
                None => (field, None),
            };
            let mut value = self.field(field, given, automatic)?;
            let spec = match spec.contains('{') {
                true => self.format_part(spec, given, automatic, level - 1)?,
                false => spec.to_owned(),
            };
            match conversion {
                Some("r" | "a") => {
                    let mut text = String::new();
                    self.write_repr(&value, &mut text)?;
                    value = Value::Str(text.into());
                }
                Some("s") => value = Value::Str(self.to_text(&value)?.into()),
                Some(_) => return fault("format: an unknown conversion"),
                None => {}
            }
            let text = self.formatted(&value, &spec)?;
            self.budget.take(text.len())?;
            out.push_str(&text);
        }
        out.push_str(rest);
        Ok(out)
    }

    /// The value that a field names: `0`, `name`, `0.attribute[item]`, or nothing, for the next.
    fn field(&self, field: &str, given: &Given, automatic: &mut usize) -> Outcome<Value> {
        self.budget.spend(1 + given.named.len() / 8)?;
        let end = field.find(['.', '[']).unwrap_or(field.len());
        let (first, mut path) = field.split_at(end);
        let positional = |index: usize| match given.positional.get(index) {
            Some(value) => Ok(value.clone()),
            None => fault(format!("format: there is no value {index}")),
        };
        let mut value = match first.parse::<usize>() {
            Ok(index) => positional(index)?,
            Err(_) if first.is_empty() => {
                *automatic += 1;
                positional(*automatic - 1)?
            }
            Err(_) => match given.named.iter().find(|(name, _)| **name == *first) {
                Some((_, value)) => value.clone(),
                None => {
                    return fault(format!(
                        "format: there is no value {}",
                        super::print::quoted(&first.chars().take(40).collect::<String>())
                    ));
                }
            },
        };
        while !path.is_empty() {
            self.budget.spend(1)?;
            if let Some(item) = path.strip_prefix('[') {
                let Some((key, after)) = item.split_once(']') else {
                    return fault("format: a [ that does not end");
                };
                let key = key.parse().map_or_else(|_| Value::text(key), Value::Int);
                (value, path) = (self.item_of(&value, &key)?, after);
            } else {
                let rest = path.strip_prefix('.').unwrap_or(path);
                let (name, after) = rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()));
                if name.is_empty() {
                    return fault("format: an attribute without a name");
                }
                (value, path) = (self.attribute(&value, &name.into())?, after);
            }
        }
        Ok(value)
    }

    /// Python's `format(value, spec)`.
    pub(super) fn formatted(&self, value: &Value, spec: &str) -> Outcome<String> {
        if spec.is_empty() {
            return self.to_text(value);
        }
        let mut spec = parse(spec)?;
        self.budget.places(spec.width)?;
        precise(spec.precision)?;
        let unfit = |what: &str| fault(format!("format: {what} cannot be written as {:?}", spec.kind));
        match value {
            Value::Str(text) => {
                if !matches!(spec.kind, ' ' | 's') || spec.align == '=' {
                    return unfit("a string");
                }
                let text: String = match spec.precision {
                    Some(most) => text.chars().take(most).collect(),
                    None => text.to_string(),
                };
                Ok(padded(&text, spec.width, spec.fill, spec.align))
            }
            Value::Bool(_) if spec.kind == ' ' && spec.width == 0 => self.to_text(value),
            _ if spec.align == ' ' && value.as_number().is_some() => {
                spec.align = '>';
                self.formatted_number(value, spec)
            }
            _ if value.as_number().is_some() => self.formatted_number(value, spec),
            other => unfit(other.type_name()),
        }
    }

    fn formatted_number(&self, value: &Value, mut spec: Spec) -> Outcome<String> {
        let number = value.as_number().unwrap_or(0.0);
        let (negative, prefix, digits) = match (value.as_int(), spec.kind) {
            (Some(whole), ' ' | 'd' | 'n' | 'x' | 'X' | 'o' | 'b') => {
                let prefix = if spec.alternate && matches!(spec.kind, 'x' | 'X' | 'o' | 'b') {
                    format!("0{}", spec.kind)
                } else {
                    String::new()
                };
                (whole < 0, prefix, number::in_base(whole.unsigned_abs(), spec.kind))
            }
            (Some(code), 'c') => {
                let char = u32::try_from(code).ok().and_then(char::from_u32);
                (false, String::new(), char.map(String::from).unwrap_or_default())
            }
            (None, ' ') => {
                let digits = match spec.precision {
                    None => number::repr(number.abs()),
                    Some(precision) => {
                        let text = number::formatted(number.abs(), 'g', precision, false);
                        if text.contains(['.', 'e', 'n', 'i']) { text } else { text + ".0" }
                    }
                };
                (number.is_sign_negative(), String::new(), digits)
            }
            (_, '%') => {
                let digits =
                    number::formatted(number.abs() * 100.0, 'f', spec.precision.unwrap_or(6), false) + "%";
                (number.is_sign_negative(), String::new(), digits)
            }
            (_, 'e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'n') => {
                let kind = if spec.kind == 'n' { 'g' } else { spec.kind };
                let digits =
                    number::formatted(number.abs(), kind, spec.precision.unwrap_or(6), spec.alternate);
                (number.is_sign_negative(), String::new(), digits)
            }
            _ => return fault(format!("format: {} cannot be written as {:?}", value.type_name(), spec.kind)),
        };
        let digits = match spec.separator {
            Some(separator) => {
                grouped(&digits, separator, if matches!(spec.kind, 'x' | 'X' | 'o' | 'b') { 4 } else { 3 })
            }
            None => digits,
        };
        self.signed_text(negative, &prefix, &digits, &mut spec)
    }
}

/// Where a field ends, whose spec may have fields.
fn field_end(text: &str) -> Option<usize> {
    let mut open = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' if open == 0 => return Some(at),
            b'}' => open -= 1,
            _ => {}
        }
    }
    None
}

/// A field's name and its spec.
fn split_field(field: &str) -> (&str, &str) {
    // A name's [item] may have a colon.
    let from = field.rfind(']').filter(|end| field.find('[').is_some_and(|start| start < *end)).unwrap_or(0);
    let first = field.find(':');
    let at = match first {
        Some(at) if field.find('[').is_none_or(|open| at < open) => Some(at),
        _ => field[from..].find(':').map(|at| from + at),
    };
    at.map_or((field, ""), |at| (&field[..at], &field[at + 1..]))
}

/// A fault where so many digits are asked for that no number has them.
pub(super) fn precise(precision: Option<usize>) -> Outcome<()> {
    match precision {
        Some(digits) if digits > MOST_DIGITS => {
            fault(format!("format: a precision of more than {MOST_DIGITS}"))
        }
        _ => Ok(()),
    }
}

fn parse(text: &str) -> Outcome<Spec> {
    let mut spec = Spec::default();
    let mut rest = text;
    let align = |char: Option<char>| char.filter(|char| matches!(char, '<' | '>' | '^' | '='));
    let mut chars = rest.chars();
    let first = chars.next();
    if let (Some(fill), Some(found)) = (first, align(chars.next())) {
        (spec.fill, spec.align) = (fill, found);
        rest = &rest[fill.len_utf8() + 1..];
    } else if let Some(found) = align(first) {
        spec.align = found;
        rest = &rest[1..];
    }
    if let Some(sign) = rest.chars().next().filter(|char| matches!(char, '+' | '-' | ' ')) {
        spec.sign = sign;
        rest = &rest[1..];
    }
    rest = rest.strip_prefix('z').unwrap_or(rest);
    if let Some(after) = rest.strip_prefix('#') {
        (spec.alternate, rest) = (true, after);
    }
    if let Some(after) = rest.strip_prefix('0') {
        if spec.align == ' ' {
            (spec.fill, spec.align) = ('0', '=');
        }
        rest = after;
    }
    rest = digits(rest, &mut spec.width);
    if let Some(separator) = rest.chars().next().filter(|char| matches!(char, ',' | '_')) {
        spec.separator = Some(separator);
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('.') {
        let mut precision = usize::MAX;
        rest = digits(after, &mut precision);
        if precision == usize::MAX {
            return fault("format: a precision without digits");
        }
        spec.precision = Some(precision);
    }
    let mut chars = rest.chars();
    spec.kind = chars.next().unwrap_or(' ');
    match chars.next() {
        None => Ok(spec),
        Some(_) => fault("format: an unknown way to write a value"),
    }
}

/// Digits before the point, in groups.
fn grouped(digits: &str, separator: char, size: usize) -> String {
    let end = digits.find(|char: char| !char.is_ascii_hexdigit()).unwrap_or(digits.len());
    let (whole, rest) = digits.split_at(end);
    let mut out = String::new();
    for (index, char) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(char);
    }
    out + rest
}

/// Takes digits.
pub(super) fn digits<'a>(rest: &'a str, number: &mut usize) -> &'a str {
    let end = rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len());
    if end > 0 {
        *number = rest[..end].parse().unwrap_or(usize::MAX >> 1);
    }
    &rest[end..]
}
