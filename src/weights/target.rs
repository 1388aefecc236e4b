//! Where files are written: judged before the work, written beside their place, there when they are whole.
//!
//! A path is followed through links to the file that it stands for, so that a link stays a link. What is no file but takes
//! bytes (a terminal, a pipe, `/dev/stdout`) is written to as it is. Everything unfinished is known to the process, so that
//! one that ends early, by Ctrl-C or a panic, leaves nothing.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{Error, Result};

/// The most links that are followed, as on Linux.
const MAX_LINKS: usize = 40;
/// Folders whose entries are what this process has open.
const OF_PROCESSES: [&str; 2] = ["/proc", "/dev/fd"];

/// What a path of something to write stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A path in a folder that is there.
    Path(PathBuf),
    /// Something that the process has open.
    Open(PathBuf),
}

/// Follows a path's links. What it leads to need not be there; the folder around that must.
pub(super) fn follow(path: &Path) -> io::Result<Place> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let name = path.file_name().ok_or(io::Error::other("a path without a name"))?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let folder = fs::canonicalize(folder)?;
        if !folder.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
        let at = folder.join(name);
        if OF_PROCESSES.iter().any(|open| folder.starts_with(open)) {
            return Ok(Place::Open(at));
        }
        match fs::symlink_metadata(&at) {
            Ok(data) if data.is_symlink() => path = folder.join(fs::read_link(&at)?),
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => return Ok(Place::Path(at)),
        }
    }
    Err(io::Error::other("too many links"))
}

/// A file while it is written.
///
/// It appears under its name when it is whole and on the disk: until then a file of that name stays as it was, and after
/// an error, a panic or Ctrl-C nothing is left of the new one.
pub struct NewFile {
    shown: String,
    // Before `beside`: a file is closed before it is removed.
    out: File,
    beside: Option<(Unfinished, PathBuf)>,
}

impl NewFile {
    /// Refuses what cannot be written, before the work is done rather than after.
    ///
    /// # Errors
    /// As [`NewFile::create`].
    pub fn check(path: &Path) -> Result<()> {
        let check = || match judge(path)? {
            // To open a pipe would be to wait for its reader.
            Place::Open(_) => Ok(()),
            // There is one way to know whether a folder takes a file.
            Place::Path(real) => create_beside(&real).map(drop),
        };
        check().map_err(|source| Error::Io { path: path.display().to_string(), source })
    }

    /// Begins a file.
    ///
    /// # Errors
    /// A folder, or nothing that takes bytes, in its place; no folder around it; what the system reports.
    pub fn create(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let create = || match judge(path)? {
            // Behind what is there: a shell's `>>` means that.
            Place::Open(at) => Ok((OpenOptions::new().append(true).open(at)?, None)),
            Place::Path(real) => {
                let (out, beside) = create_beside(&real)?;
                Ok((out, Some((beside, real))))
            }
        };
        match create() {
            Ok((out, beside)) => Ok(Self { shown, out, beside }),
            Err(source) => Err(Error::Io { path: shown, source }),
        }
    }

    /// Writes a file whole.
    ///
    /// # Errors
    /// As [`NewFile::create`].
    pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = Self::create(path)?;
        file.write_all(bytes).map_err(|source| Error::Io { path: file.shown.clone(), source })?;
        file.finish()
    }

    /// Gives the whole file its name.
    pub(crate) fn finish(self) -> Result<()> {
        let Self { shown, mut out, beside } = self;
        let finish = || match beside {
            None => out.flush(),
            Some((beside, real)) => {
                out.sync_all()?;
                drop(out);
                beside.rename(&real)
            }
        };
        finish().map_err(|source| Error::Io { path: shown, source })
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What a file's path stands for, if it can be written.
pub(super) fn judge(path: &Path) -> io::Result<Place> {
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(ErrorKind::IsADirectory.into());
    }
    let place = follow(path)?;
    let (Place::Path(at) | Place::Open(at)) = &place;
    match fs::metadata(at) {
        Err(e) if e.kind() == ErrorKind::NotFound && matches!(place, Place::Path(_)) => Ok(place),
        Err(e) => Err(e),
        Ok(data) if data.is_dir() => Err(ErrorKind::IsADirectory.into()),
        Ok(data) if data.is_file() => match place {
            // A file that is write-protected is so for a reason, though the folder would let it be replaced.
            Place::Path(_) => OpenOptions::new().write(true).open(at).map(|_| place),
            Place::Open(_) => Ok(place),
        },
        Ok(data) if takes_bytes(data.file_type()) => Ok(Place::Open(at.clone())),
        Ok(_) => Err(io::Error::other("neither a file nor a pipe or terminal")),
    }
}

/// Whether bytes can be written to something as they come; a disk and a socket would do other things with them.
#[cfg(unix)]
fn takes_bytes(kind: fs::FileType) -> bool {
    use std::os::unix::fs::FileTypeExt;
    kind.is_fifo() || kind.is_char_device()
}

#[cfg(not(unix))]
fn takes_bytes(_: fs::FileType) -> bool {
    false
}

/// Creates a file beside `real`: a rename inside one folder is atomic. It may be read by those who may read the old one.
fn create_beside(real: &Path) -> io::Result<(File, Unfinished)> {
    let name = real.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy();
    // Names have limits, too.
    let name: String = name.chars().take(50).collect();
    for attempt in 0..100 {
        let path = real.with_file_name(format!(".{name}.{}-{attempt}.partial", std::process::id()));
        match Unfinished::file(path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            created => {
                let (beside, file) = created?;
                if let Ok(old) = fs::metadata(real) {
                    file.set_permissions(old.permissions())?;
                }
                return Ok((file, beside));
            }
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// The files and folders that this process has begun and not finished. Whoever holds the lock is the only one who makes,
/// names or removes any.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what is not finished. For a process that ends now: nothing can be begun after it.
pub fn remove_unfinished() {
    let unfinished = unfinished();
    unfinished.iter().rev().for_each(|path| remove(path));
    std::mem::forget(unfinished);
}

fn remove(path: &Path) {
    // It may be gone already; otherwise there is nobody left to tell.
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// A file or a folder that is removed unless it is given its name.
pub(super) struct Unfinished(PathBuf);

impl Unfinished {
    /// A new file.
    fn file(path: PathBuf) -> io::Result<(Self, File)> {
        let mut unfinished = unfinished();
        let file = File::create_new(&path)?;
        unfinished.push(path.clone());
        Ok((Self(path), file))
    }

    /// A new folder.
    pub fn folder(path: PathBuf) -> io::Result<Self> {
        let mut unfinished = unfinished();
        fs::create_dir(&path)?;
        unfinished.push(path.clone());
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Gives it its name; after an error it is removed.
    pub fn rename(self, to: &Path) -> io::Result<()> {
        let mut unfinished = unfinished();
        let renamed = fs::rename(&self.0, to);
        if renamed.is_ok() {
            unfinished.retain(|path| *path != self.0);
        }
        drop(unfinished);
        renamed
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut unfinished = unfinished();
        if unfinished.contains(&self.0) {
            unfinished.retain(|path| *path != self.0);
            remove(&self.0);
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn room(test: &str) -> PathBuf {
        let room = std::env::temp_dir().join(format!("headwise-target-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&room);
        fs::create_dir_all(room.join("folder")).unwrap();
        fs::canonicalize(room).unwrap()
    }

    #[test]
    fn links_are_followed_to_the_file_and_stay() {
        let room = room("links");
        let at = |name: &str| room.join(name);
        fs::write(at("folder/file"), "old").unwrap();
        fs::set_permissions(at("folder/file"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("folder/file", at("relative")).unwrap();
        symlink(at("relative"), at("absolute")).unwrap();
        symlink("folder", at("into")).unwrap();
        symlink("folder/none", at("dangling")).unwrap();
        symlink("circle", at("circle")).unwrap();
        for name in ["relative", "absolute", "into/file", "folder/../folder/file"] {
            NewFile::check(&at(name)).unwrap();
            NewFile::write(&at(name), name.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(at("folder/file")).unwrap(), name);
            assert_eq!(fs::metadata(at("folder/file")).unwrap().permissions().mode() & 0o777, 0o640);
        }
        NewFile::write(&at("dangling"), b"new").unwrap();
        assert_eq!(fs::read(at("folder/none")).unwrap(), b"new");
        for link in ["relative", "absolute", "into", "dangling"] {
            assert!(fs::symlink_metadata(at(link)).unwrap().is_symlink(), "{link}");
        }
        let error = NewFile::check(&at("circle")).unwrap_err().to_string();
        assert!(error.ends_with("circle: too many links"), "{error}");
        assert_eq!(fs::read_dir(at("folder")).unwrap().count(), 2);
        assert_eq!(fs::read_dir(&room).unwrap().count(), 6);
        fs::remove_dir_all(&room).unwrap();
    }

    #[test]
    fn what_is_no_file_is_written_to_or_refused() {
        let room = room("devices");
        NewFile::write(Path::new("/dev/null"), b"x").unwrap();
        assert!(NewFile::write(Path::new("/dev/full"), b"x").is_err());
        let _socket = std::os::unix::net::UnixListener::bind(room.join("socket")).unwrap();
        for refused in ["socket", "folder", "folder/", "none/file", "folder/none/", "."] {
            let path = room.join(refused);
            assert!(NewFile::check(&path).is_err() && NewFile::create(&path).is_err(), "{refused}");
        }
        assert_eq!(fs::read_dir(&room).unwrap().count(), 2);
        // A file that is open, by its number.
        use std::os::fd::AsRawFd;
        let open = File::create(room.join("open")).unwrap();
        for text in ["a", "b"] {
            NewFile::write(Path::new(&format!("/dev/fd/{}", open.as_raw_fd())), text.as_bytes()).unwrap();
        }
        assert_eq!(fs::read(room.join("open")).unwrap(), b"ab");
        fs::remove_dir_all(&room).unwrap();
    }

    #[test]
    fn names_of_any_length_and_kind_are_written() {
        use std::os::unix::ffi::OsStrExt;
        let room = room("names");
        for name in ["é".repeat(127).as_bytes(), b"a\xffb", b" ", b"-"] {
            let path = room.join(std::ffi::OsStr::from_bytes(name));
            NewFile::write(&path, name).unwrap();
            assert_eq!(fs::read(path).unwrap(), name);
        }
        assert_eq!(fs::read_dir(&room).unwrap().count(), 5);
        fs::remove_dir_all(&room).unwrap();
    }
}
