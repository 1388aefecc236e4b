//! A rendering: what statements do.

use std::{collections::HashMap, mem, ops::Range, sync::Arc};

use super::{
    Outcome,
    ast::{Expr, For, Macro, Stmt, Target},
    budget::Budget,
    call::Given,
    fault,
    value::{Function, Value},
};

/// A rendering under way.
pub(super) struct Run {
    pub budget: Budget,
    /// Names and their values: those that were given, the template's own, and those of the blocks around what runs.
    scopes: Vec<HashMap<Arc<str>, Value>>,
    /// The first scope of the macro that runs; with it, only the first two are seen.
    base: usize,
    /// What can change, and so could hold itself.
    pub objects: Vec<Object>,
    out: String,
}

/// What can change.
pub(super) enum Object {
    Namespace(Vec<(Arc<str>, Value)>),
    Loop(LoopState),
    /// Values in turns.
    Cycler(Vec<Value>, usize),
    /// Nothing the first time, then a separator.
    Joiner(Value, bool),
}

/// Where a loop is.
pub(super) struct LoopState {
    node: Arc<For>,
    pub items: Vec<Value>,
    pub index: usize,
    /// Recursive loops around it.
    pub depth: usize,
    /// What `loop.changed` saw last.
    pub changed: Option<Vec<Value>>,
}

/// How a block ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

impl Run {
    /// A rendering of given values.
    pub fn new(budget: Budget, values: Vec<(String, Value)>) -> Self {
        let given = values.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let (scopes, objects) = (vec![given, HashMap::new()], Vec::new());
        Self { budget, scopes, base: 1, objects, out: String::new() }
    }

    /// The text that statements make.
    pub fn render(&mut self, body: &[Stmt]) -> Outcome<String> {
        self.block(body)?;
        Ok(mem::take(&mut self.out))
    }

    // Names.

    /// The value of a name.
    pub fn lookup(&self, name: &str) -> Outcome<Option<Value>> {
        let own = self.scopes.get(self.base..).unwrap_or_default();
        let outer = self.scopes.get(..2.min(self.base)).unwrap_or_default();
        self.budget.spend((8 + name.len()).saturating_mul(own.len() + outer.len()) / 64)?;
        Ok(own.iter().rev().chain(outer.iter().rev()).find_map(|scope| scope.get(name)).cloned())
    }

    fn set(&mut self, name: &Arc<str>, value: Value) -> Outcome<()> {
        self.budget.take(96)?;
        self.budget.spend(name.len() / 64)?;
        let before = self.scopes.last_mut().and_then(|scope| scope.insert(Arc::clone(name), value));
        before.into_iter().for_each(|before| self.budget.release(before));
        Ok(())
    }

    fn assign(&mut self, target: &Target, value: Value) -> Outcome<()> {
        match target {
            Target::Name(name) => self.set(name, value),
            Target::Tuple(targets) => {
                let items = self.iterate(&value)?.into_owned();
                if items.len() != targets.len() {
                    return fault(format!("{} values for {} names", items.len(), targets.len()));
                }
                targets.iter().zip(items).try_for_each(|(target, item)| self.assign(target, item))
            }
            Target::Attribute(space, name, at) => {
                let object = self.lookup(space)?;
                let assigned = match object {
                    Some(Value::Object(index)) => self.set_attribute(index, name, value),
                    _ => fault("attributes can be set on namespaces only"),
                };
                assigned.map_err(|mut fault| {
                    fault.at.get_or_insert(*at);
                    fault
                })
            }
        }
    }

    fn set_attribute(&mut self, index: usize, name: &Arc<str>, value: Value) -> Outcome<()> {
        self.budget.take(48)?;
        let Some(Object::Namespace(names)) = self.objects.get_mut(index) else {
            return fault("attributes can be set on namespaces only");
        };
        self.budget.spend(names.len() / 8 + name.len() / 64)?;
        match names.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => self.budget.release(mem::replace(known, value)),
            None if name.starts_with('_') => return fault("a namespace's names do not begin with _"),
            None => names.push((Arc::clone(name), value)),
        }
        Ok(())
    }

    /// Keeps something that can change.
    pub fn keep(&mut self, object: Object) -> Outcome<Value> {
        self.budget.take(128)?;
        self.objects.push(object);
        Ok(Value::Object(self.objects.len() - 1))
    }

    // Statements.

    fn block(&mut self, body: &[Stmt]) -> Outcome<Flow> {
        self.budget.enter()?;
        let mut flow = Flow::Next;
        for statement in body {
            flow = self.statement(statement)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.budget.leave();
        Ok(flow)
    }

    /// A block with names of its own.
    fn scoped(&mut self, body: &[Stmt]) -> Outcome<Flow> {
        self.scopes.push(HashMap::new());
        let flow = self.block(body);
        self.scopes.pop();
        flow
    }

    /// The text that some work writes.
    fn captured(&mut self, work: impl FnOnce(&mut Self) -> Outcome<Flow>) -> Outcome<String> {
        let outer = mem::take(&mut self.out);
        let done = work(self);
        let inner = mem::replace(&mut self.out, outer);
        done.map(|_| inner)
    }

    fn put(&mut self, value: &Value) -> Outcome<()> {
        let mut out = mem::take(&mut self.out);
        let done = self.write(value, &mut out);
        self.out = out;
        done
    }

    fn statement(&mut self, statement: &Stmt) -> Outcome<Flow> {
        self.budget.spend(1)?;
        match statement {
            Stmt::Text(text) => {
                self.budget.take(text.len())?;
                self.out.push_str(text);
            }
            Stmt::Output(value) => {
                let value = self.eval(value)?;
                self.put(&value)?;
                self.budget.release(value);
            }
            Stmt::If(branches, otherwise) => return self.branch(branches, otherwise),
            Stmt::For(node) => {
                let items = self.loop_items(node)?;
                return self.run_loop(node, items, 0);
            }
            Stmt::Set(target, value) => {
                let value = self.eval(value)?;
                self.assign(target, value)?;
            }
            Stmt::SetBlock(target, filter, body) => {
                let text = self.captured(|run| run.scoped(body))?;
                let value = self.block_filtered(filter.as_ref(), text)?;
                self.assign(target, value)?;
            }
            Stmt::Filter(filter, body) => {
                let text = self.captured(|run| run.scoped(body))?;
                let value = self.block_filtered(Some(filter), text)?;
                self.put(&value)?;
            }
            Stmt::Macro(made) => {
                let value = self.macro_value(made)?;
                self.set(&made.name, value)?;
            }
            Stmt::Call(call, caller) => {
                let caller = self.macro_value(caller)?;
                let value = self.call_with(call, caller)?;
                self.put(&value)?;
            }
            Stmt::With(assigned, body) => {
                let values: Vec<_> =
                    assigned.iter().map(|(_, value)| self.eval(value)).collect::<Outcome<_>>()?;
                self.scopes.push(HashMap::new());
                for ((target, _), value) in assigned.iter().zip(values) {
                    self.assign(target, value)?;
                }
                let flow = self.block(body);
                self.scopes.pop();
                return flow;
            }
            Stmt::Break => return Ok(Flow::Break),
            Stmt::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn branch(&mut self, branches: &[(Expr, Vec<Stmt>)], otherwise: &[Stmt]) -> Outcome<Flow> {
        for (condition, body) in branches {
            if self.eval(condition)?.truth() {
                return self.block(body);
            }
        }
        self.block(otherwise)
    }

    fn block_filtered(&mut self, filter: Option<&Expr>, text: String) -> Outcome<Value> {
        let text = Value::Str(text.into());
        match filter {
            None => Ok(text),
            Some(filter) => self.eval_on(filter, text),
        }
    }

    // Loops.

    /// What a loop goes through: those of the items that meet its condition.
    fn loop_items(&mut self, node: &For) -> Outcome<Vec<Value>> {
        let all = self.eval(&node.items)?;
        self.kept_items(node, &all)
    }

    fn kept_items(&mut self, node: &For, all: &Value) -> Outcome<Vec<Value>> {
        let items = self.iterate(all)?.into_owned();
        self.budget.take(64 + items.len() * size_of::<Value>())?;
        let Some(condition) = &node.condition else { return Ok(items) };
        let mut kept = Vec::new();
        for item in items {
            self.scopes.push(HashMap::new());
            self.assign(&node.target, item.clone())?;
            let meets = self.eval(condition)?.truth();
            self.scopes.pop();
            if meets {
                kept.push(item);
            }
        }
        Ok(kept)
    }

    fn run_loop(&mut self, node: &Arc<For>, items: Vec<Value>, depth: usize) -> Outcome<Flow> {
        if items.is_empty() {
            return self.scoped(&node.otherwise);
        }
        let count = items.len();
        let state = LoopState { node: Arc::clone(node), items, index: 0, depth, changed: None };
        let object = self.keep(Object::Loop(state))?;
        let Value::Object(place) = object else { return Ok(Flow::Next) };
        let name: Arc<str> = "loop".into();
        for index in 0..count {
            let Some(Object::Loop(state)) = self.objects.get_mut(place) else { break };
            state.index = index;
            let item = state.items.get(index).cloned().unwrap_or(Value::None);
            self.scopes.push(HashMap::new());
            self.set(&name, Value::Object(place))?;
            self.assign(&node.target, item)?;
            let flow = self.block(&node.body);
            self.scopes.pop();
            if flow? == Flow::Break {
                break;
            }
        }
        Ok(Flow::Next)
    }

    /// `loop(items)` in a recursive loop.
    pub fn loop_again(&mut self, place: usize, items: &Value) -> Outcome<Value> {
        let Some(Object::Loop(state)) = self.objects.get(place) else {
            return fault("only a loop can go on");
        };
        let (node, depth) = (Arc::clone(&state.node), state.depth + 1);
        if !node.recursive {
            return fault("a loop that calls itself says 'recursive'");
        }
        self.budget.enter()?;
        let items = self.kept_items(&node, items)?;
        let text = self.captured(|run| run.run_loop(&node, items, depth))?;
        self.budget.leave();
        Ok(Value::Str(text.into()))
    }

    // Macros.

    /// A macro, with the values of the blocks around it; those of the template itself it looks up when it is called.
    fn macro_value(&mut self, made: &Arc<Macro>) -> Outcome<Value> {
        let around: Range<usize> = self.base.max(2)..self.scopes.len();
        let scopes = self.scopes.get(around).unwrap_or_default();
        let known = scopes.iter().flatten().map(|(name, value)| (Arc::clone(name), value.clone()));
        let known: Vec<_> = known.collect();
        self.budget.take(known.len() * 64)?;
        self.budget.spend(known.len())?;
        let depth = self.budget.depth(known.iter().map(|(_, value)| value))?;
        self.budget.function(Function::Macro(Arc::clone(made), known, depth))
    }

    /// Calls a macro.
    pub fn call_macro(
        &mut self,
        own: Value,
        made: &Macro,
        known: &[(Arc<str>, Value)],
        given: Given,
    ) -> Outcome<Value> {
        self.budget.enter()?;
        let base = mem::replace(&mut self.base, self.scopes.len());
        self.budget.spend(known.len())?;
        let mut around: HashMap<Arc<str>, Value> = known.iter().cloned().collect();
        // Where it stands in a block, it knows itself.
        if !known.is_empty() {
            around.insert(Arc::clone(&made.name), own);
        }
        self.scopes.push(around);
        self.scopes.push(HashMap::new());
        let text = match self.bind_parameters(made, given) {
            Ok(()) => self.captured(|run| run.block(&made.body)),
            Err(fault) => Err(fault),
        };
        self.scopes.truncate(self.base);
        self.base = base;
        self.budget.leave();
        Ok(Value::Str(text?.into()))
    }

    fn bind_parameters(&mut self, made: &Macro, given: Given) -> Outcome<()> {
        let short = || made.name.chars().take(40).collect::<String>();
        let mut positional = given.positional.into_iter();
        let mut named = given.named;
        self.budget.spend(made.parameters.len().saturating_mul(1 + named.len()))?;
        for (name, default) in &made.parameters {
            let by_name =
                named.iter().position(|(known, _)| known == name).map(|place| named.remove(place).1);
            let value = match (positional.next(), by_name, default) {
                (Some(_), Some(_), _) => {
                    return fault(format!("macro {} is given an argument twice", short()));
                }
                (Some(value), None, _) | (None, Some(value), _) => value,
                (None, None, Some(default)) => self.eval(default)?,
                (None, None, None) => Value::Undefined(format!("parameter {name:?} was not given").into()),
            };
            self.set(name, value)?;
        }
        if let Some(place) = named.iter().position(|(name, _)| &**name == "caller") {
            let (name, caller) = named.remove(place);
            self.set(&name, caller)?;
        }
        let rest: Vec<Value> = positional.collect();
        if made.varargs {
            let rest = self.budget.seq(super::value::SeqKind::Tuple, rest)?;
            self.set(&"varargs".into(), rest)?;
        } else if !rest.is_empty() {
            return fault(format!("macro {} takes at most {} arguments", short(), made.parameters.len()));
        }
        if made.kwargs {
            let pairs = named.into_iter().map(|(name, value)| (Value::Str(name), value)).collect();
            let rest = self.budget.map(pairs)?;
            self.set(&"kwargs".into(), rest)?;
        } else if let Some((name, _)) = named.first() {
            return fault(format!(
                "macro {} has no parameter {:?}",
                short(),
                name.chars().take(40).collect::<String>()
            ));
        }
        Ok(())
    }
}
