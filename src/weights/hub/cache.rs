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

use super::{
    describe::FileMeta,
    hash::{self, Check, Mismatch},
};
use crate::{
    Error, Result,
    weights::{Source, header},
};

/// The files of one repository.
pub(super) struct RepoCache {
    repo: CacheRepo,
    folder: PathBuf,
    locks: PathBuf,
    reference: PathBuf,
}

/// What a commit's folder has of a file.
pub(super) enum Held {
    No,
    /// Something else than the file: what is wrong with it.
    Damaged(String),
    Yes,
}

/// How closely a file in the cache is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Weights have the length that their own header states: they are too large for more.
    Length,
    /// Its content has the hash by which its link names it, too.
    Content,
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

    /// Remembers it, where the cache can be written: it may be complete and read-only.
    pub fn set_ref(&self, commit: &str) {
        if self.get_ref().as_deref() != Some(commit) && !self.reference.ends_with(commit) {
            unless_read_only(&self.reference, self.repo.create_ref(commit));
        }
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

    /// Remembers it, where the cache can be written.
    pub fn remember_absent(&self, commit: &str, name: &str) {
        let path = self.absent(commit, name);
        if path.is_file() {
            return;
        }
        let make = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            File::create(&path).map(drop)
        };
        unless_read_only(&path, make());
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

    /// What the commit's folder has under a name.
    pub fn find(&self, commit: &str, name: &str, look: Look) -> Held {
        let path = self.snapshot(commit).join(name);
        match fs::metadata(&path) {
            Ok(data) if data.is_file() => {}
            _ => return Held::No,
        }
        let length = match name.ends_with(".safetensors") {
            true => check_length(&self.snapshot(commit), name).map_err(|e| e.to_string()),
            false => Ok(()),
        };
        let content = || if look == Look::Content { check_content(&path) } else { Ok(()) };
        match length.and_then(|()| content()) {
            Ok(()) => Held::Yes,
            Err(why) => Held::Damaged(why),
        }
    }

    /// Whether the content is here, whole and right.
    pub fn has_blob(&self, file: &FileMeta) -> bool {
        let blob = self.repo.blob_path(&file.etag);
        fs::metadata(&blob).is_ok_and(|data| data.len() == file.size)
            && hash::compare(&blob, &file.etag).is_ok_and(|same| same.is_ok())
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
            let mut out = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
            let mut check = Check::new(&file.etag, file.size);
            let bytes = check.update_from(&mut out)?;
            let whole = self.repo.blob_path(&file.etag);
            let mut partial = Partial { out, bytes, check, file: file.clone(), path: path.clone(), whole };
            if bytes > file.size {
                partial.restart()?;
            }
            Ok(partial)
        };
        open().map_err(|e| io(&path, e))
    }

    /// Gives a content its name in the commit's folder.
    pub fn link(&self, commit: &str, file: &FileMeta) -> Result<()> {
        let path = self.snapshot(commit).join(&file.name);
        let blob = self.repo.blob_path(&file.etag);
        let same = |a: &Path, b: &Path| fs::canonicalize(a).ok() == fs::canonicalize(b).ok();
        if path.is_file() && (same(&path, &blob) || !blob.exists()) {
            return Ok(());
        }
        make_room_for(&path)?;
        // A link to a content that is gone, or a file that is not what it should be, would be in the way.
        let _ = fs::remove_file(&path);
        // One step up for each folder that the name goes down.
        let up = "../".repeat(2 + file.name.matches('/').count());
        link(&Path::new(&up).join("blobs").join(&file.etag), &blob, &path).map_err(|e| io(&path, e))
    }
}

/// Compares a safetensors file's length with what its header says.
fn check_length(folder: &Path, name: &str) -> Result<()> {
    pollster::block_on(async {
        let source = Source::folder(folder);
        header::read(&mut source.open(name).await?, 0).await.map(drop)
    })
}

/// Compares a content with the hash that it is linked by; a copy has no such name.
fn check_content(path: &Path) -> Result<(), String> {
    let blob = fs::read_link(path).ok().filter(|blob| blob.parent().is_some_and(|at| at.ends_with("blobs")));
    let Some(etag) = blob.as_ref().and_then(|blob| blob.file_name()?.to_str()) else { return Ok(()) };
    match hash::compare(path, etag) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(mismatch)) => Err(mismatch.to_string()),
        Err(e) => Err(e.to_string()),
    }
}

/// A cache that is complete needs no writing, and others may own it: then what could only be noted is not.
fn unless_read_only(path: &Path, written: io::Result<()>) {
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "not noted in the cache");
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
    check: Check,
    file: FileMeta,
    path: PathBuf,
    whole: PathBuf,
}

impl Partial {
    /// Begins anew.
    pub fn restart(&mut self) -> io::Result<()> {
        self.out.set_len(0)?;
        self.bytes = 0;
        self.check = Check::new(&self.file.etag, self.file.size);
        Ok(())
    }

    /// Gives the whole content its name, or deletes it if it is not the one that the hub named.
    pub fn finish(self) -> Result<Result<(), Mismatch>> {
        if let Err(mismatch) = self.check.clone().finish() {
            fs::remove_file(&self.path).map_err(|e| self.error(e))?;
            return Ok(Err(mismatch));
        }
        self.out.sync_all().and_then(|()| fs::rename(&self.path, &self.whole)).map_err(|e| self.error(e))?;
        Ok(Ok(()))
    }

    pub fn error(&self, source: io::Error) -> Error {
        io(&self.path, source)
    }
}

impl Write for Partial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.check.update(&bytes[..written]);
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
