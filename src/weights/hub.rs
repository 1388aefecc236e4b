//! Models from a hub: what a repository needs is known before its weights are fetched.
//!
//! URLs and the cache's folders are those of hf-hub, so every tool that uses the same cache shares its files. The
//! transfer is our own: hf-hub's client neither reads a part of a file nor notices an answer that is short or not the part
//! it asked for, it takes a download whose first retry fails for one that starts anew, and it trusts a redirect.

mod cache;
mod describe;
mod environment;
mod hash;
mod repo;
mod transfer;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::{
    Source,
    client::{self, Client, Trouble},
    header::MAX_HEADER,
    index::{INDEX_FILE, Index, MAX_INDEX},
    names::WEIGHTS_FILE,
    stand_in,
};
use crate::{Cancel, Error, Result};
use cache::{Held, Look, RepoCache};
use describe::FileMeta;
use environment::Environment;
pub use repo::HubRepo;

/// What messages call a hub's address.
const ENDPOINT: &str = "endpoint of the hub";
/// What no model lacks.
const CONFIG_FILE: &str = "config.json";
/// What a model may have beside its weights.
const SMALL_FILES: [&str; 5] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
/// The longest of these; the largest published tokenizers have some 30 MB.
const MAX_SMALL: u64 = 128 << 20;
/// Bytes asked for to see a header; those of most files are shorter.
const HEAD_BYTES: u64 = 64 << 10;

/// A hub and the folder that keeps what was fetched from it. Its functions block.
pub struct Hub {
    client: Client,
    cache: PathBuf,
    offline: bool,
    /// How closely weights are looked at that are in the cache.
    weights: Look,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (endpoint, cache) = (self.client.endpoint(), &self.cache);
        f.debug_struct("Hub").field("endpoint", &endpoint).field("cache", cache).finish_non_exhaustive()
    }
}

impl Hub {
    /// The hub at an address, with a folder to keep files in and a token for repositories that need one.
    ///
    /// # Errors
    /// An address that is neither `http://…` nor `https://…`, and a token that is none.
    pub fn new(endpoint: &str, cache: impl AsRef<Path>, token: Option<String>) -> Result<Self> {
        let client = Client::new(ENDPOINT, endpoint, token, None)?;
        Ok(Self { client, cache: cache.as_ref().to_owned(), offline: false, weights: Look::Length })
    }

    /// The hub and the cache that the environment names, as every tool of the hub does: `HF_ENDPOINT` (otherwise
    /// <https://huggingface.co>), `HF_HUB_CACHE` or `HF_HOME` (otherwise `~/.cache/huggingface`), `HF_TOKEN` or
    /// `HF_TOKEN_PATH` (otherwise the token that a login left in `HF_HOME`), `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`,
    /// `SSL_CERT_FILE`. With `HEADWISE_VERIFY=1` the weights in the cache are compared with their hashes.
    ///
    /// # Errors
    /// As [`Hub::new`]; when there is no home folder; a token or certificates that cannot be read.
    pub fn from_env() -> Result<Self> {
        let home = std::env::home_dir();
        let environment = Environment::read(&|name| std::env::var_os(name), home.as_deref())?;
        let Environment { endpoint, cache, token, offline, roots, verify } = environment;
        // Who is offline needs neither token nor certificates, nor that they can be read.
        let client = match offline {
            true => Client::new(ENDPOINT, &endpoint, None, None)?,
            false => Client::new(ENDPOINT, &endpoint, token.read()?, roots.as_deref())?,
        };
        let weights = if verify { Look::Content } else { Look::Length };
        Ok(Self { client, cache, offline, weights })
    }

    /// The folder that keeps what is fetched.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Looks at a repository: fetches its configuration, tokenizer and chat template, and of its weights the headers.
    ///
    /// What the cache holds is not fetched again, unless it is damaged: small files are compared with their hashes, the
    /// lengths of weights with what their headers say. Where the hub cannot be reached, what the cache knows of the
    /// revision is taken for the truth.
    ///
    /// # Errors
    /// The address of another hub, [`Error::Hub`] with repository, file and status, and what cannot be written.
    pub fn look(&self, repo: &HubRepo) -> Result<HubModel<'_>> {
        repo.check_hub(self.client.endpoint())?;
        let cache = RepoCache::new(&self.cache, &repo.id, &repo.revision);
        let mut model = HubModel {
            hub: self,
            repo: repo.clone(),
            commit: String::new(),
            cache,
            unreachable: OnceLock::new(),
            weights: Vec::new(),
            cancel: Cancel::new(),
        };
        if self.offline {
            let why = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set and the cache has no such file";
            model.unreachable.get_or_init(|| Trouble::transient(why));
        }
        model.commit = model.find_commit()?;
        if !model.fetch_small(CONFIG_FILE, MAX_SMALL)? {
            return Err(model.no_such(CONFIG_FILE));
        }
        for name in SMALL_FILES {
            // Without a hub to ask, a file that is not here is taken for one that is not there.
            if !model.holds(name, Look::Content)? && model.unreachable.get().is_none() {
                model.fetch_small(name, MAX_SMALL)?;
            }
        }
        model.cache.set_ref(&model.commit);
        model.find_weights()?;
        Ok(model)
    }
}

/// A model in a repository: all that is known before its weights are here.
pub struct HubModel<'a> {
    hub: &'a Hub,
    repo: HubRepo,
    /// What the revision stands for.
    commit: String,
    cache: RepoCache,
    /// Why the hub is not asked (any more).
    unreachable: OnceLock<Trouble>,
    /// Files of weights that are not in the cache, with their headers.
    weights: Vec<(FileMeta, Vec<u8>)>,
    /// Ends the download.
    cancel: Cancel,
}

impl fmt::Debug for HubModel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HubModel({}@{})", self.repo.id, self.commit)
    }
}

impl HubModel<'_> {
    /// The model's files with headers in the place of weights: enough for [`crate::Model::check`].
    pub fn preview(&self) -> Source {
        let head = |(file, head): &(FileMeta, Vec<u8>)| (file.name.clone(), head.clone(), file.size);
        let heads = self.weights.iter().map(head).collect();
        Source::headers(self.repo.to_string(), self.cache.snapshot(&self.commit), heads)
    }

    /// Bytes of weights that are to be fetched, less what an earlier download left.
    pub fn missing_bytes(&self) -> u64 {
        let missing = |file: &FileMeta| file.size.saturating_sub(self.cache.partial_bytes(&file.etag));
        self.weights.iter().map(|(file, _)| missing(file)).sum()
    }

    /// The folder that keeps the files of all repositories.
    pub fn cache(&self) -> &Path {
        &self.hub.cache
    }

    /// Bytes that the disk below it has left, where the system tells.
    pub fn disk_bytes(&self) -> Option<u64> {
        fs4::available_space(self.cache.blobs()).ok()
    }

    /// Lets another thread or handler stop the download, with [`Error::Cancelled`]. What is here by then stays for the next one.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Fetches the weights that are missing and returns the model's folder. A broken connection is taken up again where
    /// it broke, and so is a download that ended early, however it ended; a file is whole when it has the hash that the hub
    /// names. `progress` sees the bytes that are here and those of all files that were missing.
    ///
    /// # Errors
    /// [`Error::TooLarge`] before anything is fetched when the disk is too small, [`Error::Hub`], [`Error::Cancelled`], and what
    /// cannot be written.
    pub fn download(self, mut progress: impl FnMut(u64, u64)) -> Result<PathBuf> {
        self.cancel.check()?;
        let (need, have) = (self.missing_bytes(), self.disk_bytes());
        if let Some(have) = have.filter(|&have| have < need) {
            let limit = format!("the disk of {}", self.hub.cache.display());
            return Err(Error::TooLarge {
                what: format!("the download of {}", self.repo),
                need,
                have,
                limit,
            });
        }
        let total = self.weights.iter().map(|(file, _)| file.size).sum();
        let mut before = 0;
        for (file, _) in &self.weights {
            self.fetch(file, &mut |bytes| progress(before + bytes, total))?;
            before += file.size;
        }
        Ok(self.cache.snapshot(&self.commit))
    }

    // -- what the repository holds -----------------------------------------------------------------

    /// The commit that the revision stands for now; the last one known where the hub cannot be asked.
    fn find_commit(&self) -> Result<String> {
        let file = CONFIG_FILE;
        let known = match cache::is_commit(&self.repo.revision) {
            // A commit does not change.
            true => return Ok(self.repo.revision.clone()),
            false => self.cache.get_ref(),
        };
        let url = self.url(&self.repo.revision, file);
        let tries = if known.is_some() { 1 } else { client::TRIES };
        let found = match self.unreachable.get() {
            Some(trouble) => Err(trouble.clone()),
            None => client::patiently(tries, || FileMeta::ask(&self.hub.client, &url, file)),
        };
        match (found, known) {
            (Ok(Some(meta)), _) => match meta.commit.filter(|commit| cache::is_commit(commit)) {
                Some(commit) => Ok(commit),
                None => Err(self.trouble(file, Trouble::wrong("no commit in the answer: not a hub's"))),
            },
            (Ok(None), _) => Err(self.no_such(file)),
            (Err(trouble), Some(commit)) if trouble.transient => {
                tracing::warn!(%trouble.message, commit, "the hub cannot be asked: using the cache");
                self.unreachable.get_or_init(|| trouble);
                Ok(commit)
            }
            (Err(trouble), _) => Err(self.trouble(file, trouble)),
        }
    }

    /// Lists the weights that are missing, with their headers.
    fn find_weights(&mut self) -> Result<()> {
        let look = self.hub.weights;
        if self.holds(WEIGHTS_FILE, look)? {
            return Ok(());
        }
        if !self.holds(INDEX_FILE, Look::Content)? {
            if let Some(file) = self.describe(WEIGHTS_FILE)? {
                return self.add_weights(file);
            }
            if !self.fetch_small(INDEX_FILE, MAX_INDEX)? {
                return Err(self.no_such(&format!("{WEIGHTS_FILE} or {INDEX_FILE}")));
            }
        }
        let path = self.cache.snapshot(&self.commit).join(INDEX_FILE);
        let shown = path.display().to_string();
        let json = fs::read(&path).map_err(|source| Error::Io { path: shown.clone(), source })?;
        let json = stand_in::text(json, &shown)?;
        for name in Index::parse(&json, &shown)?.files() {
            if !self.holds(name, look)? {
                let file = self.describe(name)?.ok_or_else(|| self.no_such(name))?;
                self.add_weights(file)?;
            }
        }
        Ok(())
    }

    /// Notes a file that is missing, unless another revision left its content here.
    fn add_weights(&mut self, file: FileMeta) -> Result<()> {
        if self.cache.has_blob(&file) {
            return self.cache.link(&self.commit, &file);
        }
        let head = self.read_head(&file)?;
        self.weights.push((file, head));
        Ok(())
    }

    /// The start of a file of weights: its header and somewhat more.
    fn read_head(&self, file: &FileMeta) -> Result<Vec<u8>> {
        let mut head = self.read_range(file, 0, HEAD_BYTES.min(file.size))?;
        if let Some(length) = head.first_chunk().copied().map(u64::from_le_bytes)
            && length <= MAX_HEADER
        {
            let end = (8 + length).min(file.size);
            if end > head.len() as u64 {
                head.extend(self.read_range(file, head.len() as u64, end)?);
            }
        }
        Ok(head)
    }

    // -- files -------------------------------------------------------------------------------------

    /// Whether the snapshot has a file. One that is damaged counts as missing where it can be fetched, and is an error
    /// where it cannot.
    fn holds(&self, name: &str, look: Look) -> Result<bool> {
        match (self.cache.find(&self.commit, name, look), self.unreachable.get()) {
            (Held::Yes, _) => Ok(true),
            (Held::No, _) => Ok(false),
            (Held::Damaged(why), None) => {
                tracing::warn!(file = name, why, "damaged in the cache: fetching it again");
                Ok(false)
            }
            (Held::Damaged(why), Some(_)) => {
                let message = format!("damaged in the cache ({why}), and the hub is not asked");
                Err(self.trouble(name, Trouble::wrong(&message)))
            }
        }
    }

    /// Sees to it that a small file is in the snapshot; false if the repository has none of this name.
    fn fetch_small(&self, name: &str, most: u64) -> Result<bool> {
        if self.holds(name, Look::Content)? {
            return Ok(true);
        }
        let Some(file) = self.describe(name)? else { return Ok(false) };
        if file.size > most {
            let message = format!("{} bytes, expected at most {most}", file.size);
            return Err(self.trouble(name, Trouble::wrong(&message)));
        }
        self.fetch(&file, &mut |_| {})?;
        Ok(true)
    }

    /// What the hub says of a file; `None` if the repository has none of this name.
    ///
    /// That it has none is asked again each time, as whoever said so may have been wrong; it is believed of a commit that
    /// the user names, which needs no hub otherwise, and where the hub does not answer.
    fn describe(&self, name: &str) -> Result<Option<FileMeta>> {
        let absent = self.cache.is_known_absent(&self.commit, name);
        if absent && (self.unreachable.get().is_some() || cache::is_commit(&self.repo.revision)) {
            return Ok(None);
        }
        if let Some(trouble) = self.unreachable.get() {
            return Err(self.trouble(name, trouble.clone()));
        }
        let url = self.url(&self.commit, name);
        let tries = if absent { 1 } else { client::TRIES };
        match client::patiently(tries, || FileMeta::ask(&self.hub.client, &url, name)) {
            Ok(None) => {
                self.cache.remember_absent(&self.commit, name);
                Ok(None)
            }
            Err(trouble) if absent && trouble.transient => {
                self.unreachable.get_or_init(|| trouble);
                Ok(None)
            }
            found => found.map_err(|trouble| self.trouble(name, trouble)),
        }
    }

    fn url(&self, revision: &str, name: &str) -> String {
        let repo =
            hf_hub::Repo::with_revision(self.repo.id.clone(), hf_hub::RepoType::Model, revision.to_owned());
        format!("{}/{}/resolve/{}/{name}", self.hub.client.endpoint(), repo.url(), repo.url_revision())
    }

    // -- errors ------------------------------------------------------------------------------------

    fn no_such(&self, file: &str) -> Error {
        self.trouble(file, Trouble::status(404, "no such repository, revision or file"))
    }

    fn trouble(&self, file: &str, trouble: Trouble) -> Error {
        let hub = self.hub.client.endpoint();
        let advice = match trouble.status {
            Some(401) if !self.hub.client.has_token() => {
                "; the repository does not exist, or HF_TOKEN is needed to read it".to_owned()
            }
            Some(401) => {
                "; the repository does not exist, or HF_TOKEN is not one that may read it".to_owned()
            }
            Some(403) => format!(
                "; HF_TOKEN must be of a user who may read it and has accepted its licence: see {hub}/{}",
                self.repo.id
            ),
            _ => String::new(),
        };
        Error::Hub {
            hub: hub.to_owned(),
            repo: self.repo.to_string(),
            file: file.to_owned(),
            status: trouble.status,
            message: format!("{}{advice}", trouble.message),
        }
    }
}
