//! Token embedding: a row of the table for each token.

use super::{Kernel, Matrix, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::EMBEDDING, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        in_blocks: u32,
        first_row: u32,
        part_rows: u32,
        scale: f32,
    }
}

/// `x[t] = scale · table[ids[t]]`
pub struct Embedding<'a> {
    /// `[tokens]` u32
    pub ids: &'a Buffer,
    /// One dense matrix, `[vocabulary, width]`.
    pub table: &'a Matrix,
    /// `[tokens, width]`
    pub x: &'a Buffer,
    pub tokens: u32,
    pub scale: f32,
}

impl Embedding<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let blocks = padded(self.table.shape.inputs) / 8;
        for part in &self.table.parts {
            let params = Params {
                tokens: self.tokens,
                in_blocks: blocks,
                first_row: part.first_row,
                part_rows: part.rows,
                scale: self.scale,
            };
            recorder.dispatch(
                &params,
                Dispatch {
                    kernel: &KERNEL,
                    constants: &[("WEIGHT_FORMAT", self.table.precision.format())],
                    buffers: &[self.ids, &part.buffer, self.x],
                    groups: [blocks.div_ceil(32), self.tokens, 1],
                    macs: 0,
                    // A token's row is in one of the parts.
                    weight_bytes: match part.first_row {
                        0 => u64::from(self.tokens) * self.table.row_bytes(),
                        _ => 0,
                    },
                    cache_bytes: 0,
                },
            );
        }
    }
}
