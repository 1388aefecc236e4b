//! Where the files of a model come from: a folder, memory, the program itself or, on the web, an address.

use super::given::{Given, InMemory, ModelFiles};
#[cfg(not(target_arch = "wasm32"))]
use super::names::WEIGHTS_FILE;
use super::names::stays_inside;
use super::reader::{Bytes, Reader};
#[cfg(not(target_arch = "wasm32"))]
use super::versions::Versions;
use crate::{Error, Result};
use std::fmt;
#[cfg(not(target_arch = "wasm32"))]
use std::path::{Path, PathBuf};

/// Where a model's files come from.
///
/// A model is a folder with `config.json` and `model.safetensors` (or several shards and
/// `model.safetensors.index.json`), the layout in which models are published.
pub struct Source(Kind);

enum Kind {
    #[cfg(not(target_arch = "wasm32"))]
    Folder(PathBuf, Versions),
    #[cfg(not(target_arch = "wasm32"))]
    File(PathBuf, Versions),
    Given(Given),
    /// A folder without its weights: `(file name, first bytes, length)` stand for them.
    #[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
    Headers {
        folder: PathBuf,
        name: String,
        files: Vec<(String, Vec<u8>, u64)>,
    },
    #[cfg(target_arch = "wasm32")]
    Http(String),
}

impl Source {
    /// A folder on disk.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn folder(path: impl AsRef<Path>) -> Self {
        Source(Kind::Folder(path.as_ref().to_owned(), Versions::default()))
    }

    /// A folder on disk of which one version is read: a file that changes between two reads is an error.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn steady_folder(path: impl AsRef<Path>) -> Self {
        Source(Kind::Folder(path.as_ref().to_owned(), Versions::of_folder(path.as_ref())))
    }

    /// A safetensors file of any name, read as a folder that holds it as `model.safetensors` and nothing else; likewise
    /// in one version.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn steady_file(path: impl AsRef<Path>) -> Self {
        Source(Kind::File(path.as_ref().to_owned(), Versions::of_file(path.as_ref())))
    }

    /// The same folder, of which one version is read from here on; `None` where files cannot change.
    pub(crate) fn steady(&self) -> Option<Self> {
        match &self.0 {
            #[cfg(not(target_arch = "wasm32"))]
            Kind::Folder(path, _) => Some(Self::steady_folder(path)),
            Kind::Given(files) => Some(Source(Kind::Given(files.steady()))),
            _ => None,
        }
    }

    /// Refuses files that changed since they were first read, if this source is a steady one.
    pub(crate) async fn check_unchanged(&self) -> Result<()> {
        match &self.0 {
            #[cfg(not(target_arch = "wasm32"))]
            Kind::Folder(_, versions) | Kind::File(_, versions) => versions.compare(),
            Kind::Given(files) => files.check_unchanged().await,
            #[cfg(any(feature = "hub", target_arch = "wasm32"))]
            _ => Ok(()),
        }
    }

    /// A folder some of whose files are elsewhere, as `(file name, first bytes, length)`; `name` stands for where.
    #[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
    pub(super) fn headers(name: String, folder: PathBuf, files: Vec<(String, Vec<u8>, u64)>) -> Self {
        Source(Kind::Headers { folder, name, files })
    }

    /// Files compiled into the program, as `(file name, bytes)`. `name` stands for the folder in messages.
    pub fn embedded(
        name: &'static str,
        files: impl IntoIterator<Item = &'static (&'static str, &'static [u8])>,
    ) -> Self {
        Self::memory(name, files.into_iter().copied())
    }

    /// Files held in memory, as `(file name, bytes)`: a `Vec<u8>`, an `Arc<[u8]>`, a file that the program mapped
    /// (`memmap2::Mmap`), or other bytes. `name` stands for the folder in messages.
    pub fn memory<B: AsRef<[u8]> + Send + Sync + 'static>(
        name: impl Into<String>,
        files: impl IntoIterator<Item = (impl Into<String>, B)>,
    ) -> Self {
        let files = files.into_iter().map(|(file, bytes)| (file.into(), bytes)).collect();
        Self::of(name, InMemory(files))
    }

    /// Files that the program reads itself. `name` stands for the folder in messages.
    pub fn of(name: impl Into<String>, files: impl ModelFiles + 'static) -> Self {
        Source(Kind::Given(Given::new(name.into(), files)))
    }

    /// Files below an address, on any static host: each file is one plain `GET`, read as it arrives and not kept.
    ///
    /// The address is a folder: no query and no fragment. Natively this takes the feature `http`, what broke is taken up where it
    /// did, a host has to state how long files are, and `SSL_CERT_FILE` may name the certificates to trust. A thread of its own waits
    /// for the host, which may be silent for half a minute, four times; dropping the future ends the wait at once, and that
    /// thread when the host next says something, or at the end of that half minute.
    #[cfg(any(feature = "http", target_arch = "wasm32"))]
    pub fn http(base_url: impl Into<String>) -> Self {
        let base = base_url.into();
        let base = base.trim_end_matches('/');
        #[cfg(target_arch = "wasm32")]
        return Source(Kind::Http(format!("{base}/")));
        #[cfg(not(target_arch = "wasm32"))]
        Source(Kind::Given(Given::served(base)))
    }

    /// A small file, whole: `None` if there is no such file, an error if it is longer than `cap` bytes.
    pub(crate) async fn read_small(&self, name: &str, cap: u64) -> Result<Option<Vec<u8>>> {
        let Some(mut reader) = self.find(name).await? else { return Ok(None) };
        let too_long = |found: String| {
            let expected = format!("at most {}", crate::error::bytes(cap));
            Error::bad_file(self.path_of(name), "file length", found, expected)
        };
        match reader.len() {
            Some(len) if len > cap => Err(too_long(crate::error::bytes(len))),
            _ => match reader.read_to_end(cap).await? {
                Some(bytes) => Ok(Some(bytes)),
                None => Err(too_long("more".to_owned())),
            },
        }
    }

    /// As [`read_small`](Self::read_small), for text: what only stands in the file's place is an error, a byte order mark
    /// is left out.
    pub(crate) async fn read_text(&self, name: &str, cap: u64) -> Result<Option<Vec<u8>>> {
        let bytes = self.read_small(name, cap).await?;
        bytes.map(|bytes| super::stand_in::text(bytes, &self.path_of(name))).transpose()
    }

    /// Opens a file for sequential reading; an absent file is an error.
    pub(crate) async fn open(&self, name: &str) -> Result<Reader<'_>> {
        self.find(name).await?.ok_or_else(|| self.absent(name))
    }

    /// The error for a file that must be there and is not.
    pub(crate) fn absent(&self, name: &str) -> Error {
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "file not found");
        Error::Io { path: self.path_of(name), source }
    }

    /// Opens a file for sequential reading, or says that it is absent.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<Reader<'_>>> {
        if !stays_inside(name) {
            let expected = "a plain file name of letters, digits, '.', '_' and '-'";
            return Err(Error::bad_file(self.path_of("."), "file name", super::quote(name), expected));
        }
        let path = self.path_of(name);
        let (bytes, len) = match &self.0 {
            #[cfg(not(target_arch = "wasm32"))]
            Kind::Folder(folder, versions) => match open_regular(&folder.join(name), &path, versions)? {
                Some((file, len)) => (Bytes::File(file), Some(len)),
                None => return Ok(None),
            },
            #[cfg(not(target_arch = "wasm32"))]
            Kind::File(..) if name != WEIGHTS_FILE => return Ok(None),
            #[cfg(not(target_arch = "wasm32"))]
            Kind::File(file, versions) => match open_regular(file, &path, versions)? {
                Some((file, len)) => (Bytes::File(file), Some(len)),
                None => return Ok(None),
            },
            Kind::Given(files) => match files.open(name).await? {
                Some((file, size)) => (file, Some(size)),
                None => return Ok(None),
            },
            #[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
            Kind::Headers { folder, files, .. } => match files.iter().find(|(file, ..)| file == name) {
                Some((_, head, len)) => (Bytes::Head(head), Some(*len)),
                None => match open_regular(&folder.join(name), &path, &Versions::default())? {
                    Some((file, len)) => (Bytes::File(file), Some(len)),
                    None => return Ok(None),
                },
            },
            #[cfg(target_arch = "wasm32")]
            Kind::Http(_) => match super::http::Body::get(&path).await? {
                Some(body) => {
                    let len = body.len();
                    (Bytes::Http(body), len)
                }
                None => return Ok(None),
            },
        };
        Ok(Some(Reader::new(path, len, bytes)))
    }

    /// Whether the weights are at hand, so that reading some twice costs little: not on a hub, not on the web.
    pub(crate) fn is_at_hand(&self) -> bool {
        match &self.0 {
            #[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
            Kind::Headers { files, .. } => files.is_empty(),
            #[cfg(target_arch = "wasm32")]
            Kind::Http(_) => false,
            Kind::Given(files) => files.is_at_hand(),
            #[cfg(not(target_arch = "wasm32"))]
            _ => true,
        }
    }

    /// The path or address of a file, for messages.
    pub(crate) fn path_of(&self, name: &str) -> String {
        match &self.0 {
            #[cfg(not(target_arch = "wasm32"))]
            Kind::Folder(folder, _) => folder.join(name).display().to_string(),
            #[cfg(not(target_arch = "wasm32"))]
            Kind::File(file, _) => file.display().to_string(),
            Kind::Given(files) => files.path_of(name),
            #[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
            Kind::Headers { folder, name: elsewhere, files } => {
                match files.iter().any(|(file, ..)| file == name) {
                    true => format!("{elsewhere}/{name}"),
                    false => folder.join(name).display().to_string(),
                }
            }
            #[cfg(target_arch = "wasm32")]
            Kind::Http(base) => format!("{base}{name}"),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.path_of(""))
    }
}

/// Opens a regular file; a device or a pipe could deliver bytes without end.
#[cfg(not(target_arch = "wasm32"))]
fn open_regular(path: &Path, shown: &str, versions: &Versions) -> Result<Option<(std::fs::File, u64)>> {
    let io = |source| Error::Io { path: shown.to_owned(), source };
    // Asked before opening, too: opening a pipe would wait for a writer.
    let regular = |is_file: bool| match is_file {
        true => Ok(()),
        false => Err(Error::bad_file(shown, "file type", "a folder, pipe or device", "a regular file")),
    };
    match std::fs::metadata(path) {
        Ok(data) => regular(data.is_file())?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    }
    let file = std::fs::File::open(path).map_err(io)?;
    let data = file.metadata().map_err(io)?;
    regular(data.is_file())?;
    versions.note(path, &data)?;
    Ok(Some((file, data.len())))
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use pollster::block_on;

    #[test]
    fn small_files_respect_their_cap() {
        let source = Source::memory("m", vec![("a.json", vec![7; 10])]);
        assert_eq!(block_on(source.read_small("a.json", 10)).unwrap(), Some(vec![7; 10]));
        assert_eq!(block_on(source.read_small("b.json", 10)).unwrap(), None);
        let error = block_on(source.read_small("a.json", 9)).unwrap_err().to_string();
        assert!(error.contains("m/a.json") && error.contains("10 B") && error.contains("9 B"), "{error}");
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let error = block_on(Source::folder("/").find("tmp")).err().unwrap().to_string();
        assert!(error.contains("regular file"), "{error}");
        assert!(block_on(Source::folder("/no/such/folder").find("a")).unwrap().is_none());
        assert!(block_on(Source::folder("/no/such/folder").open("a")).is_err());
    }
}
