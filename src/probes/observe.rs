//! What to record of a run.

use std::{fmt, str::FromStr};

use super::{Address, Positions, Unit};
use crate::{Error, Result, weights::quote};

/// What is recorded of a run: [`Capture`]s, keys whose weights are summed up, and how many bytes all of it may be.
///
/// As JSON, and as `headwise trace --observe FILE` reads it:
///
/// ```
/// # fn main() -> headwise::Result<()> {
/// use headwise::probes::{Keys, Observe};
///
/// let text = r#"{
///   "captures": [{"at": "L*H*", "what": "rows"}, {"at": "L1H2", "what": "z", "positions": {"range": [0, 16]}}],
///   "masses": [{"name": "first", "of": {"at": [0]}}, {"name": "previous", "of": {"behind": 1}}]
/// }"#;
/// let observe = Observe::new().capture("L*H*:rows".parse()?).capture("L1H2@0..16:z".parse()?);
/// let observe = observe.mass("first", Keys::At(vec![0])).mass("previous", Keys::Behind(1));
/// assert_eq!(Observe::from_json(text)?, observe);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observe {
    captures: Vec<Capture>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    masses: Vec<Mass>,
    #[serde(default = "Observe::usual_budget")]
    budget: u64,
}

/// Something of a run that is recorded. In short `ADDRESS[@POSITIONS]:WHAT`: `L1H2:z`, `L*H*@4..8:rows`, `L3:resid-post`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Capture {
    /// Of which heads, or which layer.
    pub at: Address,
    /// Which of it.
    pub what: What,
    /// At which tokens.
    #[serde(default, skip_serializing_if = "Positions::is_all")]
    pub positions: Positions,
}

/// What is recorded, and what TransformerLens calls it (`blocks.LAYER.…`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum What {
    /// Of query heads: the query as projected, nothing turned it, `attn.hook_q`, `[tokens, heads, key channels]`.
    Q,
    /// Of key/value heads, which `H` counts here: the key as projected, `attn.hook_k`, `[tokens, heads, key channels]`.
    K,
    /// Of key/value heads: the value, `attn.hook_v`, `[tokens, heads, value channels]`.
    V,
    /// Of query heads: what each puts out, before its gate and the output projection, `attn.hook_z`,
    /// `[tokens, heads, value channels]`.
    Z,
    /// Of query heads: how they weigh each position, `attn.hook_pattern`, `[tokens, heads, positions]`.
    Pattern,
    /// Of query heads: what these rows come to, [`STATISTICS`] and the masses, `attn.hook_rows`, `[tokens, heads, columns]`.
    Rows,
    /// Of a layer: the residual stream before it, `hook_resid_pre`, `[tokens, width]`.
    ResidPre,
    /// Of a layer: the residual stream behind its attention, `hook_resid_mid`, `[tokens, width]`.
    ResidMid,
    /// Of a layer: the residual stream behind its MLP, `hook_resid_post`, `[tokens, width]`.
    ResidPost,
    /// Of a layer: what its routers saw and chose, `attn.router.hook_scores` `[tokens, experts]`, `….hook_chosen` and
    /// `….hook_gates` `[tokens, k]`, `mlp.router.…` likewise; a slot that a token leaves empty is expert −1.
    Router,
}

/// The columns of [`What::Rows`] before the masses: the highest score, `ln Σ exp` of the scores (of stick-breaking, the logarithm of
/// what is left of the stick), the entropy `−Σ w ln w`, `Σ w²`, the position of the largest weight, and that weight.
pub const STATISTICS: [&str; 6] = ["max", "log_sum", "entropy", "squares", "argmax", "argmax_weight"];

/// How much of each row falls on some keys: a column of [`What::Rows`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Mass {
    /// The column's name.
    pub name: String,
    /// Which keys.
    pub of: Keys,
}

/// Keys of a row.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Keys {
    /// The key so many positions before the row's own.
    Behind(u32),
    /// Those at these positions: a class of tokens, or `[0]`, where attention sinks.
    At(Vec<u32>),
    /// For the row at position `i` those at the positions in the `i`-th list; none for rows behind the last list.
    OfRow(Vec<Vec<u32>>),
}

impl What {
    const ALL: [(Self, &'static str); 10] = [
        (Self::Q, "q"),
        (Self::K, "k"),
        (Self::V, "v"),
        (Self::Z, "z"),
        (Self::Pattern, "pattern"),
        (Self::Rows, "rows"),
        (Self::ResidPre, "resid-pre"),
        (Self::ResidMid, "resid-mid"),
        (Self::ResidPost, "resid-post"),
        (Self::Router, "router"),
    ];

    /// Its short name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(what, _)| *what == self).map_or("", |(_, name)| name)
    }

    /// By its short name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(what, _)| *what)
    }

    /// Whether a layer has it once.
    pub(crate) fn of_layer(self) -> bool {
        matches!(self, Self::ResidPre | Self::ResidMid | Self::ResidPost | Self::Router)
    }

    /// What TransformerLens calls it in a layer; of routers, the beginning.
    pub(crate) fn hook(self, layer: u32) -> String {
        let part = match self {
            Self::Q => "attn.hook_q",
            Self::K => "attn.hook_k",
            Self::V => "attn.hook_v",
            Self::Z => "attn.hook_z",
            Self::Pattern => "attn.hook_pattern",
            Self::Rows => "attn.hook_rows",
            Self::ResidPre => "hook_resid_pre",
            Self::ResidMid => "hook_resid_mid",
            Self::ResidPost => "hook_resid_post",
            Self::Router => "",
        };
        format!("blocks.{layer}.{part}")
    }
}

impl Observe {
    /// Captures of a plan at the most.
    pub const MOST: usize = 65_536;
    /// Masses of a plan at the most.
    pub const MOST_MASSES: usize = 1024;
    /// Positions of all its masses at the most.
    pub const MOST_KEYS: usize = 1 << 24;

    /// Nothing, with a budget of 1 GiB.
    pub fn new() -> Self {
        Self { captures: Vec::new(), masses: Vec::new(), budget: Self::usual_budget() }
    }

    fn usual_budget() -> u64 {
        1 << 30
    }

    /// This, too.
    pub fn capture(mut self, capture: Capture) -> Self {
        self.captures.push(capture);
        self
    }

    /// With a column of [`What::Rows`] for how much falls on these keys.
    pub fn mass(mut self, name: &str, of: Keys) -> Self {
        self.masses.push(Mass { name: name.to_owned(), of });
        self
    }

    /// Records at most so many bytes; 1 GiB where nothing is said. A run that would need more ends before its first step.
    pub fn budget(mut self, bytes: u64) -> Self {
        self.budget = bytes;
        self
    }

    /// From their JSON form.
    ///
    /// # Errors
    /// [`Error::Argument`] with what was found where, and what was expected.
    pub fn from_json(text: &str) -> Result<Self> {
        let observe: Self = serde_json::from_str(text).map_err(|error| {
            Error::argument("observe", error, r#"{"captures": [{"at": "L1H2", "what": "z"}]}"#)
        })?;
        observe.check()?;
        Ok(observe)
    }

    /// What is recorded.
    pub fn captures(&self) -> &[Capture] {
        &self.captures
    }

    /// The columns of [`What::Rows`] behind [`STATISTICS`].
    pub fn masses(&self) -> &[Mass] {
        &self.masses
    }

    /// Bytes that may be recorded.
    pub fn most_bytes(&self) -> u64 {
        self.budget
    }

    /// Refuses what fits no model.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the first such capture or mass.
    pub fn check(&self) -> Result<()> {
        let most = |name, found, most| match found > most {
            true => Err(Error::argument(name, found, format!("at most {most}"))),
            false => Ok(()),
        };
        most("captures", self.captures.len(), Self::MOST)?;
        most("masses", self.masses.len(), Self::MOST_MASSES)?;
        let keys = self.masses.iter().map(|mass| match &mass.of {
            Keys::Behind(_) => 0,
            Keys::At(keys) => keys.len(),
            Keys::OfRow(lists) => lists.iter().map(|keys| keys.len() + 1).sum(),
        });
        most("positions of masses", keys.sum(), Self::MOST_KEYS)?;
        self.captures.iter().try_for_each(Capture::check)
    }
}

impl Default for Observe {
    fn default() -> Self {
        Self::new()
    }
}

impl Capture {
    /// At all positions.
    pub fn new(at: Address, what: What) -> Self {
        Self { at, what, positions: Positions::All }
    }

    /// At these positions only.
    pub fn positions(mut self, positions: Positions) -> Self {
        self.positions = positions;
        self
    }

    /// Refuses what fits no model.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the capture.
    pub fn check(&self) -> Result<()> {
        let refused = |found: String, expected: &str| {
            Err(Error::argument("capture", format!("{found} in {}", quote(&self.to_string())), expected))
        };
        match (self.what.of_layer(), self.at.unit) {
            (true, Unit::Layer) | (false, Unit::Head) => {}
            (false, Unit::HeadExpert) if !matches!(self.what, What::K | What::V) => {}
            (true, unit) => {
                return refused(format!("a {}", unit.name()), "a layer, such as L3 or L*");
            }
            (false, unit) => {
                return refused(format!("a {}", unit.name()), "heads, such as L1H2 or L*H*");
            }
        }
        self.positions.fault().map_or(Ok(()), |(found, expected)| refused(found, expected))
    }
}

impl FromStr for Capture {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || {
            let names = What::ALL.map(|(_, name)| name).join(", ");
            let expected = format!(
                "ADDRESS[@POSITIONS]:WHAT, such as L*H*:rows or L3@0..8:resid-post; WHAT is one of {names}"
            );
            Error::argument("capture", quote(text), expected)
        };
        let (place, name) = text.split_once(':').ok_or_else(refused)?;
        let (at, positions) = Positions::of_place(place)?;
        let what = What::named(name).ok_or_else(refused)?;
        let capture = Self { at, what, positions };
        capture.check()?;
        Ok(capture)
    }
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.positions.write_place(f, &self.at)?;
        write!(f, ":{}", self.what.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_read_as_they_are_written() {
        for text in ["L1H2:z", "L*H*@4..8:rows", "L3:resid-post", "L*:router", "L0A3@1,2:q", "L0H0:pattern"] {
            let capture: Capture = text.parse().unwrap();
            assert_eq!(capture.to_string(), text);
            let observe = Observe::new().capture(capture).mass("sink", Keys::At(vec![0])).budget(7);
            let json = serde_json::to_string(&observe).unwrap();
            assert_eq!(Observe::from_json(&json).unwrap(), observe, "{json}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_capture_is_said() {
        for (text, part) in [
            ("L1H2", "ADDRESS"),
            ("L1H2:y", "resid-post"),
            ("L1H2:resid-post", "a layer, such as L3"),
            ("L1:z", "heads, such as L1H2"),
            ("L1E2:z", "heads, such as L1H2"),
            ("L1A2:k", "heads, such as L1H2"),
            ("L1H2@8..8:z", "later end"),
            ("1H2:z", "L1H2"),
        ] {
            let error = text.parse::<Capture>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: no {part:?} in {error}");
        }
        for (json, part) in [
            ("{}", "missing field `captures`"),
            (r#"{"captures": [{"at": "L1H2", "what": "y"}]}"#, "unknown variant `y`"),
            (r#"{"captures": [], "budget": -1}"#, "-1"),
            (r#"{"captures": [], "masses": [{"name": "a", "of": {"near": 1}}]}"#, "unknown variant `near`"),
            (r#"{"captures": [{"at": "L1", "what": "z"}]}"#, "heads, such as L1H2"),
        ] {
            let error = Observe::from_json(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: no {part:?} in {error}");
        }
    }
}
