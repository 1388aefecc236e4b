//! Sequential reading that never asks for more memory than the bytes that have arrived.

use super::given::ReadAt;
#[cfg(all(feature = "http", not(target_arch = "wasm32")))]
use super::served::ServedFile;
use crate::{Error, Result};
use std::io::ErrorKind;
#[cfg(not(target_arch = "wasm32"))]
use std::io::{Read, Seek, SeekFrom};

/// Bytes are asked for in steps of this size where their number is not yet proven.
const STEP: usize = 64 << 10;
/// How often in a row a program's own file may be interrupted.
const INTERRUPTIONS: u32 = 16;

/// One open file, read from front to back.
pub(crate) struct Reader<'a> {
    path: String,
    len: Option<u64>,
    at: u64,
    bytes: Bytes<'a>,
}

/// The kinds of open file.
pub(crate) enum Bytes<'a> {
    /// A file on disk.
    #[cfg(not(target_arch = "wasm32"))]
    File(std::fs::File),
    /// One that the program reads.
    Given(Box<dyn ReadAt + 'a>),
    /// One that a host serves.
    #[cfg(all(feature = "http", not(target_arch = "wasm32")))]
    Served(ServedFile),
    /// The start of a file that is elsewhere.
    #[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
    Head(&'a [u8]),
    /// A response that is still arriving.
    #[cfg(target_arch = "wasm32")]
    Http(super::http::Body),
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: String, len: Option<u64>, bytes: Bytes<'a>) -> Self {
        Reader { path, len, at: 0, bytes }
    }

    /// The file's length in bytes, where the source states one that can be relied on.
    pub(crate) fn len(&self) -> Option<u64> {
        self.len
    }

    /// How many bytes have been read or skipped.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// The file's path or address.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Fills `out`; an earlier end of file is an error that names `what`.
    pub(crate) async fn read_exact(&mut self, out: &mut [u8], what: &str) -> Result<()> {
        let mut filled = 0;
        while filled < out.len() {
            match self.read(&mut out[filled..]).await? {
                0 => return Err(self.ended(what, (out.len() - filled) as u64)),
                n => filled += n,
            }
        }
        Ok(())
    }

    /// Reads `count` bytes. The buffer grows as they arrive, so a lying count costs nothing.
    pub(crate) async fn read_vec(&mut self, count: usize, what: &str) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < count {
            let (start, step) = (out.len(), STEP.min(count - out.len()));
            out.resize(start + step, 0);
            self.read_exact(&mut out[start..], what).await?;
        }
        Ok(out)
    }

    /// Reads `count` bytes, or as many as there are.
    pub(crate) async fn read_at_most(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; count];
        let mut filled = 0;
        while filled < count {
            match self.read(&mut out[filled..]).await? {
                0 => break,
                n => filled += n,
            }
        }
        out.truncate(filled);
        Ok(out)
    }

    /// Reads to the end of the file; `None` if more than `cap` bytes remain.
    pub(crate) async fn read_to_end(&mut self, cap: u64) -> Result<Option<Vec<u8>>> {
        let mut out = Vec::new();
        loop {
            let start = out.len();
            out.resize(start + STEP, 0);
            let n = self.read(&mut out[start..]).await?;
            out.truncate(start + n);
            if out.len() as u64 > cap {
                return Ok(None);
            }
            if n == 0 {
                return Ok(Some(out));
            }
        }
    }

    /// Passes over `count` bytes; an earlier end of file is an error that names `what`.
    pub(crate) async fn skip(&mut self, count: u64, what: &str) -> Result<()> {
        if let Some(left) = self.len.map(|len| len.saturating_sub(self.at))
            && count > left
        {
            return Err(self.ended(what, count - left));
        }
        match &mut self.bytes {
            #[cfg(not(target_arch = "wasm32"))]
            Bytes::File(file) => {
                let end = self.at + count;
                file.seek(SeekFrom::Start(end))
                    .map_err(|source| Error::Io { path: self.path.clone(), source })?;
                self.at = end;
                Ok(())
            }
            // `len` is known here and was compared above.
            Bytes::Given(_) => {
                self.at += count;
                Ok(())
            }
            #[cfg(all(feature = "http", not(target_arch = "wasm32")))]
            Bytes::Served(_) => {
                self.at += count;
                Ok(())
            }
            #[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
            Bytes::Head(rest) => {
                // As above.
                *rest = rest.get(count as usize..).unwrap_or_default();
                self.at += count;
                Ok(())
            }
            #[cfg(target_arch = "wasm32")]
            Bytes::Http(_) => {
                let mut scratch = vec![0; STEP];
                let mut left = count;
                while left > 0 {
                    let step = left.min(STEP as u64) as usize;
                    self.read_exact(&mut scratch[..step], what).await?;
                    left -= step as u64;
                }
                Ok(())
            }
        }
    }

    /// Reads some bytes, at least one unless the file has ended.
    async fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let n = match &mut self.bytes {
            #[cfg(not(target_arch = "wasm32"))]
            Bytes::File(file) => loop {
                match file.read(out) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(source) => return Err(Error::Io { path: self.path.clone(), source }),
                    Ok(n) => break n,
                }
            },
            Bytes::Given(file) => {
                let size = self.len.unwrap_or_default();
                let room = out.len().min(usize::try_from(size.saturating_sub(self.at)).unwrap_or(usize::MAX));
                read_given(&self.path, file.as_mut(), (self.at, size), &mut out[..room])?
            }
            #[cfg(all(feature = "http", not(target_arch = "wasm32")))]
            Bytes::Served(file) => file
                .read_at(self.at, out)
                .await
                .map_err(|source| Error::Io { path: self.path.clone(), source })?,
            #[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
            Bytes::Head(rest) => {
                let n = rest.len().min(out.len());
                let (head, tail) = rest.split_at(n);
                out[..n].copy_from_slice(head);
                *rest = tail;
                n
            }
            #[cfg(target_arch = "wasm32")]
            Bytes::Http(body) => body.read(out).await?,
        };
        self.at += n as u64;
        Ok(n)
    }

    fn ended(&self, what: &str, missing: u64) -> Error {
        let end = self.len.unwrap_or(self.at);
        let found = format!("the end of the file after {end} bytes");
        Error::bad_file(&self.path, what, found, format!("{missing} more"))
    }
}

/// Reads some bytes at `at` of a file that should have `size`, at least one unless there is no room. Nothing the file says is
/// believed.
fn read_given(path: &str, file: &mut dyn ReadAt, (at, size): (u64, u64), out: &mut [u8]) -> Result<usize> {
    if out.is_empty() {
        return Ok(0);
    }
    let mut interrupted = 0;
    loop {
        match file.read_at(at, out) {
            Err(e) if e.kind() == ErrorKind::Interrupted && interrupted < INTERRUPTIONS => interrupted += 1,
            Err(source) => return Err(Error::Io { path: path.to_owned(), source }),
            Ok(0) => {
                let found = format!("the end of the file after {at} bytes");
                return Err(Error::bad_file(
                    path,
                    "length",
                    found,
                    format!("{size} bytes, as its source says"),
                ));
            }
            Ok(n) if n > out.len() => {
                let field = format!("bytes read at {at}");
                return Err(Error::bad_file(path, field, n, format!("at most {}", out.len())));
            }
            Ok(n) => return Ok(n),
        }
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use crate::weights::Source;
    use pollster::block_on;

    #[test]
    fn reading_past_the_end_is_an_error_with_numbers() {
        let source = Source::memory("m", vec![("a", (0..10).collect::<Vec<u8>>())]);
        block_on(async {
            let mut reader = source.open("a").await.unwrap();
            assert_eq!(reader.read_vec(3, "x").await.unwrap(), [0, 1, 2]);
            reader.skip(2, "x").await.unwrap();
            assert_eq!(reader.position(), 5);
            let error = reader.skip(6, "tensor t").await.unwrap_err().to_string();
            assert_eq!(error, "m/a: tensor t: found the end of the file after 10 bytes, expected 1 more");
            assert!(reader.skip(u64::MAX, "x").await.is_err());
            let error = reader.read_vec(usize::MAX, "x").await.unwrap_err().to_string();
            assert!(error.contains("after 10 bytes"), "{error}");
        });
    }

    #[test]
    fn a_folder_reads_like_memory() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jetmoe_tiny");
        let bytes = std::fs::read(format!("{folder}/model.safetensors")).unwrap();
        block_on(async {
            let source = Source::folder(folder);
            let mut reader = source.open("model.safetensors").await.unwrap();
            assert_eq!(reader.len(), Some(bytes.len() as u64));
            reader.skip(100, "x").await.unwrap();
            assert_eq!(reader.read_vec(100_000, "x").await.unwrap(), bytes[100..100_100]);
            assert_eq!(reader.read_to_end(1 << 20).await.unwrap().unwrap(), bytes[100_100..]);
            assert!(reader.read_exact(&mut [0], "x").await.is_err());
        });
    }
}
