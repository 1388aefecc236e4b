//! Requests over HTTP, natively. Nothing that a server answers is believed unseen.

use std::{
    fmt, fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::Read,
    path::Path,
    thread,
    time::Duration,
};

use ureq::{
    Agent, Body, RequestBuilder, http,
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
    typestate::WithoutBody,
};

use super::quote;
use crate::{Error, Result};

/// Attempts at a request before its trouble is reported; a download that goes on starts to count anew.
pub(super) const TRIES: u32 = 4;
/// Redirects followed for one request.
const MAX_REDIRECTS: usize = 8;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// Speaks to one hub, or to a host of files.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What came of asking for a file.
pub(super) struct Answer {
    /// The number of the body's first byte.
    pub start: u64,
    /// Bytes of the whole file, where the answer states them.
    pub size: Option<u64>,
    /// Another one where the file is another, as far as the answer tells.
    pub version: u64,
    /// Whether it is a page for people.
    pub is_page: bool,
    pub body: Box<dyn Read + Send>,
}

/// Why a request failed.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub status: Option<u16>,
    pub message: String,
    /// Whether the next attempt may succeed.
    pub transient: bool,
}

impl Trouble {
    pub fn transient(message: &str) -> Self {
        Self { status: None, message: message.to_owned(), transient: true }
    }

    /// An answer that makes no sense.
    pub fn wrong(message: &str) -> Self {
        Self { status: None, message: message.to_owned(), transient: false }
    }

    pub fn status(status: u16, message: &str) -> Self {
        let transient = matches!(status, 408 | 429 | 500..);
        Self { status: Some(status), message: format!("HTTP {status}: {message}"), transient }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Tries until it works, or until there is no hope left.
pub(super) fn patiently<T>(
    tries: u32,
    mut attempt: impl FnMut() -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    let mut failures = 0;
    loop {
        match attempt() {
            Err(trouble) if trouble.transient && failures + 1 < tries => {
                failures += 1;
                wait_before_try(failures);
            }
            result => return result,
        }
    }
}

/// A quarter of a second, then one, then four.
pub(super) fn wait_before_try(failures: u32) {
    thread::sleep(Duration::from_millis(250 << (2 * failures.clamp(1, 3) - 2)));
}

impl Client {
    /// Speaks to the host at an address, which messages call `what`. `roots` are certificates to trust instead of the usual ones: a
    /// file, or a folder of files.
    pub fn new(
        what: &'static str,
        endpoint: &str,
        token: Option<String>,
        roots: Option<&Path>,
    ) -> Result<Self> {
        let endpoint = endpoint.trim().trim_end_matches('/');
        if origin(endpoint).is_none() {
            let expected = "an address such as https://huggingface.co";
            return Err(Error::argument(what, quote(endpoint), expected));
        }
        let token = token.as_deref().and_then(clean);
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            // What it is instead is nobody's business.
            let expected = "letters, digits and signs of ASCII alone";
            return Err(Error::argument("HF_TOKEN", "a character that no token has", expected));
        }
        let local = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
        let mut config = Agent::config_builder();
        if local.iter().any(|local| endpoint.starts_with(local)) {
            // A proxy of this machine's network is no way to the machine itself.
            config = config.proxy(None);
        }
        if let Some(path) = roots {
            config = config.tls_config(TlsConfig::builder().root_certs(certificates(path)?).build());
        }
        let config = config
            .user_agent(concat!("headwise/", env!("CARGO_PKG_VERSION")))
            // Sizes and ranges count the file's own bytes.
            .accept_encoding("identity")
            .http_status_as_error(false)
            // Followed here: what a redirect says and whom it may be told the token matters.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build();
        Ok(Self { agent: config.into(), endpoint: endpoint.to_owned(), token })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    #[cfg(feature = "hub")]
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Bytes `from..to` of a file, or from `from` to its end, as they arrive; possibly more of them than wanted. A server that knows
    /// no ranges sends the file from its start.
    pub fn get(&self, url: &str, from: u64, to: Option<u64>) -> Result<Answer, Trouble> {
        let range = match to {
            Some(to) => Some(format!("bytes={from}-{}", to.saturating_sub(1))),
            None => (from > 0).then(|| format!("bytes={from}-")),
        };
        let request = |agent: &Agent, url: &str| match &range {
            Some(range) => agent.get(url).header("range", range),
            None => agent.get(url),
        };
        let answer = self.send(url, request, false)?;
        let stated = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let (start, size): (u64, Option<u64>) = match answer.status().as_u16() {
            206 => {
                // "bytes 100-199/1000"
                let range = stated("content-range").unwrap_or_default();
                let (start, size) = range
                    .strip_prefix("bytes ")
                    .and_then(|range| range.split_once('-'))
                    .and_then(|(start, rest)| Some((start, rest.split_once('/')?.1)))
                    .unwrap_or_default();
                if start.parse() != Ok(from) {
                    let message = format!("content-range {}, expected bytes from {from}", quote(range));
                    return Err(Trouble::wrong(&message));
                }
                (from, size.parse().ok())
            }
            200 => (0, stated("content-length").and_then(|size| size.parse().ok())),
            _ => return Err(refused(&answer)),
        };
        let mut version = DefaultHasher::new();
        stated("etag").or(stated("last-modified")).hash(&mut version);
        let is_page = stated("content-type").is_some_and(|kind| kind.starts_with("text/html"));
        let body = Box::new(answer.into_body().into_reader());
        Ok(Answer { start, size, version: version.finish(), is_page, body })
    }

    /// Sends a request and follows redirects; only those within one host with `describing`.
    pub fn send(
        &self,
        url: &str,
        request: impl Fn(&Agent, &str) -> RequestBuilder<WithoutBody>,
        describing: bool,
    ) -> Result<http::Response<Body>, Trouble> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = request(&self.agent, &url);
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let answer = request.call().map_err(|error| failed(&error))?;
            let location = answer.headers().get("location").and_then(|value| value.to_str().ok());
            let Some(location) = location.filter(|_| answer.status().is_redirection()) else {
                return Ok(answer);
            };
            let next = redirected(&url, location)
                .ok_or_else(|| Trouble::wrong(&format!("a redirect to {}", quote(location))))?;
            if describing && origin(&next) != origin(&url) {
                return Ok(answer);
            }
            url = next;
        }
        Err(Trouble::wrong("too many redirects"))
    }
}

/// A token without the line breaks that files and shells add; none if nothing is left.
pub(super) fn clean(token: &str) -> Option<String> {
    let token = token.replace(['\r', '\n'], "");
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// The certificates to trust, from a file or the files of a folder.
fn certificates(path: &Path) -> Result<RootCerts> {
    let io = |source| Error::Io { path: path.display().to_string(), source };
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries =
            fs::read_dir(path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>).map_err(io)?;
        files = entries.iter().map(fs::DirEntry::path).filter(|path| path.is_file()).collect();
    }
    let mut found = Vec::new();
    for file in files {
        let pem = fs::read(&file).map_err(|source| Error::Io { path: file.display().to_string(), source })?;
        found.extend(parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        }));
    }
    if found.is_empty() {
        let field = "certificates (SSL_CERT_FILE, SSL_CERT_DIR)";
        return Err(Error::bad_file(path.display().to_string(), field, "none", "at least one in PEM"));
    }
    Ok(found.into())
}

/// `https://host:port` of an address.
pub(super) fn origin(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let start = url.len() - rest.len();
    let host = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let plain = rest[..host].chars().all(|c| c.is_ascii_graphic() && c != '@');
    (host > 0 && plain).then(|| &url[..start + host])
}

/// Where a redirect leads; never from https to http.
fn redirected(url: &str, location: &str) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(format!("{}{location}", origin(url)?));
    }
    let secure = !url.starts_with("https://") || location.starts_with("https://");
    (secure && origin(location).is_some()).then(|| location.to_owned())
}

/// The trouble of a status that is no success, in the hub's own words where it has some.
pub(super) fn refused(answer: &http::Response<Body>) -> Trouble {
    let status = answer.status();
    let reason = status.canonical_reason().unwrap_or("no success");
    match answer.headers().get("x-error-message").and_then(|value| value.to_str().ok()) {
        Some(message) => Trouble::status(status.as_u16(), &format!("{reason}: {}", quote(message))),
        None => Trouble::status(status.as_u16(), reason),
    }
}

/// The trouble of a request without an answer.
fn failed(error: &ureq::Error) -> Trouble {
    let hopeless = matches!(error, ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Rustls(_));
    let mut message = error.to_string();
    if message.contains("certificate") {
        message += "; SSL_CERT_FILE can name certificates to trust, such as those of a proxy";
    }
    Trouble { status: None, message, transient: !hopeless }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_safe() {
        let from = "https://hub.org/a/b";
        for (location, to) in [
            ("/c/d?e=1", Some("https://hub.org/c/d?e=1")),
            ("https://cdn.org/x", Some("https://cdn.org/x")),
            ("http://cdn.org/x", None),
            ("//cdn.org/x", None),
            ("file:///etc/passwd", None),
            ("https://", None),
            ("https://user@host/", None),
            ("", None),
        ] {
            assert_eq!(redirected(from, location).as_deref(), to, "{location}");
        }
        assert_eq!(redirected("http://a:1/b", "http://c/").as_deref(), Some("http://c/"));
        assert_eq!(origin("http://127.0.0.1:8000"), Some("http://127.0.0.1:8000"));
        assert_eq!(origin("ftp://a"), None);
    }
}
