//! `'…' % values`.

use super::{
    Outcome, fault,
    format::{Spec, digits, padded, precise},
    number,
    print::quoted,
    run::Run,
    value::{SeqKind, Value},
};

impl Run {
    /// Python's `%` on a text.
    pub(super) fn percent(&self, format: &str, values: &Value) -> Outcome<Value> {
        self.budget.scan(format.len())?;
        let items = match values {
            Value::Seq(seq) if matches!(seq.kind, SeqKind::Tuple | SeqKind::Group) => &seq.items[..],
            other => std::slice::from_ref(other),
        };
        let mut next = items.iter();
        let (mut out, mut rest) = (String::new(), format);
        let mut named = false;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            let mut key = None;
            if let Some(inner) = rest.strip_prefix('(') {
                let Some((name, after)) = inner.split_once(')') else {
                    return fault("% has a name that does not end");
                };
                (key, rest, named) = (Some(name), after, true);
            }
            let mut take = || match next.next() {
                Some(value) => Ok(value.clone()),
                None => fault("not enough values for the text's %"),
            };
            let mut spec = Spec { fill: ' ', align: '>', ..Spec::default() };
            rest = flags(rest, &mut spec);
            if let Some(after) = rest.strip_prefix('*') {
                let width = take()?.as_int().unwrap_or(0);
                (spec.width, rest) = (width.unsigned_abs() as usize, after);
                spec.align = if width < 0 { '<' } else { spec.align };
            } else {
                rest = digits(rest, &mut spec.width);
            }
            if let Some(after) = rest.strip_prefix('.') {
                let mut precision = 0;
                rest = digits(after, &mut precision);
                spec.precision = Some(precision);
            }
            rest = rest.trim_start_matches(['h', 'l', 'L']);
            let Some(kind) = rest.chars().next() else { return fault("% that says no kind") };
            rest = &rest[kind.len_utf8()..];
            if kind == '%' {
                out.push('%');
                continue;
            }
            let value = match key {
                None => take()?,
                Some(key) => self.item_of(values, &Value::text(key))?,
            };
            spec.kind = kind;
            out.push_str(&self.conversion(&value, spec)?);
        }
        out.push_str(rest);
        if !named && next.next().is_some() && !matches!(values, Value::Map(_) | Value::Undefined(_)) {
            return fault("more values than the text has %");
        }
        self.budget.text(out)
    }

    fn conversion(&self, value: &Value, mut spec: Spec) -> Outcome<String> {
        self.budget.places(spec.width)?;
        precise(spec.precision)?;
        let cut = |text: String| match spec.precision {
            Some(most) => text.chars().take(most).collect(),
            None => text,
        };
        let text = match spec.kind {
            's' => cut(self.to_text(value)?),
            'r' | 'a' => {
                let mut text = String::new();
                self.write_repr(value, &mut text)?;
                cut(text)
            }
            'c' => match value {
                Value::Str(text) if text.chars().count() == 1 => text.to_string(),
                other => {
                    match other.as_int().and_then(|code| u32::try_from(code).ok()).and_then(char::from_u32) {
                        Some(char) => char.to_string(),
                        None => return fault("%c takes a character"),
                    }
                }
            },
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
                let number = match value {
                    Value::Float(number) if !matches!(spec.kind, 'x' | 'X' | 'o') => *number as i64,
                    other => match other.as_int() {
                        Some(number) => number,
                        None => {
                            return fault(format!(
                                "%{} takes a number, not {}",
                                spec.kind,
                                other.type_name()
                            ));
                        }
                    },
                };
                let digits = number::in_base(number.unsigned_abs(), spec.kind);
                let least = spec.precision.unwrap_or(0);
                let prefix = if spec.alternate && matches!(spec.kind, 'x' | 'X' | 'o') {
                    format!("0{}", spec.kind)
                } else {
                    String::new()
                };
                return self.signed_text(number < 0, &prefix, &format!("{digits:0>least$}"), &mut spec);
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let Some(number) = value.as_number() else {
                    return fault(format!("%{} takes a number, not {}", spec.kind, value.type_name()));
                };
                let digits =
                    number::formatted(number.abs(), spec.kind, spec.precision.unwrap_or(6), spec.alternate);
                return self.signed_text(number.is_sign_negative(), "", &digits, &mut spec);
            }
            other => return fault(format!("%{} is no kind of text", quoted(&other.to_string()))),
        };
        Ok(padded(&text, spec.width, ' ', spec.align))
    }

    /// A number with its sign and prefix, padded with spaces or zeros.
    pub(super) fn signed_text(
        &self,
        negative: bool,
        prefix: &str,
        digits: &str,
        spec: &mut Spec,
    ) -> Outcome<String> {
        let sign = match (negative, spec.sign) {
            (true, _) => "-",
            (false, '+') => "+",
            (false, ' ') => " ",
            (false, _) => "",
        };
        let start = format!("{sign}{prefix}");
        if spec.align == '=' {
            let width = spec.width.saturating_sub(start.chars().count());
            return Ok(start + &padded(digits, width, spec.fill, '>'));
        }
        Ok(padded(&(start + digits), spec.width, spec.fill, spec.align))
    }
}

/// Takes `%`'s flags.
fn flags<'a>(mut rest: &'a str, spec: &mut Spec) -> &'a str {
    let mut left = false;
    while let Some(flag) = rest.chars().next().filter(|char| matches!(char, '-' | '0' | '+' | ' ' | '#')) {
        match flag {
            '-' => left = true,
            '0' => (spec.fill, spec.align) = ('0', '='),
            '+' => spec.sign = '+',
            ' ' if spec.sign != '+' => spec.sign = ' ',
            '#' => spec.alternate = true,
            _ => {}
        }
        rest = &rest[1..];
    }
    if left {
        (spec.fill, spec.align) = (' ', '<');
    }
    rest
}
