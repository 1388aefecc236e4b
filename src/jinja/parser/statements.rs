//! What stands between `{%` and `%}`.

use std::sync::Arc;

use super::{Parser, short};
use crate::jinja::{
    Outcome,
    ast::{Expr, For, Kind, Macro, Stmt, Target},
    lexer::Tok,
};

/// Names, and what they are when they are not given.
type Parameters = Vec<(Arc<str>, Option<Expr>)>;

impl Parser {
    /// Statements up to the end, or to a tag of one of these names, which is taken except for what follows its name.
    pub(super) fn statements(&mut self, ends: &[&str]) -> Outcome<Vec<Stmt>> {
        self.nested(|parser| {
            let mut body = Vec::new();
            loop {
                match parser.peek() {
                    Tok::Text(text) => {
                        body.push(Stmt::Text(Arc::clone(text)));
                        parser.advance();
                    }
                    Tok::OutputBegin => {
                        parser.advance();
                        body.push(Stmt::Output(parser.tuple()?));
                        parser.expect_end(&Tok::OutputEnd)?;
                    }
                    Tok::BlockBegin => {
                        if let Tok::Name(name) = parser.ahead(1)
                            && ends.contains(&&**name)
                        {
                            parser.advance();
                            return Ok(body);
                        }
                        let at = parser.at();
                        parser.advance();
                        parser.statement(at, &mut body)?;
                    }
                    Tok::End if ends.is_empty() => return Ok(body),
                    _ => {
                        let wanted = ends.last().map_or("text".to_owned(), |end| format!("{{% {end} %}}"));
                        return parser.unexpected(&wanted);
                    }
                }
            }
        })
    }

    /// A block's statements up to its end tag, which is taken whole.
    fn block(&mut self, end: &str) -> Outcome<Vec<Stmt>> {
        let body = self.statements(&[end])?;
        self.advance();
        Ok(body)
    }

    /// The statement of a tag whose begin was taken.
    fn statement(&mut self, at: usize, body: &mut Vec<Stmt>) -> Outcome<()> {
        let name = self.name()?;
        let statement = match &*name {
            "if" => self.if_statement()?,
            "for" => self.for_statement()?,
            "set" => self.set_statement()?,
            "macro" => {
                let name = self.name()?;
                Stmt::Macro(Arc::new(self.macro_of(name)?))
            }
            "call" => self.call_statement()?,
            "with" => self.with_statement()?,
            "filter" => {
                let filter = self.filters(None, at)?;
                let Some(filter) = filter else { return self.unexpected("a filter") };
                self.expect_end(&Tok::BlockEnd)?;
                Stmt::Filter(filter, self.block("endfilter")?)
            }
            // Marks the assistant's words for training; a text has them as they are.
            "generation" => {
                self.expect_end(&Tok::BlockEnd)?;
                Stmt::With(Vec::new(), self.block("endgeneration")?)
            }
            // Nothing extends a chat template, so its blocks are what they hold.
            "block" => {
                let name = self.name()?;
                while matches!(self.peek(), Tok::Name(_)) {
                    self.advance();
                }
                self.expect_end(&Tok::BlockEnd)?;
                let inner = self.block("endblock")?;
                self.takes_name(&name);
                Stmt::With(Vec::new(), inner)
            }
            // Texts for models are not HTML.
            "autoescape" => {
                self.expression()?;
                self.expect_end(&Tok::BlockEnd)?;
                Stmt::With(Vec::new(), self.block("endautoescape")?)
            }
            "print" => {
                body.push(Stmt::Output(self.expression()?));
                while self.takes_op(",") {
                    body.push(Stmt::Output(self.expression()?));
                }
                return self.expect_end(&Tok::BlockEnd);
            }
            "break" | "continue" if self.loops == 0 => {
                return self.fault(at, format!("syntax error: {{% {name} %}} outside a loop"));
            }
            "break" => Stmt::Break,
            "continue" => Stmt::Continue,
            "include" | "import" | "from" | "extends" => {
                return self.fault(at, format!("{{% {name} %}}: a chat template has no other files"));
            }
            other => return self.fault(at, format!("syntax error: an unknown tag {}", short(other))),
        };
        self.expect_end(&Tok::BlockEnd)?;
        body.push(statement);
        Ok(())
    }

    fn if_statement(&mut self) -> Outcome<Stmt> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple()?;
            self.expect_end(&Tok::BlockEnd)?;
            let body = self.statements(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            if self.takes_name("elif") {
                continue;
            }
            if self.takes_name("else") {
                self.expect_end(&Tok::BlockEnd)?;
                return Ok(Stmt::If(branches, self.block("endif")?));
            }
            self.advance();
            return Ok(Stmt::If(branches, Vec::new()));
        }
    }

    fn for_statement(&mut self) -> Outcome<Stmt> {
        let target = self.target(false)?;
        self.expect_name("in")?;
        let at = self.at();
        let items = self.unconditional()?;
        let items = self.rest_of_tuple(at, items, Self::unconditional)?;
        let condition = if self.takes_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.takes_name("recursive");
        self.expect_end(&Tok::BlockEnd)?;
        self.loops += 1;
        let body = self.statements(&["else", "endfor"])?;
        self.loops -= 1;
        let otherwise = if self.takes_name("else") {
            self.expect_end(&Tok::BlockEnd)?;
            self.block("endfor")?
        } else {
            self.advance();
            Vec::new()
        };
        Ok(Stmt::For(Arc::new(For { target, items, condition, recursive, body, otherwise })))
    }

    fn set_statement(&mut self) -> Outcome<Stmt> {
        let target = self.target(true)?;
        if self.takes_op("=") {
            return Ok(Stmt::Set(target, self.tuple()?));
        }
        let filter = if self.is_op("|") { self.filters(None, self.at())? } else { None };
        self.expect_end(&Tok::BlockEnd)?;
        Ok(Stmt::SetBlock(target, filter, self.block("endset")?))
    }

    fn with_statement(&mut self) -> Outcome<Stmt> {
        let mut assigned = Vec::new();
        while *self.peek() != Tok::BlockEnd {
            if !assigned.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(false)?;
            self.expect_op("=")?;
            assigned.push((target, self.expression()?));
        }
        self.advance();
        Ok(Stmt::With(assigned, self.block("endwith")?))
    }

    fn call_statement(&mut self) -> Outcome<Stmt> {
        let parameters = if self.is_op("(") { self.parameters()? } else { Vec::new() };
        let call = self.expression()?;
        if !matches!(call.kind, Kind::Call(..)) {
            return self.fault(call.at, "syntax error: {% call %} takes a call");
        }
        self.expect_end(&Tok::BlockEnd)?;
        let made = self.macro_with("caller".into(), parameters, "endcall")?;
        Ok(Stmt::Call(call, Arc::new(made)))
    }

    fn macro_of(&mut self, name: Arc<str>) -> Outcome<Macro> {
        let parameters = self.parameters()?;
        self.expect_end(&Tok::BlockEnd)?;
        let made = self.macro_with(Arc::clone(&name), parameters, "endmacro")?;
        self.takes_name(&name);
        Ok(made)
    }

    /// A macro's body; that it takes more than it names shows in the names that it uses.
    fn macro_with(&mut self, name: Arc<str>, parameters: Parameters, end: &str) -> Outcome<Macro> {
        let start = self.next;
        let body = self.block(end)?;
        let used = self.tokens.get(start..self.next).unwrap_or_default();
        let uses =
            |name: &str| used.iter().any(|token| matches!(&token.kind, Tok::Name(used) if &**used == name));
        Ok(Macro { name, parameters, varargs: uses("varargs"), kwargs: uses("kwargs"), body })
    }

    fn parameters(&mut self) -> Outcome<Parameters> {
        self.expect_op("(")?;
        let mut parameters = Vec::new();
        while !self.takes_op(")") {
            if !parameters.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.name()?;
            let default = if self.takes_op("=") { Some(self.expression()?) } else { None };
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    /// What is assigned to: a name, several, or (`attributes`) a namespace's attribute.
    fn target(&mut self, attributes: bool) -> Outcome<Target> {
        let one = self.single_target(attributes)?;
        if !self.is_op(",") {
            return Ok(one);
        }
        let mut all = vec![one];
        while self.takes_op(",")
            && (matches!(self.peek(), Tok::Name(_)) || self.is_op("("))
            && !self.is_name("in")
        {
            all.push(self.single_target(attributes)?);
        }
        Ok(Target::Tuple(all))
    }

    fn single_target(&mut self, attributes: bool) -> Outcome<Target> {
        if self.takes_op("(") {
            let inner = self.nested(|parser| parser.target(attributes))?;
            self.expect_op(")")?;
            return Ok(inner);
        }
        let at = self.at();
        let name = self.name()?;
        if ["true", "false", "none", "True", "False", "None"].contains(&&*name) {
            return self.fault(at, format!("syntax error: {name} cannot be assigned to"));
        }
        if attributes && self.takes_op(".") {
            return Ok(Target::Attribute(name, self.name()?, at));
        }
        Ok(Target::Name(name))
    }
}
