//! Memory, folders of caches, and the environment.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use headwise::internal::{NotePlace, Notes};
use serde::Serialize;

use super::super::hub;

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
const NAMES: [&str; 6] = [
    "RUST_LOG",
    "LD_LIBRARY_PATH",
    "NODEVICE_SELECT",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "TRANSFORMERS_OFFLINE",
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

/// A value, unless it may be a secret: tokens, and addresses with a password.
fn shown(name: &str, value: &str) -> String {
    let secret = ["TOKEN", "KEY", "SECRET", "PASS", "AUTH"].iter().any(|word| name.contains(word));
    match secret && name != "HF_TOKEN_PATH" || value.contains('@') {
        true if value.is_empty() => "set to nothing".to_owned(),
        true => "set, not shown".to_owned(),
        false => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn secrets_are_not_shown() {
        for (name, value) in
            [("HF_TOKEN", "hf_abc"), ("HUGGINGFACE_API_KEY", "abc"), ("HF_ENDPOINT", "https://me:abc@hub")]
        {
            assert!(!shown(name, value).contains("abc"), "{name}");
        }
        assert_eq!(shown("WGPU_BACKEND", "vulkan"), "vulkan");
        assert_eq!(shown("HF_TOKEN", ""), "set to nothing");
    }
}
