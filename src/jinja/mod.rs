//! Jinja as chat templates are written in it: what Python's jinja2 makes of a template under transformers' settings, within
//! bounds that hold for any template.
//!
//! Templates come from strangers' files. Nothing here recurses deeper than a constant, and nothing runs or grows further than
//! a [`Budget`] allows:
//!
//! - the parser counts how deep its rules nest and how deep the tree becomes ([`parser`]), and both it and rendering run on
//!   a stack of known size;
//! - values know their depth, and one that would be too deep is not made, so comparing, printing and dropping it are safe;
//!   what can hold itself (namespaces, loops) lies in a list of the run, not in the values;
//! - evaluation counts its levels, its steps and the bytes that it makes; what could grow at once (padding, repetition,
//!   replacement) pays before it grows.
//!
//! It has no loader, so a template reaches nothing but the values it is given.

mod ast;
mod attributes;
mod budget;
mod call;
mod clock;
mod each;
mod expression;
mod filters;
mod format;
mod functions;
mod json;
mod lexer;
mod lists;
mod make;
mod methods;
mod number;
mod operators;
mod parser;
mod percent;
mod predicates;
mod print;
mod run;
mod sequences;
mod text;
mod value;

pub(crate) use value::Value;

use self::{ast::Stmt, budget::Budget, run::Run};

/// The stack that parsing and rendering have. Their deepest recursions need less than 1 MiB without optimisation.
#[cfg(not(target_arch = "wasm32"))]
const STACK: usize = 8 << 20;

/// Works with a stack of known size, whatever thread the caller is on.
#[cfg(not(target_arch = "wasm32"))]
fn on_own_stack<T: Send>(work: impl FnOnce() -> Outcome<T> + Send) -> Outcome<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        match thread.map(|thread| thread.join()) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => fault("the template could not be read to its end"),
            Err(error) => fault(format!("no thread to render in: {error}")),
        }
    })
}

/// In a browser there is one stack, and the bounds are lower.
#[cfg(target_arch = "wasm32")]
fn on_own_stack<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    work()
}

/// What goes wrong in a template: where, and what.
#[derive(Debug)]
pub(crate) struct Fault {
    /// The byte of the source where it went wrong.
    pub at: Option<usize>,
    /// What was wrong, in a sentence.
    pub message: String,
    /// Whether the template said so itself, with `raise_exception`.
    pub raised: bool,
}

/// What a template's parts answer.
type Outcome<T> = Result<T, Box<Fault>>;

/// A fault without a place, which the expression around it adds.
fn fault<T>(message: impl Into<String>) -> Outcome<T> {
    Err(Box::new(Fault { at: None, message: message.into(), raised: false }))
}

/// A template, parsed.
#[derive(Debug)]
pub(crate) struct Template {
    source: String,
    body: Vec<Stmt>,
}

impl Template {
    /// Parses a template.
    pub(crate) fn parse(source: &str) -> Result<Self, Box<Described>> {
        let source = lexer::normalise(source);
        match on_own_stack(|| lexer::lex(&source).and_then(parser::parse)) {
            Ok(body) => Ok(Self { source, body }),
            Err(fault) => Err(describe(&source, *fault)),
        }
    }

    /// The text that the template makes of values.
    pub(crate) fn render(
        &self,
        values: impl FnOnce() -> Vec<(String, Value)> + Send,
    ) -> Result<String, Box<Described>> {
        let render = || {
            let values = values();
            let given = values.iter().map(|(_, value)| value.bytes()).sum();
            Run::new(Budget::new(given), values).render(&self.body)
        };
        on_own_stack(render).map_err(|fault| describe(&self.source, *fault))
    }
}

/// A fault as a person reads it.
#[derive(Debug)]
pub(crate) struct Described {
    /// The line, from 1.
    pub line: Option<usize>,
    /// The template from where it went wrong to the end of the line, or a part of that.
    pub part: String,
    /// What was wrong, short.
    pub message: String,
    /// Whether the template said so itself.
    pub raised: bool,
}

/// How much of a template a message quotes, and how much a message has of anything else.
const PART: usize = 48;
const MESSAGE: usize = 160;

fn describe(source: &str, fault: Fault) -> Box<Described> {
    let at = fault.at.map(|at| at.min(source.len()));
    let before = at.and_then(|at| source.get(..at));
    let rest = at.and_then(|at| source.get(at..)).and_then(|rest| rest.lines().next());
    Box::new(Described {
        line: before.map(|before| before.matches('\n').count() + 1),
        part: cut(rest.unwrap_or_default().trim_end(), PART),
        message: cut(&fault.message, MESSAGE),
        raised: fault.raised,
    })
}

/// The start of a text, with a mark where that is not all.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
