//! Expressions, by how tightly their operators bind.

use std::sync::Arc;

use super::Parser;
use crate::jinja::{
    Outcome,
    ast::{Arguments, Comparison, Expr, Kind, Operator},
    lexer::Tok,
};

/// How tightly binary operators bind.
const OR: u32 = 0;
const AND: u32 = 1;
const NOT: u32 = 2;
const COMPARE: u32 = 3;
const SUM: u32 = 4;
const CONCAT: u32 = 5;
const PRODUCT: u32 = 6;
const POWER: u32 = 7;

impl Parser {
    /// An expression, or several with commas between.
    pub(super) fn tuple(&mut self) -> Outcome<Expr> {
        let at = self.at();
        let first = self.expression()?;
        self.rest_of_tuple(at, first, Self::expression)
    }

    pub(super) fn rest_of_tuple(
        &mut self,
        at: usize,
        first: Expr,
        item: impl Fn(&mut Self) -> Outcome<Expr>,
    ) -> Outcome<Expr> {
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.takes_op(",") {
            let over = matches!(self.peek(), Tok::OutputEnd | Tok::BlockEnd | Tok::Op(")"));
            if over || self.is_name("recursive") {
                break;
            }
            items.push(item(self)?);
        }
        self.node(at, Kind::Tuple(items))
    }

    pub(super) fn expression(&mut self) -> Outcome<Expr> {
        self.nested(|parser| {
            let at = parser.at();
            let mut value = parser.binary(OR)?;
            while parser.takes_name("if") {
                let condition = parser.binary(OR)?;
                let otherwise =
                    if parser.takes_name("else") { Some(Box::new(parser.expression()?)) } else { None };
                value = parser.node(at, Kind::If(Box::new((condition, value)), otherwise))?;
            }
            Ok(value)
        })
    }

    /// An expression whose `if` belongs to what is around it.
    pub(super) fn unconditional(&mut self) -> Outcome<Expr> {
        self.binary(OR)
    }

    /// Operators that bind at least as tightly as `level`.
    fn binary(&mut self, level: u32) -> Outcome<Expr> {
        let at = self.at();
        let mut left = if level <= NOT && self.is_name("not") { self.negation()? } else { self.unary(true)? };
        while let Some((found, operator)) = self.operator().filter(|(found, _)| *found >= level) {
            left = match found {
                COMPARE => self.comparisons(at, left)?,
                CONCAT => {
                    let mut parts = vec![left];
                    while self.takes_op("~") {
                        parts.push(self.binary(PRODUCT)?);
                    }
                    self.node(at, Kind::Concat(parts))?
                }
                _ => {
                    self.advance();
                    let pair = Box::new((left, self.binary(found + 1)?));
                    let kind = match (found, operator) {
                        (OR, _) => Kind::Or(pair),
                        (AND, _) => Kind::And(pair),
                        (_, Some(operator)) => Kind::Binary(operator, pair),
                        (_, None) => return self.unexpected("an operator"),
                    };
                    self.node(at, kind)?
                }
            };
        }
        Ok(left)
    }

    /// The binary operator that comes next: how tightly it binds, and which it is where it does arithmetic.
    fn operator(&self) -> Option<(u32, Option<Operator>)> {
        Some(match self.peek() {
            Tok::Name(name) => match &**name {
                "or" => (OR, None),
                "and" => (AND, None),
                "in" => (COMPARE, None),
                "not" if matches!(self.ahead(1), Tok::Name(name) if &**name == "in") => (COMPARE, None),
                _ => return None,
            },
            Tok::Op(operator) => match *operator {
                "==" | "!=" | "<" | "<=" | ">" | ">=" => (COMPARE, None),
                "+" => (SUM, Some(Operator::Add)),
                "-" => (SUM, Some(Operator::Subtract)),
                "~" => (CONCAT, None),
                "*" => (PRODUCT, Some(Operator::Multiply)),
                "/" => (PRODUCT, Some(Operator::Divide)),
                "//" => (PRODUCT, Some(Operator::FloorDivide)),
                "%" => (PRODUCT, Some(Operator::Modulo)),
                "**" => (POWER, Some(Operator::Power)),
                _ => return None,
            },
            _ => return None,
        })
    }

    /// `not`s, without recursion, and what they negate.
    fn negation(&mut self) -> Outcome<Expr> {
        let mut places = Vec::new();
        while self.is_name("not") {
            places.push(self.at());
            self.advance();
        }
        let mut value = self.binary(COMPARE)?;
        for at in places.into_iter().rev() {
            value = self.node(at, Kind::Not(Box::new(value)))?;
        }
        Ok(value)
    }

    fn comparisons(&mut self, at: usize, first: Expr) -> Outcome<Expr> {
        let mut others = Vec::new();
        loop {
            let comparison = match self.peek() {
                Tok::Op("==") => Comparison::Equal,
                Tok::Op("!=") => Comparison::Unequal,
                Tok::Op("<") => Comparison::Less,
                Tok::Op("<=") => Comparison::LessOrEqual,
                Tok::Op(">") => Comparison::Greater,
                Tok::Op(">=") => Comparison::GreaterOrEqual,
                Tok::Name(name) if &**name == "in" => Comparison::In,
                Tok::Name(name) if &**name == "not" => {
                    self.advance();
                    Comparison::NotIn
                }
                _ => return self.node(at, Kind::Compare(Box::new(first), others)),
            };
            self.advance();
            others.push((comparison, self.binary(SUM)?));
            if self.is_name("not") && !matches!(self.ahead(1), Tok::Name(name) if &**name == "in") {
                return self.node(at, Kind::Compare(Box::new(first), others));
            }
        }
    }

    fn unary(&mut self, filters: bool) -> Outcome<Expr> {
        let at = self.at();
        let value = if self.takes_op("-") {
            let value = self.nested(|parser| parser.unary(false))?;
            self.node(at, Kind::Negative(Box::new(value)))?
        } else if self.takes_op("+") {
            let value = self.nested(|parser| parser.unary(false))?;
            self.node(at, Kind::Positive(Box::new(value)))?
        } else {
            self.primary()?
        };
        let value = self.postfix(at, value)?;
        if filters { self.filters_and_tests(at, value) } else { Ok(value) }
    }

    fn primary(&mut self) -> Outcome<Expr> {
        let at = self.at();
        let kind = match self.peek() {
            Tok::Name(name) => match &**name {
                "true" | "True" => Kind::Bool(true),
                "false" | "False" => Kind::Bool(false),
                "none" | "None" => Kind::None,
                _ => Kind::Name(Arc::clone(name)),
            },
            Tok::Str(_) => return self.strings(),
            Tok::Int(number) => Kind::Int(*number),
            Tok::Float(number) => Kind::Float(*number),
            Tok::Op("(") => return self.parenthesised(),
            Tok::Op("[") => return self.list(),
            Tok::Op("{") => return self.dict(),
            _ => return self.unexpected("an expression"),
        };
        self.advance();
        self.node(at, kind)
    }

    /// Strings one after the other are one.
    fn strings(&mut self) -> Outcome<Expr> {
        let at = self.at();
        let Tok::Str(first) = self.peek() else { return self.unexpected("a string") };
        let mut whole = Arc::clone(first);
        self.advance();
        if matches!(self.peek(), Tok::Str(_)) {
            let mut text = String::from(&*whole);
            while let Tok::Str(next) = self.peek() {
                text.push_str(next);
                self.next += 1;
            }
            whole = text.into();
        }
        self.node(at, Kind::Str(whole))
    }

    fn parenthesised(&mut self) -> Outcome<Expr> {
        let at = self.at();
        self.advance();
        if self.takes_op(")") {
            return self.node(at, Kind::Tuple(Vec::new()));
        }
        let value = self.tuple()?;
        self.expect_op(")")?;
        Ok(value)
    }

    fn list(&mut self) -> Outcome<Expr> {
        let at = self.at();
        self.advance();
        let mut items = Vec::new();
        while !self.takes_op("]") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.takes_op("]") {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        self.node(at, Kind::List(items))
    }

    fn dict(&mut self) -> Outcome<Expr> {
        let at = self.at();
        self.advance();
        let mut entries = Vec::new();
        while !self.takes_op("}") {
            if !entries.is_empty() {
                self.expect_op(",")?;
                if self.takes_op("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect_op(":")?;
            entries.push((key, self.expression()?));
        }
        self.node(at, Kind::Dict(entries))
    }

    /// Attributes, items and calls.
    fn postfix(&mut self, at: usize, mut value: Expr) -> Outcome<Expr> {
        loop {
            value = match self.peek() {
                Tok::Op(".") => {
                    self.advance();
                    if let Tok::Int(index) = *self.peek() {
                        self.advance();
                        let index = self.node(at, Kind::Int(index))?;
                        self.node(at, Kind::Item(Box::new((value, index))))?
                    } else {
                        let name = self.name()?;
                        self.node(at, Kind::Attribute(Box::new(value), name))?
                    }
                }
                Tok::Op("[") => self.item(at, value)?,
                Tok::Op("(") => {
                    let arguments = self.arguments()?;
                    self.node(at, Kind::Call(Box::new(value), Box::new(arguments)))?
                }
                _ => return Ok(value),
            };
        }
    }

    fn item(&mut self, at: usize, value: Expr) -> Outcome<Expr> {
        self.advance();
        let first = if self.is_op(":") { None } else { Some(self.tuple()?) };
        let kind = match first {
            Some(index) if !self.is_op(":") => Kind::Item(Box::new((value, index))),
            first => {
                let mut parts = [first, None, None];
                for part in &mut parts[1..] {
                    if self.takes_op(":") && !self.is_op(":") && !self.is_op("]") {
                        *part = Some(self.expression()?);
                    }
                }
                Kind::Slice(Box::new(value), Box::new(parts))
            }
        };
        self.expect_op("]")?;
        self.node(at, kind)
    }

    pub(super) fn arguments(&mut self) -> Outcome<Arguments> {
        self.expect_op("(")?;
        let mut arguments = Arguments::default();
        let mut first = true;
        while !self.takes_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.takes_op(")") {
                    break;
                }
            }
            first = false;
            if self.takes_op("**") {
                arguments.named_rest = Some(self.expression()?);
            } else if self.takes_op("*") {
                arguments.rest = Some(self.expression()?);
            } else if matches!(self.peek(), Tok::Name(_)) && *self.ahead(1) == Tok::Op("=") {
                let name = self.name()?;
                self.advance();
                arguments.named.push((name, self.expression()?));
            } else if arguments.named.is_empty() && arguments.named_rest.is_none() {
                arguments.positional.push(self.expression()?);
            } else {
                return self.unexpected("a named argument");
            }
        }
        Ok(arguments)
    }

    fn filters_and_tests(&mut self, at: usize, mut value: Expr) -> Outcome<Expr> {
        loop {
            value = match self.peek() {
                Tok::Op("|") => match self.filters(Some(value), at)? {
                    Some(value) => value,
                    None => return self.unexpected("a filter"),
                },
                Tok::Name(name) if &**name == "is" => self.test(at, value)?,
                Tok::Op("(") => {
                    let arguments = self.arguments()?;
                    self.node(at, Kind::Call(Box::new(value), Box::new(arguments)))?
                }
                _ => return Ok(value),
            };
        }
    }

    /// Filters on a value, or on what a block makes; for a block, the first stands without its `|`.
    pub(super) fn filters(&mut self, mut value: Option<Expr>, at: usize) -> Outcome<Option<Expr>> {
        let mut first = value.is_none() && !self.is_op("|");
        while first || self.takes_op("|") {
            first = false;
            let name = self.dotted_name()?;
            let arguments = if self.is_op("(") { self.arguments()? } else { Arguments::default() };
            value = Some(self.node(at, Kind::Filter(value.map(Box::new), name, Box::new(arguments)))?);
        }
        Ok(value)
    }

    fn dotted_name(&mut self) -> Outcome<Arc<str>> {
        let mut name = self.name()?;
        if self.is_op(".") {
            let mut whole = name.to_string();
            while self.takes_op(".") {
                whole = format!("{whole}.{}", self.name()?);
            }
            name = whole.into();
        }
        Ok(name)
    }

    fn test(&mut self, at: usize, value: Expr) -> Outcome<Expr> {
        self.advance();
        let not = self.takes_name("not");
        let name = self.dotted_name()?;
        let mut arguments = Arguments::default();
        match self.peek() {
            Tok::Op("(") => arguments = self.arguments()?,
            Tok::Name(next) if ["else", "or", "and", "is", "if", "in", "not"].contains(&&**next) => {}
            Tok::Name(_) | Tok::Str(_) | Tok::Int(_) | Tok::Float(_) | Tok::Op("[" | "{") => {
                let at = self.at();
                let argument = self.primary()?;
                arguments.positional.push(self.postfix(at, argument)?);
            }
            _ => {}
        }
        let test = self.node(at, Kind::Test(Box::new(value), name, Box::new(arguments)))?;
        if not { self.node(at, Kind::Not(Box::new(test))) } else { Ok(test) }
    }
}
