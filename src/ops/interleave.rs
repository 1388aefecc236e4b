//! Rows of a file become quads of a matrix.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::gpu::Buffer;

/// Consecutive rows of one expert's half in one part of a matrix.
pub(super) struct Run {
    /// The part's number.
    pub part: usize,
    /// The number of the (expert, half) pair.
    pub block: u64,
    /// The first row, counted in the part's rows of the block.
    pub first: u64,
    /// Rows that the part has of a block.
    pub of: u64,
    /// Bytes of a row: whole vec4s.
    pub row_bytes: u64,
    /// Bytes of them before the scales.
    pub code_bytes: u64,
}

/// Writes rows in the order of `shaders/shared/weights.wgsl`: the vec4s of four rows alternate, and the words of their
/// scales.
///
/// Rows come in pieces that may begin or end within a quad. Such a quad is written with zeros for what is missing, and
/// again when more of its rows come; until it is whole, its rows are kept.
#[derive(Default)]
pub(super) struct Interleaver(Mutex<HashMap<(usize, u64), Partial>>);

/// A quad on the host, interleaved.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    /// Rows that have come, one bit each.
    seen: u8,
}

const VEC4: usize = 16;
const WORD: usize = 4;

impl Interleaver {
    /// Writes `bytes`, the rows of `run`, to the part's buffer.
    pub fn write(&self, buffer: &Buffer, run: &Run, bytes: &[u8]) {
        let (row_bytes, code_bytes) = (run.row_bytes as usize, run.code_bytes as usize);
        let rows = (bytes.len() / row_bytes) as u64;
        let first_quad = run.block * run.of.div_ceil(4);
        let (mut row, end) = (run.first, run.first + rows);
        while row < end {
            let rest = &bytes[(row - run.first) as usize * row_bytes..];
            let quad = first_quad + row / 4;
            let whole = if row.is_multiple_of(4) { (end - row) / 4 } else { 0 };
            let count = if whole > 0 {
                let mut quads = vec![0; (4 * whole) as usize * row_bytes];
                for (rows, quad) in rest.chunks(4 * row_bytes).zip(quads.chunks_mut(4 * row_bytes)) {
                    rows.chunks(row_bytes)
                        .zip(0..)
                        .for_each(|(row, slot)| place(row, code_bytes, slot, quad));
                }
                buffer.write(quad * 4 * run.row_bytes, &quads);
                4 * whole
            } else {
                let count = (4 - row % 4).min(end - row);
                let of = (run.of - row / 4 * 4).min(4);
                self.with_partial((run.part, quad), of, |partial| {
                    partial.bytes.resize(4 * row_bytes, 0);
                    for (row, slot) in rest.chunks(row_bytes).take(count as usize).zip((row % 4) as usize..) {
                        place(row, code_bytes, slot, &mut partial.bytes);
                        partial.seen |= 1 << slot;
                    }
                    buffer.write(quad * 4 * run.row_bytes, &partial.bytes);
                });
                count
            };
            row += count;
        }
    }

    /// Lets rows be added to a quad that has `of` rows when it is whole.
    fn with_partial(&self, quad: (usize, u64), of: u64, add: impl FnOnce(&mut Partial)) {
        // A poisoned lock only means that a writer panicked: the rows it had placed are whole.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let partial = kept.entry(quad).or_default();
        add(partial);
        if u64::from(partial.seen.count_ones()) == of {
            kept.remove(&quad);
        }
    }

    /// Forgets quads that are not whole.
    pub fn finish(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Puts a row, whose scales follow `code_bytes` of codes, into slot 0 … 3 of a quad.
fn place(row: &[u8], code_bytes: usize, slot: usize, quad: &mut [u8]) {
    let (codes, scales) = row.split_at(code_bytes);
    let (quad_codes, quad_scales) = quad.split_at_mut(4 * code_bytes);
    alternate::<VEC4>(codes, slot, quad_codes);
    alternate::<WORD>(scales, slot, quad_scales);
}

/// Puts pieces of `N` bytes four pieces apart.
fn alternate<const N: usize>(row: &[u8], slot: usize, quad: &mut [u8]) {
    for (piece, four) in row.chunks_exact(N).zip(quad.chunks_exact_mut(4 * N)) {
        four[slot * N..][..N].copy_from_slice(piece);
    }
}
