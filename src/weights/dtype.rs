//! Element types of weights, and their conversion to what a GPU buffer holds.

use super::loss::{Loss, Row, largest};
use crate::ops::Precision;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// An element type that weights may be stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// Quantised rows in words of 32 bits, which are no numbers by themselves: they convert to none.
    Packed,
}

/// The smallest magnitude that rounds to infinity as f16: halfway from the largest f16, 65504, to 2^16.
const F16_OVERFLOW: f32 = 65_520.0;

impl Dtype {
    /// The readable type for a stored one, if there is one.
    pub(crate) fn of(stored: safetensors::Dtype) -> Option<Self> {
        match stored {
            safetensors::Dtype::F32 => Some(Dtype::F32),
            safetensors::Dtype::F16 => Some(Dtype::F16),
            safetensors::Dtype::BF16 => Some(Dtype::Bf16),
            _ => None,
        }
    }

    /// Bytes of one element.
    pub(crate) fn size(self) -> usize {
        match self {
            Dtype::F32 | Dtype::Packed => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// Converts little-endian elements to f32, exactly. Replaces the content of `out`.
    pub(crate) fn to_f32(self, bytes: &[u8], out: &mut Vec<f32>) {
        out.clear();
        match self {
            Dtype::F32 => out.extend(quads(bytes)),
            Dtype::F16 => out.extend(pairs(bytes).map(|bits| f16::from_bits(bits).to_f32())),
            Dtype::Bf16 => out.extend(pairs(bytes).map(|bits| bf16::from_bits(bits).to_f32())),
            Dtype::Packed => {}
        }
    }

    /// Converts values to little-endian elements, each rounded once, to nearest. Adds to the content of `out`.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn encode(self, values: &[f64], out: &mut Vec<u8>) {
        match self {
            Dtype::F32 => out.extend(values.iter().flat_map(|&v| (v as f32).to_le_bytes())),
            Dtype::F16 => out.extend(values.iter().flat_map(|&v| f16::from_f32(to_odd(v)).to_le_bytes())),
            Dtype::Bf16 => out.extend(values.iter().flat_map(|&v| bf16::from_f32(to_odd(v)).to_le_bytes())),
            Dtype::Packed => {}
        }
    }

    /// Converts rows of `width` little-endian elements to f16 bits, rounding to nearest. Replaces the content of `out`.
    ///
    /// What that takes from small values is added to `loss`. `Err` is a value that f16 cannot hold: infinity would spoil
    /// every token.
    pub(crate) fn to_f16(
        self,
        bytes: &[u8],
        width: usize,
        out: &mut Vec<u16>,
        loss: &mut Loss,
    ) -> Result<(), f32> {
        out.clear();
        match self {
            Dtype::F16 => out.extend(pairs(bytes)),
            Dtype::Packed => {}
            Dtype::F32 | Dtype::Bf16 => {
                for bytes in bytes.chunks(width.max(1) * self.size()) {
                    loss.add_row(self.row_to_f16(bytes, out)?, Precision::F16);
                }
            }
        }
        Ok(())
    }

    /// Adds a row to `out`, of f32 or bf16.
    fn row_to_f16(self, bytes: &[u8], out: &mut Vec<u16>) -> Result<Row, f32> {
        // Small enough for the stack, long enough for the vector units.
        const BLOCK: usize = 256;
        let mut row = Row::default();
        let (mut wide, mut narrow) = ([0.0f32; BLOCK], [f16::ZERO; BLOCK]);
        for chunk in bytes.chunks(BLOCK * self.size()) {
            let count = chunk.len() / self.size();
            let wide = &mut wide[..count];
            match self {
                Dtype::F32 => wide.iter_mut().zip(quads(chunk)).for_each(|(w, x)| *w = x),
                _ => {
                    wide.iter_mut().zip(pairs(chunk)).for_each(|(w, x)| *w = bf16::from_bits(x).to_f32());
                }
            }
            let largest = largest(wide);
            if largest >= F16_OVERFLOW
                && let Some(value) = wide.iter().find(|v| v.abs() == largest)
            {
                return Err(*value);
            }
            row.add_halves(wide, largest);
            narrow[..count].convert_from_f32_slice(wide);
            out.extend(narrow[..count].iter().map(|v| v.to_bits()));
        }
        Ok(row)
    }

    /// The first of little-endian elements that is NaN or infinite.
    pub(crate) fn first_not_finite(self, bytes: &[u8]) -> Option<usize> {
        /// Looks through a block without a branch, so that the vector units do it.
        fn first<const N: usize>(bytes: &[u8], is_bad: impl Fn(&[u8; N]) -> bool) -> Option<usize> {
            const BLOCK: usize = 1024;
            let mut blocks = bytes.as_chunks::<N>().0.chunks(BLOCK).enumerate();
            let any = |block: &[[u8; N]]| block.iter().fold(false, |any, element| any | is_bad(element));
            let (index, block) = blocks.find(|(_, block)| any(block))?;
            block.iter().position(is_bad).map(|at| index * BLOCK + at)
        }
        // An exponent of ones alone.
        match self {
            Dtype::F32 => first(bytes, |&b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
            Dtype::F16 => first(bytes, |&b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
            Dtype::Bf16 => first(bytes, |&b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
            Dtype::Packed => None,
        }
    }
}

/// `value` if it is an f32, else the one of its two neighbours whose last bit is odd. Rounded once more, to fewer
/// bits, that gives what `value` itself would; a first rounding to nearest may end half-way between two results.
#[cfg(not(target_arch = "wasm32"))]
fn to_odd(value: f64) -> f32 {
    let near = value as f32;
    match near.to_bits() & 1 {
        0 if f64::from(near) < value => near.next_up(),
        0 if f64::from(near) > value => near.next_down(),
        _ => near,
    }
}

fn quads(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b))
}

fn pairs(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn le(values: &[f32], dtype: Dtype) -> Vec<u8> {
        let bytes = |&v: &f32| match dtype {
            Dtype::F32 => v.to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
            Dtype::Bf16 => bf16::from_f32(v).to_le_bytes().to_vec(),
            Dtype::Packed => vec![],
        };
        values.iter().flat_map(bytes).collect()
    }

    #[test]
    fn values_that_every_type_holds_survive() {
        let values: Vec<f32> = (-600..600).map(|i| i as f32 / 8.0).filter(|v| v.abs() < 16.0).collect();
        let halves: Vec<u16> = values.iter().map(|&v| f16::from_f32(v).to_bits()).collect();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let (bytes, mut wide, mut narrow) = (le(&values, dtype), vec![1.0], vec![1]);
            dtype.to_f32(&bytes, &mut wide);
            dtype.to_f16(&bytes, values.len(), &mut narrow, &mut Loss::default()).unwrap();
            assert_eq!((wide, narrow), (values.clone(), halves.clone()), "{dtype:?}");
        }
    }

    #[test]
    fn rounding_to_f16_is_to_nearest_even() {
        let mut out = Vec::new();
        let bytes = le(&[1.0 + 1.0 / 2048.0, 1e-8, 65_519.0], Dtype::F32);
        Dtype::F32.to_f16(&bytes, 3, &mut out, &mut Loss::default()).unwrap();
        assert_eq!(out, [0x3c00, 0, 0x7bff]);
    }

    #[test]
    fn encoding_rounds_once() {
        let encode = |dtype: Dtype, value: f64| {
            let mut out = vec![7];
            dtype.encode(&[value, -value], &mut out);
            assert_eq!(out.len(), 1 + 2 * dtype.size());
            let mut back = Vec::new();
            dtype.to_f32(&out[1..], &mut back);
            assert_eq!(back[0], -back[1]);
            f64::from(back[0])
        };
        for (dtype, ulp) in [(Dtype::F32, 23), (Dtype::F16, 10), (Dtype::Bf16, 7)] {
            let (ulp, tiny) = (0.5f64.powi(ulp), 0.5f64.powi(40));
            // Half-way goes to even, anything beyond it up, though an f32 does not see the difference.
            assert_eq!(encode(dtype, 1.0 + ulp / 2.0), 1.0);
            assert_eq!(encode(dtype, 1.0 + ulp / 2.0 + tiny), 1.0 + ulp);
            assert_eq!(encode(dtype, 1.0 + ulp * 1.5 - tiny), 1.0 + ulp);
            assert_eq!(encode(dtype, 0.25), 0.25);
        }
        assert_eq!(encode(Dtype::F16, 65_519.999), 65_504.0);
    }

    #[test]
    fn overflow_of_f16_is_found() {
        let narrow = |values: &[f32], dtype: Dtype| {
            dtype.to_f16(&le(values, dtype), 100, &mut Vec::new(), &mut Loss::default())
        };
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut values = vec![0.5; 1000];
            narrow(&values, dtype).unwrap();
            values[777] = -70_144.0;
            assert_eq!(narrow(&values, dtype), Err(-70_144.0));
        }
        assert_eq!(narrow(&[65_519.0, -65_520.0], Dtype::F32), Err(-65_520.0));
    }

    #[test]
    fn nan_and_infinity_are_found() {
        let all = [Dtype::F32, Dtype::F16, Dtype::Bf16];
        for (dtype, most) in all.into_iter().zip([f32::MAX, 65_504.0, bf16::MAX.to_f32()]) {
            let mut values = vec![most; 3000];
            values[7] = -most;
            assert_eq!(dtype.first_not_finite(&le(&values, dtype)), None);
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 1023, 1024, 2999] {
                    let mut values = values.clone();
                    values[at] = bad;
                    values[2999] = bad;
                    assert_eq!(dtype.first_not_finite(&le(&values, dtype)), Some(at), "{dtype:?} {bad}");
                }
            }
        }
        assert_eq!(Dtype::Packed.first_not_finite(&[0xff; 8]), None);
    }
}
