//! Making values within a budget, and looking for one.

use std::{cell::Cell, rc::Rc};

use super::{
    Outcome,
    budget::{Budget, VALUE_DEPTH},
    fault,
    value::{Function, Map, Seq, SeqKind, Value},
};

impl Map {
    /// The value of a key.
    pub(super) fn get(&self, key: &Value, budget: &Budget) -> Outcome<Option<Value>> {
        for (known, value) in &self.entries {
            if budget.equal(known, key)? {
                return Ok(Some(value.clone()));
            }
        }
        Ok(None)
    }
}

/// Making values: each is paid for, and none is too deep.
impl Budget {
    pub(super) fn text(&self, text: impl AsRef<str>) -> Outcome<Value> {
        let text = text.as_ref();
        // The text, its counts, and the value that names it.
        self.take(48 + text.len())?;
        Ok(Value::Str(text.into()))
    }

    pub(super) fn seq(&self, kind: SeqKind, items: Vec<Value>) -> Outcome<Value> {
        self.take(64 + items.len() * size_of::<Value>())?;
        self.spend(items.len() / 8)?;
        let depth = self.depth(items.iter())?;
        Ok(Value::Seq(Rc::new(Seq { kind, items, depth, spent: Cell::new(false) })))
    }

    pub(super) fn list(&self, items: Vec<Value>) -> Outcome<Value> {
        self.seq(SeqKind::List, items)
    }

    /// A dict; of equal keys, the first place and the last value count.
    pub(super) fn map(&self, pairs: Vec<(Value, Value)>) -> Outcome<Value> {
        self.take(64 + pairs.len() * 2 * size_of::<Value>())?;
        let mut entries: Vec<(Value, Value)> = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            self.hashable(&key)?;
            let mut known = None;
            for (index, (other, _)) in entries.iter().enumerate() {
                if self.equal(other, &key)? {
                    known = Some(index);
                    break;
                }
            }
            match known.and_then(|index| entries.get_mut(index)) {
                Some(entry) => entry.1 = value,
                None => entries.push((key, value)),
            }
        }
        let depth = self.depth(entries.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Value::Map(Rc::new(Map { entries, depth })))
    }

    pub(super) fn function(&self, function: Function) -> Outcome<Value> {
        self.take(64)?;
        Ok(Value::Function(Rc::new(function)))
    }

    fn hashable(&self, key: &Value) -> Outcome<()> {
        self.spend(1)?;
        match key {
            Value::Map(_) => fault("a dict cannot be a key"),
            Value::Seq(seq) if seq.kind == SeqKind::List => fault("a list cannot be a key"),
            Value::Seq(seq) => seq.items.iter().try_for_each(|item| self.hashable(item)),
            _ => Ok(()),
        }
    }

    /// The depth of what holds these.
    pub(super) fn depth<'v>(&self, items: impl Iterator<Item = &'v Value>) -> Outcome<u32> {
        let depth = 1 + items.map(Value::depth).max().unwrap_or(0);
        if depth > VALUE_DEPTH {
            return fault(format!("values within each other more than {VALUE_DEPTH} deep"));
        }
        Ok(depth)
    }
}
