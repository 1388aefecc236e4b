//! One version of each file: what was read first must be what is read until the end.

use std::{
    collections::BTreeMap,
    fs::{self, Metadata},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use super::given::changed;
use crate::{Error, Result};

/// Endings of the files that a model is made of.
const ENDINGS: [&str; 3] = ["json", "safetensors", "jinja"];
/// The most files of a folder that are looked at; others are noted when they are opened.
const MOST_FILES: usize = 4096;

/// The versions of the files of a source; of no use to who reads one file once.
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
        changed(path.display().to_string(), self.len, found)
    }
}

impl Versions {
    /// Of the files that a folder has, whether or not they are opened soon. Others may write beside them.
    pub fn of_folder(folder: &Path) -> Self {
        let entries = fs::read_dir(folder).into_iter().flatten().take(MOST_FILES).flatten();
        Self::of(entries.map(|entry| entry.path()).filter(|path| {
            path.extension()
                .and_then(|ending| ending.to_str())
                .is_some_and(|ending| ENDINGS.contains(&ending))
        }))
    }

    /// Of one file.
    pub fn of_file(path: &Path) -> Self {
        Self::of(std::iter::once(path.to_owned()))
    }

    fn of(paths: impl Iterator<Item = PathBuf>) -> Self {
        let noted = paths.filter_map(|path| {
            let data = fs::metadata(&path).ok().filter(Metadata::is_file)?;
            Some((path, Version::of(&data)))
        });
        Self(Some(Mutex::new(noted.collect())))
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
