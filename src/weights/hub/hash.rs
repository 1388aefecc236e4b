//! The hash by which a hub names a content.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Compares a content with its etag while it arrives.
///
/// The etag of a large file is its SHA-256, that of a small one git's: SHA-1 over `blob LENGTH\0` and the content. Some
/// mirrors name a file by the SHA-1 of the content alone. Other etags say nothing about the content.
#[derive(Clone)]
pub(super) struct Check {
    etag: String,
    hash: Hash,
}

#[derive(Clone)]
enum Hash {
    Sha256(Sha256),
    /// git's, and the content's own.
    Sha1(Box<[Sha1; 2]>),
    None,
}

impl Check {
    /// Begins with a content of so many bytes.
    pub fn new(etag: &str, size: u64) -> Self {
        let hexadecimal = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let hash = match etag.len() {
            64 if hexadecimal => Hash::Sha256(Sha256::new()),
            40 if hexadecimal => {
                Hash::Sha1(Box::new([Sha1::new_with_prefix(format!("blob {size}\0")), Sha1::new()]))
            }
            _ => Hash::None,
        };
        Self { etag: etag.to_ascii_lowercase(), hash }
    }

    /// Whether the etag says anything about the content.
    pub fn is_possible(&self) -> bool {
        !matches!(self.hash, Hash::None)
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.hash {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Sha1(hashes) => hashes.iter_mut().for_each(|hash| hash.update(bytes)),
            Hash::None => {}
        }
    }

    /// Takes the bytes that a file has from where it stands; how many.
    pub fn update_from(&mut self, file: &mut File) -> io::Result<u64> {
        let mut buffer = vec![0; 256 << 10];
        let mut bytes = 0;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(bytes),
                Ok(read) => {
                    self.update(&buffer[..read]);
                    bytes += read as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// What the whole content is, where that is not what the etag says.
    pub fn finish(self) -> Result<(), Mismatch> {
        let found = match self.hash {
            Hash::Sha256(hash) => vec![hexadecimal(&hash.finalize())],
            Hash::Sha1(hashes) => hashes.into_iter().map(|hash| hexadecimal(&hash.finalize())).collect(),
            Hash::None => return Ok(()),
        };
        match found.contains(&self.etag) {
            true => Ok(()),
            false => {
                Err(Mismatch { found: found.concat()[..self.etag.len()].to_owned(), expected: self.etag })
            }
        }
    }
}

/// Two hashes that should be one.
#[derive(Clone, Debug)]
pub(super) struct Mismatch {
    found: String,
    expected: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.expected.len() == 64 { "SHA-256" } else { "SHA-1" };
        write!(f, "a content of {kind} {}, expected {}", self.found, self.expected)
    }
}

/// Whether a file is the content that an etag names, of so many bytes as the file has.
pub(super) fn compare(path: &Path, etag: &str) -> io::Result<Result<(), Mismatch>> {
    let mut file = File::open(path)?;
    let mut check = Check::new(etag, file.metadata()?.len());
    if check.is_possible() {
        check.update_from(&mut file)?;
    }
    Ok(check.finish())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(etag: &str, content: &[u8]) -> Result<(), Mismatch> {
        let mut check = Check::new(etag, content.len() as u64);
        content.chunks(2).for_each(|bytes| check.update(bytes));
        check.finish()
    }

    #[test]
    fn etags_are_the_hashes_that_other_tools_compute() {
        // `printf abc | sha256sum`, `| git hash-object --stdin`, `| sha1sum`; no hash.
        for etag in [
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD",
            "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f",
            "a9993e364706816aba3e25717850c26c9cd0d89d",
            "900150983cd24fb0-1",
        ] {
            assert!(check(etag, b"abc").is_ok(), "{etag}");
            let other = check(etag, b"abd");
            assert_eq!(other.is_err(), etag.len() >= 40, "{etag}");
            if let Err(Mismatch { found, expected }) = other {
                assert!(found.len() == etag.len() && expected == etag.to_lowercase() && found != expected);
            }
        }
    }
}
