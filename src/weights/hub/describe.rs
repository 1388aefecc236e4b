//! What a hub says of a file without sending it.

use crate::weights::{
    check_name,
    client::{Client, Trouble, refused},
    quote,
};

/// A file, as a hub describes it.
#[derive(Clone, Debug)]
pub(super) struct FileMeta {
    pub name: String,
    /// Names the content; fit for a file name.
    pub etag: String,
    pub size: u64,
    /// What the revision stands for.
    pub commit: Option<String>,
}

impl FileMeta {
    /// Asks for it; `None` if there is no such file.
    pub fn ask(client: &Client, url: &str, name: &str) -> Result<Option<Self>, Trouble> {
        let answer = client.send(url, |agent, url| agent.head(url), true)?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let status = answer.status().as_u16();
        if status == 404 && !matches!(header("x-error-code"), Some("RepoNotFound" | "RevisionNotFound")) {
            return Ok(None);
        }
        // A large file is elsewhere; the redirect to it has what is to be known, under other names.
        if !(200..400).contains(&status) {
            return Err(refused(&answer));
        }
        let etag = header("x-linked-etag").or(header("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        if check_name(etag).is_err() {
            return Err(Trouble::wrong(&format!("etag {}, expected a plain name", quote(etag))));
        }
        // A redirect has a length of its own.
        let length = header("content-length").filter(|_| answer.status().is_success());
        let size = header("x-linked-size").or(length).and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| Trouble::wrong("an answer without the file's size"))?;
        let commit = header("x-repo-commit").map(str::to_owned);
        Ok(Some(Self { name: name.to_owned(), etag: etag.to_owned(), size, commit }))
    }

    /// Refuses an answer with a file of another size.
    pub fn check_size(&self, found: Option<u64>) -> Result<(), Trouble> {
        match found.filter(|&size| size != self.size) {
            Some(size) => Err(Trouble::wrong(&format!("a file of {size} bytes, expected {}", self.size))),
            None => Ok(()),
        }
    }
}
