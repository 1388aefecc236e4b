//! Quantised rows, back to numbers: the oracle of packing and of the kernels that unpack. Written from the table in
//! docs/quantization.md, one weight at a time, from bytes; it shares nothing with the library.

use half::f16;

/// Inputs that share a scale.
pub const GROUP: usize = 32;

/// A scheme of storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// 8 bits.
    Q8,
    /// 4 bits.
    Q4,
}

impl Scheme {
    /// Bytes of a row of `inputs` weights.
    pub fn row_bytes(self, inputs: usize) -> usize {
        let groups = inputs / GROUP;
        let (codes, scales) = match self {
            Scheme::Q8 => (groups * 32, groups * 2),
            Scheme::Q4 => (groups * 16, groups * 4),
        };
        codes + scales.div_ceil(16) * 16
    }

    /// Scale and minimum of a group.
    pub fn scale_and_min(self, row: &[u8], inputs: usize, group: usize) -> (f64, f64) {
        let half = |at: usize| f16::from_le_bytes([row[at], row[at + 1]]).to_f64();
        match self {
            Scheme::Q8 => (half(inputs + 2 * group), 0.0),
            Scheme::Q4 => (half(inputs / 2 + 4 * group), half(inputs / 2 + 4 * group + 2)),
        }
    }

    /// The code of input `i`.
    pub fn code(self, row: &[u8], i: usize) -> f64 {
        match self {
            Scheme::Q8 => f64::from(row[i] as i8),
            Scheme::Q4 => {
                let (group, inside) = (i / GROUP, i % GROUP);
                // Eights of a group are words of 4 bytes; the first four of an eight are low halves.
                let byte = row[16 * group + 4 * (inside / 8) + inside % 4];
                f64::from(if inside % 8 < 4 { byte % 16 } else { byte / 16 })
            }
        }
    }

    /// The weights of rows `[rows, inputs]`, w = scale · code + min.
    pub fn unpack(self, bytes: &[u8], inputs: usize) -> Vec<f64> {
        let rows = bytes.chunks_exact(self.row_bytes(inputs));
        rows.flat_map(|row| {
            (0..inputs).map(move |i| {
                let (scale, min) = self.scale_and_min(row, inputs, i / GROUP);
                scale * self.code(row, i) + min
            })
        })
        .collect()
    }
}
