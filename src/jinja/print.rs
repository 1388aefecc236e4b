//! Values as Python's `str` and `repr` write them.

use super::{
    Outcome, number,
    run::{Object, Run},
    value::{Function, Map, Seq, SeqKind, Value},
};

impl Run {
    /// Python's `str(value)`.
    pub(super) fn to_text(&self, value: &Value) -> Outcome<String> {
        let mut text = String::new();
        self.write(value, &mut text)?;
        Ok(text)
    }

    /// Writes `str(value)`.
    pub(super) fn write(&self, value: &Value, out: &mut String) -> Outcome<()> {
        match value {
            Value::Undefined(_) => Ok(()),
            Value::Str(text) => self.print(text, out),
            other => self.write_repr(other, out),
        }
    }

    /// Writes and pays.
    fn print(&self, text: &str, out: &mut String) -> Outcome<()> {
        self.budget.spend(1)?;
        self.budget.take(text.len())?;
        out.push_str(text);
        Ok(())
    }

    /// Writes `repr(value)`.
    pub(super) fn write_repr(&self, value: &Value, out: &mut String) -> Outcome<()> {
        match value {
            Value::Undefined(_) => self.print("Undefined", out),
            Value::None => self.print("None", out),
            Value::Bool(true) => self.print("True", out),
            Value::Bool(false) => self.print("False", out),
            Value::Int(number) => self.print(&number.to_string(), out),
            Value::Float(number) => self.print(&number::repr(*number), out),
            Value::Str(text) => {
                // An escape has four bytes where a character has one.
                self.budget.take(3 * text.len())?;
                self.budget.scan(text.len())?;
                self.print(&quoted(text), out)
            }
            Value::Seq(seq) => self.budget.deeper(|| self.write_seq(seq, out)),
            Value::Map(map) => self.budget.deeper(|| self.write_map(map, out)),
            Value::Object(index) => self.budget.deeper(|| self.write_object(*index, out)),
            Value::Function(function) => match &**function {
                Function::Macro(made, ..) => self.print(&format!("<Macro {}>", quoted(&made.name)), out),
                Function::Method(value, name) => {
                    self.print(&format!("<built-in method {name} of {} object>", value.type_name()), out)
                }
                Function::Global(name) => self.print(&format!("<function {name}>"), out),
                Function::FromKeys => self.print("<function fromkeys>", out),
            },
        }
    }

    fn write_seq(&self, seq: &Seq, out: &mut String) -> Outcome<()> {
        let (open, close) = match seq.kind {
            SeqKind::List => ("[", "]"),
            SeqKind::Tuple | SeqKind::Group if seq.items.len() == 1 => ("(", ",)"),
            SeqKind::Tuple | SeqKind::Group => ("(", ")"),
            SeqKind::Keys => ("dict_keys([", "])"),
            SeqKind::Values => ("dict_values([", "])"),
            SeqKind::Items => ("dict_items([", "])"),
            SeqKind::Generator => return self.print("<generator object>", out),
            SeqKind::Range => return self.print(&range(&seq.items), out),
        };
        self.print(open, out)?;
        for (index, item) in seq.items.iter().enumerate() {
            if index > 0 {
                self.print(", ", out)?;
            }
            self.write_repr(item, out)?;
        }
        self.print(close, out)
    }

    fn write_map(&self, map: &Map, out: &mut String) -> Outcome<()> {
        self.print("{", out)?;
        for (index, (key, value)) in map.entries.iter().enumerate() {
            if index > 0 {
                self.print(", ", out)?;
            }
            self.write_repr(key, out)?;
            self.print(": ", out)?;
            self.write_repr(value, out)?;
        }
        self.print("}", out)
    }

    fn write_object(&self, index: usize, out: &mut String) -> Outcome<()> {
        match self.objects.get(index) {
            Some(Object::Namespace(names)) => {
                self.print("<Namespace {", out)?;
                for (index, (name, value)) in names.iter().enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    self.print(&format!("{comma}{}: ", quoted(name)), out)?;
                    self.write_repr(value, out)?;
                }
                self.print("}>", out)
            }
            Some(Object::Loop(state)) => {
                self.print(&format!("<LoopContext {}/{}>", state.index + 1, state.items.len()), out)
            }
            Some(Object::Cycler(..)) => self.print("<Cycler>", out),
            Some(Object::Joiner(..)) => self.print("<Joiner>", out),
            None => Ok(()),
        }
    }
}

/// A range's items, by the shortest that would make them.
fn range(items: &[Value]) -> String {
    let int = |index: usize| items.get(index).and_then(Value::as_int);
    let (Some(first), Some(last)) = (int(0), items.last().and_then(Value::as_int)) else {
        return "range(0, 0)".to_owned();
    };
    match int(1).map(|second| second - first) {
        None | Some(1) => format!("range({first}, {})", last + 1),
        Some(step) => format!("range({first}, {}, {step})", last + step.signum()),
    }
}

/// A text as Python's `repr` quotes it.
pub(super) fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if char == quote => out.extend(['\\', char]),
            ' '..='~' => out.push(char),
            _ if printable(char) => out.push(char),
            _ => out.push_str(&escape(u32::from(char))),
        }
    }
    out.push(quote);
    out
}

fn escape(code: u32) -> String {
    match code {
        0..=0xff => format!("\\x{code:02x}"),
        0x100..=0xffff => format!("\\u{code:04x}"),
        _ => format!("\\U{code:08x}"),
    }
}

/// Whether Python prints a character: as Rust's `Debug` decides, except for combining marks, which Python prints.
pub(super) fn printable(char: char) -> bool {
    if char.is_ascii() {
        return (' '..='~').contains(&char);
    }
    let mark = matches!(u32::from(char), 0x300..=0x36f | 0x483..=0x489 | 0x591..=0x5bd | 0x64b..=0x65f | 0x1ab0..=0x1aff
        | 0x1dc0..=0x1dff | 0x20d0..=0x20f0 | 0x3099..=0x309a | 0xfe00..=0xfe0f | 0xfe20..=0xfe2f | 0xe0100..=0xe01ef);
    let escaped = || char.escape_debug().next() == Some('\\');
    !super::lexer::is_space(char) && (mark || char.is_alphanumeric() || !escaped())
}
