//! What the environment says of a hub, as huggingface_hub reads it: a pure function of the variables.
//!
//! The one difference: a path or an address that is set to nothing counts as unset here, where huggingface_hub would take
//! the current folder.

use std::{
    ffi::OsString,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use crate::{Error, Result, weights::client::clean};

/// The hub that is meant where nothing names one.
pub(super) const HUB: &str = "https://huggingface.co";
/// What a switch that is on says, in capitals. Everything else is off.
const ON: [&str; 4] = ["1", "ON", "YES", "TRUE"];

/// Everything that the variables decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Environment {
    pub endpoint: String,
    pub cache: PathBuf,
    pub token: Token,
    /// Nothing is asked of the hub.
    pub offline: bool,
    /// Certificates to trust instead of the usual ones: a file, or a folder of files.
    pub roots: Option<PathBuf>,
    /// Whether the contents of all cached files are compared with their hashes, those of weights too.
    pub verify: bool,
}

/// Where the token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    None,
    Given(String),
    /// The file that a login leaves; it may not be there.
    File(PathBuf),
}

impl Environment {
    /// Reads the variables; `home` is the user's folder where `HOME` does not say.
    ///
    /// # Errors
    /// No place for a cache, and a variable that is no text where one is needed.
    pub fn read(var: &dyn Fn(&str) -> Option<OsString>, home: Option<&Path>) -> Result<Self> {
        let vars = Variables { var, home };
        let folder = match vars.path("HF_HOME")? {
            Some(folder) => Some(folder),
            None => match vars.path("XDG_CACHE_HOME")? {
                Some(caches) => Some(caches.join("huggingface")),
                None => vars.home().map(|home| home.join(".cache/huggingface")),
            },
        };
        let cache = match vars.path("HF_HUB_CACHE")? {
            Some(cache) => Some(cache),
            None => vars.path("HUGGINGFACE_HUB_CACHE")?,
        };
        let cache = cache.or_else(|| Some(folder.as_ref()?.join("hub")));
        let cache = cache.ok_or_else(|| {
            Error::argument("HF_HOME", "nothing, and no home folder", "a folder for models")
        })?;
        let login = vars.path("HF_TOKEN_PATH")?.or_else(|| Some(folder?.join("token")));
        let roots = match vars.path("SSL_CERT_FILE")? {
            Some(file) => Some(file),
            None => vars.path("SSL_CERT_DIR")?,
        };
        let offline = vars.first(["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])?;
        Ok(Self {
            endpoint: vars.text("HF_ENDPOINT")?.unwrap_or_else(|| HUB.to_owned()),
            cache,
            token: vars.token(login)?,
            offline: is_on(offline.as_deref()),
            roots,
            verify: is_on(vars.text("HEADWISE_VERIFY")?.as_deref()),
        })
    }
}

impl Token {
    /// The token itself.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn read(self) -> Result<Option<String>> {
        match self {
            Self::None => Ok(None),
            Self::Given(token) => Ok(Some(token)),
            Self::File(path) => match fs::read_to_string(&path) {
                Ok(text) => Ok(clean(&text)),
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
                Err(source) => Err(Error::Io { path: path.display().to_string(), source }),
            },
        }
    }
}

/// The variables, and how their values are read.
struct Variables<'a> {
    var: &'a dyn Fn(&str) -> Option<OsString>,
    home: Option<&'a Path>,
}

impl Variables<'_> {
    /// A value that is set to something.
    fn get(&self, name: &str) -> Option<OsString> {
        (self.var)(name).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &'static str) -> Result<Option<String>> {
        let no_text = |_| Error::argument(name, "bytes that are no text", "UTF-8");
        self.get(name).map(|value| value.into_string().map_err(no_text)).transpose()
    }

    /// The first of two variables that is set to something.
    fn first(&self, [name, other]: [&'static str; 2]) -> Result<Option<String>> {
        match self.text(name)? {
            Some(value) => Ok(Some(value)),
            None => self.text(other),
        }
    }

    fn token(&self, login: Option<PathBuf>) -> Result<Token> {
        if is_on(self.text("HF_HUB_DISABLE_IMPLICIT_TOKEN")?.as_deref()) {
            return Ok(Token::None);
        }
        let given = self.first(["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])?;
        Ok(match (given.as_deref().and_then(clean), login) {
            (Some(token), _) => Token::Given(token),
            (None, Some(login)) => Token::File(login),
            (None, None) => Token::None,
        })
    }

    fn home(&self) -> Option<PathBuf> {
        self.get("HOME").map(PathBuf::from).or_else(|| self.home.map(Path::to_owned))
    }

    /// A path, in which a `~` at the start and `$NAME` or `${NAME}` anywhere stand for what a shell makes of them.
    fn path(&self, name: &str) -> Result<Option<PathBuf>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        // A path that is no text is one that nobody abbreviated.
        let Some(text) = value.to_str() else { return Ok(Some(value.into())) };
        let text = self.expand(text);
        let rest = text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with(['/', '\\']));
        Ok(Some(match (rest, self.home()) {
            (Some(rest), Some(home)) => home.join(rest.trim_start_matches(['/', '\\'])),
            _ => text.into(),
        }))
    }

    /// Puts variables in; what is not set stays as it is written.
    fn expand(&self, text: &str) -> String {
        let mut parts = text.split('$');
        let mut expanded = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let braced = part.strip_prefix('{').and_then(|part| part.split_once('}'));
            let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
            let (name, rest) = braced.unwrap_or(part.split_at(end));
            match (self.var)(name).filter(|_| !name.is_empty()).and_then(|value| value.into_string().ok()) {
                Some(value) => expanded.extend([value.as_str(), rest]),
                None => expanded.extend(["$", part]),
            }
        }
        expanded
    }
}

fn is_on(value: Option<&str>) -> bool {
    value.is_some_and(|value| ON.contains(&value.to_uppercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn read(vars: Variables<'_>) -> Result<Environment> {
        let var = |name: &str| {
            let (_, value) = vars.iter().find(|(known, _)| *known == name)?;
            Some(OsString::from(value))
        };
        Environment::read(&var, Some(Path::new("/home/me")))
    }

    fn with(vars: Variables<'_>) -> Environment {
        read(vars).unwrap()
    }

    /// Values of huggingface_hub 1.x with the same variables: `constants.HF_HUB_OFFLINE`.
    #[test]
    fn switches_are_on_where_huggingface_hub_has_them_on() {
        for (value, on) in [
            ("1", true),
            ("true", true),
            ("True", true),
            ("YES", true),
            ("on", true),
            ("0", false),
            ("false", false),
            ("FALSE", false),
            ("no", false),
            ("Off", false),
            ("", false),
            ("2", false),
        ] {
            for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
                assert_eq!(with(&[(name, value)]).offline, on, "{name}={value}");
            }
        }
        assert!(!with(&[]).offline);
        // The first that is set decides.
        assert!(!with(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert!(with(&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert!(with(&[("HEADWISE_VERIFY", "1")]).verify && !with(&[]).verify);
    }

    /// Values of huggingface_hub with the same variables: `constants.HF_HUB_CACHE` and `HF_TOKEN_PATH`.
    #[test]
    fn folders_are_those_of_huggingface_hub() {
        let cases: [(Variables<'_>, &str, &str); 14] = [
            (&[], "/home/me/.cache/huggingface/hub", "/home/me/.cache/huggingface/token"),
            (&[("HOME", "/h")], "/h/.cache/huggingface/hub", "/h/.cache/huggingface/token"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub", "/x/huggingface/token"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/hf")], "/hf/hub", "/hf/token"),
            (&[("HF_HOME", "~/hf")], "/home/me/hf/hub", "/home/me/hf/token"),
            (&[("HF_HOME", "~")], "/home/me/hub", "/home/me/token"),
            (&[("HF_HOME", "~you/hf")], "~you/hf/hub", "~you/hf/token"),
            (&[("HF_HOME", "$S/hf"), ("S", "/s")], "/s/hf/hub", "/s/hf/token"),
            (&[("HF_HOME", "${S}x/$T"), ("S", "/s")], "/sx/$T/hub", "/sx/$T/token"),
            (&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")], "/c", "/hf/token"),
            (&[("HF_HUB_CACHE", "~/c")], "/home/me/c", "/home/me/.cache/huggingface/token"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old", "/hf/token"),
            (
                &[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/hf")],
                "/c",
                "/hf/token",
            ),
            (&[("HF_HOME", "/hf"), ("HF_TOKEN_PATH", "~/t")], "/hf/hub", "/home/me/t"),
        ];
        for (vars, cache, token) in cases {
            let found = with(vars);
            assert_eq!((found.cache, found.token), (cache.into(), Token::File(token.into())), "{vars:?}");
        }
        // Unlike there, a path of nothing is no path.
        assert_eq!(with(&[("HF_HOME", ""), ("HF_HUB_CACHE", "")]), with(&[]));
        let homeless = Environment::read(&|_| None, None).unwrap_err().to_string();
        assert!(homeless.contains("HF_HOME"), "{homeless}");
        assert!(Environment::read(&|name| (name == "HF_HUB_CACHE").then(|| "/c".into()), None).is_ok());
    }

    /// Values of `huggingface_hub.get_token()` with the same variables.
    #[test]
    fn tokens_are_those_of_huggingface_hub() {
        let given = |token: &str| Token::Given(token.to_owned());
        let login = Token::File("/hf/token".into());
        let cases: [(Variables<'_>, Token); 8] = [
            (&[("HF_TOKEN", "hf_a")], given("hf_a")),
            (&[("HF_TOKEN", " hf_a\r\n")], given("hf_a")),
            (&[("HF_TOKEN", "")], login.clone()),
            (&[("HF_TOKEN", " \n")], login.clone()),
            (&[("HF_TOKEN", "hf_a"), ("HUGGING_FACE_HUB_TOKEN", "hf_b")], given("hf_a")),
            (&[("HF_TOKEN", ""), ("HUGGING_FACE_HUB_TOKEN", "hf_b\n")], given("hf_b")),
            (&[("HF_TOKEN", " "), ("HUGGING_FACE_HUB_TOKEN", "hf_b")], login),
            (&[("HF_TOKEN", "hf_a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], Token::None),
        ];
        for (vars, token) in cases {
            assert_eq!(with(&[vars, &[("HF_HOME", "/hf")]].concat()).token, token, "{vars:?}");
        }
        let folder = std::env::temp_dir().join(format!("headwise-token-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = |name: &str, text: &str| {
            fs::write(folder.join(name), text).unwrap();
            Token::File(folder.join(name)).read().unwrap()
        };
        assert_eq!(file("token", "hf_c\n").as_deref(), Some("hf_c"));
        assert_eq!(file("empty", "\n"), None);
        assert_eq!(Token::File(folder.join("none")).read().unwrap(), None);
        assert_eq!(Token::File(folder.join("token/none")).read().unwrap(), None);
        let error = Token::File(folder.clone()).read().unwrap_err().to_string();
        assert!(error.starts_with(folder.to_str().unwrap()), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn hub_and_certificates_are_named() {
        assert_eq!((with(&[]).endpoint.as_str(), with(&[]).roots), (HUB, None));
        assert_eq!(with(&[("HF_ENDPOINT", "https://hub.org/")]).endpoint, "https://hub.org/");
        let roots = |vars: Variables<'_>| with(vars).roots;
        assert_eq!(roots(&[("SSL_CERT_FILE", "~/ca.pem")]), Some("/home/me/ca.pem".into()));
        assert_eq!(roots(&[("SSL_CERT_DIR", "/d")]), Some("/d".into()));
        assert_eq!(roots(&[("SSL_CERT_FILE", "/f"), ("SSL_CERT_DIR", "/d")]), Some("/f".into()));
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_no_text_are_named_and_may_be_a_path() {
        use std::os::unix::ffi::OsStringExt;
        let bytes = || OsString::from_vec(b"/\xff".to_vec());
        let var = |wanted: &'static str| move |name: &str| (name == wanted).then(bytes);
        assert_eq!(Environment::read(&var("HF_HUB_CACHE"), None).unwrap().cache, PathBuf::from(bytes()));
        for name in ["HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"] {
            let error = match name {
                "HF_TOKEN" => Environment::read(&var("HF_TOKEN"), Some(Path::new("/h"))),
                "HF_ENDPOINT" => Environment::read(&var("HF_ENDPOINT"), Some(Path::new("/h"))),
                _ => Environment::read(&var("HF_HUB_OFFLINE"), Some(Path::new("/h"))),
            };
            assert!(error.unwrap_err().to_string().starts_with(name));
        }
    }
}
