//! The files of a model on a host that serves them as they are, natively: each is one `GET`, read as it arrives and taken up where
//! it broke.
//!
//! A host may take as long as it likes. So whoever asks waits as a future does, for a thread that reads one piece: it is asked
//! for one at a time for each open file, and where nobody waits any more it ends at the client's next limit of time or byte.

use std::{
    env,
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
};

use super::client::{Answer, Client, TRIES, Trouble, patiently, wait_before_try};
use crate::{Cancel, Error, Result, cancel::CancelOnDrop, gpu::aside};

/// Bytes up to which it is quicker to let what is not wanted come than to ask anew.
const NEAR: u64 = 1 << 20;
/// The most bytes that a thread reads at once.
const PIECE: usize = 1 << 20;

/// Everything below an address.
pub(super) struct Served {
    /// What keeps anything from being asked is told to whoever asks for a file first.
    client: Result<Arc<Client>, String>,
}

impl Served {
    pub fn new(address: &str) -> Self {
        // As with a hub.
        let roots = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(env::var_os);
        let roots = roots.map(PathBuf::from).find(|path| !path.as_os_str().is_empty());
        let plain = match address.contains(['?', '#']) {
            false => Ok(address),
            true => Err(Error::argument("address", super::quote(address), "no query and no fragment")),
        };
        let client = plain.and_then(|address| Client::new("address", address, None, roots.as_deref()));
        Self { client: client.map(Arc::new).map_err(|error| error.to_string()) }
    }

    /// Asks for a file; nothing where the host has none.
    pub async fn open(&self, name: &str) -> io::Result<Option<ServedFile>> {
        let client = self.client.clone().map_err(io::Error::other)?;
        let url = format!("{}/{name}", client.endpoint());
        let unwanted = CancelOnDrop(Cancel::new());
        let nobody = unwanted.0.clone();
        let download = on_a_thread(move || Download::start(client, url, nobody)).await??;
        Ok(download.map(|download| ServedFile {
            size: download.size,
            version: download.version,
            download: Some((download, Vec::new())),
            _unwanted: unwanted,
        }))
    }
}

/// A file. Dropping it ends what is under way.
pub(super) struct ServedFile {
    size: u64,
    version: u64,
    /// And room for a piece of it; a thread has both while it reads.
    download: Option<(Download, Vec<u8>)>,
    _unwanted: CancelOnDrop,
}

impl ServedFile {
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// Reads some bytes at `offset`, at least one unless there is no room.
    pub async fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let lost = || io::Error::other("the answer was lost with what asked for it");
        let (mut download, mut piece) = self.download.take().ok_or_else(lost)?;
        piece.resize(into.len().min(PIECE), 0);
        let read = move || {
            let read = download.fill(offset, &mut piece);
            (download, piece, read)
        };
        let (download, piece, read) = on_a_thread(read).await?;
        if let Ok(read) = read {
            into[..read].copy_from_slice(&piece[..read]);
        }
        self.download = Some((download, piece));
        read
    }
}

/// Does what may take long on a thread of its own.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    aside("http", work).await.ok_or_else(|| io::Error::other("the thread that reads could not start"))
}

/// A file, and the answer that brings it.
struct Download {
    client: Arc<Client>,
    url: String,
    size: u64,
    version: u64,
    /// The next byte of the body.
    at: u64,
    body: Option<Box<dyn Read + Send>>,
    /// Nobody waits for it any more.
    nobody: Cancel,
}

impl Download {
    fn start(client: Arc<Client>, url: String, nobody: Cancel) -> io::Result<Option<Self>> {
        let ask = || {
            wanted(&nobody)?;
            client.get(&url, 0, None)
        };
        let answer = match patiently(TRIES, ask) {
            Ok(answer) => answer,
            // Object stores answer 403 for a file that is not there.
            Err(Trouble { status: Some(403 | 404 | 410), .. }) => return Ok(None),
            Err(trouble) => return Err(io::Error::other(trouble.to_string())),
        };
        // Single-page hosts answer with their front page.
        if answer.is_page {
            return Ok(None);
        }
        let Answer { size: Some(size), version, body, .. } = answer else {
            return Err(io::Error::other(
                "found an answer without content-length, expected the file's length",
            ));
        };
        Ok(Some(Self { client, url, size, version, at: 0, body: Some(body), nobody }))
    }

    /// Fills `into` as far as the file goes, whatever breaks meanwhile.
    fn fill(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let (mut filled, mut failures) = (0, 0);
        while filled < into.len() && offset + (filled as u64) < self.size {
            match self.read(offset + filled as u64, &mut into[filled..]) {
                Ok(read) => (filled, failures) = (filled + read, 0),
                Err(trouble) if trouble.transient && failures + 1 < TRIES => {
                    failures += 1;
                    wait_before_try(failures);
                }
                Err(trouble) => return Err(io::Error::other(trouble.to_string())),
            }
        }
        Ok(filled)
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<usize, Trouble> {
        wanted(&self.nobody)?;
        let near = (self.at..=self.at.saturating_add(NEAR)).contains(&offset);
        let mut body = match self.body.take().filter(|_| near) {
            Some(mut body) => {
                self.pass_over(&mut body, offset - self.at)?;
                body
            }
            None => self.ask_from(offset)?,
        };
        let read = body.read(into).map_err(broken)?;
        if read == 0 {
            return Err(Trouble::transient("the connection ended early"));
        }
        self.at = offset + read as u64;
        self.body = Some(body);
        Ok(read)
    }

    /// Asks for the rest of the file; a server that knows no ranges sends what is before it, too.
    fn ask_from(&self, offset: u64) -> Result<Box<dyn Read + Send>, Trouble> {
        let mut answer = self.client.get(&self.url, offset, None)?;
        if (answer.size, answer.version) != (Some(self.size), self.version) {
            return Err(Trouble::wrong("found another file than was read first, expected it not to change"));
        }
        self.pass_over(&mut answer.body, offset - answer.start)?;
        Ok(answer.body)
    }

    fn pass_over(&self, body: &mut impl Read, mut bytes: u64) -> Result<(), Trouble> {
        while bytes > 0 {
            wanted(&self.nobody)?;
            let part = bytes.min(NEAR);
            io::copy(&mut body.take(part), &mut io::sink()).map_err(broken)?;
            bytes -= part;
        }
        Ok(())
    }
}

/// Refuses to go on where nobody waits.
fn wanted(nobody: &Cancel) -> Result<(), Trouble> {
    match nobody.is_cancelled() {
        false => Ok(()),
        true => Err(Trouble::wrong("nobody waits for it")),
    }
}

fn broken(error: io::Error) -> Trouble {
    Trouble::transient(&error.to_string())
}
