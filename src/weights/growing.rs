//! A file that may take several runs of a program: beside its place until it is whole, and kept where a run ends early.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::target::{Place, judge};
use crate::{Error, Result};

/// A file that grows. Unlike a [`NewFile`](super::NewFile) it outlives its process: whoever opens it with the same key again
/// finds what was written, and may go on from there. One process writes it at a time.
pub struct GrowingFile {
    shown: String,
    out: File,
    /// Where it is until it is whole, and where it is then; nothing for what takes bytes and keeps none.
    beside: Option<(PathBuf, PathBuf)>,
}

impl GrowingFile {
    /// Opens what an earlier run left, or begins. `key` tells what is written from other things that would go to `path`: it is
    /// part of a file's name.
    ///
    /// # Errors
    /// As [`NewFile::create`](super::NewFile::create), and where another process writes it.
    pub fn open(path: &Path, key: &str) -> Result<Self> {
        let shown = path.display().to_string();
        let open = || match judge(path)? {
            Place::Open(at) => Ok((OpenOptions::new().append(true).open(at)?, None)),
            Place::Path(real) => {
                let mut name = real.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
                name.push(format!(".{key}.partial"));
                let partial = real.with_file_name(name);
                let out =
                    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial)?;
                out.try_lock().map_err(|error| match error {
                    TryLockError::WouldBlock => io::Error::other("another process is writing it"),
                    TryLockError::Error(error) => error,
                })?;
                if let Ok(old) = fs::metadata(&real) {
                    out.set_permissions(old.permissions())?;
                }
                Ok((out, Some((partial, real))))
            }
        };
        open()
            .map(|(out, beside)| Self { shown: shown.clone(), out, beside })
            .map_err(|source| io_error(&shown, source))
    }

    /// Where it is kept until it is whole, if it is.
    pub fn kept_in(&self) -> Option<&Path> {
        self.beside.as_ref().map(|(partial, _)| partial.as_path())
    }

    /// What is written, from the start. [`go_on_at`](Self::go_on_at) comes before the next [`append`](Self::append).
    ///
    /// # Errors
    /// What the system reports.
    pub fn read_back(&self) -> Result<BufReader<&File>> {
        let mut out = &self.out;
        if self.beside.is_some() {
            out.seek(SeekFrom::Start(0)).map_err(|source| io_error(&self.shown, source))?;
        }
        Ok(BufReader::new(out))
    }

    /// Keeps the first `bytes` bytes, and goes on behind them.
    ///
    /// # Errors
    /// What the system reports.
    pub fn go_on_at(&mut self, bytes: u64) -> Result<()> {
        if self.beside.is_none() {
            return Ok(());
        }
        let cut = self.out.set_len(bytes).and_then(|()| self.out.seek(SeekFrom::Start(bytes)));
        cut.map(drop).map_err(|source| io_error(&self.shown, source))
    }

    /// Writes behind what is there.
    ///
    /// # Errors
    /// What the system reports.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|source| io_error(&self.shown, source))
    }

    /// Gives the whole file its name.
    ///
    /// # Errors
    /// What the system reports.
    pub fn finish(mut self) -> Result<()> {
        let mut finish = || match &self.beside {
            None => self.out.flush(),
            Some((partial, real)) => {
                self.out.sync_all()?;
                fs::rename(partial, real)
            }
        };
        finish().map_err(|source| io_error(&self.shown, source))?;
        self.beside = None;
        Ok(())
    }
}

fn io_error(shown: &str, source: io::Error) -> Error {
    Error::Io { path: shown.to_owned(), source }
}

impl Drop for GrowingFile {
    /// Of nothing nothing is kept.
    fn drop(&mut self) {
        if let (Some((partial, _)), Ok(data)) = (&self.beside, self.out.metadata())
            && data.len() == 0
        {
            // It may be gone already; otherwise there is nobody left to tell.
            let _ = fs::remove_file(partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn room(test: &str) -> PathBuf {
        let room = std::env::temp_dir().join(format!("headwise-growing-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&room);
        fs::create_dir_all(&room).unwrap();
        room
    }

    fn written(file: &GrowingFile) -> String {
        let mut text = String::new();
        file.read_back().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn what_was_written_is_found_again_under_its_key_alone() {
        let room = room("again");
        let path = room.join("out");
        fs::write(&path, "old").unwrap();
        let mut file = GrowingFile::open(&path, "a").unwrap();
        file.append(b"one\ntwo\nthr").unwrap();
        let error = GrowingFile::open(&path, "a").err().unwrap().to_string();
        assert!(error.ends_with("out: another process is writing it"), "{error}");
        drop(file);
        drop(GrowingFile::open(&path, "b").unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(&room).unwrap().count(), 2);

        let mut file = GrowingFile::open(&path, "a").unwrap();
        assert_eq!(written(&file), "one\ntwo\nthr");
        file.go_on_at(4).unwrap();
        file.append(b"2\n").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n2\n");
        assert_eq!(fs::read_dir(&room).unwrap().count(), 1);
        // A whole file of nothing is a file.
        GrowingFile::open(&path, "a").unwrap().finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        fs::remove_dir_all(&room).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let room = room("refused");
        for path in [room.clone(), room.join("none/out")] {
            assert!(GrowingFile::open(&path, "a").is_err());
        }
        assert_eq!(fs::read_dir(&room).unwrap().count(), 0);
        fs::remove_dir_all(&room).unwrap();
    }
}
