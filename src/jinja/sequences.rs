//! Going through values, taking items and parts of them, and sorting.

use std::{borrow::Cow, cell::RefCell, cmp::Ordering};

use super::{
    Outcome, fault,
    run::{Object, Run},
    value::{SeqKind, Value},
};

impl Run {
    /// What a loop over a value goes through, each item paid for.
    pub(super) fn iterate<'v>(&self, value: &'v Value) -> Outcome<Cow<'v, [Value]>> {
        let items: Cow<'v, [Value]> = match value {
            Value::Undefined(_) => Cow::Borrowed(&[]),
            Value::Seq(seq) => {
                let again = seq.kind == SeqKind::Generator && seq.spent.replace(true);
                Cow::Borrowed(if again { &[] } else { &seq.items })
            }
            Value::Map(map) => {
                self.budget.take(map.entries.len() * size_of::<Value>())?;
                Cow::Owned(map.entries.iter().map(|(key, _)| key.clone()).collect())
            }
            Value::Str(text) => {
                let count = text.chars().count();
                self.budget.take(count.saturating_mul(size_of::<Value>() + 24))?;
                self.budget.spend(count)?;
                let mut bytes = [0; 4];
                Cow::Owned(text.chars().map(|char| Value::text(char.encode_utf8(&mut bytes))).collect())
            }
            Value::Object(index) => match self.objects.get(*index) {
                Some(Object::Loop(state)) => {
                    let rest = state.items.get(state.index..).unwrap_or_default();
                    self.budget.take(size_of_val(rest))?;
                    Cow::Owned(rest.to_vec())
                }
                _ => return fault("this object has no items"),
            },
            other => return fault(format!("{} has no items to go through", other.type_name())),
        };
        self.budget.spend(1 + items.len() / 8)?;
        Ok(items)
    }

    /// How many items a value has.
    pub(super) fn length(&self, value: &Value) -> Outcome<usize> {
        match value {
            Value::Undefined(_) => Ok(0),
            Value::Str(text) => {
                self.budget.scan(text.len())?;
                Ok(text.chars().count())
            }
            Value::Map(map) => Ok(map.entries.len()),
            Value::Object(index) if matches!(self.objects.get(*index), Some(Object::Loop(_))) => {
                match self.objects.get(*index) {
                    Some(Object::Loop(state)) => Ok(state.items.len()),
                    _ => Ok(0),
                }
            }
            other => match other.items() {
                Some(items) => Ok(items.len()),
                None => fault(format!("{} has no length", other.type_name())),
            },
        }
    }

    /// The item at a place, from the end where that is negative.
    pub(super) fn index(&self, value: &Value, index: i64) -> Outcome<Option<Value>> {
        let place = |length: usize| {
            let length = i64::try_from(length).unwrap_or(i64::MAX);
            usize::try_from(if index < 0 { index.checked_add(length)? } else { index }).ok()
        };
        match value {
            Value::Str(text) => {
                let char = match text.is_ascii() {
                    true => place(text.len()).and_then(|place| text.get(place..=place)).map(Value::text),
                    false => {
                        let place = place(self.length(value)?);
                        place
                            .and_then(|place| text.chars().nth(place))
                            .map(|char| Value::text(&char.to_string()))
                    }
                };
                self.budget.scan(text.len())?;
                Ok(char)
            }
            Value::Seq(seq)
                if matches!(seq.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Group | SeqKind::Range) =>
            {
                Ok(place(seq.items.len()).and_then(|place| seq.items.get(place)).cloned())
            }
            _ => Ok(None),
        }
    }

    /// `value[start:stop:step]`.
    pub(super) fn slice(&self, value: &Value, bounds: [Option<i64>; 3]) -> Outcome<Value> {
        value.defined()?;
        match value {
            Value::Str(text) => {
                self.budget.scan(text.len())?;
                let starts: Vec<usize> = match text.is_ascii() {
                    true => Vec::new(),
                    false => {
                        self.budget.take(text.len() * size_of::<usize>())?;
                        text.char_indices().map(|(at, _)| at).chain([text.len()]).collect()
                    }
                };
                let byte = |index: usize| {
                    if text.is_ascii() { index } else { starts.get(index).copied().unwrap_or(text.len()) }
                };
                let length = if text.is_ascii() { text.len() } else { starts.len() - 1 };
                let [start, stop, step] = resolved(bounds, length)?;
                if step == 1 {
                    let (start, stop) = (start as usize, stop.max(start) as usize);
                    return self.budget.text(text.get(byte(start)..byte(stop)).unwrap_or_default());
                }
                self.budget.take(text.len())?;
                let parts = places(start, stop, step);
                self.budget.text(parts.filter_map(|at| text.get(byte(at)..byte(at + 1))).collect::<String>())
            }
            Value::Seq(seq)
                if matches!(seq.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Group | SeqKind::Range) =>
            {
                self.budget.take(seq.items.len() * size_of::<Value>())?;
                let [start, stop, step] = resolved(bounds, seq.items.len())?;
                let items = places(start, stop, step).filter_map(|at| seq.items.get(at)).cloned().collect();
                let kind = if seq.kind == SeqKind::Group { SeqKind::Tuple } else { seq.kind };
                self.budget.seq(kind, items)
            }
            other => fault(format!("{} has no parts", other.type_name())),
        }
    }

    /// The order of keys: their places, sorted; equal ones stay in their order.
    pub(super) fn sorted_by(&self, keys: Vec<Value>, reverse: bool) -> Outcome<Vec<usize>> {
        self.budget.take(keys.len() * size_of::<usize>())?;
        let failed = RefCell::new(None);
        let mut places: Vec<usize> = (0..keys.len()).collect();
        let compare = |a: &usize, b: &usize| {
            let pair = if reverse { (b, a) } else { (a, b) };
            let (Some(a), Some(b)) = (keys.get(*pair.0), keys.get(*pair.1)) else { return Ordering::Equal };
            if failed.borrow().is_some() {
                return Ordering::Equal;
            }
            self.budget
                .order(a, b)
                .unwrap_or_else(|fault| {
                    *failed.borrow_mut() = Some(fault);
                    None
                })
                .unwrap_or(Ordering::Equal)
        };
        merge_sort(&mut places, compare);
        match failed.into_inner() {
            Some(fault) => Err(fault),
            None => Ok(places),
        }
    }
}

/// A stable sort that is content with any answers: the standard library's may panic where they contradict each other, as
/// those of NaN do.
fn merge_sort(places: &mut Vec<usize>, compare: impl Fn(&usize, &usize) -> Ordering) {
    let mut width = 1;
    while width < places.len() {
        let mut merged = Vec::with_capacity(places.len());
        for pair in places.chunks(width * 2) {
            let (left, right) = pair.split_at(width.min(pair.len()));
            let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
            while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
                let next = if compare(b, a).is_lt() { right.next() } else { left.next() };
                merged.extend(next);
            }
            merged.extend(left.chain(right));
        }
        *places = merged;
        width *= 2;
    }
}

/// A slice's bounds within a length, as Python's `slice.indices`.
fn resolved(bounds: [Option<i64>; 3], length: usize) -> Outcome<[i64; 3]> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let step = bounds[2].unwrap_or(1);
    if step == 0 {
        return fault("a slice's step is not zero");
    }
    let (least, most) = if step < 0 { (-1, length - 1) } else { (0, length) };
    let bound = |bound: Option<i64>, default: i64| match bound {
        None => default,
        Some(bound) if bound < 0 => bound.saturating_add(length).max(least),
        Some(bound) => bound.min(most),
    };
    let (first, last) = if step < 0 { (most, least) } else { (least, most) };
    Ok([bound(bounds[0], first), bound(bounds[1], last), step])
}

/// The places from `start` to before `stop`.
fn places(start: i64, stop: i64, step: i64) -> impl Iterator<Item = usize> {
    let over = move |at: i64| if step < 0 { at <= stop } else { at >= stop };
    let next = move |at: &i64| at.checked_add(step).filter(|at| !over(*at));
    std::iter::successors(Some(start).filter(|at| !over(*at)), next).filter_map(|at| usize::try_from(at).ok())
}

/// The part of a text between two places in characters, and how many are before it.
pub(super) fn clamped(text: &str, start: Option<i64>, stop: Option<i64>) -> (usize, &str) {
    let length = text.chars().count();
    let Ok([start, stop, _]) = resolved([start, stop, None], length) else { return (0, text) };
    let byte = |place: i64| {
        let place = usize::try_from(place).unwrap_or(0);
        text.char_indices().nth(place).map_or(text.len(), |(at, _)| at)
    };
    (start as usize, text.get(byte(start)..byte(stop.max(start))).unwrap_or_default())
}
