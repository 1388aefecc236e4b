//! The name of a repository.

use std::{fmt, str::FromStr};

use crate::{
    Error, Result,
    weights::{check_name, quote},
};

/// The branch of a repository that names none.
const MAIN: &str = "main";

/// A repository of a hub: `owner/name`, or `owner/name@revision` with a branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubRepo {
    pub(super) id: String,
    pub(super) revision: String,
}

impl FromStr for HubRepo {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let plain = |name: &str| check_name(name).is_ok();
        let named = id.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name));
        let revised = revision.len() <= 255 && revision.split('/').all(plain);
        if named && revised {
            return Ok(Self { id: id.to_owned(), revision: revision.to_owned() });
        }
        Err(Error::argument("repository", quote(text), "owner/name or owner/name@revision"))
    }
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
}
