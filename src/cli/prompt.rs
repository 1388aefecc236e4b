//! The text or ids that a command works on.

use std::io::{self, IsTerminal, Read};

use headwise::{Error, Model};

use super::failure::Failure;

/// A text or token ids.
pub enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// The longest text that is read from stdin.
const MAX_STDIN: u64 = 16 << 20;

impl Prompt {
    /// What was given to `command`: ids, a text, or stdin.
    pub fn read(command: &str, text: Option<&String>, ids: Option<&Vec<u32>>) -> Result<Self, Failure> {
        if let Some(ids) = ids {
            return Ok(Self::Ids(ids.clone()));
        }
        if let Some(text) = text {
            return Ok(Self::Text(text.clone()));
        }
        if io::stdin().is_terminal() {
            return Err(Failure::usage(command, "give a PROMPT or --ids, or pipe a text into stdin"));
        }
        let stdin = |source| Error::Io { path: "stdin".to_owned(), source };
        let mut text = String::new();
        io::stdin().take(MAX_STDIN + 1).read_to_string(&mut text).map_err(stdin)?;
        if text.len() as u64 > MAX_STDIN {
            return Err(stdin(io::Error::other("the prompt is longer than 16 MiB")).into());
        }
        let line = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text));
        Ok(Self::Text(line.map(str::to_owned).unwrap_or(text)))
    }

    /// Its ids.
    pub fn ids(&self, model: &Model) -> Result<Vec<u32>, Error> {
        match self {
            Self::Text(text) => model.tokenizer()?.encode(text),
            Self::Ids(ids) => Ok(ids.clone()),
        }
    }
}
