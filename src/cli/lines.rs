//! A text file, line by line.

use std::{fs::File, io::Read, path::Path};

use headwise::{Error, Model};

/// The largest file that is read.
const MAX_BYTES: u64 = 256 << 20;

/// The lines of a file.
pub struct Lines {
    file: String,
    pub lines: Vec<String>,
    /// Whether a line break ends the last one.
    ended: bool,
}

impl Lines {
    /// Reads a file of UTF-8. A line ends with `\n` or `\r\n`; a byte order mark is skipped.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let file = path.display().to_string();
        let mut bytes = Vec::new();
        let io = |source| Error::Io { path: file.clone(), source };
        File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(io)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(bad(&file, "file length", "more", "at most 256 MiB"));
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let (bytes, ended) = match bytes.strip_suffix(b"\n") {
            Some(bytes) => (bytes, true),
            None => (bytes, false),
        };
        let line = |(index, line): (usize, &[u8])| match std::str::from_utf8(line) {
            Ok(line) => Ok(line.strip_suffix('\r').unwrap_or(line).to_owned()),
            Err(_) => Err(bad(&file, &numbered(index), "bytes that are no text", "UTF-8")),
        };
        // A file of nothing has no line.
        let empty = bytes.is_empty() && !ended;
        let lines = match empty {
            true => Vec::new(),
            false => bytes.split(|byte| *byte == b'\n').enumerate().map(line).collect::<Result<_, _>>()?,
        };
        Ok(Self { file, lines, ended })
    }

    /// Refuses a line that the model cannot read whole; `extra` tokens are added to each.
    pub fn check_lengths(&self, model: &Model, extra: usize) -> Result<(), Error> {
        let context = model.info().context as usize;
        for (index, line) in self.lines.iter().enumerate() {
            let found = match model.encode(line) {
                Ok(ids) if ids.len() + extra <= context => continue,
                Ok(ids) => format!("{} tokens", ids.len() + extra),
                Err(Error::Argument { found, .. }) => found,
                Err(error) => return Err(error),
            };
            let expected = format!("at most the model's {context}");
            return Err(bad(&self.file, &numbered(index), &found, &expected));
        }
        Ok(())
    }

    /// Other lines in place of these.
    pub fn text_of(&self, lines: &[String]) -> String {
        lines.join("\n") + if self.ended { "\n" } else { "" }
    }
}

fn numbered(index: usize) -> String {
    format!("line {}", index + 1)
}

fn bad(file: &str, field: &str, found: &str, expected: &str) -> Error {
    Error::BadFile {
        file: file.to_owned(),
        field: field.to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
    }
}
