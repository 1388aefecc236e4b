//! What a function, a method, a filter or a test is given.

use std::{array, sync::Arc};

use super::{Outcome, budget::Budget, fault, value::Value};

/// Arguments, evaluated.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub positional: Vec<Value>,
    pub named: Vec<(Arc<str>, Value)>,
}

impl Given {
    /// Only these.
    pub fn only(positional: Vec<Value>) -> Self {
        Self { positional, named: Vec::new() }
    }

    /// The arguments by the names of the parameters of `callee`.
    pub fn bind<const N: usize>(self, callee: &str, names: [&str; N]) -> Outcome<[Option<Value>; N]> {
        let mut bound: [Option<Value>; N] = array::from_fn(|_| None);
        let count = self.positional.len();
        if count > N {
            return fault(format!("{callee} takes at most {N} arguments, not {count}"));
        }
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let slot = names.iter().position(|known| **known == *name).and_then(|index| bound.get_mut(index));
            match slot {
                Some(slot @ None) => *slot = Some(value),
                Some(Some(_)) => return fault(format!("{callee} is given {name} twice")),
                None => {
                    let name: String = name.chars().take(40).collect();
                    return fault(format!("{callee} has no argument {name}"));
                }
            }
        }
        Ok(bound)
    }

    /// The arguments of what takes only positional ones, of which the first `needed` must be there.
    pub fn exactly<const N: usize>(self, callee: &str, needed: usize) -> Outcome<[Option<Value>; N]> {
        let bound = self.bind(callee, [""; N])?;
        match bound.iter().take(needed).all(Option::is_some) {
            true => Ok(bound),
            false => fault(format!("{callee} takes {needed} arguments at least")),
        }
    }
}

/// An argument that is a text.
pub(super) fn text(callee: &str, value: Option<Value>) -> Outcome<Arc<str>> {
    match value {
        Some(Value::Str(text)) => Ok(text),
        Some(other) => {
            other.defined()?;
            fault(format!("{callee} takes a string, not {}", other.type_name()))
        }
        None => fault(format!("{callee} takes a string")),
    }
}

/// An argument that is a text, none, or absent.
pub(super) fn optional_text(callee: &str, value: Option<Value>) -> Outcome<Option<Arc<str>>> {
    match value {
        None | Some(Value::None) => Ok(None),
        some => text(callee, some).map(Some),
    }
}

/// An argument that is a whole number or absent.
pub(super) fn int(callee: &str, value: Option<Value>, default: i64) -> Outcome<i64> {
    match value {
        None => Ok(default),
        Some(value) => match value.as_int() {
            Some(number) => Ok(number),
            None => {
                value.defined()?;
                fault(format!("{callee} takes a whole number, not {}", value.type_name()))
            }
        },
    }
}

/// An argument that counts as true or not, or is absent.
pub(super) fn truth(value: Option<Value>, default: bool) -> bool {
    value.map_or(default, |value| value.truth())
}

impl Budget {
    /// A number of places to fill, of a size that is paid for.
    pub(super) fn width(&self, width: i64) -> Outcome<usize> {
        let width = usize::try_from(width).unwrap_or(0);
        self.places(width)?;
        Ok(width)
    }

    /// Pays for places that any character may fill.
    pub fn places(&self, width: usize) -> Outcome<()> {
        self.take(width.saturating_mul(4))
    }
}
