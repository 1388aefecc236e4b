//! Attributes and items of values.

use std::sync::Arc;

use super::{
    Outcome, methods,
    run::{LoopState, Object, Run},
    text::short,
    value::{Function, SeqKind, Value},
};

impl Run {
    /// `value.name`: an attribute, or else an item.
    #[inline(never)]
    pub(super) fn attribute(&self, value: &Value, name: &Arc<str>) -> Outcome<Value> {
        value.defined()?;
        match self.attribute_alone(value, name)? {
            Value::Undefined(what) => match value {
                Value::Map(map) => Ok(map
                    .get(&Value::Str(Arc::clone(name)), &self.budget)?
                    .unwrap_or(Value::Undefined(what))),
                _ => Ok(Value::Undefined(what)),
            },
            found => Ok(found),
        }
    }

    /// `value.name`, where it is no item.
    pub(super) fn attribute_alone(&self, value: &Value, name: &Arc<str>) -> Outcome<Value> {
        if methods::has(value, name) {
            return self.budget.function(Function::Method(value.clone(), Arc::clone(name)));
        }
        let found = match value {
            Value::Object(index) => match self.objects.get(*index) {
                Some(Object::Namespace(names)) => {
                    self.budget.spend(names.len() / 8 + name.len() / 64)?;
                    names.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
                }
                Some(Object::Loop(state)) => loop_attribute(state, name),
                Some(Object::Cycler(values, index)) if &**name == "current" => values.get(*index).cloned(),
                _ => None,
            },
            Value::Seq(seq) if seq.kind == SeqKind::Group => match &**name {
                "grouper" => seq.items.first().cloned(),
                "list" => seq.items.get(1).cloned(),
                _ => None,
            },
            Value::Function(function) => match (&**function, &**name) {
                (Function::Macro(made, ..), "name") => Some(Value::Str(Arc::clone(&made.name))),
                (Function::Global("dict"), "fromkeys") => Some(self.budget.function(Function::FromKeys)?),
                _ => None,
            },
            _ => None,
        };
        match (found, value) {
            (Some(found), _) => Ok(found),
            (None, Value::Object(index)) if self.object_has(*index, name) => {
                self.budget.function(Function::Method(value.clone(), Arc::clone(name)))
            }
            _ if methods::changes(value, name) => {
                let what =
                    format!("{}.{name} would change a value, which templates cannot", value.type_name());
                Ok(Value::Undefined(what.into()))
            }
            _ => Ok(missing(value, name)),
        }
    }

    fn object_has(&self, index: usize, name: &str) -> bool {
        match self.objects.get(index) {
            Some(Object::Loop(_)) => matches!(name, "cycle" | "changed"),
            Some(Object::Cycler(..)) => matches!(name, "next" | "reset"),
            _ => false,
        }
    }

    /// `value[key]`: an item, or else an attribute.
    #[inline(never)]
    pub(super) fn item_of(&self, value: &Value, key: &Value) -> Outcome<Value> {
        value.defined()?;
        let found = match value {
            Value::Map(map) => map.get(key, &self.budget)?,
            _ => match key.as_int() {
                Some(place) => self.index(value, place)?,
                None => None,
            },
        };
        match (found, key) {
            (Some(found), _) => Ok(found),
            (None, Value::Str(name)) => self.attribute_alone(value, name),
            (None, _) => {
                let what = format!("{} has no item {:?}", value.type_name(), short(&self.to_text(key)?));
                Ok(Value::Undefined(what.into()))
            }
        }
    }
}

fn missing(value: &Value, name: &str) -> Value {
    Value::Undefined(format!("{} has no attribute {:?}", value.type_name(), short(name)).into())
}

/// What a loop tells of itself.
fn loop_attribute(state: &LoopState, name: &str) -> Option<Value> {
    let (index, count) = (state.index, state.items.len());
    let int = |number: usize| Some(Value::Int(number as i64));
    let item = |place: Option<usize>, what: &str| {
        let item = place.and_then(|place| state.items.get(place)).cloned();
        Some(item.unwrap_or_else(|| Value::Undefined(format!("there is no {what} item").into())))
    };
    match name {
        "index" => int(index + 1),
        "index0" => int(index),
        "revindex" => int(count - index),
        "revindex0" => int(count - index - 1),
        "first" => Some(Value::Bool(index == 0)),
        "last" => Some(Value::Bool(index + 1 == count)),
        "length" => int(count),
        "depth" => int(state.depth + 1),
        "depth0" => int(state.depth),
        "previtem" => item(index.checked_sub(1), "previous"),
        "nextitem" => item(Some(index + 1), "next"),
        _ => None,
    }
}
