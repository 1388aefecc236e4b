//! What happens to a head, an expert or a layer.

use std::{fmt, str::FromStr};

use super::Positions;
use crate::{Error, Result, weights::quote};

/// What happens to a head or an expert.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Change {
    /// Multiplies its output, `z ← s · z`, before its gate: `scale=0` takes out what it contributes, and nothing else. An output
    /// bias, and the gates of others, stay.
    Scale(f32),
    /// Of a head: looks at its own token alone for the part `u` of its attention, `z ← (1 − u) · z + u · v` of its own token (PAG,
    /// SoftPAG, arXiv 2506.10978). From 0 to 1.
    Identity(f32),
    /// Of a head: looks at all that it may see alike for the part `u`, `z ← (1 − u) · z + u · mean v` (SoftPAG; with 1
    /// AttentionInfluence, arXiv 2505.07293). From 0 to 1.
    Uniform(f32),
    /// Of a head: looks where it is told to for the part `u`, `z ← (1 − u) · z + u · Σ w_j v_j` over positions `j` of its sequence
    /// (the repair of Colored Objects, arXiv 2310.08744). What a token does not see weighs nothing. In short `row=3` or
    /// `row=3:0.5,7:0.5`, all of it.
    Row {
        /// u, from 0 to 1.
        part: f32,
        /// j and w, from 0 to 1 and 1 in all at the most; at most [`MOST_OF_ROW`](Self::MOST_OF_ROW) of them.
        on: Vec<(u32, f32)>,
    },
    /// Of an expert: whoever chose it goes without. Its gate is 0, and the token's other gates grow until their sum is what it
    /// was; where there is no other, nothing is left of it.
    Off,
    /// Of an expert: nobody can choose it, the next best takes its place; where all that are left are masked, they weigh nothing.
    /// It goes before [`Forced`](Self::Forced).
    Masked,
    /// Of an expert: everybody chooses it, instead of the last that a token would choose. It weighs what its score says. Of more
    /// than a token chooses, those of the lowest numbers are.
    Forced,
    /// Of an expert: added to its score before the choice.
    Bias(f32),
    /// Of a head or a layer: mixes a vector in, `z ← (1 − a) · z + a · v` (SITE, arXiv 2507.20906); with 1 it replaces (path patching).
    Mix {
        /// a, from 0 to 1.
        part: f32,
        /// v: of another run, a mean, a file.
        with: Vectors,
    },
    /// Of a head or a layer: adds a vector, `z ← z + b · v` (steering).
    Add {
        /// b.
        scale: f32,
        /// v.
        vector: Vectors,
    },
}

/// What is mixed in or added.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Vectors {
    /// The same at all positions, as long as what is changed: a head's channels, or a layer's.
    One(Vec<f32>),
    /// One for each position of the edit's range, from its first on.
    Each(Vec<Vec<f32>>),
}

impl Change {
    /// Positions of a row at the most.
    pub const MOST_OF_ROW: usize = 16;

    /// What is wrong with its numbers at these positions, and what was expected.
    pub(super) fn fault(&self, positions: &Positions) -> Option<(String, &'static str)> {
        if let Self::Mix { with: vectors, .. } | Self::Add { vector: vectors, .. } = self
            && let Some(fault) = vectors.fault(positions)
        {
            return Some(fault);
        }
        match self {
            Self::Scale(number) | Self::Bias(number) | Self::Add { scale: number, .. }
                if !number.is_finite() =>
            {
                Some((number.to_string(), "a finite number"))
            }
            Self::Identity(part) | Self::Uniform(part) | Self::Mix { part, .. } | Self::Row { part, .. }
                if !(0.0..=1.0).contains(part) =>
            {
                Some((part.to_string(), "a part from 0 to 1"))
            }
            Self::Row { on, .. } => row_fault(on),
            _ => None,
        }
    }

    /// The largest number that it multiplies by, or brings in.
    pub(super) fn reach(&self) -> f32 {
        let largest = |vectors: &Vectors| {
            vectors.rows().iter().flatten().fold(0.0, |most: f32, value| most.max(value.abs()))
        };
        match self {
            Self::Scale(scale) => scale.abs(),
            Self::Mix { with, .. } => largest(with),
            Self::Add { scale, vector } => scale.abs() * largest(vector),
            _ => 0.0,
        }
    }

    /// Whether it is one of a router's choice, not of what comes of it.
    pub(crate) fn of_router(&self) -> bool {
        matches!(self, Self::Off | Self::Masked | Self::Forced | Self::Bias(_))
    }
}

/// What is wrong with a row of weights, and what was expected.
fn row_fault(on: &[(u32, f32)]) -> Option<(String, &'static str)> {
    // Sums of rounded parts, thirds for instance.
    let most = 1.0 + 1e-3;
    if on.is_empty() || on.len() > Change::MOST_OF_ROW {
        return Some((format!("a row of {} positions", on.len()), "1 to 16 positions"));
    }
    if let Some((position, weight)) = on.iter().find(|(_, weight)| !(0.0..=most).contains(weight)) {
        return Some((format!("{weight} on position {position}"), "weights from 0 to 1"));
    }
    let sum: f32 = on.iter().map(|(_, weight)| weight).sum();
    (sum > most).then(|| (format!("a row that weighs {sum}"), "1 in all at the most"))
}

impl Vectors {
    /// All of them, one after the other.
    pub fn rows(&self) -> &[Vec<f32>] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Each(rows) => rows,
        }
    }

    /// What is wrong with them at these positions, and what was expected.
    fn fault(&self, positions: &Positions) -> Option<(String, &'static str)> {
        let rows = self.rows();
        let length = rows.first().map_or(0, Vec::len);
        if length == 0 || rows.iter().any(|row| row.len() != length) {
            return Some((
                "vectors of different lengths, or of none".to_owned(),
                "vectors as long as a head",
            ));
        }
        if let Some(value) = rows.iter().flatten().find(|value| !value.is_finite()) {
            return Some((format!("{value} in a vector"), "finite numbers"));
        }
        let range = match positions {
            Positions::Range(first, end) => end.saturating_sub(*first) as usize,
            Positions::All | Positions::List(_) => 0,
        };
        match self {
            Self::Each(rows) if rows.len() != range => {
                Some((format!("{} vectors", rows.len()), "a range of positions, and a vector for each"))
            }
            _ => None,
        }
    }
}

impl FromStr for Change {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, number) = match text.split_once('=') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        let parse = || match (name, number.map(str::parse)) {
            ("identity", part) => part.unwrap_or(Ok(1.0)).ok().map(Self::Identity),
            ("uniform", part) => part.unwrap_or(Ok(1.0)).ok().map(Self::Uniform),
            ("off", None) => Some(Self::Off),
            ("masked", None) => Some(Self::Masked),
            ("forced", None) => Some(Self::Forced),
            ("scale", Some(Ok(scale))) => Some(Self::Scale(scale)),
            ("bias", Some(Ok(bias))) => Some(Self::Bias(bias)),
            ("row", Some(_)) => row(number?),
            _ => None,
        };
        parse().ok_or_else(|| {
            Error::argument(
                "change",
                quote(text),
                "scale=NUMBER, identity, uniform=PART, row=POSITION, off, masked, forced or bias=NUMBER; vectors (mix, add) come in a file",
            )
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scale(scale) => write!(f, "scale={scale}"),
            Self::Identity(part) => write_part(f, "identity", *part),
            Self::Uniform(part) => write_part(f, "uniform", *part),
            Self::Row { part, on } => write_row(f, *part, on),
            Self::Off => f.write_str("off"),
            Self::Masked => f.write_str("masked"),
            Self::Forced => f.write_str("forced"),
            Self::Bias(bias) => write!(f, "bias={bias}"),
            Self::Mix { part, .. } => write!(f, "mix={part}"),
            Self::Add { scale, .. } => write!(f, "add={scale}"),
        }
    }
}

/// The name alone where all is meant.
fn write_part(f: &mut fmt::Formatter<'_>, name: &str, part: f32) -> fmt::Result {
    if part == 1.0 { f.write_str(name) } else { write!(f, "{name}={part}") }
}

/// `3` or `3:0.5,7:0.5`.
fn row(text: &str) -> Option<Change> {
    let one = |entry: &str| match entry.split_once(':') {
        Some((position, weight)) => Some((position.parse().ok()?, weight.parse().ok()?)),
        None => Some((entry.parse().ok()?, 1.0)),
    };
    Some(Change::Row { part: 1.0, on: text.split(',').map(one).collect::<Option<_>>()? })
}

fn write_row(f: &mut fmt::Formatter<'_>, part: f32, on: &[(u32, f32)]) -> fmt::Result {
    let one = |&(position, weight): &(u32, f32)| match weight {
        1.0 => position.to_string(),
        _ => format!("{position}:{weight}"),
    };
    let on: Vec<String> = on.iter().map(one).collect();
    write!(f, "row={}", on.join(","))?;
    // Only files have a part.
    if part == 1.0 { Ok(()) } else { write!(f, " (part {part})") }
}
