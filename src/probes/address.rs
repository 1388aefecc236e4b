//! Which heads and experts are meant.

use std::{fmt, str::FromStr};

use crate::{Error, Result, weights::quote};

/// Heads or experts of a model, in text `L1H2`: layer 1, head 2, both from 0. `*` stands for all, `L*A3`.
///
/// | | what | numbered |
/// |---|---|---|
/// | `H` | query heads | in a routed layer of `h` heads an expert, head `j` of expert `e` is `e · h + j` |
/// | `A` | head experts: all heads of one expert of a routed attention | by its router |
/// | `E` | experts of a routed MLP | by its router |
///
/// `L1` alone is the whole layer, for what it has once: its residual stream, its routers.
///
/// In front of it, `encoder.` says that a layer is one of those that read the source of a translation, `cross.` that its attention
/// to that source is meant: `cross.L0H1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Address {
    /// Where the layers are.
    pub stack: Stack,
    /// From 0; all without.
    pub layer: Option<u32>,
    /// What `index` counts.
    pub unit: Unit,
    /// From 0; all without.
    pub index: Option<u32>,
}

/// Where layers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Stack {
    /// The stack whose output becomes logits, the only one of most models.
    #[default]
    Main,
    /// The one that reads the source of a translation.
    Encoder,
    /// The attention of the main stack to that source.
    Cross,
}

/// What an address counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Unit {
    /// Query heads.
    Head,
    /// Head experts.
    HeadExpert,
    /// Experts of an MLP.
    MlpExpert,
    /// The layer itself.
    Layer,
}

impl Stack {
    const ALL: [Self; 3] = [Self::Main, Self::Encoder, Self::Cross];

    fn prefix(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Encoder => "encoder.",
            Self::Cross => "cross.",
        }
    }
}

impl Unit {
    /// Those that a layer has several of.
    const NUMBERED: [Self; 3] = [Self::Head, Self::HeadExpert, Self::MlpExpert];

    fn letter(self) -> &'static str {
        match self {
            Self::Head => "H",
            Self::HeadExpert => "A",
            Self::MlpExpert => "E",
            Self::Layer => "",
        }
    }

    /// What one is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::HeadExpert => "head expert",
            Self::MlpExpert => "MLP expert",
            Self::Layer => "layer",
        }
    }
}

impl Address {
    /// A query head of a layer.
    pub fn head(layer: u32, head: u32) -> Self {
        Self { stack: Stack::Main, layer: Some(layer), unit: Unit::Head, index: Some(head) }
    }

    /// A head expert of a layer.
    pub fn head_expert(layer: u32, expert: u32) -> Self {
        Self { unit: Unit::HeadExpert, ..Self::head(layer, expert) }
    }

    /// An MLP expert of a layer.
    pub fn mlp_expert(layer: u32, expert: u32) -> Self {
        Self { unit: Unit::MlpExpert, ..Self::head(layer, expert) }
    }

    /// A layer itself.
    pub fn layer(layer: u32) -> Self {
        Self { unit: Unit::Layer, index: None, ..Self::head(layer, 0) }
    }

    /// Whether it means another one, too: `L1H*` covers `L1H2`.
    pub fn covers(&self, other: &Self) -> bool {
        let fits = |own: Option<u32>, other: Option<u32>| own.is_none() || own == other;
        let alike = self.stack == other.stack && self.unit == other.unit;
        alike && fits(self.layer, other.layer) && fits(self.index, other.index)
    }

    /// The same in another stack.
    pub fn within(self, stack: Stack) -> Self {
        Self { stack, ..self }
    }

    /// The same in all layers.
    pub fn in_all_layers(self) -> Self {
        Self { layer: None, ..self }
    }

    /// All such heads or experts of the layer.
    pub fn all(self) -> Self {
        Self { index: None, ..self }
    }
}

/// `*` or a number.
fn number(text: &str) -> Option<Option<u32>> {
    match text {
        "*" => Some(None),
        "" => None,
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok().map(Some),
        _ => None,
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (stack, rest) = Stack::ALL
                .into_iter()
                .rev()
                .find_map(|stack| Some((stack, text.strip_prefix(stack.prefix())?)))?;
            let rest = rest.strip_prefix('L')?;
            let numbered = Unit::NUMBERED.into_iter();
            let found = numbered.filter_map(|unit| Some((unit, rest.split_once(unit.letter())?))).next();
            let Some((unit, (layer, index))) = found else {
                return Some(Self { stack, layer: number(rest)?, unit: Unit::Layer, index: None });
            };
            Some(Self { stack, layer: number(layer)?, unit, index: number(index)? })
        };
        parse().ok_or_else(|| {
            let expected =
                "a layer, or one with a head, a head expert or an MLP expert: L1, L1H2, L0A3, L4E17, L*H0, cross.L1H*";
            Error::argument("address", quote(text), expected)
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let (prefix, letter) = (self.stack.prefix(), self.unit.letter());
        write!(f, "{prefix}L{}{letter}", number(self.layer))?;
        if self.unit == Unit::Layer { Ok(()) } else { f.write_str(&number(self.index)) }
    }
}

impl serde::Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        for text in
            ["L1H2", "L0A3", "L48E176", "L*H0", "L2H*", "L*E*", "encoder.L0H1", "cross.L1A*", "L7", "L*"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("L1H2".parse::<Address>().unwrap(), Address::head(1, 2));
        assert_eq!(
            "encoder.L*A2".parse::<Address>().unwrap(),
            Address::head_expert(0, 2).in_all_layers().within(Stack::Encoder)
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "L",
            "H2",
            "LH2",
            "L1H",
            "L1h2",
            "l1H2",
            "L-1H2",
            "L+1H2",
            "L1H2 ",
            "L1H2H3",
            "L1X2",
            "L**H1",
            "L4294967296H0",
            "decoder.L1H2",
            "cross.encoder.L1H2",
            "L1٣H2",
            "é",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("L1H2, L0A3"), "{text}: {error}");
        }
    }
}
