//! Absolute positions: a vector for each, added to the residual stream.

use super::{Kernel, padded, shaders};
use crate::gpu::{Buffer, Dispatch, Gpu, Recorder};

pub static KERNEL: Kernel = Kernel::new(&shaders::ADD_POSITIONS, Params::layout);

uniform! {
    struct Params {
        tokens: u32,
        quads: u32,
    }
}

/// `x[t] += table[position of t]`
pub struct AddPositions<'a> {
    /// `[tokens]` [`Span`](super::Span)s
    pub spans: &'a Buffer,
    /// `[positions, width]`, rows padded
    pub table: &'a Buffer,
    /// `[width]`: what stands at position 0 instead of `x`
    pub class_token: Option<&'a Buffer>,
    /// `[tokens, width]`
    pub x: &'a Buffer,
    pub tokens: u32,
    pub width: u32,
}

impl AddPositions<'_> {
    pub fn record(&self, recorder: &mut Recorder) {
        let quads = padded(self.width) / 4;
        recorder.dispatch(
            &Params { tokens: self.tokens, quads },
            Dispatch {
                constants: &[("CLASS_TOKEN", f64::from(u8::from(self.class_token.is_some())))],
                ..Dispatch::new(
                    &KERNEL,
                    &[self.spans, self.table, self.class_token.unwrap_or(self.table), self.x],
                    [quads.div_ceil(64), self.tokens, 1],
                )
            },
        );
    }
}

/// The sinusoidal table `[positions, width]`: sines in the first half of a row, cosines in the second,
///
/// ```text
/// angle(p, i) = (p + offset) · 10000^(−i / (width/2 − 1)),   i < width/2
/// ```
///
/// as fairseq has it (`SinusoidalPositionalEmbedding`), which differs from Vaswani et al. 2017 in the order and in the
/// −1.
pub fn sinusoidal_positions(gpu: &Gpu, positions: u32, width: u32, offset: u32) -> Buffer {
    let half = width / 2;
    let frequency = |i: u32| (-(1e4f64.ln()) / f64::from(half.max(2) - 1) * f64::from(i)).exp();
    let mut table = vec![0f32; positions as usize * padded(width) as usize];
    for (position, row) in table.chunks_exact_mut(padded(width) as usize).enumerate() {
        for i in 0..half {
            let angle = (position as f64 + f64::from(offset)) * frequency(i);
            row[i as usize] = angle.sin() as f32;
            row[(half + i) as usize] = angle.cos() as f32;
        }
    }
    Buffer::with_data(gpu, "positions", &table)
}
