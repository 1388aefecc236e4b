//! Packing against its oracle.

use half::f16;
use headwise::{Precision, internal::pack_rows};
use proptest::prelude::*;

use crate::reference::quantize::{GROUP, Scheme};

const BOTH: [(Precision, Scheme); 2] = [(Precision::Q8, Scheme::Q8), (Precision::Q4, Scheme::Q4)];

fn pack(precision: Precision, inputs: usize, rows: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack_rows(precision, inputs, rows, &mut bytes).unwrap();
    bytes
}

/// Weights of one group: of any size, around any middle, perhaps with an outlier, perhaps all alike.
fn group() -> impl Strategy<Value = Vec<f32>> {
    let shape = (-24i32..10, -3.0f32..3.0, 0usize..4);
    (prop::collection::vec(-1.0f32..1.0, GROUP), shape).prop_map(|(mut values, (exponent, middle, kind))| {
        match kind {
            0 => values.iter_mut().for_each(|value| *value += middle),
            1 => values[7] = 20.0 * middle,
            2 => values.iter_mut().for_each(|value| *value = middle),
            _ => {}
        }
        values.iter().map(|value| value * 2.0f32.powi(exponent)).collect()
    })
}

/// Rows of one to nine groups each.
fn rows() -> impl Strategy<Value = (usize, Vec<f32>)> {
    (1usize..10, 1usize..4).prop_flat_map(|(groups, rows)| {
        let values = prop::collection::vec(group(), groups * rows);
        values.prop_map(move |values| (groups * GROUP, values.concat()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_row_has_the_size_its_table_says((inputs, values) in rows()) {
        for (precision, scheme) in BOTH {
            prop_assert_eq!(precision.row_bytes(inputs as u32) as usize, scheme.row_bytes(inputs));
            let bytes = pack(precision, inputs, &values);
            prop_assert_eq!(bytes.len(), values.len() / inputs * scheme.row_bytes(inputs));
            // Each row by itself: rows do not know their neighbours, and what fills the last vec4 is zero.
            for (row, values) in bytes.chunks(scheme.row_bytes(inputs)).zip(values.chunks(inputs)) {
                prop_assert_eq!(row, &pack(precision, inputs, values)[..]);
                let used = inputs / GROUP * match scheme { Scheme::Q8 => 34, Scheme::Q4 => 20 };
                prop_assert!(row[used..].iter().all(|&byte| byte == 0));
            }
        }
    }

    #[test]
    fn q8_is_within_half_a_step_of_each_weight((inputs, values) in rows()) {
        let bytes = pack(Precision::Q8, inputs, &values);
        let found = Scheme::Q8.unpack(&bytes, inputs);
        for (at, (found, wanted)) in found.iter().zip(&values).enumerate() {
            let row = &bytes[at / inputs * Scheme::Q8.row_bytes(inputs)..];
            let (scale, _) = Scheme::Q8.scale_and_min(row, inputs, at % inputs / GROUP);
            let error = (found - f64::from(*wanted)).abs();
            prop_assert!(error <= 0.5 * scale * (1.0 + 1e-5), "{} for {}, scale {}", found, wanted, scale);
        }
        for (group, codes) in values.chunks(GROUP).enumerate() {
            // The smallest scale that f16 has for the group's largest magnitude.
            let row = &bytes[group * GROUP / inputs * Scheme::Q8.row_bytes(inputs)..];
            let (scale, _) = Scheme::Q8.scale_and_min(row, inputs, group * GROUP % inputs / GROUP);
            let largest = codes.iter().fold(0.0f64, |most, value| most.max(f64::from(value.abs())));
            prop_assert!(scale * 127.0 >= largest * (1.0 - 1e-6));
            let below = f16::from_bits(f16::from_f64(scale).to_bits().saturating_sub(1)).to_f64();
            prop_assert!(scale == 0.0 || below * 127.0 <= largest * (1.0 + 1e-6));
        }
    }

    /// As good as dividing the group's range into 15 steps, whose error is at most half a step and the rounding of the
    /// range's ends to f16.
    #[test]
    fn q4_is_no_worse_than_the_range_in_15_steps((inputs, values) in rows()) {
        let found = Scheme::Q4.unpack(&pack(Precision::Q4, inputs, &values), inputs);
        for (found, wanted) in found.chunks(GROUP).zip(values.chunks(GROUP)) {
            let wanted: Vec<f64> = wanted.iter().map(|&value| f64::from(value)).collect();
            let low = wanted.iter().copied().fold(f64::INFINITY, f64::min);
            let high = wanted.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            // What f16 does to a number: relative to it, or near zero by half its smallest step.
            let rounding = |value: f64| value.abs() / 2048.0 + 0.5f64.powi(25);
            let bound = (high - low) / 30.0 + rounding(low) + 16.0 * rounding((high - low) / 15.0);
            let squares: f64 = found.iter().zip(&wanted).map(|(found, wanted)| (found - wanted).powi(2)).sum();
            prop_assert!(squares <= GROUP as f64 * bound * bound, "{} for a bound of {}", squares, bound);
        }
    }
}

#[test]
fn weights_that_a_format_has_are_stored_exactly() {
    let eights: Vec<f32> = (0..64).map(|i| (i % 32 * 8 - 127) as f32 / 128.0).collect();
    assert_eq!(Scheme::Q8.unpack(&pack(Precision::Q8, 64, &eights), 64), crate::reference::widen(&eights));
    for (scale, min) in [(0.5, -3.0), (0.125, 0.0), (2.0, -30.0), (1.0 / 1024.0, 1.0)] {
        let fours: Vec<f32> = (0..64).map(|i| (i * 7 % 16) as f32 * scale + min).collect();
        let found = Scheme::Q4.unpack(&pack(Precision::Q4, 64, &fours), 64);
        assert_eq!(found, crate::reference::widen(&fours), "{scale}, {min}");
    }
    for precision in [Precision::Q8, Precision::Q4] {
        assert!(
            pack(precision, 96, &[0.0; 192]).iter().all(|&byte| byte == 0),
            "rows of zeros are zero bytes"
        );
        assert!(pack(precision, 96, &[-0.0; 96]).iter().all(|&byte| byte == 0));
    }
}

/// The layout, byte by byte: files depend on it.
#[test]
fn the_layout_is_the_documented_one() {
    let counting: Vec<f32> = (0..32).map(|i| (i % 16) as f32).collect();
    let eight = [0x40, 0x51, 0x62, 0x73, 0xc8, 0xd9, 0xea, 0xfb];
    let scales = [0x00, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(pack(Precision::Q4, 32, &counting), [&eight[..], &eight, &scales].concat());

    let signed: Vec<f32> = (0..32).map(|i| if i == 5 { -127.0 } else { i as f32 }).collect();
    let mut codes: Vec<u8> = (0..32).collect();
    codes[5] = 0x81;
    assert_eq!(pack(Precision::Q8, 32, &signed), [&codes[..], &scales].concat());
}

/// Narrower ranges and lines of least squares are there to be better than the plain range.
#[test]
fn q4_beats_the_plain_range_on_weights_as_models_have_them() {
    // Sums of uniform numbers, near a normal distribution.
    let mut state = 7u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / f64::from(1 << 24) - 0.5
    };
    let values: Vec<f32> = (0..32 * 500).map(|_| (0..6).map(|_| uniform()).sum::<f64>() as f32).collect();
    let found = Scheme::Q4.unpack(&pack(Precision::Q4, 32, &values), 32);
    let (mut ours, mut plain) = (0.0, 0.0);
    for (found, wanted) in found.chunks(32).zip(values.chunks(32)) {
        let low = wanted.iter().copied().fold(f32::INFINITY, f32::min);
        let high = wanted.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = f16::from_f32((high - low) / 15.0).to_f64();
        let min = f16::from_f32(low).to_f64();
        for (found, &wanted) in found.iter().zip(wanted) {
            let wanted = f64::from(wanted);
            let code = ((wanted - min) / scale).round().clamp(0.0, 15.0);
            ours += (found - wanted).powi(2);
            plain += (scale * code + min - wanted).powi(2);
        }
    }
    println!("squared error of q4: {:.3} of the plain range's", ours / plain);
    assert!(ours < 0.9 * plain, "{ours} against {plain}");
}

#[test]
fn what_cannot_be_stored_is_named() {
    for (precision, bad) in [
        (Precision::Q8, f32::NAN),
        (Precision::Q4, f32::NAN),
        (Precision::Q8, f32::INFINITY),
        (Precision::Q4, f32::NEG_INFINITY),
        (Precision::Q8, 1e7),
        (Precision::Q4, -70_000.0),
        (Precision::Q4, 3e38),
    ] {
        let mut row = [0.25; 64];
        row[40] = bad;
        let found = pack_rows(precision, 64, &row, &mut Vec::new()).unwrap_err();
        assert_eq!(found.to_bits(), bad.to_bits(), "{precision:?}");
    }
    // Far beyond f16 itself, but not beyond 127 of its steps.
    assert!(pack_rows(Precision::Q8, 32, &[8e6; 32], &mut Vec::new()).is_ok());
}

/// Many rows are packed by several threads.
#[test]
fn rows_are_packed_alike_one_by_one_and_together() {
    let (inputs, count) = (96, 4001);
    let mut rows: Vec<f32> = (0..inputs * count).map(|i| (0.7 * i as f32).sin()).collect();
    for precision in [Precision::Q8, Precision::Q4] {
        let one_by_one: Vec<u8> = rows.chunks(inputs).flat_map(|row| pack(precision, inputs, row)).collect();
        assert!(pack(precision, inputs, &rows) == one_by_one, "{precision:?}");
    }
    // The first of what cannot be stored, and nothing of the rest.
    let last = rows.len() - 1;
    (rows[last], rows[inputs * 1000]) = (f32::NAN, f32::INFINITY);
    let mut bytes = vec![1, 2, 3];
    assert_eq!(pack_rows(Precision::Q4, inputs, &rows, &mut bytes), Err(f32::INFINITY));
    assert_eq!(bytes, [1, 2, 3]);
}
