//! Writing a model folder: whole or not at all.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::target::{NewFile, Place, Unfinished, follow};
use crate::{Error, Result};

/// A folder that appears under its name once all its files are in it.
///
/// Until then it is `.NAME.partial` beside its final place. After an error, a panic or Ctrl-C nothing is left of it; a run
/// that is killed leaves the partial folder.
pub(crate) struct NewFolder {
    shown: String,
    target: PathBuf,
    partial: Unfinished,
}

impl NewFolder {
    /// Starts the folder `target`, which must be absent or empty, and not within what is read.
    pub(crate) fn create(target: &Path, inputs: &[&Path]) -> Result<Self> {
        let shown = target.display().to_string();
        let bad = |path: &Path, found: &str, expected: &str| {
            Err(Error::bad_file(path.display().to_string(), "folder to write", found, expected))
        };
        let Some(name) = target.file_name() else {
            return bad(target, "a path without a name", "the name of a new folder");
        };
        let name = name.to_string_lossy();
        let real = match follow(target).map_err(|e| io(target, e))? {
            Place::Path(real) => real,
            Place::Open(_) => return bad(target, "what the process has open", "a new folder"),
        };
        match fs::read_dir(&real).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return bad(target, "a folder that is not empty", "a new or an empty one"),
            Ok(false) if is_mounted(&real) => {
                let expected = "a new one, which may be in it: this one cannot be replaced";
                return bad(target, "the root of a file system", expected);
            }
            Ok(false) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(io(target, e)),
        }
        for input in inputs.iter().filter_map(|input| fs::canonicalize(input).ok()) {
            if input.is_dir() && real.starts_with(&input) {
                let expected = format!("a folder outside of {}, which is read", input.display());
                return bad(target, "one within", &expected);
            }
        }
        let partial = real.with_file_name(format!(".{name}.partial"));
        match Unfinished::folder(partial.clone()) {
            Ok(partial) => Ok(NewFolder { shown, target: real, partial }),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                let found = "what another run has left or is writing";
                bad(&partial, found, "nothing: remove it unless that run goes on")
            }
            // What is missing or closed is the folder around it.
            Err(e) => Err(io(target, e)),
        }
    }

    /// Its path as it was given.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Where a file is until the folder is complete.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.partial.path().join(name)
    }

    /// Writes a small file.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        NewFile::write(&self.path(name), bytes)
    }

    /// Gives the complete folder its name.
    pub(crate) fn finish(self) -> Result<()> {
        let finish = || {
            if let Ok(old) = fs::metadata(&self.target) {
                fs::set_permissions(self.partial.path(), old.permissions())?;
            }
            // Not every system renames onto an empty folder. Removes nothing else: a folder with files stays.
            match fs::remove_dir(&self.target) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            self.partial.rename(&self.target)
        };
        finish().map_err(|source| Error::Io { path: self.shown, source })
    }
}

/// Whether another file system begins at a folder.
#[cfg(unix)]
fn is_mounted(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|data| data.dev()).ok();
    folder.parent().is_some_and(|around| device(around) != device(folder))
}

#[cfg(not(unix))]
fn is_mounted(_: &Path) -> bool {
    false
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_whole_or_not_there() {
        let room = std::env::temp_dir().join(format!("headwise-new-folder-{}", std::process::id()));
        fs::create_dir_all(room.join("empty")).unwrap();
        fs::create_dir_all(room.join("full/x")).unwrap();
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(&room).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        for name in ["new", "empty"] {
            let folder = NewFolder::create(&room.join(name), &[]).unwrap();
            folder.write("a", b"1").unwrap();
            assert!(names().contains(&format!(".{name}.partial")));
            assert!(!room.join(name).join("a").exists());
            let error = NewFolder::create(&room.join(name), &[]).err().unwrap().to_string();
            assert!(error.contains(".partial: folder to write: found what another run has left"), "{error}");
            folder.finish().unwrap();
            assert_eq!(fs::read(room.join(name).join("a")).unwrap(), b"1");
        }
        drop(NewFolder::create(&room.join("dropped"), &[]).unwrap());
        let folder = NewFolder::create(&room.join("overtaken"), &[]).unwrap();
        fs::create_dir_all(room.join("overtaken/x")).unwrap();
        assert!(folder.finish().is_err());
        assert_eq!(names(), ["empty", "full", "new", "overtaken"]);

        #[cfg(unix)]
        {
            // Through a link, which stays.
            fs::create_dir(room.join("real")).unwrap();
            std::os::unix::fs::symlink("real", room.join("link")).unwrap();
            let folder = NewFolder::create(&room.join("link"), &[]).unwrap();
            folder.write("a", b"1").unwrap();
            folder.finish().unwrap();
            assert!(room.join("link").is_symlink() && room.join("real/a").is_file());
        }
        for (path, part) in [
            (room.join("full"), "full: folder to write: found a folder that is not empty"),
            (room.join("full/x"), "full/x: folder to write: found one within, expected a folder outside of "),
            (room.join("full/new"), "full/new: folder to write: found one within"),
            (room.join("new/a"), "new/a: "),
            (room.join("no/such"), "no/such: "),
            (PathBuf::from("/"), "/: folder to write: found a path without a name"),
        ] {
            let error = NewFolder::create(&path, &[&room.join("full")]).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        }
        fs::remove_dir_all(&room).unwrap();
    }
}
