//! Files that a program gives, and what becomes of programs that do not keep to what they say.

use std::io;

use headwise::{ModelFiles, ReadAt, Source, fuzzing::check_source};

use super::build::Model;

/// What a file does at an offset, given its bytes; `Ok` is how many it says that it read.
type Read = fn(&[u8], u64, &mut [u8]) -> io::Result<usize>;

/// The small model, whose weights say and do what they were told.
struct Told {
    size: fn(u64) -> u64,
    read: Read,
}

struct File<'a> {
    bytes: Vec<u8>,
    told: &'a Told,
}

impl ModelFiles for Told {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn ReadAt + '_>>> {
        Ok(match name {
            "config.json" => Some(Box::new(Model::small().config())),
            "model.safetensors" => Some(Box::new(File { bytes: Model::small().weights(), told: self })),
            _ => None,
        })
    }
}

impl ReadAt for File<'_> {
    fn size(&self) -> u64 {
        (self.told.size)(self.bytes.len() as u64)
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        (self.told.read)(&self.bytes, offset, into)
    }
}

/// As every file should.
fn well(bytes: &[u8], offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let rest = bytes.get(offset as usize..).unwrap_or_default();
    let n = rest.len().min(into.len());
    into[..n].copy_from_slice(&rest[..n]);
    Ok(n)
}

fn told(size: fn(u64) -> u64, read: Read) -> Result<(), String> {
    check_source(&Source::of("given", Told { size, read })).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(size: fn(u64) -> u64, read: Read, parts: [&str; 2]) {
    let error = told(size, read).unwrap_err();
    assert!(error.starts_with("given/model.safetensors"), "{error}");
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

#[test]
fn a_file_that_is_read_in_small_pieces_is_read_whole() {
    told(|size| size, well).unwrap();
    told(|size| size, |bytes, at, into| well(bytes, at, &mut into[..1])).unwrap();
    let interrupted: Read = |bytes, at, into| match at % 3 {
        // Once at each offset, by luck of the buffer's first byte.
        0 if into[0] == 0 => {
            into[0] = 1;
            Err(io::ErrorKind::Interrupted.into())
        }
        _ => well(bytes, at, into),
    };
    told(|size| size, interrupted).unwrap();
}

#[test]
fn a_file_that_lies_about_its_length_is_refused() {
    let len = Model::small().weights().len();
    // Headers say how long a file is, so more and less are both seen there.
    let longer = format!("file length: found {}, expected {len}", len + 1);
    refused(|size| size + 1, well, [&longer, "where the last tensor ends"]);
    refused(|size| size - 1, well, [&format!("{}", len - 1), ""]);
    refused(|_| 0, well, ["content: found an empty file", "a safetensors file"]);
    refused(|_| u64::MAX, well, ["", ""]);
    // One that says the length of its header's tensors, and has less.
    let short: Read = |bytes, at, into| well(&bytes[..bytes.len() - 100], at, into);
    let end = format!("the end of the file after {} bytes", len - 100);
    refused(|size| size, short, [&end, &format!("{len} bytes, as its source says")]);
    // A small file with a lie is as good as a large one.
    let large = |name: &str| Ok((name == "config.json").then_some(Endless));
    let error = check_source(&Source::of("given", large)).unwrap_err().to_string();
    assert!(error.starts_with("given/config.json: file length: found"), "{error}");
}

/// A file without an end.
struct Endless;

impl ReadAt for Endless {
    fn size(&self) -> u64 {
        u64::MAX
    }

    fn read_at(&mut self, _: u64, into: &mut [u8]) -> io::Result<usize> {
        into.fill(b' ');
        Ok(into.len())
    }
}

#[test]
fn what_reads_too_much_nothing_or_fails_is_refused() {
    refused(|size| size, |_, _, into| Ok(into.len() + 1), ["bytes read at 0: found 9", "at most 8"]);
    refused(|size| size, |_, _, _| Ok(usize::MAX), ["bytes read at 0", "at most 8"]);
    refused(
        |size| size,
        |_, _, _| Ok(0),
        ["length: found the end of the file after 0 bytes", "as its source says"],
    );
    let broken: Read = |bytes, at, into| match at {
        ..100 => well(bytes, at, into),
        _ => Err(io::Error::other("the card was taken out")),
    };
    refused(|size| size, broken, ["the card was taken out", ""]);
    refused(|size| size, |_, _, _| Err(io::ErrorKind::Interrupted.into()), ["interrupted", ""]);
    let closed = |_: &str| -> io::Result<Option<Vec<u8>>> { Err(io::Error::other("locked")) };
    let error = check_source(&Source::of("given", closed)).unwrap_err().to_string();
    assert!(error.starts_with("given/config.json") && error.contains("locked"), "{error}");
    assert!(check_source(&Source::of("given", |_: &str| Ok(None::<Vec<u8>>))).is_err());
}
