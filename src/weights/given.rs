//! Files that a program holds or reads itself, or has a host serve.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::reader::Bytes;
#[cfg(all(feature = "http", not(target_arch = "wasm32")))]
use super::served::Served;
use crate::{Error, Result};

/// The files of a model, wherever a program has them: in an archive, among the assets of an app, in a store of its own. For
/// [`Source::of`](crate::Source::of).
///
/// A closure from a name to something that can be read is one, and so are bytes by name for
/// [`Source::memory`](crate::Source::memory).
///
/// ```
/// # fn main() -> headwise::Result<()> {
/// // As of an Android app, whose assets are opened by name.
/// let asset = |name: &str| match name {
///     "config.json" => Ok(Some(br#"{"model_type": "jetmoe"}"#.as_slice())),
///     _ => Ok(None),
/// };
/// let source = headwise::Source::of("the assets", asset);
/// # let error = headwise::block_on(headwise::ModelInfo::read(&source)).unwrap_err();
/// # assert!(error.to_string().starts_with("the assets/config.json"), "{error}");
/// # Ok(()) }
/// ```
pub trait ModelFiles: Send + Sync {
    /// Opens a file for reading, or says that there is none with `Ok(None)`. Names are those of a published folder, such as
    /// `config.json` or `model-00001-of-00004.safetensors`: plain names, perhaps with folders before them, divided by `/`. A file is
    /// opened several times, for headers and for values.
    ///
    /// # Errors
    /// What keeps a file that exists from being opened. It comes back as [`Error::Io`] with the file's name.
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn ReadAt + '_>>>;
}

/// A file that was opened, to be read in pieces: all that is bytes in memory (`Vec<u8>`, `Arc<[u8]>`, `&'static [u8]`, or a file that
/// the program mapped: `memmap2::Mmap` is `AsRef<[u8]>`), and whatever a program makes one.
///
/// Nothing it says is trusted. What ends before its size, or reads more than there was room for, is an error that names the file;
/// no more memory is taken than bytes have come.
pub trait ReadAt: Send {
    /// The length of the whole file, in bytes. It may not change as long as the file is open.
    fn size(&self) -> u64;

    /// A number that is another one when the file's content is: of its time of change, say, or its hash. A model is refused where
    /// it, or the size, changes while the model is read. 0 where files cannot change, or nobody knows.
    fn version(&self) -> u64 {
        0
    }

    /// Reads bytes from `offset`, counted from the file's start, to the start of `into`, and says how many: at least one, but
    /// for the end of the file. `offset` and the end of `into` are within [`size`](Self::size), and mostly one follows the other.
    ///
    /// # Errors
    /// What keeps them from being read. It comes back as [`Error::Io`] with the file's name;
    /// [`Interrupted`](io::ErrorKind::Interrupted) has it called once more, up to 16 times in a row.
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize>;
}

impl<F, R> ModelFiles for F
where
    F: Fn(&str) -> io::Result<Option<R>> + Send + Sync,
    R: ReadAt + 'static,
{
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn ReadAt + '_>>> {
        Ok(self(name)?.map(|file| Box::new(file) as Box<dyn ReadAt>))
    }
}

impl<B: AsRef<[u8]> + Send> ReadAt for B {
    fn size(&self) -> u64 {
        self.as_ref().len() as u64
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.as_ref().get(offset..));
        let rest = rest.unwrap_or_default();
        let n = rest.len().min(into.len());
        into[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

impl ReadAt for Box<dyn ReadAt + '_> {
    fn size(&self) -> u64 {
        self.as_ref().size()
    }

    fn version(&self) -> u64 {
        self.as_ref().version()
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.as_mut().read_at(offset, into)
    }
}

/// Bytes by name.
pub(super) struct InMemory<B>(pub Vec<(String, B)>);

impl<B: AsRef<[u8]> + Send + Sync> ModelFiles for InMemory<B> {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn ReadAt + '_>>> {
        let found = self.0.iter().find(|(file, _)| file == name);
        Ok(found.map(|(_, bytes)| Box::new(bytes.as_ref()) as Box<dyn ReadAt>))
    }
}

/// Whoever opens files.
#[derive(Clone)]
enum Opener {
    Program(Arc<dyn ModelFiles>),
    /// A host, on which reading some twice costs much.
    #[cfg(all(feature = "http", not(target_arch = "wasm32")))]
    Host(Arc<Served>),
}

/// Files that were given, and what a steady source has seen of them: sizes and versions by name.
pub(super) struct Given {
    name: String,
    files: Opener,
    seen: Option<Mutex<BTreeMap<String, (u64, u64)>>>,
}

impl Given {
    pub fn new(name: String, files: impl ModelFiles + 'static) -> Self {
        Self { name, files: Opener::Program(Arc::new(files)), seen: None }
    }

    /// Files below an address.
    #[cfg(all(feature = "http", not(target_arch = "wasm32")))]
    pub fn served(address: &str) -> Self {
        Self { name: address.to_owned(), files: Opener::Host(Arc::new(Served::new(address))), seen: None }
    }

    pub fn is_at_hand(&self) -> bool {
        matches!(self.files, Opener::Program(_))
    }

    /// The same files, each of one version from here on.
    pub fn steady(&self) -> Self {
        Self { name: self.name.clone(), files: self.files.clone(), seen: Some(Mutex::default()) }
    }

    /// A file, for messages.
    pub fn path_of(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    /// Opens a file, of so many bytes; another version than was seen before is an error.
    pub async fn open(&self, name: &str) -> Result<Option<(Bytes<'_>, u64)>> {
        let Some((file, size, version)) = self.find(name).await? else { return Ok(None) };
        if let Some(seen) = &self.seen {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let first = *seen.entry(name.to_owned()).or_insert((size, version));
            self.compare(name, first, Some((size, version)))?;
        }
        Ok(Some((file, size)))
    }

    /// A file, its size and its version.
    async fn find(&self, name: &str) -> Result<Option<(Bytes<'_>, u64, u64)>> {
        let io = |source| Error::Io { path: self.path_of(name), source };
        match &self.files {
            Opener::Program(files) => {
                let found = files.open(name).map_err(io)?;
                Ok(found.map(|file| {
                    let (size, version) = (file.size(), file.version());
                    (Bytes::Given(file), size, version)
                }))
            }
            #[cfg(all(feature = "http", not(target_arch = "wasm32")))]
            Opener::Host(host) => {
                let found = host.open(name).await.map_err(io)?;
                Ok(found.map(|file| {
                    let (size, version) = (file.size(), file.version());
                    (Bytes::Served(file), size, version)
                }))
            }
        }
    }

    fn compare(&self, name: &str, first: (u64, u64), now: Option<(u64, u64)>) -> Result<()> {
        let found = match now {
            Some(now) if now == first => return Ok(()),
            Some((size, _)) if size != first.0 => format!("one of {size} bytes"),
            Some(_) => "another one".to_owned(),
            None => "no file".to_owned(),
        };
        Err(changed(self.path_of(name), first.0, found))
    }

    /// Compares all files with what they were when they were first opened.
    pub async fn check_unchanged(&self) -> Result<()> {
        let Some(seen) = &self.seen else { return Ok(()) };
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, first) in seen {
            let now = self.find(&name).await?;
            self.compare(&name, first, now.map(|(_, size, version)| (size, version)))?;
        }
        Ok(())
    }
}

/// The error for a file that had `len` bytes when it was read first, and is another one now.
pub(super) fn changed(path: String, len: u64, found: String) -> Error {
    let expected = format!("the one of {len} bytes that was read first: it must not change while it is read");
    Error::bad_file(path, "version", found, expected)
}
