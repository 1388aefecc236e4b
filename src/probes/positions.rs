//! Which tokens of a sequence are meant.

use std::{fmt, str::FromStr};

use super::Address;
use crate::{Error, Result, weights::quote};

/// Where in a sequence, counted from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Positions {
    /// At all tokens.
    #[default]
    All,
    /// From the first of these positions to before the second: `4..8`.
    Range(u32, u32),
    /// At these: `3,5,9`.
    List(Vec<u32>),
}

impl Positions {
    /// Positions of a list at the most.
    pub const MOST: usize = 65_536;

    pub(super) fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// Whether this one is among them.
    pub fn contains(&self, position: u32) -> bool {
        match self {
            Self::All => true,
            Self::Range(first, end) => (*first..*end).contains(&position),
            Self::List(list) => list.contains(&position),
        }
    }

    /// What is wrong with them, and what was expected.
    pub(super) fn fault(&self) -> Option<(String, &'static str)> {
        match self {
            Self::Range(first, end) if first >= end => {
                Some((format!("positions {first}..{end}"), "a first position and a later end"))
            }
            Self::List(list) if list.len() > Self::MOST => {
                Some((format!("{} positions", list.len()), "at most 65,536, or a range"))
            }
            Self::List(list) if list.is_empty() => {
                Some(("no positions".to_owned(), "at least one, or none said"))
            }
            _ => None,
        }
    }

    /// Reads `ADDRESS[@POSITIONS]`.
    pub(super) fn of_place(text: &str) -> Result<(Address, Self)> {
        match text.split_once('@') {
            Some((at, positions)) => Ok((at.parse()?, positions.parse()?)),
            None => Ok((text.parse()?, Self::All)),
        }
    }

    /// Writes `ADDRESS[@POSITIONS]`.
    pub(super) fn write_place(&self, f: &mut fmt::Formatter<'_>, at: &Address) -> fmt::Result {
        match self {
            Self::All => write!(f, "{at}"),
            positions => write!(f, "{at}@{positions}"),
        }
    }
}

impl FromStr for Positions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || match (text, text.split_once("..")) {
            ("all", _) => Some(Self::All),
            (_, Some((first, end))) => Some(Self::Range(first.parse().ok()?, end.parse().ok()?)),
            _ => text.split(',').map(|position| position.parse().ok()).collect::<Option<_>>().map(Self::List),
        };
        parse().ok_or_else(|| Error::argument("positions", quote(text), "all, a range 4..8 or a list 3,5,9"))
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Range(first, end) => write!(f, "{first}..{end}"),
            Self::List(list) => {
                let list: Vec<String> = list.iter().map(u32::to_string).collect();
                f.write_str(&list.join(","))
            }
        }
    }
}
