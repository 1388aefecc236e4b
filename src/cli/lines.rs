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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Whatever a file holds, its lines make the file again, or the line that is no text is named.
    #[test]
    fn any_bytes_are_lines_or_an_error() {
        let path = std::env::temp_dir().join(format!("headwise-lines-{}", std::process::id()));
        let pieces: [&[u8]; 11] = [
            b"",
            b"a",
            b"\n",
            b"\r\n",
            b"\r",
            b"\0",
            b"\xff",
            b"\xc3",
            b"\xef\xbb\xbf",
            "é".as_bytes(),
            b"\xed\xa0\x80",
        ];
        let (mut tried, mut good) = (0, 0);
        for number in 0..pieces.len().pow(4) {
            let bytes = [1, 11, 121, 1331].map(|step| pieces[number / step % pieces.len()]).concat();
            fs::write(&path, &bytes).unwrap();
            tried += 1;
            let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
            match (Lines::read(&path), std::str::from_utf8(bytes)) {
                (Ok(read), Ok(text)) => {
                    good += 1;
                    let last =
                        if text.ends_with('\n') { text } else { text.strip_suffix('\r').unwrap_or(text) };
                    assert_eq!(read.text_of(&read.lines), last.replace("\r\n", "\n"), "{bytes:?}");
                }
                (Err(error), Err(_)) => {
                    let line = bytes
                        .split(|byte| *byte == b'\n')
                        .position(|line| std::str::from_utf8(line).is_err());
                    let named = format!("line {}: found bytes that are no text", line.unwrap() + 1);
                    assert!(error.to_string().contains(&named), "{error}");
                }
                (read, text) => panic!("{bytes:?}: {} but {text:?}", read.is_ok()),
            }
        }
        let _ = fs::remove_file(&path);
        println!("{tried} files of lines, {good} of them text");
        assert!(good > 1000 && tried - good > 1000, "{good} of {tried}");
    }
}
