//! Jinja's tests: `value is name(arguments)`.

use std::rc::Rc;

use super::{
    Outcome,
    ast::Comparison,
    call::Given,
    fault, filters,
    run::{Object, Run},
    text,
    value::{SeqKind, Value},
};

/// The tests' names.
pub(super) const NAMES: [&str; 39] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

impl Run {
    /// Whether a value passes a test.
    pub(super) fn passes(&self, name: &str, value: &Value, given: Given) -> Outcome<bool> {
        if let Some(comparison) = comparison(name) {
            let [other] = given.exactly(name, 1)?;
            return self.compare(comparison, value, &other.unwrap_or(Value::None));
        }
        match name {
            "sameas" => {
                let [other] = given.exactly(name, 1)?;
                return self.same(value, &other.unwrap_or(Value::None));
            }
            "divisibleby" => {
                let [by] = given.exactly(name, 1)?;
                let rest =
                    self.arithmetic(super::ast::Operator::Modulo, value, &by.unwrap_or(Value::None))?;
                return Ok(!rest.truth());
            }
            _ => given.exactly::<0>(name, 0)?,
        };
        Ok(match name {
            "defined" => !matches!(value, Value::Undefined(_)),
            "undefined" => matches!(value, Value::Undefined(_)),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "true" => matches!(value, Value::Bool(true)),
            "false" => matches!(value, Value::Bool(false)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => value.as_number().is_some(),
            "string" => value.as_str().is_some(),
            "mapping" => matches!(value, Value::Map(_)),
            "sequence" => match value {
                Value::Str(_) | Value::Map(_) | Value::Undefined(_) => true,
                Value::Seq(seq) => {
                    matches!(seq.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Group | SeqKind::Range)
                }
                _ => false,
            },
            "iterable" => match value {
                Value::Str(_) | Value::Map(_) | Value::Undefined(_) | Value::Seq(_) => true,
                Value::Object(index) => matches!(self.objects.get(*index), Some(Object::Loop(_))),
                _ => false,
            },
            "callable" => match value {
                Value::Function(_) | Value::Undefined(_) => true,
                Value::Object(index) => {
                    matches!(self.objects.get(*index), Some(Object::Loop(_) | Object::Joiner(..)))
                }
                _ => false,
            },
            "escaped" => false,
            "odd" | "even" => {
                let rest = self.arithmetic(super::ast::Operator::Modulo, value, &Value::Int(2))?;
                (rest.as_number() == Some(1.0)) == (name == "odd") && (name == "odd" || !rest.truth())
            }
            "lower" | "upper" => {
                let own = self.to_text(value)?;
                self.budget.scan(own.len())?;
                if name == "lower" { text::is_lower(&own) } else { text::is_upper(&own) }
            }
            "filter" => value.as_str().is_some_and(|name| filters::NAMES.contains(&name)),
            "test" => value.as_str().is_some_and(|name| NAMES.contains(&name)),
            _ => {
                let name: String = name.chars().take(40).collect();
                return fault(format!("no test named {name:?}"));
            }
        })
    }

    /// Python's `is`, of values that it keeps once.
    fn same(&self, a: &Value, b: &Value) -> Outcome<bool> {
        Ok(match (a, b) {
            (Value::None, Value::None) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Str(_), Value::Str(_)) => return self.budget.equal(a, b),
            (Value::Seq(a), Value::Seq(b)) => Rc::ptr_eq(a, b),
            (Value::Map(a), Value::Map(b)) => Rc::ptr_eq(a, b),
            (Value::Object(a), Value::Object(b)) => a == b,
            (Value::Function(a), Value::Function(b)) => Rc::ptr_eq(a, b),
            _ => false,
        })
    }
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "==" | "eq" | "equalto" => Comparison::Equal,
        "!=" | "ne" => Comparison::Unequal,
        "<" | "lt" | "lessthan" => Comparison::Less,
        "<=" | "le" => Comparison::LessOrEqual,
        ">" | "gt" | "greaterthan" => Comparison::Greater,
        ">=" | "ge" => Comparison::GreaterOrEqual,
        "in" => Comparison::In,
        _ => return None,
    })
}
