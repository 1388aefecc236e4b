//! What expressions are worth.

use std::sync::Arc;

use super::{
    Outcome,
    ast::{Comparison, Expr, Kind},
    fault,
    functions::GLOBALS,
    run::Run,
    text::short,
    value::{Function, SeqKind, Value},
};

impl Run {
    /// The value of an expression.
    pub(super) fn eval(&mut self, expr: &Expr) -> Outcome<Value> {
        self.budget.spend(1)?;
        self.budget.enter()?;
        let value = self.eval_kind(&expr.kind);
        self.budget.leave();
        value.map_err(|mut fault| {
            fault.at.get_or_insert(expr.at);
            fault
        })
    }

    fn eval_kind(&mut self, kind: &Kind) -> Outcome<Value> {
        match kind {
            Kind::None => Ok(Value::None),
            Kind::Bool(truth) => Ok(Value::Bool(*truth)),
            Kind::Int(number) => Ok(Value::Int(*number)),
            Kind::Float(number) => Ok(Value::Float(*number)),
            Kind::Str(text) => Ok(Value::Str(Arc::clone(text))),
            Kind::Name(name) => self.named(name),
            Kind::List(items) => {
                let items = self.all(items)?;
                self.budget.list(items)
            }
            Kind::Tuple(items) => {
                let items = self.all(items)?;
                self.budget.seq(SeqKind::Tuple, items)
            }
            Kind::Dict(entries) => self.dict(entries),
            Kind::Not(value) => Ok(Value::Bool(!self.eval(value)?.truth())),
            Kind::Negative(value) => {
                let value = self.eval(value)?;
                self.signed(true, &value)
            }
            Kind::Positive(value) => {
                let value = self.eval(value)?;
                self.signed(false, &value)
            }
            Kind::Binary(operator, pair) => {
                let (a, b) = self.pair(pair)?;
                let value = self.arithmetic(*operator, &a, &b);
                [a, b].into_iter().for_each(|operand| self.budget.release(operand));
                value
            }
            Kind::Concat(parts) => {
                let parts = self.all(parts)?;
                let text = self.joined("", &parts);
                parts.into_iter().for_each(|part| self.budget.release(part));
                text
            }
            Kind::And(pair) => {
                let first = self.eval(&pair.0)?;
                if first.truth() { self.eval(&pair.1) } else { Ok(first) }
            }
            Kind::Or(pair) => {
                let first = self.eval(&pair.0)?;
                if first.truth() { Ok(first) } else { self.eval(&pair.1) }
            }
            Kind::Compare(first, others) => self.comparisons(first, others),
            Kind::If(pair, otherwise) => {
                if self.eval(&pair.0)?.truth() {
                    return self.eval(&pair.1);
                }
                match otherwise {
                    Some(otherwise) => self.eval(otherwise),
                    None => Ok(Value::Undefined("the condition is not met and there is no else".into())),
                }
            }
            Kind::Attribute(value, name) => {
                let value = self.eval(value)?;
                self.attribute(&value, name)
            }
            Kind::Item(pair) => {
                let (value, key) = self.pair(pair)?;
                self.item_of(&value, &key)
            }
            Kind::Slice(value, parts) => self.part(value, parts),
            Kind::Call(callee, arguments) => self.call(callee, arguments, None),
            Kind::Filter(value, name, arguments) => {
                let Some(value) = value else { return fault("a filter on nothing") };
                let value = self.eval(value)?;
                let given = self.given(arguments)?;
                let filtered = self.filtered(name, &value, given);
                self.budget.release(value);
                filtered
            }
            Kind::Test(value, name, arguments) => {
                let value = self.eval(value)?;
                let given = self.given(arguments)?;
                self.passes(name, &value, given).map(Value::Bool)
            }
        }
    }

    /// A block's filters on what the block made.
    pub(super) fn eval_on(&mut self, filter: &Expr, text: Value) -> Outcome<Value> {
        let Kind::Filter(inner, name, arguments) = &filter.kind else {
            return fault("a block takes filters");
        };
        self.budget.enter()?;
        let value = match inner {
            Some(inner) => self.eval_on(inner, text)?,
            None => text,
        };
        let given = self.given(arguments)?;
        let value = self.filtered(name, &value, given);
        self.budget.leave();
        value
    }

    pub(super) fn all(&mut self, items: &[Expr]) -> Outcome<Vec<Value>> {
        items.iter().map(|item| self.eval(item)).collect()
    }

    fn pair(&mut self, pair: &(Expr, Expr)) -> Outcome<(Value, Value)> {
        Ok((self.eval(&pair.0)?, self.eval(&pair.1)?))
    }

    #[inline(never)]
    fn dict(&mut self, entries: &[(Expr, Expr)]) -> Outcome<Value> {
        let mut pairs = Vec::with_capacity(entries.len());
        for entry in entries {
            pairs.push(self.pair(entry)?);
        }
        self.budget.map(pairs)
    }

    #[inline(never)]
    fn comparisons(&mut self, first: &Expr, others: &[(Comparison, Expr)]) -> Outcome<Value> {
        let mut left = self.eval(first)?;
        for (operator, right) in others {
            let right = self.eval(right)?;
            if !self.compare(*operator, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    #[inline(never)]
    fn part(&mut self, value: &Expr, parts: &[Option<Expr>; 3]) -> Outcome<Value> {
        let value = self.eval(value)?;
        let mut bounds = [None; 3];
        for (bound, part) in bounds.iter_mut().zip(parts) {
            let Some(part) = part else { continue };
            let part = self.eval(part)?;
            *bound = match (&part, part.as_int()) {
                (Value::None, _) => None,
                (_, Some(number)) => Some(number),
                _ => {
                    part.defined()?;
                    return fault(format!("a slice takes whole numbers, not {}", part.type_name()));
                }
            };
        }
        self.slice(&value, bounds)
    }

    #[inline(never)]
    fn named(&self, name: &Arc<str>) -> Outcome<Value> {
        if let Some(value) = self.lookup(name)? {
            return Ok(value);
        }
        Ok(match GLOBALS.into_iter().find(|global| **global == **name) {
            Some(global) => Value::Function(Function::Global(global).into()),
            None => Value::Undefined(format!("{:?} is undefined", short(name)).into()),
        })
    }
}
