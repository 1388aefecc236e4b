//! Bytes from a hub into the cache: taken up where they broke, compared with their hash when they are whole.

use std::io::{self, ErrorKind, Read, Write};

use super::{HubModel, cache, describe::FileMeta, hash::Mismatch};
use crate::{
    Result,
    weights::client::{Answer, TRIES, Trouble, patiently, wait_before_try},
};

impl HubModel<'_> {
    /// Bytes `from..to` of a file.
    pub(super) fn read_range(&self, file: &FileMeta, from: u64, to: u64) -> Result<Vec<u8>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let url = self.url(&self.commit, &file.name);
        let read = || {
            let broken = |e: io::Error| Trouble::transient(&e.to_string());
            let Answer { start, size, mut body, .. } = self.hub.client.get(&url, from, Some(to))?;
            file.check_size(size)?;
            io::copy(&mut body.by_ref().take(from - start), &mut io::sink()).map_err(broken)?;
            let mut bytes = Vec::new();
            body.take(to - from).read_to_end(&mut bytes).map_err(broken)?;
            match bytes.len() as u64 == to - from {
                true => Ok(bytes),
                false => Err(Trouble::transient("the answer is too short")),
            }
        };
        patiently(TRIES, read).map_err(|trouble| self.trouble(&file.name, trouble))
    }

    /// Fetches a file into the snapshot; `told` sees the bytes of it that are here. A content with another hash than the
    /// hub names is fetched once more, from its start.
    pub(super) fn fetch(&self, file: &FileMeta, told: &mut dyn FnMut(u64)) -> Result<()> {
        let _lock = self.cache.lock(&file.etag)?;
        // Another process may have fetched it while this one waited; another revision may hold the same bytes.
        if !self.cache.has_blob(file)
            && let Err(mismatch) = self.fetch_blob(file, told)?
        {
            tracing::warn!(file = file.name, %mismatch, "fetching it once more");
            if let Err(mismatch) = self.fetch_blob(file, told)? {
                let message = format!("{mismatch}; deleted");
                return Err(self.trouble(&file.name, Trouble::wrong(&message)));
            }
        }
        told(file.size);
        self.cache.link(&self.commit, file)
    }

    /// Fetches what is missing of a content. The inner error is a wrong content, which is deleted.
    fn fetch_blob(&self, file: &FileMeta, told: &mut dyn FnMut(u64)) -> Result<Result<(), Mismatch>> {
        let mut partial = self.cache.open_partial(file)?;
        told(partial.bytes);
        let (mut failures, mut most) = (0, partial.bytes);
        while partial.bytes < file.size {
            self.cancel.check()?;
            let Err(trouble) = self.transfer(file, &mut partial, told)? else { continue };
            failures = if partial.bytes > most { 1 } else { failures + 1 };
            most = most.max(partial.bytes);
            if !trouble.transient || failures >= TRIES {
                return Err(self.trouble(&file.name, trouble));
            }
            tracing::warn!(file = file.name, at = partial.bytes, %trouble.message, "trying again");
            wait_before_try(failures);
        }
        partial.finish()
    }

    /// One request for the rest of a file. The outer error is the disk's, the inner one the network's.
    fn transfer(
        &self,
        file: &FileMeta,
        partial: &mut cache::Partial,
        told: &mut dyn FnMut(u64),
    ) -> Result<Result<(), Trouble>> {
        let url = self.url(&self.commit, &file.name);
        let asked = self.hub.client.get(&url, partial.bytes, None);
        let mut body = match asked.and_then(|answer| file.check_size(answer.size).map(|()| answer)) {
            Ok(Answer { start, body, .. }) => {
                if start < partial.bytes {
                    tracing::warn!(file = file.name, "the server knows no ranges: starting anew");
                    partial.restart().map_err(|e| partial.error(e))?;
                }
                body
            }
            Err(trouble) if trouble.status == Some(416) && partial.bytes > 0 => {
                partial.restart().map_err(|e| partial.error(e))?;
                return Ok(Err(Trouble { transient: true, ..trouble }));
            }
            Err(trouble) => return Ok(Err(trouble)),
        };
        let mut buffer = vec![0; 256 << 10];
        while partial.bytes < file.size {
            self.cancel.check()?;
            let room = (file.size - partial.bytes).min(buffer.len() as u64) as usize;
            match body.read(&mut buffer[..room]) {
                Ok(0) => return Ok(Err(Trouble::transient("the connection ended early"))),
                Ok(read) => partial.write_all(&buffer[..read]).map_err(|e| partial.error(e))?,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Ok(Err(Trouble::transient(&e.to_string()))),
            }
            told(partial.bytes);
        }
        Ok(Ok(()))
    }
}
