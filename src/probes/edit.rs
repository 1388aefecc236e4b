//! Changes to a run.

use std::{fmt, str::FromStr};

use super::{Address, Change, Positions, Unit, What};
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

/// One change of some heads, experts or layers. In short `ADDRESS[@POSITIONS]:[WHAT.]CHANGE`: `L1H2:scale=0.5`, `L3A5:off`,
/// `L0H1@4..8:scale=0`, `L1H*:k.scale=0`, `L3:resid-post.scale=0.5`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Edit {
    /// Of what.
    pub at: Address,
    /// Of heads what they put out (`z`) unless it is [`What::Q`], [`What::K`] or [`What::V`] (of key/value heads, which `H` counts
    /// then); of layers [`What::ResidMid`] or [`What::ResidPost`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<What>,
    /// To what.
    pub change: Change,
    /// At which tokens.
    #[serde(default, skip_serializing_if = "Positions::is_all")]
    pub positions: Positions,
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
    /// At all positions, of what the address means by itself.
    pub fn new(at: Address, change: Change) -> Self {
        Self { at, of: None, change, positions: Positions::All }
    }

    /// Of something else.
    pub fn of(mut self, what: What) -> Self {
        self.of = Some(what);
        self
    }

    /// What it changes.
    pub(crate) fn what(&self) -> What {
        self.of.unwrap_or(What::Z)
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
        self.check_of().map_or(Ok(()), |(found, expected)| refused(found, expected))?;
        let of_heads = self.of.is_none_or(|what| what == What::Z);
        let anywhere = matches!(self.change, Change::Scale(_) | Change::Mix { .. } | Change::Add { .. });
        if !of_heads && !anywhere {
            return refused(format!("{} of {}", self.change, self.what().name()), "scale, mix or add");
        }
        self.change.fault(&self.positions).map_or(Ok(()), |(found, expected)| refused(found, expected))?;
        if matches!(self.what(), What::Q | What::K) && self.change.reach() > MOST_IN_SCORES {
            let expected = "at most a million in queries and keys, whose products are scores";
            return refused(self.change.reach().to_string(), expected);
        }
        match self.change {
            Change::Mix { .. } | Change::Add { .. } if self.at.unit == Unit::MlpExpert => {
                return refused("an MLP expert".to_owned(), "heads (H), head experts (A) or layers");
            }
            Change::Identity(_) | Change::Uniform(_) | Change::Row { .. }
                if !matches!(self.at.unit, Unit::Head | Unit::HeadExpert) =>
            {
                let found = format!(
                    "{} {}",
                    if self.at.unit == Unit::MlpExpert { "an" } else { "a" },
                    self.at.unit.name()
                );
                return refused(found, "heads (H) or head experts (A), which attend");
            }
            Change::Off | Change::Masked | Change::Forced | Change::Bias(_) if self.at.unit == Unit::Head => {
                let expected = "an expert, A or E, to leave out or choose; scale=0 takes out a head";
                return refused("a head".to_owned(), expected);
            }
            _ => {}
        }
        self.positions.fault().map_or(Ok(()), |(found, expected)| refused(found, expected))
    }

    /// What is wrong with what it changes, and what was expected.
    fn check_of(&self) -> Option<(String, &'static str)> {
        match (self.at.unit, self.of) {
            (Unit::Layer, Some(What::ResidMid | What::ResidPost))
            | (Unit::Head | Unit::HeadExpert, None | Some(What::Q | What::Z))
            | (Unit::Head, Some(What::K | What::V))
            | (Unit::MlpExpert, None) => None,
            (Unit::Layer, Some(What::ResidPre)) => {
                Some(("what comes before a layer".to_owned(), "resid-post of the layer before it"))
            }
            (Unit::Layer, _) => Some((
                "a whole layer".to_owned(),
                "its heads (H), head experts (A) or MLP experts (E), or its resid-mid or resid-post",
            )),
            (unit, what) => Some((
                format!("{} of a {}", what.map_or("", What::name), unit.name()),
                "z or q of heads, k or v of key/value heads (H), resid-mid or resid-post of layers",
            )),
        }
    }
}

/// What queries and keys are scaled by, or get, at the most: an infinite score is seen by nobody, as its row weighs nothing.
const MOST_IN_SCORES: f32 = 1e6;

impl FromStr for Edit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "ADDRESS[@POSITIONS]:CHANGE, such as L1H2:scale=0, L3A5:off, L0A1@4..8:masked";
        let refused = || Error::argument("edit", quote(text), expected);
        let (place, change) = text.split_once(':').ok_or_else(refused)?;
        let (at, positions) = Positions::of_place(place)?;
        let (of, change) = match change.split_once('.').map(|(name, rest)| (What::named(name), rest)) {
            Some((Some(what), rest)) => (Some(what), rest),
            _ => (None, change),
        };
        let edit = Self { at, of, change: change.parse()?, positions };
        edit.check()?;
        Ok(edit)
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.positions.write_place(f, &self.at)?;
        match self.of {
            Some(what) => write!(f, ":{}.{}", what.name(), self.change),
            None => write!(f, ":{}", self.change),
        }
    }
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
            "L1H*:k.scale=0",
            "L3@2..4:resid-post.scale=0.5",
            "L12H3@9:row=4",
            "L0A1:row=0:0.25,7:0.5",
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
            ("L1:resid-pre.scale=0", "resid-post of the layer before"),
            ("L1H0:resid-mid.scale=0", "resid-mid of a head"),
            ("L1A0:k.scale=0", "k of a head expert"),
            ("L1H0:k.scale=1e11", "at most a million"),
            ("L*H*:q.scale=-2e6", "at most a million"),
            ("L1H0:q.uniform", "scale, mix or add"),
            ("L1H0:rows.scale=0", "rows of a head"),
            ("L1H0:mix=1", "in a file"),
            ("L1H0:row", "row=POSITION"),
            ("L1H0:row=", "row=POSITION"),
            ("L1H0:row=-1", "row=POSITION"),
            ("L1H0:row=1:2", "weights from 0 to 1"),
            ("L1H0:row=1:NaN", "weights from 0 to 1"),
            ("L1H0:row=1,2", "1 in all"),
            (
                "L1H0:row=1:0,2:0,3:0,4:0,5:0,6:0,7:0,8:0,9:0,1:0,1:0,1:0,1:0,1:0,1:0,1:0,1:0",
                "1 to 16 positions",
            ),
            ("L1E0:row=1", "which attend"),
            ("L1H0:k.row=1", "scale, mix or add"),
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
        let vector = |json: &str| Edits::from_json(&format!(r#"{{"edits": [{json}]}}"#));
        let mix = r#"{"at": "L1H2", "change": {"mix": {"part": 0.5, "with": [1, 2]}}}"#;
        assert!(vector(mix).is_ok());
        let each = r#"{"at": "L1H2", "change": {"add": {"scale": 2, "vector": [[1], [2]]}}, "positions": {"range": [3, 5]}}"#;
        assert!(vector(each).is_ok());
        for (json, part) in [
            (mix.replace("0.5", "1.5"), "from 0 to 1"),
            (mix.replace("[1, 2]", "[]"), "vectors of different lengths"),
            (mix.replace("[1, 2]", "[1e99]"), "finite numbers"),
            (mix.replace("[1, 2]", "[[1], [2]]"), "a vector for each"),
            (each.replace("[3, 5]", "[3, 6]"), "a vector for each"),
            (each.replace("[2]]", "[2, 3]]"), "vectors of different lengths"),
            (mix.replace("L1H2", "L1E2"), "heads (H)"),
        ] {
            let error = vector(&json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: no {part:?} in {error}");
        }
        let many = Positions::List((0..70_000).collect());
        let error = Edit::new(Address::head(0, 0), Change::Scale(0.0)).positions(many).check().unwrap_err();
        assert!(error.to_string().contains("70000 positions"), "{error}");
    }
}
