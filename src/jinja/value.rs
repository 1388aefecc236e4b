//! Values of templates: Python's, as far as templates need them.

use std::{cell::Cell, rc::Rc, sync::Arc};

use super::{Outcome, ast::Macro, fault};

/// A value. None can hold itself: what can change lies in the run's list of [`Object`]s.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// What is not there; the text says what.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    Seq(Rc<Seq>),
    Map(Rc<Map>),
    /// An index into the run's objects.
    Object(usize),
    #[allow(private_interfaces)] // nobody else looks inside
    Function(Rc<Function>),
}

/// Values in a row.
#[derive(Debug)]
pub(crate) struct Seq {
    pub(super) kind: SeqKind,
    pub(super) items: Vec<Value>,
    pub(super) depth: u32,
    /// A generator gives its items once.
    pub(super) spent: Cell<bool>,
}

/// What Python calls a row of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeqKind {
    List,
    Tuple,
    /// A tuple of `groupby`, which has names, too.
    Group,
    Range,
    Keys,
    Values,
    Items,
    Generator,
}

/// A dict, in the order of its making.
#[derive(Debug)]
pub(crate) struct Map {
    pub(super) entries: Vec<(Value, Value)>,
    pub(super) depth: u32,
}

/// What can be called.
#[derive(Debug)]
pub(super) enum Function {
    /// By name: `range`.
    Global(&'static str),
    /// A method of a value: `text.strip`.
    Method(Value, Arc<str>),
    /// A method of `dict` itself.
    FromKeys,
    /// A macro and the values of the blocks around it.
    Macro(Arc<Macro>, Vec<(Arc<str>, Value)>, u32),
}

impl Value {
    /// A text.
    pub(crate) fn text(text: &str) -> Self {
        Self::Str(text.into())
    }

    /// A dict with these names, of given values.
    pub(crate) fn dict(entries: Vec<(&str, Value)>) -> Self {
        let entries: Vec<_> = entries.into_iter().map(|(name, value)| (Self::text(name), value)).collect();
        let depth = 1 + entries.iter().map(|(_, value)| value.depth()).max().unwrap_or(0);
        Self::Map(Rc::new(Map { entries, depth }))
    }

    /// A list of given values.
    pub(crate) fn list(items: Vec<Value>) -> Self {
        let depth = 1 + items.iter().map(Self::depth).max().unwrap_or(0);
        Self::Seq(Rc::new(Seq { kind: SeqKind::List, items, depth, spent: Cell::new(false) }))
    }

    /// About how many bytes a given value has.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Str(text) => text.len(),
            Self::Seq(seq) => seq.items.iter().map(|item| 32 + item.bytes()).sum(),
            Self::Map(map) => map.entries.iter().map(|(key, value)| 64 + key.bytes() + value.bytes()).sum(),
            _ => 0,
        }
    }

    /// Levels of values from here down.
    pub(super) fn depth(&self) -> u32 {
        match self {
            Self::Seq(seq) => seq.depth,
            Self::Map(map) => map.depth,
            Self::Function(function) => match &**function {
                Function::Method(value, _) => 1 + value.depth(),
                Function::Macro(_, _, depth) => *depth,
                Function::Global(_) | Function::FromKeys => 0,
            },
            _ => 0,
        }
    }

    /// Its items, where it is a row that has them all at once.
    pub(super) fn items(&self) -> Option<&[Value]> {
        match self {
            Self::Seq(seq) if seq.kind != SeqKind::Generator => Some(&seq.items),
            _ => None,
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        if let Self::Str(text) = self { Some(text) } else { None }
    }

    /// A whole number, which in Python a truth value is, too.
    pub(super) fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bool(truth) => Some(i64::from(*truth)),
            _ => None,
        }
    }

    pub(super) fn as_number(&self) -> Option<f64> {
        if let Self::Float(number) = self { Some(*number) } else { self.as_int().map(|number| number as f64) }
    }

    /// Whether it counts as true.
    pub(super) fn truth(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(truth) => *truth,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::Seq(seq) => seq.kind == SeqKind::Generator || !seq.items.is_empty(),
            Self::Map(map) => !map.entries.is_empty(),
            Self::Object(_) | Self::Function(_) => true,
        }
    }

    /// What Python calls its type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Seq(seq) => match seq.kind {
                SeqKind::List => "list",
                SeqKind::Tuple | SeqKind::Group => "tuple",
                SeqKind::Range => "range",
                SeqKind::Keys => "dict_keys",
                SeqKind::Values => "dict_values",
                SeqKind::Items => "dict_items",
                SeqKind::Generator => "generator",
            },
            Self::Map(_) => "dict",
            Self::Object(_) => "object",
            Self::Function(_) => "function",
        }
    }

    /// A fault where this is undefined.
    pub(super) fn defined(&self) -> Outcome<()> {
        match self {
            Self::Undefined(what) => fault(&**what),
            _ => Ok(()),
        }
    }
}
