//! From rows of f32 to the quantised rows that `shaders/shared/weights.wgsl` reads.
//!
//! A group of 32 inputs shares a scale, rounded to f16 before the codes are chosen, so that the codes fit the scale
//! that is stored. Plain f32 arithmetic in one order: the same bits on every machine, in a browser too.

use half::f16;

use super::loss::{Loss, Row};
use crate::ops::{Precision, QUANTIZED_GROUP};

const GROUP: usize = QUANTIZED_GROUP as usize;

/// How much narrower than the group's own the ranges are that q4 tries: outliers may cost less than a coarser step.
const SHRINKS: [f32; 7] = [0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24];

/// Appends rows of `inputs` weights (whole groups) to `out`, each as [`Precision::row_bytes`] bytes.
///
/// `Err` is the first value that cannot be stored: not finite, or beyond what a scale in f16 reaches.
pub fn pack_rows(precision: Precision, inputs: usize, rows: &[f32], out: &mut Vec<u8>) -> Result<(), f32> {
    pack_counted(precision, inputs, rows, out).map(drop)
}

/// Likewise, and says what that takes from small values.
pub(super) fn pack_counted(
    precision: Precision,
    inputs: usize,
    rows: &[f32],
    out: &mut Vec<u8>,
) -> Result<Loss, f32> {
    debug_assert!(precision.is_quantized() && inputs.is_multiple_of(GROUP));
    let row_bytes = precision.row_bytes(inputs as u32) as usize;
    let (start, count) = (out.len(), rows.len() / inputs);
    out.resize(start + count * row_bytes, 0);
    // Rows for each thread.
    let each = count.div_ceil(threads(rows.len())).max(1);
    let mut parts = rows.chunks(each * inputs).zip(out[start..].chunks_mut(each * row_bytes));
    let pack = |(rows, packed): (&[f32], &mut [u8])| {
        let mut rows = rows.chunks_exact(inputs).zip(packed.chunks_exact_mut(row_bytes));
        let mut loss = Loss::default();
        rows.try_for_each(|(row, packed)| {
            pack_row(precision, row, packed).map(|lost| loss.add_row(lost, precision))
        })?;
        Ok(loss)
    };
    let mut all = Loss::default();
    let packed = if each >= count {
        parts.try_for_each(|part| pack(part).map(|loss| all.add(loss)))
    } else {
        std::thread::scope(|scope| {
            let threads: Vec<_> = parts.map(|part| scope.spawn(|| pack(part))).collect();
            // A thread that panicked would have in this one, too.
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Loss, f32>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().try_for_each(|thread| join(thread).map(|loss| all.add(loss)))
        })
    };
    match packed {
        Ok(()) => Ok(all),
        Err(value) => {
            out.truncate(start);
            Err(value)
        }
    }
}

/// Threads that are worth their while for so many weights.
fn threads(weights: usize) -> usize {
    const EACH: usize = 1 << 16;
    if cfg!(target_arch = "wasm32") || weights < 2 * EACH {
        return 1;
    }
    std::thread::available_parallelism().map_or(1, usize::from).min(weights / EACH)
}

fn pack_row(precision: Precision, row: &[f32], packed: &mut [u8]) -> Result<Row, f32> {
    let mut lost = Row::default();
    let groups = row.as_chunks::<GROUP>().0;
    let (code_bytes, scale_bytes) = if precision == Precision::Q8 { (GROUP, 2) } else { (GROUP / 2, 4) };
    let (codes, scales) = packed.split_at_mut(groups.len() * code_bytes);
    let places = codes.chunks_exact_mut(code_bytes).zip(scales.chunks_exact_mut(scale_bytes));
    for (group, (to, to_scale)) in groups.iter().zip(places) {
        if let Some(value) = group.iter().find(|value| !value.is_finite()) {
            return Err(*value);
        }
        if precision == Precision::Q8 {
            let (scale, codes) = q8(group)?;
            lost.add_group(group, scale, |at| scale.to_f32() * f32::from(codes[at]));
            to.copy_from_slice(&codes.map(|code| code as u8));
            to_scale.copy_from_slice(&scale.to_le_bytes());
        } else {
            let Q4 { scale, min, codes, .. } = q4(group)?;
            lost.add_group(group, scale, |at| scale.to_f32() * f32::from(codes[at]) + min.to_f32());
            for (word, eight) in to.chunks_exact_mut(4).zip(codes.as_chunks::<8>().0) {
                let (low, high) = eight.split_at(4);
                word.iter_mut().zip(low.iter().zip(high)).for_each(|(to, (low, high))| *to = low | high << 4);
            }
            to_scale[..2].copy_from_slice(&scale.to_le_bytes());
            to_scale[2..].copy_from_slice(&min.to_le_bytes());
        }
    }
    Ok(lost)
}

/// `scale · code` with the smallest scale of which the largest magnitude is at most 127.
fn q8(group: &[f32; GROUP]) -> Result<(f16, [i8; GROUP]), f32> {
    let largest = group.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let exact = largest / 127.0;
    let mut scale = f16::from_f32(exact);
    if scale.to_f32() < exact {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    if !scale.is_finite() {
        return Err(largest);
    }
    let steps = reciprocal(scale);
    Ok((scale, group.map(|value| nearest(value * steps).clamp(-127.0, 127.0) as i8)))
}

/// A way to store a group: `scale · code + min`.
struct Q4 {
    scale: f16,
    min: f16,
    codes: [u8; GROUP],
    /// Σ (weight − stored)²
    error: f32,
}

/// The best of a few: the group's range and narrower ones, each as it is and with the line through its codes that
/// has the least squares.
fn q4(group: &[f32; GROUP]) -> Result<Q4, f32> {
    let low = group.iter().copied().fold(f32::INFINITY, f32::min);
    let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut best = code(group, (high - low) / 15.0, low).ok_or(if -low > high { low } else { high })?;
    for shrink in SHRINKS {
        let range = (1.0 - shrink) * (high - low);
        let from = low + 0.5 * shrink * (high - low);
        let Some(plain) = code(group, range / 15.0, from) else { continue };
        let (scale, min) = fit(group, &plain.codes);
        for other in [Some(plain), code(group, scale, min)].into_iter().flatten() {
            if other.error < best.error {
                best = other;
            }
        }
    }
    Ok(best)
}

/// The nearest codes for this scale and minimum, both rounded to f16; `None` where f16 does not hold them.
fn code(group: &[f32; GROUP], scale: f32, min: f32) -> Option<Q4> {
    let (scale, min) = (f16::from_f32(scale), f16::from_f32(min));
    if !scale.is_finite() || !min.is_finite() || scale.is_sign_negative() {
        return None;
    }
    let (steps, step, from) = (reciprocal(scale), scale.to_f32(), min.to_f32());
    let mut errors = Lanes::default();
    let mut codes = [0; GROUP];
    for (values, codes) in group.as_chunks::<LANES>().0.iter().zip(codes.as_chunks_mut::<LANES>().0) {
        for ((value, to), error) in values.iter().zip(codes).zip(&mut errors) {
            let code = nearest(((value - from) * steps).clamp(0.0, 15.0));
            let off = value - (step * code + from);
            *error += off * off;
            *to = code as u8;
        }
    }
    let error = total(errors);
    // A scale of 0 is stored with the codes 0, and a negative zero not at all: zero rows are zero bytes.
    Some(Q4 { scale, min: if min == f16::ZERO { f16::ZERO } else { min }, codes, error })
}

/// Scale and minimum of the line through (code, weight) with the least squares.
fn fit(group: &[f32; GROUP], codes: &[u8; GROUP]) -> (f32, f32) {
    let count = GROUP as f32;
    let (mut xs, mut xxs, mut ys, mut xys) = <(Lanes, Lanes, Lanes, Lanes)>::default();
    for (values, codes) in group.as_chunks::<LANES>().0.iter().zip(codes.as_chunks::<LANES>().0) {
        for (lane, (value, code)) in values.iter().zip(codes).enumerate() {
            let code = f32::from(*code);
            xs[lane] += code;
            xxs[lane] += code * code;
            ys[lane] += value;
            xys[lane] += code * value;
        }
    }
    let (x, xx, y, xy) = (total(xs), total(xxs), total(ys), total(xys));
    let spread = count * xx - x * x;
    // All codes alike: one value.
    if spread == 0.0 {
        return (0.0, y / count);
    }
    let scale = (count * xy - x * y) / spread;
    (scale, (y - scale * x) / count)
}

/// Sums side by side, so that loops over a group become vector code.
type Lanes = [f32; LANES];
const LANES: usize = 8;

fn total([a, b, c, d, e, f, g, h]: Lanes) -> f32 {
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

fn reciprocal(scale: f16) -> f32 {
    if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() }
}

/// The nearest whole number, halves to the even one, of a magnitude far below 2^22. Unlike `round`, no call where the
/// processor has no instruction for it, so that loops over a group become vector code.
fn nearest(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT) - SHIFT
}

/// The scales of a packed row, and with q4 its minima, each with its group's index.
pub(super) fn scales(
    precision: Precision,
    inputs: u32,
    row: &[u8],
) -> impl Iterator<Item = (usize, f32)> + '_ {
    let inputs = inputs.next_multiple_of(8) as usize;
    let (codes, each) = if precision == Precision::Q8 { (inputs, 1) } else { (inputs / 2, 2) };
    let halves = row.get(codes..).unwrap_or_default().as_chunks::<2>().0.iter().take(each * inputs / GROUP);
    halves.enumerate().map(move |(at, &half)| (at / each, f16::from_le_bytes(half).to_f32()))
}
