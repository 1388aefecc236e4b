//! Python's arithmetic and comparisons.

use std::{cmp::Ordering, rc::Rc, sync::Arc};

use super::{
    Outcome,
    ast::{Comparison, Operator},
    budget::Budget,
    fault,
    run::Run,
    value::{Function, Seq, SeqKind, Value},
};

impl Budget {
    /// Python's `==`. Values are at most so deep, and each element is paid for.
    pub(super) fn equal(&self, a: &Value, b: &Value) -> Outcome<bool> {
        self.spend(1)?;
        Ok(match (a, b) {
            (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
            (Value::Str(a), Value::Str(b)) => {
                a.len() == b.len() && {
                    self.scan(a.len() / 4)?;
                    a == b
                }
            }
            (Value::Seq(a), Value::Seq(b)) => return self.equal_seqs(a, b),
            (Value::Map(a), Value::Map(b)) => {
                if a.entries.len() != b.entries.len() {
                    return Ok(false);
                }
                for (key, value) in &a.entries {
                    let other = b.get(key, self)?;
                    let same = match other {
                        Some(other) => self.equal(value, &other)?,
                        None => false,
                    };
                    if !same {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Object(a), Value::Object(b)) => a == b,
            (Value::Function(a), Value::Function(b)) => same_function(a, b),
            _ => match (a.as_int(), b.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => a.as_number().zip(b.as_number()).is_some_and(|(a, b)| a == b),
            },
        })
    }

    fn equal_seqs(&self, a: &Rc<Seq>, b: &Rc<Seq>) -> Outcome<bool> {
        let tuple = |kind| if kind == SeqKind::Group { SeqKind::Tuple } else { kind };
        if tuple(a.kind) != tuple(b.kind) || a.items.len() != b.items.len() {
            return Ok(false);
        }
        if a.kind == SeqKind::Generator {
            return Ok(Rc::ptr_eq(a, b));
        }
        for (a, b) in a.items.iter().zip(&b.items) {
            if !self.equal(a, b)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How Python's `<` orders two values.
    pub(super) fn order(&self, a: &Value, b: &Value) -> Outcome<Option<Ordering>> {
        self.spend(1)?;
        if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
            return Ok(Some(a.cmp(&b)));
        }
        if let (Some(a), Some(b)) = (a.as_number(), b.as_number()) {
            return Ok(a.partial_cmp(&b));
        }
        match (a, b) {
            (Value::Str(a), Value::Str(b)) => {
                self.scan(a.len().min(b.len()) / 4)?;
                Ok(Some(a.cmp(b)))
            }
            (Value::Seq(x), Value::Seq(y))
                if matches!(x.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Group)
                    && a.type_name() == b.type_name() =>
            {
                for (x, y) in x.items.iter().zip(&y.items) {
                    if !self.equal(x, y)? {
                        return self.order(x, y);
                    }
                }
                Ok(Some(x.items.len().cmp(&y.items.len())))
            }
            _ => {
                a.defined()?;
                b.defined()?;
                fault(format!("{} and {} have no order", a.type_name(), b.type_name()))
            }
        }
    }
}

fn same_function(a: &Rc<Function>, b: &Rc<Function>) -> bool {
    match (&**a, &**b) {
        (Function::Global(a), Function::Global(b)) => a == b,
        _ => Rc::ptr_eq(a, b),
    }
}

impl Run {
    /// `a < b` and its like.
    pub(super) fn compare(&self, operator: Comparison, a: &Value, b: &Value) -> Outcome<bool> {
        let order = |test: fn(Ordering) -> bool| Ok(self.budget.order(a, b)?.is_some_and(test));
        match operator {
            Comparison::Equal => self.budget.equal(a, b),
            Comparison::Unequal => self.budget.equal(a, b).map(|equal| !equal),
            Comparison::Less => order(Ordering::is_lt),
            Comparison::LessOrEqual => order(Ordering::is_le),
            Comparison::Greater => order(Ordering::is_gt),
            Comparison::GreaterOrEqual => order(Ordering::is_ge),
            Comparison::In => self.contains(b, a),
            Comparison::NotIn => self.contains(b, a).map(|found| !found),
        }
    }

    /// Python's `item in all`.
    pub(super) fn contains(&self, all: &Value, item: &Value) -> Outcome<bool> {
        match all {
            Value::Str(text) => match item {
                Value::Str(part) => {
                    self.budget.scan(text.len())?;
                    Ok(text.contains(&**part))
                }
                other => {
                    other.defined()?;
                    fault(format!("'in <string>' takes a string, not {}", other.type_name()))
                }
            },
            Value::Map(map) => Ok(map.get(item, &self.budget)?.is_some()),
            other => {
                for other in self.iterate(other)?.iter() {
                    if self.budget.equal(other, item)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// Arithmetic on two values.
    pub(super) fn arithmetic(&self, operator: Operator, a: &Value, b: &Value) -> Outcome<Value> {
        a.defined()?;
        if let (Operator::Modulo, Value::Str(format)) = (operator, a) {
            return self.percent(format, b);
        }
        b.defined()?;
        if let (Some(x), Some(y)) = (a.as_int(), b.as_int()) {
            return integers(operator, x, y);
        }
        if let (Some(x), Some(y)) = (a.as_number(), b.as_number()) {
            return floats(operator, x, y);
        }
        match (operator, a, b) {
            (Operator::Add, Value::Str(x), Value::Str(y)) => {
                self.budget.take(16 + x.len() + y.len())?;
                Ok(Value::Str([&**x, &**y].concat().into()))
            }
            (Operator::Add, Value::Seq(x), Value::Seq(y))
                if a.type_name() == b.type_name() && a.type_name() != "generator" =>
            {
                self.budget.take((x.items.len() + y.items.len()) * size_of::<Value>())?;
                self.budget.seq(x.kind, x.items.iter().chain(&y.items).cloned().collect())
            }
            (Operator::Multiply, all, count) | (Operator::Multiply, count, all)
                if count.as_int().is_some() && matches!(all, Value::Str(_) | Value::Seq(_)) =>
            {
                self.repeated(all, count.as_int().unwrap_or(0))
            }
            _ => {
                let (a, b) = (a.type_name(), b.type_name());
                fault(format!("{a} {} {b} is nothing", sign(operator)))
            }
        }
    }

    fn repeated(&self, all: &Value, count: i64) -> Outcome<Value> {
        let count = usize::try_from(count).unwrap_or(0);
        match all {
            Value::Str(text) => self.repeat_text(text, count).map(Value::Str),
            Value::Seq(seq) if matches!(seq.kind, SeqKind::List | SeqKind::Tuple) => {
                let length = seq.items.len().saturating_mul(count);
                self.budget.take(length.saturating_mul(size_of::<Value>()))?;
                self.budget.seq(seq.kind, (0..count).flat_map(|_| seq.items.iter().cloned()).collect())
            }
            other => fault(format!("{} * int is nothing", other.type_name())),
        }
    }

    fn repeat_text(&self, text: &str, count: usize) -> Outcome<Arc<str>> {
        self.budget.take(text.len().saturating_mul(count))?;
        // Nothing, however often.
        let count = if text.is_empty() { 0 } else { count };
        Ok(text.repeat(count).into())
    }

    /// `-value` and `+value`.
    pub(super) fn signed(&self, negative: bool, value: &Value) -> Outcome<Value> {
        value.defined()?;
        let sign = if negative { -1 } else { 1 };
        match (value.as_int(), value.as_number()) {
            (Some(number), _) => number.checked_mul(sign).map(Value::Int).map_or_else(too_large, Ok),
            (_, Some(number)) => Ok(Value::Float(number * sign as f64)),
            _ => fault(format!("{} has no sign", value.type_name())),
        }
    }
}

fn sign(operator: Operator) -> &'static str {
    match operator {
        Operator::Add => "+",
        Operator::Subtract => "-",
        Operator::Multiply => "*",
        Operator::Divide => "/",
        Operator::FloorDivide => "//",
        Operator::Modulo => "%",
        Operator::Power => "**",
    }
}

fn too_large<T>() -> Outcome<T> {
    fault("a number that does not fit 64 bits")
}

fn integers(operator: Operator, a: i64, b: i64) -> Outcome<Value> {
    if b == 0 && matches!(operator, Operator::Divide | Operator::FloorDivide | Operator::Modulo) {
        return fault("division by zero");
    }
    let result = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide => return Ok(Value::Float(a as f64 / b as f64)),
        // Python rounds down, so that the rest has the divisor's sign.
        Operator::FloorDivide => a.checked_div(b).map(|quotient| {
            let rest = a.wrapping_rem(b);
            if rest != 0 && (rest < 0) != (b < 0) { quotient - 1 } else { quotient }
        }),
        Operator::Modulo => Some(a.wrapping_rem(b))
            .map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }),
        Operator::Power if b < 0 => return floats(operator, a as f64, b as f64),
        Operator::Power => match u32::try_from(b) {
            Ok(power) => a.checked_pow(power),
            Err(_) if (-1..=1).contains(&a) => a.checked_pow(2 + (b % 2) as u32),
            Err(_) => None,
        },
    };
    result.map(Value::Int).map_or_else(too_large, Ok)
}

fn floats(operator: Operator, a: f64, b: f64) -> Outcome<Value> {
    if b == 0.0 && matches!(operator, Operator::Divide | Operator::FloorDivide | Operator::Modulo) {
        return fault("division by zero");
    }
    let modulo = || {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
    };
    Ok(Value::Float(match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide => a / b,
        Operator::FloorDivide => ((a - modulo()) / b).round(),
        Operator::Modulo => modulo(),
        Operator::Power if a == 0.0 && b < 0.0 => return fault("zero has no negative power"),
        Operator::Power => {
            let power = a.powf(b);
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return fault("a number that is too large");
            }
            power
        }
    }))
}
