//! Changes to a run.

use std::{fmt, str::FromStr};

use super::{Address, Positions, Unit};
use crate::{Error, Result, weights::quote};

/// What is changed in a run: a list of [`Edit`]s, in the order in which those of one head are made.
///
/// As JSON, and as `headwise … --edit FILE` reads it:
///
/// ```
/// # fn main() -> headwise::Result<()> {
/// let text = r#"{"edits": [
///   {"at": "L1H2", "change": {"scale": 0}},
///   {"at": "L3A5", "change": "off", "positions": {"range": [0, 16]}}
/// ]}"#;
/// let edits = headwise::Edits::from_json(text)?;
/// assert_eq!(edits, headwise::Edits::new().with("L1H2:scale=0".parse()?).with("L3A5@0..16:off".parse()?));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edits {
    edits: Vec<Edit>,
}

/// One change of some heads or experts. In short `ADDRESS[@POSITIONS]:CHANGE`: `L1H2:scale=0.5`, `L3A5:off`, `L0H1@4..8:scale=0`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Edit {
    /// Of what.
    pub at: Address,
    /// To what.
    pub change: Change,
    /// At which tokens.
    #[serde(default, skip_serializing_if = "Positions::is_all")]
    pub positions: Positions,
}

/// What happens to a head or an expert.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
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
}

impl Edits {
    /// Edits of a plan at the most.
    pub const MOST: usize = 65_536;

    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// These, and one more.
    pub fn with(mut self, edit: Edit) -> Self {
        self.edits.push(edit);
        self
    }

    /// From their JSON form.
    ///
    /// # Errors
    /// [`Error::Argument`] with what was found where, and what was expected.
    pub fn from_json(text: &str) -> Result<Self> {
        let edits: Self = serde_json::from_str(text).map_err(|error| {
            Error::argument("edits", error, r#"{"edits": [{"at": "L1H2", "change": {"scale": 0}}]}"#)
        })?;
        edits.check()?;
        Ok(edits)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.edits.len()
    }

    /// One after the other.
    pub fn iter(&self) -> std::slice::Iter<'_, Edit> {
        self.edits.iter()
    }

    /// Refuses what fits no model.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the first such edit.
    pub fn check(&self) -> Result<()> {
        if self.edits.len() > Self::MOST {
            return Err(Error::argument("edits", self.edits.len(), format!("at most {}", Self::MOST)));
        }
        self.edits.iter().try_for_each(Edit::check)
    }
}

impl<'a> IntoIterator for &'a Edits {
    type Item = &'a Edit;
    type IntoIter = std::slice::Iter<'a, Edit>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<Edit> for Edits {
    fn from_iter<I: IntoIterator<Item = Edit>>(edits: I) -> Self {
        Self { edits: edits.into_iter().collect() }
    }
}

impl Extend<Edit> for Edits {
    fn extend<I: IntoIterator<Item = Edit>>(&mut self, edits: I) {
        self.edits.extend(edits);
    }
}

impl Edit {
    /// At all positions.
    pub fn new(at: Address, change: Change) -> Self {
        Self { at, change, positions: Positions::All }
    }

    /// At these positions only.
    pub fn positions(mut self, positions: Positions) -> Self {
        self.positions = positions;
        self
    }

    /// Refuses what fits no model.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the edit.
    pub fn check(&self) -> Result<()> {
        let refused = |found: String, expected: &str| {
            Err(Error::argument("edit", format!("{found} in {}", quote(&self.to_string())), expected))
        };
        match self.change {
            _ if self.at.unit == Unit::Layer => {
                return refused(
                    "a whole layer".to_owned(),
                    "its heads (H), head experts (A) or MLP experts (E)",
                );
            }
            Change::Scale(number) | Change::Bias(number) if !number.is_finite() => {
                return refused(number.to_string(), "a finite number");
            }
            Change::Identity(part) | Change::Uniform(part) if !(0.0..=1.0).contains(&part) => {
                return refused(part.to_string(), "a part from 0 to 1");
            }
            Change::Identity(_) | Change::Uniform(_) if self.at.unit == Unit::MlpExpert => {
                return refused("an MLP expert".to_owned(), "heads (H) or head experts (A), which attend");
            }
            Change::Off | Change::Masked | Change::Forced | Change::Bias(_) if self.at.unit == Unit::Head => {
                let expected = "an expert, A or E, to leave out or choose; scale=0 takes out a head";
                return refused("a head".to_owned(), expected);
            }
            _ => {}
        }
        self.positions.fault().map_or(Ok(()), |(found, expected)| refused(found, expected))
    }
}

impl Change {
    /// Whether it is one of a router's choice, not of what comes of it.
    pub(crate) fn of_router(&self) -> bool {
        matches!(self, Self::Off | Self::Masked | Self::Forced | Self::Bias(_))
    }
}

impl FromStr for Edit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "ADDRESS[@POSITIONS]:CHANGE, such as L1H2:scale=0, L3A5:off, L0A1@4..8:masked";
        let refused = || Error::argument("edit", quote(text), expected);
        let (place, change) = text.split_once(':').ok_or_else(refused)?;
        let (at, positions) = Positions::of_place(place)?;
        let edit = Self { at, change: change.parse()?, positions };
        edit.check()?;
        Ok(edit)
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.positions.write_place(f, &self.at)?;
        write!(f, ":{}", self.change)
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
            _ => None,
        };
        parse().ok_or_else(|| {
            Error::argument(
                "change",
                quote(text),
                "scale=NUMBER, identity, uniform=PART, off, masked, forced or bias=NUMBER",
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
            Self::Off => f.write_str("off"),
            Self::Masked => f.write_str("masked"),
            Self::Forced => f.write_str("forced"),
            Self::Bias(bias) => write!(f, "bias={bias}"),
        }
    }
}

/// The name alone where all is meant.
fn write_part(f: &mut fmt::Formatter<'_>, name: &str, part: f32) -> fmt::Result {
    if part == 1.0 { f.write_str(name) } else { write!(f, "{name}={part}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_read_as_they_are_written() {
        for text in [
            "L1H2:scale=0",
            "L2H*:scale=-1.5",
            "L3A5:off",
            "L48E176:off",
            "L1H2:identity",
            "L1A2:uniform=0.25",
            "L*A0:masked",
            "L0A1@4..8:forced",
            "cross.L0A2@3,5,9:bias=0.25",
        ] {
            let edit: Edit = text.parse().unwrap();
            assert_eq!(edit.to_string(), text);
            let json = serde_json::to_string(&Edits::new().with(edit.clone())).unwrap();
            assert_eq!(Edits::from_json(&json).unwrap(), Edits::new().with(edit), "{json}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_edit_is_said() {
        for (text, part) in [
            ("L1H2", "ADDRESS"),
            ("L1H2:", "scale=NUMBER"),
            ("L1H2:off", "scale=0 takes out a head"),
            ("L1A2:off=1", "scale=NUMBER"),
            ("L1H2:scale", "scale=NUMBER"),
            ("L1H2:scale=NaN", "a finite number"),
            ("L1H2:uniform=1.5", "from 0 to 1"),
            ("L1H2:identity=-1", "from 0 to 1"),
            ("L1H2:identity=x", "scale=NUMBER"),
            ("L1E2:uniform", "which attend"),
            ("L1H2:scale=1e99", "a finite number"),
            ("L1A2:bias=-inf", "a finite number"),
            ("L1H2@:scale=0", "4..8"),
            ("L1H2@8..8:scale=0", "later end"),
            ("L1H2@9..8:scale=0", "later end"),
            ("L1H2@1,:scale=0", "4..8"),
            ("L1H2@-1:scale=0", "4..8"),
            ("K1H2:scale=0", "L1H2"),
            ("L1:scale=0", "its heads (H)"),
        ] {
            let error = text.parse::<Edit>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: no {part:?} in {error}");
        }
        for (json, part) in [
            ("", "EOF"),
            ("{}", "missing field `edits`"),
            (r#"{"edits": 3}"#, "expected a sequence"),
            (r#"{"edits": [], "more": 1}"#, "unknown field `more`"),
            (r#"{"edits": [{"at": "L1H2"}]}"#, "missing field `change`"),
            (r#"{"edits": [{"at": "1", "change": "off"}]}"#, "L1H2, L0A3"),
            (r#"{"edits": [{"at": "L1", "change": "off"}]}"#, "its heads (H)"),
            (r#"{"edits": [{"at": "L1A2", "change": "on"}]}"#, "unknown variant `on`"),
            (r#"{"edits": [{"at": "L1H2", "change": {"scale": 1e99}}]}"#, "a finite number"),
            (r#"{"edits": [{"at": "L1H2", "change": "off"}]}"#, "scale=0 takes out a head"),
            (r#"{"edits": [{"at": "L1A2", "change": "off", "positions": {"list": []}}]}"#, "at least one"),
            (r#"{"edits": [{"at": "L1A2", "change": "off", "positions": {"range": [4, 1]}}]}"#, "later end"),
        ] {
            let error = Edits::from_json(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: no {part:?} in {error}");
        }
        let many = Positions::List((0..70_000).collect());
        let error = Edit::new(Address::head(0, 0), Change::Scale(0.0)).positions(many).check().unwrap_err();
        assert!(error.to_string().contains("70000 positions"), "{error}");
    }
}
