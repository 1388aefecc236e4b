//! Names of files: those of a checkpoint, and which ones are trusted.

use super::quote;

/// A checkpoint in one file.
pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";

/// Accepts only names that stay inside the folder on every system and in every address:
/// no separators, no drive letters, no hidden files, no escapes. `Err` is the name, fit for a message.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let good = !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.chars().all(plain);
    if good { Ok(()) } else { Err(quote(name)) }
}

/// Whether this is a plain name, or a path of such names down from the folder.
pub(super) fn stays_inside(path: &str) -> bool {
    path.len() <= 255 && path.split('/').all(|name| check_name(name).is_ok())
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::weights::Source;
    use pollster::block_on;

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "a\\b",
            "/etc/passwd",
            "C:x",
            "a\0b",
            ".hidden",
            "a%2fb",
            "a?b",
            "é",
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
            assert!(block_on(Source::memory("m", [("a", b"")]).find(name)).is_err(), "{name:?}");
        }
        assert!(check_name(&"a".repeat(256)).is_err());
        for name in ["model.safetensors", "model-00001-of-00004.safetensors", "a..b", "x_Y-9"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
        assert!(stays_inside("a/b-1/c.d") && check_name("a/b").is_err());
    }
}
