//! Jinja's filters of lists.

use std::borrow::Cow;

use super::{
    Outcome,
    call::{Given, int, optional_text, truth},
    fault,
    run::Run,
    value::{SeqKind, Value},
};

impl Run {
    pub(super) fn list_filter(&self, name: &str, value: &Value, given: Given) -> Outcome<Value> {
        match name {
            "length" | "count" => {
                given.exactly::<0>(name, 0)?;
                Ok(Value::Int(self.length(value)? as i64))
            }
            "first" | "last" => {
                given.exactly::<0>(name, 0)?;
                self.end_of(name, value)
            }
            "list" => {
                given.exactly::<0>(name, 0)?;
                self.all_of(SeqKind::List, value)
            }
            "items" => {
                given.exactly::<0>(name, 0)?;
                match value {
                    Value::Undefined(_) => self.budget.seq(SeqKind::Generator, Vec::new()),
                    Value::Map(map) => self.pairs(map, SeqKind::Generator),
                    _ => fault("items takes a dict"),
                }
            }
            "reverse" => {
                given.exactly::<0>(name, 0)?;
                if let Value::Str(text) = value {
                    self.budget.scan(text.len())?;
                    self.budget.take(text.len())?;
                    return Ok(Value::Str(text.chars().rev().collect::<String>().into()));
                }
                let mut items = self.owned(value)?;
                items.reverse();
                self.budget.seq(SeqKind::Generator, items)
            }
            "join" => {
                let [between, attribute] = given.bind(name, ["d", "attribute"])?;
                let between = between.map_or(Ok(String::new()), |between| self.to_text(&between))?;
                let items = self.iterate(value)?;
                match attribute.filter(|attribute| !matches!(attribute, Value::None)) {
                    None => self.joined(&between, &items),
                    Some(attribute) => {
                        let items: Vec<_> =
                            items.iter().map(|item| self.path(item, &attribute)).collect::<Outcome<_>>()?;
                        self.joined(&between, &items)
                    }
                }
            }
            "sum" => {
                let [attribute, start] = given.bind(name, ["attribute", "start"])?;
                let mut sum = start.unwrap_or(Value::Int(0));
                for item in self.iterate(value)?.iter() {
                    let item = self.by(item, attribute.as_ref())?;
                    let before = sum;
                    sum = self.arithmetic(super::ast::Operator::Add, &before, &item)?;
                    self.budget.release(before);
                }
                Ok(sum)
            }
            "batch" | "slice" => self.batches(name, value, given),
            _ => self.ordered(name, value, given),
        }
    }

    /// The items of a value as ones that are new.
    fn owned(&self, value: &Value) -> Outcome<Vec<Value>> {
        let items = self.iterate(value)?;
        if let Cow::Borrowed(items) = &items {
            self.budget.take(size_of_val(*items))?;
        }
        Ok(items.into_owned())
    }

    /// The items of a value in a row of another kind.
    pub(super) fn all_of(&self, kind: SeqKind, value: &Value) -> Outcome<Value> {
        self.budget.seq(kind, self.owned(value)?)
    }

    fn end_of(&self, name: &str, value: &Value) -> Outcome<Value> {
        if name == "last" && value.type_name() == "generator" {
            return fault("a generator has no last item");
        }
        let item = match value {
            // Not all characters are wanted.
            Value::Str(_) => self.index(value, if name == "first" { 0 } else { -1 })?,
            Value::Seq(seq) if seq.kind != SeqKind::Generator => {
                if name == "first" {
                    seq.items.first().cloned()
                } else {
                    seq.items.last().cloned()
                }
            }
            _ => {
                let items = self.iterate(value)?;
                if name == "first" { items.first().cloned() } else { items.last().cloned() }
            }
        };
        Ok(item.unwrap_or_else(|| Value::Undefined("there is no first or last item".into())))
    }

    /// `a.0.b` of an item: what `map`, `sort` and others take as `attribute`.
    pub(super) fn path(&self, item: &Value, path: &Value) -> Outcome<Value> {
        if path.as_int().is_some() {
            return self.item_of(item, path);
        }
        let Value::Str(path) = path else { return fault("an attribute is a name or a number") };
        let mut item = item.clone();
        for part in path.split('.') {
            self.budget.spend(1)?;
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            let key = if digits { part.parse().map(Value::Int).ok() } else { None };
            item = self.item_of(&item, &key.unwrap_or_else(|| Value::text(part)))?;
        }
        Ok(item)
    }

    fn by(&self, item: &Value, attribute: Option<&Value>) -> Outcome<Value> {
        match attribute {
            None | Some(Value::None) => Ok(item.clone()),
            Some(attribute) => self.path(item, attribute),
        }
    }

    fn batches(&self, name: &str, value: &Value, given: Given) -> Outcome<Value> {
        let [count, fill] =
            given.bind(name, [if name == "batch" { "linecount" } else { "slices" }, "fill_with"])?;
        let count = usize::try_from(int(name, count, 0)?).ok().filter(|count| *count > 0);
        let Some(count) = count else { return fault(format!("{name} takes a number above 0")) };
        let fill = fill.filter(|fill| !matches!(fill, Value::None));
        let items = self.owned(value)?;
        let mut all = Vec::new();
        if name == "batch" {
            for part in items.chunks(count) {
                let mut part = part.to_vec();
                if let Some(fill) = &fill {
                    self.budget.take((count - part.len()).saturating_mul(size_of::<Value>()))?;
                    part.resize(count, fill.clone());
                }
                all.push(self.budget.list(part)?);
            }
            return self.budget.seq(SeqKind::Generator, all);
        }
        let (size, longer) = (items.len() / count, items.len() % count);
        let mut rest = &items[..];
        for index in 0..count {
            let (part, after) = rest.split_at(size + usize::from(index < longer));
            let mut part = part.to_vec();
            if index >= longer && longer > 0 {
                part.extend(fill.clone());
            }
            rest = after;
            self.budget.take(size_of::<Value>())?;
            all.push(self.budget.list(part)?);
        }
        self.budget.seq(SeqKind::Generator, all)
    }

    /// A key by which small and large letters are the same, unless they are not to be.
    fn sort_key(&self, value: Value, case_sensitive: bool) -> Outcome<Value> {
        match &value {
            Value::Str(text) if !case_sensitive => {
                self.budget.scan(text.len())?;
                self.budget.text(text.to_lowercase())
            }
            _ => Ok(value),
        }
    }

    fn ordered(&self, name: &str, value: &Value, given: Given) -> Outcome<Value> {
        match name {
            "sort" => {
                let [reverse, case, attribute] =
                    given.bind(name, ["reverse", "case_sensitive", "attribute"])?;
                let (reverse, case) = (truth(reverse, false), truth(case, false));
                let items = self.owned(value)?;
                let keys = items
                    .iter()
                    .map(|item| self.sort_keys(item, attribute.as_ref(), case))
                    .collect::<Outcome<_>>()?;
                let places = self.sorted_by(keys, reverse)?;
                self.budget.list(places.into_iter().filter_map(|place| items.get(place).cloned()).collect())
            }
            "dictsort" => {
                let [case, by, reverse] = given.bind(name, ["case_sensitive", "by", "reverse"])?;
                let (case, reverse) = (truth(case, false), truth(reverse, false));
                let by_value = optional_text(name, by)?.as_deref() == Some("value");
                let Value::Map(map) = value else { return fault("dictsort takes a dict") };
                let key = |(key, value): &(Value, Value)| {
                    self.sort_key(if by_value { value } else { key }.clone(), case)
                };
                let places = self.sorted_by(map.entries.iter().map(key).collect::<Outcome<_>>()?, reverse)?;
                let pairs = places.into_iter().filter_map(|place| map.entries.get(place));
                let pairs = pairs
                    .map(|(key, value)| self.budget.seq(SeqKind::Tuple, vec![key.clone(), value.clone()]));
                self.budget.list(pairs.collect::<Outcome<_>>()?)
            }
            "groupby" => self.grouped(value, given),
            _ => {
                let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"])?;
                let case = truth(case, false);
                let items = self.owned(value)?;
                let key = |item: &Value| self.sort_key(self.by(item, attribute.as_ref())?, case);
                let keys: Vec<Value> = items.iter().map(key).collect::<Outcome<_>>()?;
                if name == "unique" {
                    return self.unique(&items, &keys);
                }
                let mut best: Option<usize> = None;
                for (place, key) in keys.iter().enumerate() {
                    let better = match best.and_then(|best| keys.get(best)) {
                        None => true,
                        Some(best) => {
                            let order = self.budget.order(key, best)?;
                            order.is_some_and(
                                |order| if name == "min" { order.is_lt() } else { order.is_gt() },
                            )
                        }
                    };
                    best = if better { Some(place) } else { best };
                }
                let best = best.and_then(|place| items.get(place)).cloned();
                Ok(best.unwrap_or_else(|| Value::Undefined("there is no item".into())))
            }
        }
    }

    /// What an item is sorted by: one attribute, or several with commas between.
    fn sort_keys(&self, item: &Value, attribute: Option<&Value>, case: bool) -> Outcome<Value> {
        match attribute {
            Some(Value::Str(all)) if all.contains(',') => {
                let keys =
                    all.split(',').map(|path| self.sort_key(self.path(item, &Value::text(path))?, case));
                let keys = keys.collect::<Outcome<_>>()?;
                self.budget.list(keys)
            }
            attribute => self.sort_key(self.by(item, attribute)?, case),
        }
    }

    fn unique(&self, items: &[Value], keys: &[Value]) -> Outcome<Value> {
        let mut kept: Vec<(&Value, &Value)> = Vec::new();
        for (item, key) in items.iter().zip(keys) {
            let mut known = false;
            for (_, other) in &kept {
                if self.budget.equal(other, key)? {
                    known = true;
                    break;
                }
            }
            if !known {
                kept.push((item, key));
            }
        }
        self.budget.seq(SeqKind::Generator, kept.into_iter().map(|(item, _)| item.clone()).collect())
    }

    fn grouped(&self, value: &Value, given: Given) -> Outcome<Value> {
        let [attribute, default, case] = given.bind("groupby", ["attribute", "default", "case_sensitive"])?;
        let case = truth(case, false);
        let Some(attribute) = attribute else { return fault("groupby takes an attribute") };
        let items = self.owned(value)?;
        let plain = |item: &Value| {
            let found = self.path(item, &attribute)?;
            Ok(match (&found, &default) {
                (Value::Undefined(_), Some(default)) => default.clone(),
                _ => found,
            })
        };
        let plain: Vec<Value> = items.iter().map(plain).collect::<Outcome<_>>()?;
        let keys: Vec<Value> =
            plain.iter().map(|key| self.sort_key(key.clone(), case)).collect::<Outcome<_>>()?;
        let mut groups: Vec<(usize, Vec<Value>)> = Vec::new();
        for place in self.sorted_by(keys.clone(), false)? {
            let (Some(key), Some(item)) = (keys.get(place), items.get(place)) else { continue };
            let same = match groups.last().and_then(|(first, _)| keys.get(*first)) {
                Some(last) => self.budget.equal(last, key)?,
                None => false,
            };
            match groups.last_mut() {
                Some((_, group)) if same => group.push(item.clone()),
                _ => groups.push((place, vec![item.clone()])),
            }
        }
        let group = |(first, items): (usize, Vec<Value>)| {
            let key = plain.get(first).cloned().unwrap_or(Value::None);
            self.budget.seq(SeqKind::Group, vec![key, self.budget.list(items)?])
        };
        self.budget.list(groups.into_iter().map(group).collect::<Outcome<_>>()?)
    }
}
