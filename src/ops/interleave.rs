//! Rows of a file become quads of a matrix.

use std::{
    collections::{HashMap, hash_map::Entry},
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
}

/// Writes rows in the order of `shaders/shared/weights.wgsl`: the vec4s of four rows alternate.
///
/// Rows come in pieces that may begin or end within a quad. Such a quad is written with zeros for what is missing, and
/// again when more of its rows come; until it is whole, its rows are kept.
#[derive(Default)]
pub(super) struct Interleaver(Mutex<HashMap<(usize, u64), Partial>>);

/// A quad on the host, interleaved.
struct Partial {
    bytes: Vec<u8>,
    /// Rows that have come, one bit each.
    seen: u8,
}

const VEC4: usize = 16;

impl Interleaver {
    /// Writes `bytes`, the rows of `run`, to the part's buffer.
    pub fn write(&self, buffer: &Buffer, run: &Run, bytes: &[u8]) {
        let row_bytes = run.row_bytes as usize;
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
                    rows.chunks(row_bytes).zip(0..).for_each(|(row, slot)| place(row, slot, quad));
                }
                buffer.write(quad * 4 * run.row_bytes, &quads);
                4 * whole
            } else {
                let count = (4 - row % 4).min(end - row);
                let rows = rest.chunks(row_bytes).take(count as usize).zip((row % 4) as usize..);
                self.write_partial(buffer, (run.part, quad), (run.of - row / 4 * 4).min(4), rows);
                count
            };
            row += count;
        }
    }

    /// Writes some rows, each with its place in the quad, of a quad that has `of` rows when it is whole.
    fn write_partial<'a>(
        &self,
        buffer: &Buffer,
        quad: (usize, u64),
        of: u64,
        rows: impl Iterator<Item = (&'a [u8], usize)>,
    ) {
        // A poisoned lock only means that a writer panicked: the rows it had placed are whole.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entry = match kept.entry(quad) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(entry) => entry.insert_entry(Partial { bytes: Vec::new(), seen: 0 }),
        };
        let partial = entry.get_mut();
        for (row, slot) in rows {
            partial.bytes.resize(4 * row.len(), 0);
            place(row, slot, &mut partial.bytes);
            partial.seen |= 1 << slot;
        }
        buffer.write(quad.1 * partial.bytes.len() as u64, &partial.bytes);
        if u64::from(partial.seen.count_ones()) == of {
            entry.remove();
        }
    }

    /// Forgets quads that are not whole.
    pub fn finish(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Puts a row into slot 0 … 3 of a quad.
fn place(row: &[u8], slot: usize, quad: &mut [u8]) {
    for (vec4, four) in row.chunks_exact(VEC4).zip(quad.chunks_exact_mut(4 * VEC4)) {
        four[slot * VEC4..][..VEC4].copy_from_slice(vec4);
    }
}
