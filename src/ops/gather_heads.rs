//! Heads that someone asked for, from rows of all of them.

use super::{Asked, Kernel, Routes, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::GATHER_HEADS, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        slots: u32,
        heads: u32,
        quads: u32,
        row_quads: u32,
        first_quad: u32,
        first_route: u32,
        asked_heads: u32,
    }
}

/// Rows of heads.
#[derive(Clone, Copy)]
pub struct HeadRows<'a> {
    /// `[tokens · slots, row]`
    pub rows: &'a Buffer,
    /// Floats of a row, a multiple of 8.
    pub row: u32,
    /// Where the heads start in a row, a multiple of 4.
    pub first: u32,
    /// Rows of a token.
    pub slots: u32,
    /// Heads of a row.
    pub heads: u32,
    /// Floats of a head, a multiple of 4.
    pub stride: u32,
    /// The experts in the slots; without, head `j` of slot `s` is head `s · heads + j`.
    pub routes: Option<Routes<'a>>,
}

/// `out[i, a]` = head `a` of those asked for, of token `i` of those asked for; zeros where the token did not choose it.
pub struct GatherHeads<'a> {
    pub src: HeadRows<'a>,
    pub asked: &'a Asked,
    /// Tokens of the step.
    pub tokens: u32,
    /// `[asked tokens, asked heads, stride]`
    pub out: &'a Buffer,
}

impl GatherHeads<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let Self { src, asked, tokens, out } = *self;
        let HeadRows { rows, row, first, slots, heads, stride, routes } = src;
        let quads = stride / 4;
        let params = Params {
            tokens,
            slots,
            heads,
            quads,
            row_quads: row / 4,
            first_quad: first / 4,
            first_route: routes.map_or(0, |routes| routes.first),
            asked_heads: asked.heads(),
        };
        let chosen = routes.map_or(&asked.words, |routes| routes.chosen);
        recorder.dispatch(
            &params,
            Dispatch {
                constants: &[("ROUTED", f64::from(u8::from(routes.is_some())))],
                ..Dispatch::new(
                    &KERNEL,
                    &[rows, &asked.words, chosen, out],
                    [(asked.heads() * quads).div_ceil(64), asked.tokens(), 1],
                )
            },
        );
    }
}
