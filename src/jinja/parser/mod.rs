//! From tokens to a tree, by jinja2's grammar.
//!
//! Both the parser's own recursion and the depth of the tree that it makes have a bound. Python's own are of the same size:
//! jinja2 gives up on some 70 parentheses within each other and on chains of 200 operators.

mod expressions;
mod statements;

use std::sync::Arc;

use super::{
    Fault, Outcome,
    ast::{Arguments, Expr, Kind, Stmt},
    lexer::{Tok, Token},
};

/// Rules within each other.
const NESTING: u32 = 100;
/// Levels of an expression.
const DEPTH: u32 = 200;

/// The statements of a template.
pub(super) fn parse(tokens: Vec<Token>) -> Outcome<Vec<Stmt>> {
    let mut parser = Parser { tokens, next: 0, nesting: 0, loops: 0 };
    parser.statements(&[])
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    nesting: u32,
    /// Loops around what is parsed.
    loops: u32,
}

impl Parser {
    /// The token that comes next; the last one is always [`Tok::End`].
    fn peek(&self) -> &Tok {
        self.ahead(0)
    }

    fn ahead(&self, by: usize) -> &Tok {
        self.tokens.get(self.next + by).map_or(&Tok::End, |token| &token.kind)
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).or(self.tokens.last()).map_or(0, |token| token.at)
    }

    fn advance(&mut self) {
        self.next += 1;
    }

    fn fault<T>(&self, at: usize, message: impl Into<String>) -> Outcome<T> {
        Err(Box::new(Fault { at: Some(at), message: message.into(), raised: false }))
    }

    fn unexpected<T>(&self, wanted: &str) -> Outcome<T> {
        let found = match self.peek() {
            Tok::End => "the end".to_owned(),
            Tok::Text(_) => "text".to_owned(),
            Tok::OutputBegin => "{{".to_owned(),
            Tok::OutputEnd => "}}".to_owned(),
            Tok::BlockBegin => "{%".to_owned(),
            Tok::BlockEnd => "%}".to_owned(),
            Tok::Name(name) => short(name),
            Tok::Str(_) => "a string".to_owned(),
            Tok::Int(_) | Tok::Float(_) => "a number".to_owned(),
            Tok::Op(operator) => (*operator).to_owned(),
        };
        self.fault(self.at(), format!("syntax error: {found} where {wanted} should be"))
    }

    fn is_op(&self, operator: &str) -> bool {
        matches!(self.peek(), Tok::Op(found) if *found == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Tok::Name(found) if **found == *name)
    }

    fn takes_op(&mut self, operator: &str) -> bool {
        let found = self.is_op(operator);
        self.next += usize::from(found);
        found
    }

    fn takes_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.next += usize::from(found);
        found
    }

    fn expect_op(&mut self, operator: &'static str) -> Outcome<()> {
        if self.takes_op(operator) { Ok(()) } else { self.unexpected(operator) }
    }

    fn expect_name(&mut self, name: &str) -> Outcome<()> {
        if self.takes_name(name) { Ok(()) } else { self.unexpected(name) }
    }

    fn expect_end(&mut self, end: &Tok) -> Outcome<()> {
        if self.peek() == end {
            self.advance();
            return Ok(());
        }
        self.unexpected(if *end == Tok::BlockEnd { "%}" } else { "}}" })
    }

    fn name(&mut self) -> Outcome<Arc<str>> {
        let Tok::Name(name) = self.peek() else { return self.unexpected("a name") };
        let name = Arc::clone(name);
        self.advance();
        Ok(name)
    }

    /// Parses what may hold itself.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        if self.nesting == NESTING {
            return self.fault(self.at(), format!("syntax error: nested more than {NESTING} deep"));
        }
        self.nesting += 1;
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    /// A node of the tree, one level above what it holds.
    fn node(&self, at: usize, kind: Kind) -> Outcome<Expr> {
        let depth = 1 + below(&kind);
        if depth > DEPTH {
            return self.fault(at, format!("syntax error: an expression of more than {DEPTH} levels"));
        }
        Ok(Expr { kind, at, depth })
    }
}

/// A name, short enough for a message.
fn short(name: &str) -> String {
    name.chars().take(40).collect()
}

/// The depth of the deepest expression that a node holds.
fn below(kind: &Kind) -> u32 {
    let all = |items: &[Expr]| items.iter().map(|item| item.depth).max().unwrap_or(0);
    let some = |item: &Option<Expr>| item.as_ref().map_or(0, |item| item.depth);
    let given = |arguments: &Arguments| {
        let named = arguments.named.iter().map(|(_, value)| value.depth).max().unwrap_or(0);
        all(&arguments.positional).max(named).max(some(&arguments.rest)).max(some(&arguments.named_rest))
    };
    match kind {
        Kind::None | Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) | Kind::Str(_) | Kind::Name(_) => 0,
        Kind::List(items) | Kind::Tuple(items) | Kind::Concat(items) => all(items),
        Kind::Dict(entries) => {
            entries.iter().map(|(key, value)| key.depth.max(value.depth)).max().unwrap_or(0)
        }
        Kind::Not(value) | Kind::Negative(value) | Kind::Positive(value) | Kind::Attribute(value, _) => {
            value.depth
        }
        Kind::Binary(_, pair) | Kind::And(pair) | Kind::Or(pair) | Kind::Item(pair) => {
            pair.0.depth.max(pair.1.depth)
        }
        Kind::Compare(first, others) => {
            others.iter().map(|(_, value)| value.depth).max().unwrap_or(0).max(first.depth)
        }
        Kind::If(pair, otherwise) => {
            pair.0.depth.max(pair.1.depth).max(otherwise.as_ref().map_or(0, |value| value.depth))
        }
        Kind::Slice(value, parts) => parts.iter().map(some).max().unwrap_or(0).max(value.depth),
        Kind::Call(value, arguments) | Kind::Test(value, _, arguments) => value.depth.max(given(arguments)),
        Kind::Filter(value, _, arguments) => {
            value.as_ref().map_or(0, |value| value.depth).max(given(arguments))
        }
    }
}
