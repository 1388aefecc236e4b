//! The name of a repository.

use std::{fmt, str::FromStr};

use super::environment::HUB;
use crate::{
    Error, Result,
    weights::{check_name, quote},
};

/// The branch of a repository that names none.
const MAIN: &str = "main";
/// Hosts that are the same hub.
const HOSTS: [&str; 2] = ["huggingface.co", "hf.co"];
/// How the address of a hub's own kind begins.
const HF: &str = "hf://";
/// What follows the repository in the address of one of its revisions.
const PAGES: [&str; 5] = ["tree", "blob", "resolve", "raw", "blame"];
/// What a hub has beside models.
const OTHERS: [&str; 4] = ["datasets", "spaces", "kernels", "buckets"];

/// A repository of a hub: `owner/name`, or `owner/name@revision` with a branch, a tag or a commit.
///
/// Addresses are read as well, as they are copied from a browser: `https://huggingface.co/owner/name`, also with
/// `/tree/revision`, and of a file with `/blob/revision/file` or `/resolve/revision/file`; and `hf://owner/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubRepo {
    pub(super) id: String,
    pub(super) revision: String,
    /// The hub, where an address names it.
    hub: Option<String>,
}

impl HubRepo {
    /// Whether a text can only be meant for an address, right or wrong.
    pub fn is_address(text: &str) -> bool {
        text.trim().contains("://") || without_scheme(text.trim()).is_some()
    }

    /// Refuses the address of another hub than the one at `endpoint`.
    pub(super) fn check_hub(&self, endpoint: &str) -> Result<()> {
        match &self.hub {
            Some(hub) if place(hub) != place(endpoint) => {
                let expected = format!("one of {endpoint}, the hub that is asked (HF_ENDPOINT)");
                Err(Error::argument("repository", format!("an address of {hub}"), expected))
            }
            _ => Ok(()),
        }
    }

    /// Reads `owner/name` and a revision.
    fn new(id: &str, revision: &str, hub: Option<String>) -> Option<Self> {
        let plain = |name: &str| check_name(name).is_ok();
        let named = id.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name));
        let revised = revision.len() <= 255 && revision.split('/').all(plain);
        (named && revised).then(|| Self { id: id.to_owned(), revision: revision.to_owned(), hub })
    }

    /// Reads `hf://[models/]owner/name[@revision][/file]`.
    fn from_hf(rest: &str) -> Result<Self, String> {
        let rest = rest.trim_end_matches('/');
        let rest = rest.strip_prefix("models/").unwrap_or(rest);
        refuse_others(rest.split('/').next())?;
        let (id, revision) = match rest.split_once('@') {
            Some((id, rest)) => (id.to_owned(), Some(rest.split('/').collect())),
            None => {
                let segments: Vec<&str> = rest.split('/').collect();
                let (id, file) = segments.split_at(segments.len().min(2));
                refuse_folder(file)?;
                (id.join("/"), None)
            }
        };
        let revision: Vec<&str> = revision.unwrap_or_default();
        Self::new(&id, &revision_of(&revision)?, None).ok_or_else(|| "one that names no repository".into())
    }

    /// Reads what follows `https://`. What is before the repository belongs to the hub's own address.
    fn from_url(scheme: &str, rest: &str) -> Result<Self, String> {
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        let mut segments = path.split('/');
        let host = segments.next().unwrap_or_default();
        let segments: Vec<&str> = segments.filter(|segment| !segment.is_empty()).collect();
        let page = segments.iter().skip(2).position(|segment| PAGES.contains(segment)).map(|at| at + 2);
        let (before, revision) = match page {
            Some(at) => (&segments[..at], &segments[at + 1..]),
            None => (&segments[..], &segments[..0]),
        };
        let Some((hub, id @ [_, _])) = before.split_at_checked(before.len().wrapping_sub(2)) else {
            return Err("one that names no repository".to_owned());
        };
        let hub = if hub == ["models"] { &[] } else { hub };
        refuse_others(hub.last().copied().or(id.first().copied()))?;
        let hub = [&[host], hub].concat().join("/");
        let repo = Self::new(&id.join("/"), &revision_of(revision)?, Some(format!("{scheme}{hub}")));
        repo.ok_or_else(|| "one that names no repository".to_owned())
    }
}

impl FromStr for HubRepo {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let scheme = |scheme: &'static str| {
            let start = text.get(..scheme.len())?;
            start.eq_ignore_ascii_case(scheme).then(|| (scheme, &text[scheme.len()..]))
        };
        let url = scheme("https://").or_else(|| scheme("http://"));
        let url = url.or_else(|| Some(("https://", without_scheme(text)?)));
        let found = match (scheme(HF), url) {
            (Some((_, rest)), _) => Self::from_hf(rest),
            (None, Some((scheme, rest))) => Self::from_url(scheme, rest),
            (None, None) => {
                let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
                let expected = "owner/name or owner/name@revision";
                let repo = Self::new(id, revision, None);
                return repo.ok_or_else(|| Error::argument("repository", quote(text), expected));
            }
        };
        let expected = format!("owner/name, or an address such as {HUB}/owner/name/tree/revision");
        found.map_err(|why| Error::argument("repository", format!("{}, {why}", quote(text)), expected))
    }
}

/// An address of the usual hub that was copied without `https://`.
fn without_scheme(text: &str) -> Option<&str> {
    let host = text.split('/').next()?;
    HOSTS.iter().any(|known| known.eq_ignore_ascii_case(host)).then_some(text)
}

/// What decides whether two addresses are the same hub's: not the scheme, not capitals in the host.
fn place(hub: &str) -> String {
    let rest = hub.split_once("://").map_or(hub, |(_, rest)| rest).trim_end_matches('/');
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.to_ascii_lowercase();
    match HOSTS.contains(&host.as_str()) {
        true => format!("{}{path}", HOSTS[0]),
        false => host + path,
    }
}

fn refuse_others(segment: Option<&str>) -> Result<(), String> {
    match segment.filter(|segment| OTHERS.contains(segment)) {
        Some(other) => Err(format!("which is one of the hub's {other}")),
        None => Ok(()),
    }
}

/// The files of a model lie in the repository's own folder.
fn refuse_folder(path: &[&str]) -> Result<(), String> {
    match path {
        [] => Ok(()),
        [file] if file.contains('.') => Ok(()),
        _ => Err("a folder in a repository".to_owned()),
    }
}

/// The revision in the end of an address, which may name a file as well.
fn revision_of(segments: &[&str]) -> Result<String, String> {
    let (revision, file) = match segments {
        [] => return Ok(MAIN.to_owned()),
        ["refs", "pr" | "convert", _, file @ ..] => (segments[..3].join("/"), file),
        [revision, file @ ..] => (revision.replace("%2F", "/").replace("%2f", "/"), file),
    };
    refuse_folder(file).map(|()| revision)
}

impl fmt::Display for HubRepo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            MAIN => f.write_str(&self.id),
            revision => write!(f, "{}@{revision}", self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_read_and_written() {
        for (text, id, revision) in [
            ("jetmoe/jetmoe-8b", "jetmoe/jetmoe-8b", "main"),
            ("a/b.c_d@refs/pr/1", "a/b.c_d", "refs/pr/1"),
            ("a/b@v1.0", "a/b", "v1.0"),
        ] {
            let repo: HubRepo = text.parse().unwrap();
            assert_eq!((repo.id.as_str(), repo.revision.as_str()), (id, revision));
            assert_eq!(repo.to_string(), text);
            assert!(!HubRepo::is_address(text) && repo.check_hub("http://any").is_ok());
        }
        assert_eq!("a/b@main".parse::<HubRepo>().unwrap().to_string(), "a/b");
        for text in [
            "",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "./a",
            "~/a",
            "a b/c",
            "a/b@",
            "a/b@..",
            "a/b@x/../y",
            "a/b@/x",
            "a/b?x",
            "a/b@x%2f",
            "a/b@x@y",
            "C:\\a/b",
            "é/b",
        ] {
            assert!(text.parse::<HubRepo>().is_err(), "{text}");
        }
    }

    /// What huggingface_hub's `parse_hf_uri` makes of the same addresses, but for files: here they stand for their
    /// repository.
    #[test]
    fn addresses_are_read_as_they_are_copied() {
        for (text, repo) in [
            ("https://huggingface.co/a/b", "a/b"),
            ("https://huggingface.co/a/b/", "a/b"),
            (" https://huggingface.co/a/b?library=transformers#usage\n", "a/b"),
            ("HTTPS://HuggingFace.co/a/b", "a/b"),
            ("http://huggingface.co/a/b", "a/b"),
            ("huggingface.co/a/b", "a/b"),
            ("hf.co/a/b/tree/v1", "a/b@v1"),
            ("https://hf.co/models/a/b", "a/b"),
            ("https://huggingface.co/a/b/tree/main", "a/b"),
            ("https://huggingface.co/a/b/tree/refs/pr/7", "a/b@refs/pr/7"),
            ("https://huggingface.co/a/b/tree/refs%2Fpr%2F7", "a/b@refs/pr/7"),
            ("https://huggingface.co/a/b/tree/feature%2Ffoo/", "a/b@feature/foo"),
            ("https://huggingface.co/a/b/blob/main/config.json", "a/b"),
            ("https://huggingface.co/a/b/resolve/v2/model.safetensors?download=true", "a/b@v2"),
            ("https://huggingface.co/a/tree/tree/v2", "a/tree@v2"),
            ("hf://a/b", "a/b"),
            ("hf://models/a/b/", "a/b"),
            ("hf://a/b@refs/pr/3/config.json", "a/b@refs/pr/3"),
            ("hf://a/b@v1", "a/b@v1"),
            ("hf://a/b/config.json", "a/b"),
        ] {
            assert!(HubRepo::is_address(text), "{text}");
            let found: HubRepo = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(found.to_string(), repo, "{text}");
            assert!(found.check_hub("https://huggingface.co").is_ok(), "{text}");
        }
        for (text, part) in [
            ("https://huggingface.co/a", "names no repository"),
            ("https://huggingface.co", "names no repository"),
            ("https://", "names no repository"),
            ("hf://a", "names no repository"),
            ("hf://", "names no repository"),
            ("https://huggingface.co/datasets/a/b", "one of the hub's datasets"),
            ("https://huggingface.co/spaces/a/b/tree/main", "one of the hub's spaces"),
            ("hf://datasets/a/b", "one of the hub's datasets"),
            ("https://huggingface.co/a/b/tree/main/onnx", "a folder in a repository"),
            ("https://huggingface.co/a/b/blob/main/onnx/model.onnx", "a folder in a repository"),
            ("https://huggingface.co/a/../tree/main", "names no repository"),
            ("ftp://huggingface.co/a/b", "owner/name"),
        ] {
            let error = text.parse::<HubRepo>().expect_err(text).to_string();
            assert!(error.starts_with("repository: found \"") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_address_is_one_of_its_own_hub() {
        for (text, endpoint, own) in [
            ("https://huggingface.co/a/b", "https://hub.org", false),
            ("https://huggingface.co.evil.org/a/b", "https://huggingface.co", false),
            ("https://huggingface.co@evil.org/a/b", "https://huggingface.co", false),
            ("http://localhost:80/a/b", "http://localhost:81", false),
            ("https://huggingface.co/a/b/discussions/3", "https://huggingface.co", false),
            ("http://localhost:8080/hf/a/b/tree/v1", "http://localhost:8080/hf", true),
            ("http://localhost:8080/a/b", "http://localhost:8080/hf", false),
            ("https://HUB.org/a/b", "https://hub.org/", true),
            ("hf://a/b", "https://hub.org", true),
        ] {
            let repo: HubRepo = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            let checked = repo.check_hub(endpoint);
            assert_eq!(checked.is_ok(), own, "{text}");
            if let Err(error) = checked {
                assert!(error.to_string().contains(endpoint), "{error}");
            }
        }
    }
}
