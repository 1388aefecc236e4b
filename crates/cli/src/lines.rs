//! A text file, line by line.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::Path,
};

use headwise::{Error, Model};

/// The largest file that is read at once, and the longest line.
const MAX_BYTES: u64 = 256 << 20;
const MAX_LINE: u64 = 16 << 20;

/// A file of UTF-8, one line after the other. A line ends with `\n` or `\r\n`; a byte order mark is skipped.
pub struct LineReader {
    pub file: String,
    input: BufReader<File>,
    /// The longest line.
    most: u64,
    /// Lines and bytes read.
    number: usize,
    bytes: u64,
    /// Whether a line break ends the last one.
    ended: bool,
}

/// Refuses to write over what is read.
pub fn check_apart(input: &Path, output: &Path) -> Result<(), Error> {
    match (fs::canonicalize(input), fs::canonicalize(output)) {
        (Ok(same), Ok(output)) if same == output => {
            let found = format!("{}, which is read", same.display());
            Err(Error::Argument { name: "file to write", found, expected: "another file".to_owned() })
        }
        _ => Ok(()),
    }
}

impl LineReader {
    /// Of a file of any length.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, MAX_LINE)
    }

    fn open_with(path: &Path, most: u64) -> Result<Self, Error> {
        let file = path.display().to_string();
        match File::open(path) {
            Ok(input) => {
                let input = BufReader::new(input);
                Ok(Self { file, input, most, number: 0, bytes: 0, ended: false })
            }
            Err(source) => Err(Error::Io { path: file, source }),
        }
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next line.
    pub fn line(&mut self) -> Result<Option<String>, Error> {
        let mut line = Vec::new();
        let read = self.input.by_ref().take(self.most + 1).read_until(b'\n', &mut line);
        self.bytes += read.map_err(|source| Error::Io { path: self.file.clone(), source })? as u64;
        if line.len() as u64 > self.most {
            let (found, most) = (format!("more than {} MiB", self.most >> 20), self.most >> 20);
            return Err(bad(&self.file, &numbered(self.number), &found, &format!("at most {most} MiB")));
        }
        if self.number == 0 && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if line.is_empty() {
            return Ok(None);
        }
        self.ended = line.pop_if(|byte| *byte == b'\n').is_some();
        line.pop_if(|byte| *byte == b'\r');
        let index = self.number;
        self.number += 1;
        match String::from_utf8(line) {
            Ok(line) => Ok(Some(line)),
            Err(_) => Err(bad(&self.file, &numbered(index), "bytes that are no text", "UTF-8")),
        }
    }
}

/// The lines of a file.
pub struct Lines {
    file: String,
    pub lines: Vec<String>,
    /// Whether a line break ends the last one.
    ended: bool,
}

impl Lines {
    /// Reads a file as [`LineReader`] does.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut reader = LineReader::open_with(path, MAX_BYTES)?;
        let mut lines = Vec::new();
        while let Some(line) = reader.line()? {
            lines.push(line);
            if reader.bytes > MAX_BYTES {
                return Err(bad(&reader.file, "file length", "more", "at most 256 MiB"));
            }
        }
        // A file of nothing has no line.
        Ok(Self { file: reader.file, lines, ended: reader.ended })
    }

    /// Refuses a line that the model cannot read whole; `extra` tokens are added to each.
    pub fn check_lengths(&self, model: &Model, extra: usize) -> Result<(), Error> {
        let mut lines = self.lines.iter().enumerate();
        lines.try_for_each(|(index, line)| ids_of(&self.file, index, line, model, extra).map(drop))
    }

    /// Other lines in place of these.
    pub fn text_of(&self, lines: &[String]) -> String {
        lines.join("\n") + if self.ended { "\n" } else { "" }
    }
}

/// The ids of a line of a file, which with `extra` more the model can read whole.
pub fn ids_of(file: &str, index: usize, line: &str, model: &Model, extra: usize) -> Result<Vec<u32>, Error> {
    let context = model.info().context as usize;
    let found = match model.encode(line) {
        Ok(ids) if ids.len() + extra <= context => return Ok(ids),
        Ok(ids) => format!("{} tokens", ids.len() + extra),
        Err(Error::Argument { found, .. }) => found,
        Err(error) => return Err(error),
    };
    let expected = format!("at most the model's {context}");
    Err(bad(file, &numbered(index), &found, &expected))
}

/// How a line is named.
pub fn numbered(index: usize) -> String {
    format!("line {}", index + 1)
}

/// What is wrong with a file.
pub fn bad(file: &str, field: &str, found: &str, expected: &str) -> Error {
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
