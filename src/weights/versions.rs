//! One version of each file: what was read first must be what is read until the end.

use std::{
    collections::BTreeMap,
    fs::{self, Metadata},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use crate::{Error, Result};

/// The versions of the files that were opened; of no use to who reads each file once.
#[derive(Default)]
pub(super) struct Versions(Option<Mutex<BTreeMap<PathBuf, Version>>>);

/// What changes with a file's content, or with the file that has the name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    len: u64,
    modified: Option<SystemTime>,
    /// Device, number, and when anything about it changed, which nobody can set.
    #[cfg(unix)]
    identity: (u64, u64, i64, i64),
}

impl Version {
    fn of(data: &Metadata) -> Self {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Self {
            len: data.len(),
            modified: data.modified().ok(),
            #[cfg(unix)]
            identity: (data.dev(), data.ino(), data.ctime(), data.ctime_nsec()),
        }
    }

    /// Refuses another version of the file.
    fn compare(&self, path: &Path, other: &Self) -> Result<()> {
        match other {
            _ if other == self => Ok(()),
            _ if other.len < self.len => {
                Err(self.changed(path, format!("the end of the file after {} bytes", other.len)))
            }
            _ => Err(self.changed(path, "another one".to_owned())),
        }
    }

    fn changed(&self, path: &Path, found: String) -> Error {
        let expected =
            format!("the one of {} bytes that was read first: it must not change while it is read", self.len);
        Error::bad_file(path.display().to_string(), "version", found, expected)
    }
}

impl Versions {
    /// Notes and compares.
    pub fn noted() -> Self {
        Self(Some(Mutex::default()))
    }

    /// Compares a file that was just opened with what it was before, if it was opened before.
    pub fn note(&self, path: &Path, data: &Metadata) -> Result<()> {
        let Some(noted) = &self.0 else { return Ok(()) };
        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
        let version = Version::of(data);
        noted.entry(path.to_owned()).or_insert(version).compare(path, &version)
    }

    /// Compares all files with what they were when they were first opened.
    pub fn compare(&self) -> Result<()> {
        let Some(noted) = &self.0 else { return Ok(()) };
        for (path, version) in noted.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            match fs::metadata(path) {
                Ok(data) => version.compare(path, &Version::of(&data))?,
                Err(e) => return Err(version.changed(path, e.to_string())),
            }
        }
        Ok(())
    }
}
