//! A template as a tree.

use std::sync::Arc;

/// An expression.
#[derive(Debug)]
pub(super) struct Expr {
    pub kind: Kind,
    /// Where it starts in the source.
    pub at: usize,
    /// Levels of expressions from here down.
    pub depth: u32,
}

/// What an expression is.
#[derive(Debug)]
pub(super) enum Kind {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Binary(Operator, Box<(Expr, Expr)>),
    /// Operands of `~`.
    Concat(Vec<Expr>),
    And(Box<(Expr, Expr)>),
    Or(Box<(Expr, Expr)>),
    /// `a < b < c`: the first, then operators and operands.
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    /// `a if condition else b`: condition, a, b.
    If(Box<(Expr, Expr)>, Option<Box<Expr>>),
    Attribute(Box<Expr>, Arc<str>),
    Item(Box<(Expr, Expr)>),
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Box<Arguments>),
    /// A filter; without an operand, on what a block made.
    Filter(Option<Box<Expr>>, Arc<str>, Box<Arguments>),
    Test(Box<Expr>, Arc<str>, Box<Arguments>),
}

/// Arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

/// What is between a call's parentheses.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub positional: Vec<Expr>,
    pub named: Vec<(Arc<str>, Expr)>,
    /// `*args`.
    pub rest: Option<Expr>,
    /// `**kwargs`.
    pub named_rest: Option<Expr>,
}

/// What is assigned to.
#[derive(Debug)]
pub(super) enum Target {
    Name(Arc<str>),
    Tuple(Vec<Target>),
    /// A namespace's name, and the attribute.
    Attribute(Arc<str>, Arc<str>, usize),
}

/// A statement, or text between statements.
#[derive(Debug)]
pub(super) enum Stmt {
    Text(Arc<str>),
    Output(Expr),
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    For(Arc<For>),
    Set(Target, Expr),
    /// A block's text, through filters, into a target.
    SetBlock(Target, Option<Expr>, Vec<Stmt>),
    Macro(Arc<Macro>),
    /// A call, and the macro that it knows as `caller`.
    Call(Expr, Arc<Macro>),
    Filter(Expr, Vec<Stmt>),
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    Break,
    Continue,
}

/// A loop.
#[derive(Debug)]
pub(super) struct For {
    pub target: Target,
    pub items: Expr,
    pub condition: Option<Expr>,
    pub recursive: bool,
    pub body: Vec<Stmt>,
    pub otherwise: Vec<Stmt>,
}

/// A macro.
#[derive(Debug)]
pub(super) struct Macro {
    pub name: Arc<str>,
    /// Names, and what they are when they are not given.
    pub parameters: Vec<(Arc<str>, Option<Expr>)>,
    /// Whether it takes more than it names, as `varargs` and `kwargs`.
    pub varargs: bool,
    pub kwargs: bool,
    pub body: Vec<Stmt>,
}
