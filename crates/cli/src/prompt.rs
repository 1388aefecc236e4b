//! The text or ids that a command works on.

use std::io::{self, IsTerminal, Read};

use headwise::{Error, Model};

use super::{failure::Failure, ids::Ids};

/// The longest text that is read piece by piece.
const MAX_TEXT: usize = 4 << 20;

/// A text or token ids.
pub enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// The longest text that is read from stdin.
const MAX_STDIN: u64 = 16 << 20;

impl Prompt {
    /// What was given to `command`: ids, a text, or stdin.
    pub fn read(command: &str, text: Option<&String>, ids: Option<&Ids>) -> Result<Self, Failure> {
        if let Some(ids) = ids {
            return Ok(Self::Ids(ids.0.clone()));
        }
        read_text(command, text, "give a PROMPT or --ids, or pipe a text into stdin").map(Self::Text)
    }

    /// Its ids, for a model that reads them at once.
    pub fn ids(&self, model: &Model) -> Result<Vec<u32>, Error> {
        match self {
            Self::Text(text) => model.encode(text),
            Self::Ids(ids) => Ok(ids.clone()),
        }
    }

    /// Its ids, for a model that reads them piece by piece.
    pub fn all_ids(&self, model: &Model) -> Result<Vec<u32>, Error> {
        match self {
            // It is cut into tokens whole, at some hundred bytes of memory for each of its own.
            Self::Text(text) if text.len() > MAX_TEXT => {
                let found = format!("{} bytes", text.len());
                let expected = format!("at most {MAX_TEXT} bytes at a time");
                Err(Error::Argument { name: "text", found, expected })
            }
            Self::Text(text) => model.tokenizer()?.encode(text),
            Self::Ids(ids) => Ok(ids.clone()),
        }
    }
}

/// The text that was given to `command`, or stdin less one line break at its end. `missing` says what to do where there
/// is neither.
pub fn read_text(command: &str, text: Option<&String>, missing: &str) -> Result<String, Failure> {
    if let Some(text) = text {
        return Ok(text.clone());
    }
    if io::stdin().is_terminal() {
        return Err(Failure::usage(command, missing));
    }
    let stdin = |source| Error::Io { path: "stdin".to_owned(), source };
    let mut text = String::new();
    io::stdin().take(MAX_STDIN + 1).read_to_string(&mut text).map_err(stdin)?;
    if text.len() as u64 > MAX_STDIN {
        return Err(stdin(io::Error::other("the text is longer than 16 MiB")).into());
    }
    let line = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text));
    Ok(line.map(str::to_owned).unwrap_or(text))
}
