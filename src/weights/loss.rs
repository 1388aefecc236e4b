//! What storing a tensor in fewer bits takes away from small numbers.
//!
//! f16 has steps of 2^-24 below 2^-14: there a value, or the scale of a quantised group, keeps fewer bits the smaller it
//! is, and below 2^-25 none. Trained tensors hold many such values beside larger ones, where they do not matter; a tensor
//! made of them is another tensor afterwards. So energy is compared, the squares of what is lost with the squares of all:
//!
//! ```text
//! √(Σ lost² / Σ value²) ≤ 1/256 for f16, 1/32 for q8, 2/5 for q4
//! ```
//!
//! 1/256 is what rounding to bf16 costs a value at worst. The steps of q8 and q4 by themselves cost a group at most
//! √32/254 and √32·2/30, so only scales that f16 does not have exceed those bounds.

use super::quote;
use crate::{Error, Result, ops::Precision};

/// The least magnitude of which f16 keeps all bits.
pub(super) const F16_NORMAL: f32 = 1.0 / 16_384.0;

/// Sums of squares over a tensor.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Loss {
    /// Of its values.
    energy: f64,
    /// Of what is lost of them.
    lost: f64,
}

impl Loss {
    /// Adds another part of the tensor.
    pub fn add(&mut self, other: Loss) {
        self.energy += other.energy;
        self.lost += other.lost;
    }

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

    /// Refuses a tensor that has lost too much.
    ///
    /// # Errors
    /// With the tensor's name, the loss and the way out.
    pub fn check(&self, file: &str, tensor: &str, precision: Precision) -> Result<()> {
        let (most, what) = match precision {
            Precision::F32 => return Ok(()),
            Precision::F16 => (1.0 / 256.0, "f16"),
            Precision::Q8 => (1.0 / 32.0, "q8 with scales in f16"),
            Precision::Q4 => (2.0 / 5.0, "q4 with scales in f16"),
        };
        if self.lost <= most * most * self.energy {
            return Ok(());
        }
        let share = 100.0 * (self.lost / self.energy).sqrt();
        let found = format!("values so small that {what} loses {share:.1} % of their root mean square");
        let expected = format!("at most {:.1} % (`--precision f32` keeps them)", 100.0 * most);
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

    fn halves(values: &[f32]) -> Loss {
        let mut loss = Loss::default();
        values.chunks(256).for_each(|block| loss.add_halves(block, largest(block)));
        loss
    }

    #[test]
    fn loss_is_what_rounding_to_f16_takes_from_small_values() {
        for scale in [1e-3, 1e-5, 1e-6, 1e-7, 1e-9, 1e-30] {
            let values = noise(4096, scale);
            let squares =
                |f: &dyn Fn(f32) -> f32| values.iter().map(|&v| f64::from(f(v)).powi(2)).sum::<f64>();
            let expected = (squares(&|v| v - f16::from_f32(v).to_f32()) / squares(&|v| v)).sqrt();
            let loss = halves(&values);
            let found = (loss.lost / loss.energy).sqrt();
            // Normal values are not counted: each loses at most 2^-11.
            assert!((found - expected).abs() < 6e-4, "{scale}: {found} for {expected}");
            let refused = loss.check("f", "t", Precision::F16).is_err();
            assert_eq!(refused, expected > 1.0 / 256.0, "{scale}: {expected}");
        }
        let error = halves(&noise(4096, 1e-9)).check("m.safetensors", "a.b", Precision::F16).unwrap_err();
        let expected = "m.safetensors: tensor \"a.b\": found values so small that f16 loses 100.0 % of their root mean \
                        square, expected at most 0.4 % (`--precision f32` keeps them)";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn small_values_beside_large_ones_cost_nothing() {
        let mut values = noise(1 << 16, 1e-9);
        values.extend(noise(1 << 12, 0.02));
        halves(&values).check("f", "t", Precision::F16).unwrap();
        halves(&[0.0; 300]).check("f", "t", Precision::F16).unwrap();
        Loss::default().check("f", "t", Precision::Q4).unwrap();
    }
}
