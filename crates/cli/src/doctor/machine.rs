//! Memory, folders of caches, and the environment.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use headwise::{
    internal::{NotePlace, Notes},
    wgpu,
};
use serde::Serialize;

use super::super::{
    args::{KERNELS, kernels_of},
    hub,
};

/// The machine's, in bytes; nothing where that is not known.
#[derive(Serialize)]
pub struct Memory {
    pub total: Option<u64>,
    pub available: Option<u64>,
}

impl Memory {
    /// Under Linux.
    pub fn read() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
        };
        Self { total: of("MemTotal:"), available: of("MemAvailable:") }
    }
}

/// A folder that headwise keeps files in.
#[derive(Serialize)]
pub struct Cache {
    pub name: &'static str,
    pub path: String,
    /// Of its files, those of folders inside included.
    pub bytes: u64,
    /// Whether this user may write there, or make it.
    pub writable: bool,
}

/// Those of models and of the choice of kernels.
pub fn caches() -> Vec<Cache> {
    let models = hub::cache().map(|path| ("models", path));
    let kernels = Notes::of(&NotePlace::UserCache);
    let kernels = kernels.path().and_then(Path::parent).map(|folder| ("kernels", folder.to_owned()));
    let cache = |(name, path): (&'static str, PathBuf)| Cache {
        name,
        bytes: bytes_in(&path, 8),
        writable: is_writable(&path),
        path: path.display().to_string(),
    };
    models.into_iter().chain(kernels).map(cache).collect()
}

/// Links are not followed: a hub's cache has one to each file.
fn bytes_in(folder: &Path, deep: u32) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() && deep > 0 => bytes_in(&entry.path(), deep - 1),
        Ok(found) if found.is_file() => found.len(),
        _ => 0,
    };
    entries.map(bytes).sum()
}

/// Tries it in the folder, or in the nearest one above it that is there.
fn is_writable(folder: &Path) -> bool {
    let Some(there) = folder.ancestors().find(|folder| folder.exists()) else { return false };
    let probe = there.join(format!(".headwise-doctor-{}", std::process::id()));
    let made = fs::OpenOptions::new().write(true).create_new(true).open(&probe).is_ok();
    if made {
        // Just made: who may make it may remove it.
        let _ = fs::remove_file(&probe);
    }
    made
}

/// An environment variable that matters to headwise or to its drivers.
#[derive(Serialize)]
pub struct Variable {
    pub name: String,
    pub value: String,
}

/// How those begin.
const STARTS: [&str; 11] = [
    "HEADWISE_",
    "HF_",
    "HUGGINGFACE_",
    "WGPU_",
    "VK_",
    "LP_",
    "MESA_",
    "LIBGL_",
    "GALLIUM_",
    "CUDA_",
    "XDG_",
];
/// Others.
const NAMES: [&str; 14] = [
    "RUST_LOG",
    "LD_LIBRARY_PATH",
    "NODEVICE_SELECT",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "TRANSFORMERS_OFFLINE",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// By name. Nobody's secrets are shown.
pub fn variables() -> Vec<Variable> {
    let matters = |name: &str| NAMES.contains(&name) || STARTS.iter().any(|start| name.starts_with(start));
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    };
    let mut all: Vec<Variable> = env::vars_os()
        .map(text)
        .filter(|(name, _)| matters(name))
        .map(|(name, value)| Variable { value: shown(&name, &value), name })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// A value, unless it may be a secret: tokens, and of addresses who asks.
fn shown(name: &str, value: &str) -> String {
    let secret = ["TOKEN", "KEY", "SECRET", "PASS", "AUTH"].iter().any(|word| name.contains(word));
    let secret = secret && name != "HF_TOKEN_PATH" || value.contains('@') && value.contains('?');
    match (value.rsplit_once('@'), value.split_once("://")) {
        _ if secret && value.is_empty() => "set to nothing".to_owned(),
        _ if secret => "set, not shown".to_owned(),
        (Some((_, host)), Some((scheme, _))) => format!("{scheme}://…@{host}"),
        (Some((_, host)), None) => format!("…@{host}"),
        (None, _) => value.to_owned(),
    }
}

/// The variables whose values mean nothing, each with what is expected.
pub fn wrong_values() -> Vec<(&'static str, String)> {
    let wrong = |name: &'static str| {
        let value = env::var_os(name)?.to_string_lossy().into_owned();
        let expected = expected(name, &value)?;
        Some((name, format!("{name}: found {value:?}, expected {expected}")))
    };
    [BACKEND, KERNELS, VERIFY].into_iter().filter_map(wrong).collect()
}

pub const BACKEND: &str = "WGPU_BACKEND";
const VERIFY: &str = "HEADWISE_VERIFY";

/// What a variable may be, where it is something else.
fn expected(name: &str, value: &str) -> Option<String> {
    let one_of = |words: &[&str]| words.contains(&value.to_uppercase().as_str());
    match name {
        // Set to nothing it leaves no backend.
        BACKEND => {
            let unknown = |word| wgpu::Backends::from_comma_list(word).is_empty();
            let expected = "vulkan, metal, dx12 or gl, or several with commas, or nothing set";
            value.split(',').any(unknown).then(|| expected.to_owned())
        }
        KERNELS => kernels_of(value).err(),
        VERIFY => {
            let known = one_of(&["1", "ON", "YES", "TRUE"]) || one_of(&["", "0", "OFF", "NO", "FALSE"]);
            (!known).then(|| "1, on, yes or true, else it is off".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{expected, shown};

    #[test]
    fn secrets_are_not_shown() {
        for (name, value) in
            [("HF_TOKEN", "hf_abc"), ("HUGGINGFACE_API_KEY", "abc"), ("HF_ENDPOINT", "https://me:abc@hub")]
        {
            assert!(!shown(name, value).contains("abc"), "{name}");
        }
        assert_eq!(shown("WGPU_BACKEND", "vulkan"), "vulkan");
        for (value, expected) in [
            ("http://proxy:3128", "http://proxy:3128"),
            ("http://me:p@ss@proxy:3128", "http://…@proxy:3128"),
            ("me:pass@proxy:3128", "…@proxy:3128"),
            ("http://me@proxy/?key=pass", "set, not shown"),
        ] {
            assert_eq!(shown("HTTPS_PROXY", value), expected);
        }
        assert_eq!(shown("HF_TOKEN", ""), "set to nothing");
    }

    #[test]
    fn values_that_mean_nothing_are_known() {
        for (name, right, wrong) in [
            ("WGPU_BACKEND", &["vulkan", "GL", "vk, dx12"][..], &["bogus", "", "vulkan,bogus"][..]),
            ("HEADWISE_KERNELS", &["", "auto", "Tuned", "f16"], &["bogus", "f 16"]),
            ("HEADWISE_VERIFY", &["1", "yes", "0", "", "False"], &["maybe", "2"]),
        ] {
            assert!(right.iter().all(|value| expected(name, value).is_none()), "{name}");
            assert!(wrong.iter().all(|value| expected(name, value).is_some()), "{name}");
        }
    }
}
