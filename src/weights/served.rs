//! The files of a model on a host that serves them as they are, natively: each is one `GET`, read as it arrives and taken up where
//! it broke.

use std::{
    env,
    io::{self, Read},
    path::PathBuf,
};

use super::{
    client::{Answer, Client, TRIES, Trouble, patiently, wait_before_try},
    given::{ModelFiles, ReadAt},
};
use crate::{Error, Result};

/// Bytes up to which it is quicker to let what is not wanted come than to ask anew.
const NEAR: u64 = 1 << 20;

/// Everything below an address.
pub(super) struct Served {
    /// What keeps anything from being asked is told to whoever asks for a file first.
    client: Result<Client, String>,
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
        Self { client: client.map_err(|error| error.to_string()) }
    }
}

impl ModelFiles for Served {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn ReadAt + '_>>> {
        let client = self.client.as_ref().map_err(|error| io::Error::other(error.clone()))?;
        let url = format!("{}/{name}", client.endpoint());
        let answer = match patiently(TRIES, || client.get(&url, 0, None)) {
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
        Ok(Some(Box::new(ServedFile { client, url, size, version, at: 0, body: Some(body) })))
    }
}

/// A file, and the answer that brings it.
struct ServedFile<'a> {
    client: &'a Client,
    url: String,
    size: u64,
    version: u64,
    /// The next byte of the body.
    at: u64,
    body: Option<Box<dyn Read + Send>>,
}

impl ServedFile<'_> {
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<usize, Trouble> {
        let near = (self.at..=self.at.saturating_add(NEAR)).contains(&offset);
        let mut body = match self.body.take().filter(|_| near) {
            Some(mut body) => {
                pass_over(&mut body, offset - self.at)?;
                body
            }
            None => self.ask_from(offset)?,
        };
        let read = body.read(into).map_err(broken)?;
        if read == 0 && !into.is_empty() {
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
        pass_over(&mut answer.body, offset - answer.start)?;
        Ok(answer.body)
    }
}

fn pass_over(body: &mut impl Read, bytes: u64) -> Result<(), Trouble> {
    io::copy(&mut body.take(bytes), &mut io::sink()).map_err(broken)?;
    Ok(())
}

fn broken(error: io::Error) -> Trouble {
    Trouble::transient(&error.to_string())
}

impl ReadAt for ServedFile<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut failures = 0;
        loop {
            match self.read(offset, into) {
                Err(trouble) if trouble.transient && failures + 1 < TRIES => {
                    failures += 1;
                    wait_before_try(failures);
                }
                read => return read.map_err(|trouble| io::Error::other(trouble.to_string())),
            }
        }
    }
}
