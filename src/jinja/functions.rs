//! Calls, and the functions that every template knows.

use std::sync::Arc;

use super::{
    Outcome,
    ast::{Arguments, Expr, Kind},
    call::{Given, int, text},
    clock, fault,
    run::{Object, Run},
    text::short,
    value::{Function, SeqKind, Value},
};

/// Functions that every template knows.
pub(super) const GLOBALS: [&str; 7] =
    ["cycler", "dict", "joiner", "namespace", "raise_exception", "range", "strftime_now"];
/// The longest range, as in jinja2's sandbox.
const MAX_RANGE: i128 = 100_000;

impl Run {
    /// A `{% call %}` block's call.
    pub(super) fn call_with(&mut self, call: &Expr, caller: Value) -> Outcome<Value> {
        let Kind::Call(callee, arguments) = &call.kind else { return fault("{% call %} takes a call") };
        self.call(callee, arguments, Some(caller)).map_err(|mut fault| {
            fault.at.get_or_insert(call.at);
            fault
        })
    }

    #[inline(never)]
    pub(super) fn call(
        &mut self,
        callee: &Expr,
        arguments: &Arguments,
        caller: Option<Value>,
    ) -> Outcome<Value> {
        let callee = self.eval(callee)?;
        let mut given = self.given(arguments)?;
        given.named.extend(caller.map(|caller| ("caller".into(), caller)));
        let value = match &callee {
            Value::Function(function) => match &**function {
                Function::Macro(made, known, _) => self.call_macro(callee.clone(), made, known, given),
                Function::Method(Value::Object(index), name) => self.object_method(*index, name, given),
                Function::Method(value, name) => self.call_method(value, name, given),
                Function::Global(name) => self.call_global(name, given),
                Function::FromKeys => {
                    let [keys, value] = given.exactly("fromkeys", 1)?;
                    let (keys, value) = (keys.unwrap_or(Value::None), value.unwrap_or(Value::None));
                    let keys = self.iterate(&keys)?;
                    self.budget.take(keys.len() * 64)?;
                    self.budget.map(keys.iter().map(|key| (key.clone(), value.clone())).collect())
                }
            },
            Value::Object(index) => self.call_object(*index, given),
            Value::Undefined(what) => fault(&**what),
            other => fault(format!("{} cannot be called", other.type_name())),
        };
        self.budget.release(callee);
        value
    }

    #[inline(never)]
    pub(super) fn given(&mut self, arguments: &Arguments) -> Outcome<Given> {
        let mut given = Given::only(self.all(&arguments.positional)?);
        if let Some(rest) = &arguments.rest {
            let rest = self.eval(rest)?;
            let rest = self.iterate(&rest)?;
            self.budget.take(rest.len() * size_of::<Value>())?;
            given.positional.extend(rest.iter().cloned());
        }
        for (name, value) in &arguments.named {
            given.named.push((Arc::clone(name), self.eval(value)?));
        }
        if let Some(rest) = &arguments.named_rest {
            let Value::Map(map) = self.eval(rest)? else { return fault("** takes a dict") };
            self.budget.take(map.entries.len() * 64)?;
            for (name, value) in &map.entries {
                let Value::Str(name) = name else { return fault("the names of arguments are strings") };
                given.named.push((Arc::clone(name), value.clone()));
            }
        }
        Ok(given)
    }

    fn call_global(&mut self, name: &str, given: Given) -> Outcome<Value> {
        match name {
            "range" => self.range(given),
            "dict" => {
                let pairs = self.dict_pairs("dict", given)?;
                self.budget.map(pairs)
            }
            "namespace" => {
                let mut names: Vec<(Arc<str>, Value)> = Vec::new();
                for (name, value) in self.dict_pairs(name, given)? {
                    let name = text("namespace", Some(name))?;
                    if name.starts_with('_') {
                        return fault("a namespace's names do not begin with _");
                    }
                    self.budget.spend(names.len())?;
                    names.retain(|(known, _)| *known != name);
                    names.push((name, value));
                }
                self.keep(Object::Namespace(names))
            }
            "cycler" if given.positional.is_empty() => fault("cycler takes items"),
            "cycler" => self.keep(Object::Cycler(given.positional, 0)),
            "joiner" => {
                let [separator] = given.bind(name, ["sep"])?;
                self.keep(Object::Joiner(separator.unwrap_or_else(|| Value::text(", ")), false))
            }
            "strftime_now" => {
                let [format] = given.bind(name, ["format"])?;
                let format = text(name, format)?;
                self.budget.take(format.len().saturating_mul(16))?;
                self.budget.scan(format.len())?;
                self.budget.text(clock::strftime(&format, &clock::now()))
            }
            _ => {
                let [message] = given.bind(name, ["message"])?;
                let message = message.map_or(Ok(String::new()), |message| self.to_text(&message))?;
                Err(Box::new(super::Fault { at: None, message, raised: true }))
            }
        }
    }

    /// What `dict` is given: pairs or a dict, then names.
    fn dict_pairs(&self, callee: &str, mut given: Given) -> Outcome<Vec<(Value, Value)>> {
        let named = std::mem::take(&mut given.named);
        let [from] = given.exactly(callee, 0)?;
        let mut pairs = Vec::new();
        match from {
            None => {}
            Some(Value::Map(map)) => {
                self.budget.take(map.entries.len() * 64)?;
                pairs.extend(map.entries.iter().cloned());
            }
            Some(other) => {
                for pair in self.iterate(&other)?.iter() {
                    self.budget.take(64)?;
                    match &*self.iterate(pair)? {
                        [key, value] => pairs.push((key.clone(), value.clone())),
                        _ => return fault(format!("{callee} takes pairs")),
                    }
                }
            }
        }
        pairs.extend(named.into_iter().map(|(name, value)| (Value::Str(name), value)));
        Ok(pairs)
    }

    fn range(&self, given: Given) -> Outcome<Value> {
        let [first, second, step] = given.exactly("range", 1)?;
        let step = int("range", step, 1)?;
        let (start, stop) = match second {
            None => (0, int("range", first, 0)?),
            second => (int("range", first, 0)?, int("range", second, 0)?),
        };
        if step == 0 {
            return fault("a range's step is not zero");
        }
        let (start, stop, by) = (i128::from(start), i128::from(stop), i128::from(step));
        let count = ((stop - start + by - by.signum()) / by).max(0);
        if count > MAX_RANGE {
            return fault(format!("a range of more than {MAX_RANGE} numbers"));
        }
        self.budget.take(count as usize * size_of::<Value>())?;
        let numbers = (0..count).map(|index| Value::Int((start + index * by) as i64));
        self.budget.seq(SeqKind::Range, numbers.collect())
    }

    /// Calls what can change.
    fn call_object(&mut self, index: usize, given: Given) -> Outcome<Value> {
        match self.objects.get_mut(index) {
            Some(Object::Joiner(separator, used)) => {
                let first = !std::mem::replace(used, true);
                let separator = separator.clone();
                given.exactly::<0>("joiner", 0)?;
                Ok(if first { Value::text("") } else { separator })
            }
            Some(Object::Loop(_)) => {
                let [items] = given.exactly("loop", 1)?;
                self.loop_again(index, &items.unwrap_or(Value::None))
            }
            _ => fault("this object cannot be called"),
        }
    }

    fn object_method(&mut self, index: usize, name: &str, given: Given) -> Outcome<Value> {
        match self.objects.get_mut(index) {
            Some(Object::Loop(state)) if name == "cycle" => match given.positional.len() {
                0 => fault("cycle takes items"),
                count => Ok(given.positional.get(state.index % count).cloned().unwrap_or(Value::None)),
            },
            Some(Object::Loop(state)) => {
                let before = state.changed.replace(given.positional.clone());
                let after = given.positional;
                self.budget.take(after.len() * size_of::<Value>())?;
                let mut same = before.as_ref().is_some_and(|before| before.len() == after.len());
                for (a, b) in before.unwrap_or_default().iter().zip(&after) {
                    same = same && self.budget.equal(a, b)?;
                }
                Ok(Value::Bool(!same))
            }
            Some(Object::Cycler(values, place)) => {
                let current = values.get(*place).cloned().unwrap_or(Value::None);
                *place = if name == "next" { (*place + 1) % values.len().max(1) } else { 0 };
                Ok(if name == "next" { current } else { Value::None })
            }
            _ => fault(format!("this object has no method {}", short(name))),
        }
    }
}
