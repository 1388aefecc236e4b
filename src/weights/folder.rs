//! Writing a model folder: whole or not at all.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A folder that appears under its name once all its files are in it.
///
/// Until then it is `.NAME.partial` beside its final place. After an error nothing is left of it; a run that is
/// killed leaves the partial folder.
pub(crate) struct NewFolder {
    target: PathBuf,
    partial: PathBuf,
}

impl NewFolder {
    /// Starts the folder `target`, which must be absent or empty.
    pub(crate) fn create(target: &Path) -> Result<Self> {
        let bad = |path: &Path, found: &str, expected: &str| {
            Err(Error::bad_file(path.display().to_string(), "folder to write", found, expected))
        };
        let Some(name) = target.file_name() else {
            return bad(target, "a path without a name", "the name of a new folder");
        };
        match fs::read_dir(target).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return bad(target, "a folder that is not empty", "a new or an empty one"),
            Ok(false) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io(target, e)),
        }
        let partial = target.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        match fs::create_dir(&partial) {
            Ok(()) => Ok(NewFolder { target: target.to_owned(), partial }),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let found = "what another run has left or is writing";
                bad(&partial, found, "nothing: remove it unless that run goes on")
            }
            // What is missing or closed is the folder around it.
            Err(e) => Err(io(target, e)),
        }
    }

    /// Where a file is until the folder is complete.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.partial.join(name)
    }

    /// Writes a small file.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(name);
        let write = || {
            let mut file = File::create_new(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|e| io(&path, e))
    }

    /// Gives the complete folder its name.
    pub(crate) fn finish(self) -> Result<()> {
        // Not every system renames onto an empty folder. Removes nothing else: a folder with files stays.
        match fs::remove_dir(&self.target) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&self.target, e)),
            _ => {}
        }
        fs::rename(&self.partial, &self.target).map_err(|e| io(&self.target, e))
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        // Fails after the rename, when there is nothing to remove; otherwise there is nobody left to tell.
        let _ = fs::remove_dir_all(&self.partial);
    }
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
            let folder = NewFolder::create(&room.join(name)).unwrap();
            folder.write("a", b"1").unwrap();
            assert!(names().contains(&format!(".{name}.partial")));
            assert!(!room.join(name).join("a").exists());
            let error = NewFolder::create(&room.join(name)).err().unwrap().to_string();
            assert!(error.contains(".partial: folder to write: found what another run has left"), "{error}");
            folder.finish().unwrap();
            assert_eq!(fs::read(room.join(name).join("a")).unwrap(), b"1");
        }
        drop(NewFolder::create(&room.join("dropped")).unwrap());
        let folder = NewFolder::create(&room.join("overtaken")).unwrap();
        fs::create_dir_all(room.join("overtaken/x")).unwrap();
        assert!(folder.finish().is_err());
        assert_eq!(names(), ["empty", "full", "new", "overtaken"]);

        for (path, part) in [
            (room.join("full"), "full: folder to write: found a folder that is not empty"),
            (room.join("new/a"), "new/a: "),
            (room.join("no/such"), "no/such: "),
            (PathBuf::from("/"), "/: folder to write: found a path without a name"),
        ] {
            let error = NewFolder::create(&path).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        }
        fs::remove_dir_all(&room).unwrap();
    }
}
