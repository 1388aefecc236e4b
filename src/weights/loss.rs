//! What storing a tensor in fewer bits takes away from small numbers.
//!
//! f16 has steps of 2^-24 below 2^-14: there a value, or the scale of a quantised group, keeps fewer bits the smaller it
//! is, and below 2^-25 none. Trained tensors hold many such values beside larger ones, where they do not matter; a row
//! made of them is another row afterwards. So energy is compared, the squares of what is lost with the squares of all, in
//! each row: a token's embedding is read alone, and a norm makes it large again, whatever the other rows are.
//!
//! ```text
//! √(Σ lost² / Σ value²) ≤ 1/256 for f16, 1/32 for q8, 2/5 for q4
//! ```
//!
//! 1/256 is what rounding to bf16 costs a value at worst. The steps of q8 and q4 by themselves cost a group at most
//! √32/254 and √32·2/30, so only scales that f16 does not have exceed those bounds.
//!
//! One row of 16 may be beyond them. Trained models have such rows where nothing reads them: weight decay shrinks what
//! never gets a gradient, tokens that no text has (2 or 3 of 100 where a vocabulary is padded) and dead outputs. Rows of
//! zeros lose nothing and do not count.

use super::quote;
use crate::{Error, Result, ops::Precision};

/// The least magnitude of which f16 keeps all bits.
pub(super) const F16_NORMAL: f32 = 1.0 / 16_384.0;
/// One row of so many may lose more than the bound.
const SPARE: u64 = 16;

/// The most that a row may lose, as a share of its root mean square. `None` for f32, which loses nothing.
fn bound(precision: Precision) -> Option<f64> {
    match precision {
        Precision::F32 => None,
        Precision::F16 => Some(1.0 / 256.0),
        Precision::Q8 => Some(1.0 / 32.0),
        Precision::Q4 => Some(2.0 / 5.0),
    }
}

/// Sums of squares over a row.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Row {
    /// Of its values.
    energy: f64,
    /// Of what is lost of them.
    lost: f64,
}

impl Row {
    /// Adds finite values that become f16, of which the largest magnitude is `largest`.
    pub fn add_halves(&mut self, values: &[f32], largest: f32) {
        // Among 256 values of which one is 4 · 2^-14, losses of 2^-25 each are below 2^-18 of the energy.
        if largest >= 4.0 * F16_NORMAL {
            self.energy += f64::from(energy(values));
            return;
        }
        for &value in values {
            let rounded = half::f16::from_f32(value).to_f32();
            let lost = if value.abs() < F16_NORMAL { f64::from(value - rounded) } else { 0.0 };
            self.energy += f64::from(value) * f64::from(value);
            self.lost += lost * lost;
        }
    }

    /// Adds a group that is stored as codes times a scale; `stored` gives a value's stored form from its place.
    pub fn add_group(&mut self, values: &[f32], scale: half::f16, stored: impl Fn(usize) -> f32) {
        if scale.to_f32() >= F16_NORMAL {
            self.energy += f64::from(energy(values));
            return;
        }
        for (at, &value) in values.iter().enumerate() {
            let lost = f64::from(value) - f64::from(stored(at));
            self.energy += f64::from(value) * f64::from(value);
            self.lost += lost * lost;
        }
    }
}

/// What the rows of a tensor lose.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Loss {
    /// Rows that are not all zero.
    rows: u64,
    /// Those of them that lose more than the bound, and their sums.
    beyond: u64,
    sums: Row,
}

impl Loss {
    /// Adds another part of the tensor.
    pub fn add(&mut self, other: Loss) {
        self.rows += other.rows;
        self.beyond += other.beyond;
        self.sums.energy += other.sums.energy;
        self.sums.lost += other.sums.lost;
    }

    /// Adds a whole row, stored in `precision`.
    pub(super) fn add_row(&mut self, row: Row, precision: Precision) {
        self.rows += u64::from(row.energy > 0.0);
        if bound(precision).is_some_and(|most| row.lost > most * most * row.energy) {
            self.beyond += 1;
            self.sums.energy += row.energy;
            self.sums.lost += row.lost;
        }
    }

    /// Refuses a tensor of which too many rows have lost too much.
    ///
    /// # Errors
    /// With the tensor's name, the loss and the way out.
    pub fn check(&self, file: &str, tensor: &str, precision: Precision) -> Result<()> {
        let Some(most) = bound(precision) else { return Ok(()) };
        if SPARE * self.beyond <= self.rows {
            return Ok(());
        }
        let scales = if precision.is_quantized() { " with scales in f16" } else { "" };
        let share = 100.0 * (self.sums.lost / self.sums.energy).sqrt();
        let found = format!(
            "values so small that {}{scales} loses {share:.1} % of their root mean square in {} of {} rows",
            precision.name(),
            self.beyond,
            self.rows
        );
        let most = 100.0 * most;
        let expected =
            format!("at most {most:.1} % but in one row of {SPARE} (`--precision f32` keeps them)");
        Err(Error::bad_file(file, format!("tensor {}", quote(tensor)), found, expected))
    }
}

/// The largest magnitude of finite values. Compares their bits, as signed numbers: that is vector code everywhere.
pub(super) fn largest(values: &[f32]) -> f32 {
    let magnitude = |value: &f32| (value.to_bits() & 0x7fff_ffff) as i32;
    f32::from_bits(values.iter().fold(0, |most, value| most.max(magnitude(value))) as u32)
}

/// Σ value², in sums side by side, so that it becomes vector code.
fn energy(values: &[f32]) -> f32 {
    let (lanes, rest) = values.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for lane in lanes {
        sums.iter_mut().zip(lane).for_each(|(sum, value)| *sum += value * value);
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| value * value).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    /// Numbers from −1 to 1, the same in every run.
    fn noise(count: u32, scale: f32) -> Vec<f32> {
        (0..count).map(|i| (i.wrapping_mul(2_654_435_761) as f32 / 2f32.powi(31) - 1.0) * scale).collect()
    }

    /// Rows of 64.
    fn halves(values: &[f32]) -> Loss {
        let mut loss = Loss::default();
        for values in values.chunks(64) {
            let mut row = Row::default();
            row.add_halves(values, largest(values));
            loss.add_row(row, Precision::F16);
        }
        loss
    }

    #[test]
    fn loss_is_what_rounding_to_f16_takes_from_small_values() {
        for scale in [1e-3, 1e-5, 1e-6, 1e-7, 1e-9, 1e-30] {
            let values = noise(4096, scale);
            let squares =
                |f: &dyn Fn(f32) -> f32| values.iter().map(|&v| f64::from(f(v)).powi(2)).sum::<f64>();
            let expected = (squares(&|v| v - f16::from_f32(v).to_f32()) / squares(&|v| v)).sqrt();
            let mut row = Row::default();
            values.chunks(256).for_each(|block| row.add_halves(block, largest(block)));
            let found = (row.lost / row.energy).sqrt();
            // Normal values are not counted: each loses at most 2^-11.
            assert!((found - expected).abs() < 6e-4, "{scale}: {found} for {expected}");
            let mut loss = Loss::default();
            loss.add_row(row, Precision::F16);
            let refused = loss.check("f", "t", Precision::F16).is_err();
            assert_eq!(refused, expected > 1.0 / 256.0, "{scale}: {expected}");
        }
        let error = halves(&noise(4096, 1e-9)).check("m.safetensors", "a.b", Precision::F16).unwrap_err();
        let expected = "m.safetensors: tensor \"a.b\": found values so small that f16 loses 100.0 % of their root mean \
                        square in 64 of 64 rows, expected at most 0.4 % but in one row of 16 (`--precision f32` keeps \
                        them)";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn rows_count_each_alone_and_one_of_16_may_be_lost() {
        let check = |values: &[f32]| halves(values).check("f", "t", Precision::F16);
        // Ordinary rows, then lost ones.
        let rows = |ordinary: u32, lost: u32| [noise(64 * ordinary, 0.02), noise(64 * lost, 1e-9)].concat();
        check(&rows(15, 1)).unwrap();
        check(&rows(30, 2)).unwrap();
        for (ordinary, lost) in [(14, 1), (29, 2), (1, 1), (1, 63)] {
            check(&rows(ordinary, lost)).unwrap_err();
        }
        // Rows of zeros are neither.
        check(&[rows(14, 1), vec![0.0; 6400]].concat()).unwrap_err();
        check(&[0.0; 6400]).unwrap();
        Loss::default().check("f", "t", Precision::Q4).unwrap();
    }

    #[test]
    fn small_values_beside_large_ones_in_their_row_cost_nothing() {
        let mut values = noise(1 << 12, 1e-9);
        values.iter_mut().step_by(64).for_each(|value| *value = 0.02);
        assert_eq!(halves(&values).beyond, 0);
    }
}
