//! What a bench found.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::{Precision, gpu::Counters};

/// What [`Model::bench`](crate::Model::bench) found: measured times, exact counts of work, and what the adapter does at best
/// in the same run.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct BenchReport {
    /// The version of headwise.
    pub version: &'static str,
    /// When the bench began, UTC: `2026-11-26 04:20:07`.
    pub date: String,
    /// The adapter's name.
    pub adapter: String,
    /// Its graphics API.
    pub backend: String,
    /// Its driver and the driver's version.
    pub driver: String,
    /// The variant of each kernel that has more than one.
    pub kernels: Vec<(&'static str, &'static str)>,
    /// The model's family.
    pub family: String,
    /// Its weights in all.
    pub parameters: u64,
    /// The weights that one token uses.
    pub active_parameters: u64,
    /// How they are stored on the GPU.
    pub precision: Precision,
    /// Seconds until the first token of the first call, which compiles the kernels unless the model has run before.
    pub first_run_seconds: f64,
    /// What was measured, each beside its limit.
    pub rows: Vec<BenchRow>,
    /// Seconds that the host takes to record and submit one decode step, without waiting for the GPU.
    pub host_seconds: Spread,
    /// The copy that decoding is held against: bytes read and written in a second.
    pub copy: Limit,
    /// The dense product that prompts are held against: floating-point operations in a second, two for each
    /// multiply-accumulate.
    pub matmul: Limit,
    /// What was left out, and why.
    pub remarks: Vec<String>,
}

/// One kind of work, measured in rounds that alternate with its limit.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct BenchRow {
    /// `prefill`: a prompt through a session that exists, up to the choice of the next token. `first token`: the same with
    /// a new session, as [`Model::generate`](crate::Model::generate) does it. `decode`: tokens one after the other, through
    /// `generate`, after such a prompt.
    pub what: &'static str,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens that one round works on: those of the prompt, or the new ones.
    pub tokens: usize,
    /// Seconds of one round.
    pub seconds: Spread,
    /// Tokens in the median round's time.
    pub tokens_per_second: f64,
    /// What one round records.
    pub counters: Counters,
    /// `copy` or `matmul`.
    pub limit: &'static str,
    /// What the round needs in its median time: bytes of weights in a second for decoding, floating-point operations in a
    /// second for prompts.
    pub needed_per_second: f64,
    /// The limit's median between the same rounds.
    pub limit_per_second: f64,
    /// `needed_per_second / limit_per_second`.
    pub ratio: f64,
}

/// The speed of a yardstick over the whole run.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Limit {
    /// What it is, in words.
    pub name: String,
    /// Bytes or operations in a second.
    pub per_second: Spread,
}

/// The middle and the ends of some measurements.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
    /// How many there are.
    pub rounds: usize,
}

impl Spread {
    /// Of at least one measurement; of none, zeros.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (Some(&least), Some(&most)) = (values.first(), values.last()) else { return Self::default() };
        let rounds = values.len();
        let median = (values[(rounds - 1) / 2] + values[rounds / 2]) / 2.0;
        Self { median, least, most, rounds }
    }
}

/// Date and time, UTC.
pub(super) fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(seconds)
}

/// The date and time `seconds` after 1970 began.
fn date(seconds: u64) -> String {
    // Days in years that begin with March, so that a leap day is the last (Howard Hinnant's civil_from_days).
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day + 2) / 153;
    let day = day - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // As `date --utc --date @SECONDS` prints them.
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_735_689_599, "2024-12-31 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn a_spread_has_the_median_and_the_ends() {
        let spread = Spread::of(vec![5.0, 1.0, 4.0]);
        assert_eq!((spread.median, spread.least, spread.most, spread.rounds), (4.0, 1.0, 5.0, 3));
        assert_eq!(Spread::of(vec![3.0, 1.0]).median, 2.0);
        assert_eq!(Spread::of(Vec::new()).rounds, 0);
    }
}
