//! The hub's cache on disk: its folders are hf-hub's, so other tools find there what headwise fetched, and the reverse.
//!
//! ```text
//! models--owner--name/refs/main                          the commit that a revision stood for last
//!                     blobs/ETAG, blobs/ETAG.incomplete  contents, whole and not
//!                     snapshots/COMMIT/config.json       links to contents
//!                     .no_exist/COMMIT/FILE              what the repository does not have
//! .locks/models--owner--name/ETAG.lock
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::client::FileMeta;
use crate::{Error, Result};

/// The files of one repository.
pub(super) struct RepoCache {
    repo: CacheRepo,
    folder: PathBuf,
    locks: PathBuf,
    reference: PathBuf,
}

/// Whether this is a commit's name, which is never that of anything else.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl RepoCache {
    pub fn new(cache: &Path, id: &str, revision: &str) -> Self {
        let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
        let folder = cache.join(repo.folder_name());
        Self {
            locks: cache.join(".locks").join(repo.folder_name()),
            reference: folder.join("refs").join(revision),
            repo: Cache::new(cache.to_owned()).repo(repo),
            folder,
        }
    }

    /// The commit that the revision stood for last.
    pub fn get_ref(&self) -> Option<String> {
        let commit = fs::read_to_string(&self.reference).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub fn set_ref(&self, commit: &str) -> Result<()> {
        if self.get_ref().as_deref() == Some(commit) || self.reference.ends_with(commit) {
            return Ok(());
        }
        self.repo.create_ref(commit).map_err(|e| io(&self.reference, e))
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    /// The folder of contents; made here, so that its disk can be asked.
    pub fn blobs(&self) -> PathBuf {
        let blobs = self.folder.join("blobs");
        // A folder that cannot be made is reported by the first file in it.
        let _ = fs::create_dir_all(&blobs);
        blobs
    }

    pub fn is_known_absent(&self, commit: &str, name: &str) -> bool {
        self.absent(commit, name).is_file()
    }

    pub fn remember_absent(&self, commit: &str, name: &str) -> Result<()> {
        let path = self.absent(commit, name);
        make_room_for(&path)?;
        File::create(&path).map(drop).map_err(|e| io(&path, e))
    }

    fn absent(&self, commit: &str, name: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit).join(name)
    }

    /// Waits until no other process fetches this content.
    pub fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_room_for(&path)?;
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| io(&path, e))?;
        match file.lock() {
            // Network file systems without locks: the worst is that a file is fetched twice.
            Err(e) if e.kind() != io::ErrorKind::Unsupported => Err(io(&path, e)),
            _ => Ok(file),
        }
    }

    pub fn has_blob(&self, file: &FileMeta) -> bool {
        fs::metadata(self.repo.blob_path(&file.etag)).is_ok_and(|data| data.len() == file.size)
    }

    /// Bytes of a content that an earlier download left.
    pub fn partial_bytes(&self, etag: &str) -> u64 {
        fs::metadata(self.partial(etag)).map_or(0, |data| data.len())
    }

    fn partial(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Goes on with a content where an earlier download ended.
    pub fn open_partial(&self, file: &FileMeta) -> Result<Partial> {
        let path = self.partial(&file.etag);
        make_room_for(&path)?;
        let open = || {
            let out = OpenOptions::new().create(true).append(true).open(&path)?;
            let mut bytes = out.metadata()?.len();
            if bytes > file.size {
                out.set_len(0)?;
                bytes = 0;
            }
            Ok(Partial { out, bytes, path: path.clone(), whole: self.repo.blob_path(&file.etag) })
        };
        open().map_err(|e| io(&path, e))
    }

    /// Gives a content its name in the commit's folder.
    pub fn link(&self, commit: &str, file: &FileMeta) -> Result<()> {
        let path = self.snapshot(commit).join(&file.name);
        if path.is_file() {
            return Ok(());
        }
        make_room_for(&path)?;
        // A link to a content that is gone would be in the way.
        let _ = fs::remove_file(&path);
        let blob = self.repo.blob_path(&file.etag);
        // One step up for each folder that the name goes down.
        let up = "../".repeat(2 + file.name.matches('/').count());
        link(&Path::new(&up).join("blobs").join(&file.etag), &blob, &path).map_err(|e| io(&path, e))
    }
}

#[cfg(unix)]
fn link(relative: &Path, _blob: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

/// Where the system allows no links the file itself moves, as with the hub's other tools.
#[cfg(not(unix))]
fn link(relative: &Path, blob: &Path, path: &Path) -> io::Result<()> {
    #[cfg(windows)]
    if std::os::windows::fs::symlink_file(relative, path).is_ok() {
        return Ok(());
    }
    let _ = relative;
    fs::rename(blob, path)
}

/// A content that is not all here.
pub(super) struct Partial {
    out: File,
    /// How much of it is here.
    pub bytes: u64,
    path: PathBuf,
    whole: PathBuf,
}

impl Partial {
    /// Gives the whole content its name.
    pub fn finish(self) -> Result<()> {
        self.out.sync_all().and_then(|()| fs::rename(&self.path, &self.whole)).map_err(|e| self.error(e))
    }

    pub fn error(&self, source: io::Error) -> Error {
        io(&self.path, source)
    }
}

impl Write for Partial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn make_room_for(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) => fs::create_dir_all(folder).map_err(|e| io(folder, e)),
        None => Ok(()),
    }
}

fn io(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.display().to_string(), source }
}
