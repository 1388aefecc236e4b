//! Routed linear, the first of the two nouns: a list of rows, each through the matrix of its expert.
//!
//! ```text
//! dst[a]  = activation(W[e(a)] · src[a / src_div] + b[e(a)])                     each assignment's product
//! dst[r] (+)= b + Σ_s gate(a) · W[e(a)] · src[a / src_div],   a = r · of + s      or the sums of `of` of them
//! ```
//!
//! Here, and nowhere else, it is decided whether rows are few, each on its own ([`RoutedMatvec`]), or many, sorted by
//! expert and computed in tiles ([`RoutedMatmul`], then [`Combine`] where products are summed).

use super::{
    Activation, Beside, Bias, Combine, Group, GroupBuffers, Matrix, RoutedMatmul, RoutedMatvec, Routes,
    tile_rows,
};
use crate::gpu::{Buffer, Recorder};

/// Tokens up to which each row is computed on its own. With more, experts have rows to share their weights.
pub const FEW_TOKENS: u32 = 4;

/// The rows of a routed linear: `tokens · slots` assignments, `a = token · slots + slot`, and the expert of each.
#[derive(Clone, Copy)]
pub struct RowList<'a> {
    tokens: u32,
    slots: u32,
    routed: Option<Routed<'a>>,
    few: bool,
}

/// Who chose the experts, and where rows are sorted by them.
#[derive(Clone, Copy)]
struct Routed<'a> {
    routes: Routes<'a>,
    experts: u32,
    groups: &'a GroupBuffers,
}

impl<'a> RowList<'a> {
    /// A row for each token, all through one dense matrix.
    pub fn dense(tokens: u32) -> Self {
        Self { tokens, slots: 1, routed: None, few: tokens <= FEW_TOKENS }
    }

    /// A row for each of a token's `slots` choices among `experts`; [`sort`](Self::sort) uses `groups`.
    pub fn routed(
        tokens: u32,
        slots: u32,
        experts: u32,
        routes: Routes<'a>,
        groups: &'a GroupBuffers,
    ) -> Self {
        let routed = Some(Routed { routes, experts, groups });
        Self { routed, slots, ..Self::dense(tokens) }
    }

    /// The same rows, some of which may belong to nobody: only sorting passes over these.
    pub fn with_gaps(self) -> Self {
        Self { few: false, ..self }
    }

    /// Whether each row is computed on its own.
    pub fn few(&self) -> bool {
        self.few
    }

    /// Tokens that the rows come from.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Rows in all.
    pub fn assignments(&self) -> u32 {
        self.tokens * self.slots
    }

    /// The choices, where there are experts to choose from.
    pub fn routes(&self) -> Option<Routes<'a>> {
        self.routed.map(|routed| routed.routes)
    }

    /// Sorts many rows by expert; to be recorded once the choices are made and before a product of these rows.
    pub fn sort(&self, recorder: &mut Recorder) {
        let Some(Routed { routes, experts, groups }) = self.routed.filter(|_| !self.few) else { return };
        let assignments = self.assignments();
        let tile_rows = tile_rows(recorder.gpu(), assignments, experts);
        Group { routes, assignments, experts, tile_rows, into: groups }.record(recorder);
    }

    /// The rows sorted by expert.
    fn groups(&self) -> Option<&'a GroupBuffers> {
        self.routed.map(|routed| routed.groups)
    }
}

/// Where products go.
#[derive(Clone, Copy)]
pub enum Output<'a> {
    /// `[assignments, outputs]`: each to a row of its own.
    Each(&'a Buffer),
    /// The sums of some, weighed by their gates where rows are routed.
    Sums(Sums<'a>),
}

/// Sums of consecutive products.
#[derive(Clone, Copy)]
pub struct Sums<'a> {
    /// `[assignments / of, outputs]`
    pub dst: &'a Buffer,
    /// Products in a sum.
    pub of: u32,
    /// `[outputs]`, added once to each sum.
    pub bias: Option<&'a Buffer>,
    /// Add to `dst` instead of overwriting it.
    pub residual: bool,
    /// `[assignments, outputs]`, scratch: products of many rows before they are summed.
    pub products: &'a Buffer,
}

/// A dense product of the same source rows, `dst[t] = W · src[t] + bias`, by the way where one dispatch can do both.
#[derive(Clone, Copy)]
pub struct Alongside<'a> {
    pub matrix: &'a Matrix,
    pub bias: Option<&'a Buffer>,
    pub dst: &'a Buffer,
}

/// Rows through the matrices of their experts.
///
/// A matrix with two halves gives `silu(gate half) · (up half)` instead of the plain product.
pub struct RoutedLinear<'a> {
    pub rows: RowList<'a>,
    /// `[assignments / src_div, inputs]`
    pub src: &'a Buffer,
    /// Assignments that share one row of `src`.
    pub src_div: u32,
    /// Whether `src` comes from a norm, which keeps its values within what 16-bit floats hold.
    pub normed: bool,
    pub matrix: &'a Matrix,
    /// Added to each product; of all experts, or of each.
    pub bias: Bias<'a>,
    pub activation: Activation,
    pub output: Output<'a>,
    pub alongside: Option<Alongside<'a>>,
}

impl<'a> RoutedLinear<'a> {
    /// `dst = W · src`, with a dense matrix and a row of `src` for each row of the list.
    pub fn dense(tokens: u32, src: &'a Buffer, matrix: &'a Matrix, dst: &'a Buffer) -> Self {
        Self {
            rows: RowList::dense(tokens),
            src,
            src_div: 1,
            normed: false,
            matrix,
            bias: Bias::None,
            activation: Activation::None,
            output: Output::Each(dst),
            alongside: None,
        }
    }

    pub fn record(&self, recorder: &mut Recorder) {
        let beside = self.alongside.and_then(|alongside| self.beside(&alongside));
        match self.rows.few {
            true => self.record_few(recorder, beside),
            false => self.record_many(recorder),
        }
        if let (Some(Alongside { matrix, bias, dst }), None) = (self.alongside, beside) {
            let tokens = self.rows.assignments() / self.src_div;
            let dense = Self::dense(tokens, self.src, matrix, dst);
            Self { bias: Bias::of_all(bias), normed: self.normed, ..dense }.record(recorder);
        }
    }

    /// The second product in the dispatch of a few routed rows, where both matrices are one buffer.
    fn beside(&self, Alongside { matrix, bias, dst }: &Alongside<'a>) -> Option<Beside<'a>> {
        let routed = self.rows.few && self.rows.routed.is_some();
        let together = routed && bias.is_none() && self.matrix.is_paired_with(matrix);
        together.then_some(Beside { matrix, dst })
    }

    fn record_few(&self, recorder: &mut Recorder, beside: Option<Beside<'_>>) {
        let routes = self.rows.routes();
        let (dst, of, gated, bias, residual) = match self.output {
            Output::Each(dst) => (dst, 1, false, self.bias, false),
            Output::Sums(Sums { dst, of, bias, residual, .. }) => {
                debug_assert!(matches!(self.bias, Bias::None), "a bias of each product needs many rows");
                (dst, of, routes.is_some(), Bias::of_all(bias), residual)
            }
        };
        RoutedMatvec {
            src: self.src,
            matrix: self.matrix,
            routes,
            gated,
            bias,
            activation: self.activation,
            dst,
            residual,
            rows: self.rows.assignments() / of,
            slots: of,
            src_div: self.src_div,
            beside,
        }
        .record(recorder);
    }

    fn record_many(&self, recorder: &mut Recorder) {
        let rows = self.rows.assignments();
        let dst = match &self.output {
            Output::Each(dst) => dst,
            Output::Sums(sums) => sums.products,
        };
        RoutedMatmul {
            src: self.src,
            matrix: self.matrix,
            groups: self.rows.groups(),
            bias: self.bias,
            activation: self.activation,
            dst,
            rows,
            src_div: self.src_div,
            bounded: self.normed,
        }
        .record(recorder);
        if let Output::Sums(Sums { dst, of, bias, residual, products }) = self.output {
            Combine {
                rows: products,
                routes: self.rows.routes(),
                bias,
                x: dst,
                residual,
                tokens: rows / of,
                slots: of,
                width: self.matrix.shape.outputs,
            }
            .record(recorder);
        }
    }
}
