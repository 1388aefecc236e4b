//! How far what a kernel wrote is from what it must be.

/// What f32 sums may cost, of the largest value or of 1.
const F32: f64 = 1e-5;

/// The element of a result that is nearest to its limit, or farthest beyond it; both relative to the largest value, or to 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finding {
    pub error: f64,
    pub limit: f64,
}

impl Finding {
    /// Values that f32 computes.
    pub fn close(got: &[f64], expected: &[f64]) -> Self {
        Self::within(got, expected, &[])
    }

    /// Values that may be off by more than f32 costs, each by its bound.
    pub fn within(got: &[f64], expected: &[f64], bounds: &[f64]) -> Self {
        let scale = expected.iter().fold(1.0, |scale: f64, value| scale.max(value.abs()));
        let bounds = bounds.iter().copied().chain(std::iter::repeat(0.0));
        let each = got.iter().zip(expected).zip(bounds).map(|((got, expected), bound)| {
            let error = (got - expected).abs() / scale;
            // A NaN is as far off as can be.
            let error = if error.is_nan() { f64::INFINITY } else { error };
            Self { error, limit: F32 + bound / scale }
        });
        let none = Self { error: if got.len() == expected.len() { 0.0 } else { f64::INFINITY }, limit: F32 };
        each.fold(none, Self::and)
    }

    /// Values that are copied or counted: the share of those that are others.
    pub fn equal<T: PartialEq>(got: &[T], expected: &[T]) -> Self {
        let others = got.iter().zip(expected).filter(|(got, expected)| got != expected).count();
        let others = others + got.len().abs_diff(expected.len());
        Self { error: others as f64 / expected.len().max(1) as f64, limit: 0.0 }
    }

    /// Whether every value is within its limit.
    pub fn is_right(&self) -> bool {
        self.error <= self.limit
    }

    /// The error in limits.
    fn share(&self) -> f64 {
        match self.is_right() {
            true if self.limit == 0.0 => 0.0,
            _ => self.error / self.limit,
        }
    }

    /// The one of both that is nearer to its limit.
    pub fn and(self, other: Self) -> Self {
        if other.share() > self.share() { other } else { self }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.limit {
            _ if !self.error.is_finite() => f.write_str("not a finite number"),
            0.0 => write!(f, "{:.3} % of the values are others", 100.0 * self.error),
            limit => write!(f, "off by {:.1e}, limit {limit:.1e}", self.error),
        }
    }
}
