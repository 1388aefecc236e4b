//! Filters that take the names of filters and tests: `map`, `select` and their like.

use super::{
    Outcome,
    call::Given,
    fault,
    run::Run,
    value::{SeqKind, Value},
};

impl Run {
    /// `map`, `select` and their like.
    #[inline(never)]
    pub(super) fn filter_each(&self, name: &str, value: &Value, given: Given) -> Outcome<Value> {
        self.budget.deeper(|| {
            let items = self.iterate(value)?;
            let mut kept = Vec::new();
            if name == "map" {
                for item in items.iter() {
                    kept.push(self.mapped(item, &given)?);
                }
            } else {
                let by_attribute = name.ends_with("attr");
                let wanted = name.starts_with("select");
                for item in items.iter() {
                    if self.meets(item, by_attribute, &given)? == wanted {
                        self.budget.take(size_of::<Value>())?;
                        kept.push(item.clone());
                    }
                }
            }
            self.budget.seq(SeqKind::Generator, kept)
        })
    }

    fn mapped(&self, item: &Value, given: &Given) -> Outcome<Value> {
        self.budget.take(size_of::<Value>())?;
        self.budget.spend(given.named.len())?;
        let named =
            |wanted: &str| given.named.iter().find(|(name, _)| &**name == wanted).map(|(_, value)| value);
        match (given.positional.first(), named("attribute")) {
            (None, Some(path)) => {
                let found = self.path(item, path)?;
                Ok(match (&found, named("default")) {
                    (Value::Undefined(_), Some(default)) => default.clone(),
                    _ => found,
                })
            }
            (Some(Value::Str(filter)), _) => {
                let rest = given.positional.get(1..).unwrap_or_default().to_vec();
                self.budget.take(size_of_val(&*rest))?;
                self.filtered(filter, item, Given { positional: rest, named: given.named.clone() })
            }
            _ => fault("map takes a filter's name or an attribute"),
        }
    }

    /// Whether an item, or an attribute of it, passes a test, or counts as true where none is named.
    fn meets(&self, item: &Value, by_attribute: bool, given: &Given) -> Outcome<bool> {
        self.budget.spend(1 + given.positional.len() + given.named.len())?;
        let mut rest = given.positional.iter();
        let attribute;
        let item = match (by_attribute, by_attribute.then(|| rest.next()).flatten()) {
            (false, _) => item,
            (true, Some(path)) => {
                attribute = self.path(item, path)?;
                &attribute
            }
            (true, None) => return fault("selectattr and rejectattr take an attribute"),
        };
        match rest.next() {
            None => Ok(item.truth()),
            Some(Value::Str(test)) => {
                let positional: Vec<_> = rest.cloned().collect();
                self.passes(test, item, Given { positional, named: given.named.clone() })
            }
            Some(_) => fault("a test's name is a string"),
        }
    }
}
