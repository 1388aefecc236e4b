//! Files that a command writes.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use headwise::Error;

/// Refuses a file that cannot be written before the work is done rather than after.
pub fn check(out: &Path) -> Result<(), Error> {
    let folder = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let path = || out.display().to_string();
    if out.is_dir() {
        return Err(Error::Io { path: path(), source: io::ErrorKind::IsADirectory.into() });
    }
    // A device: the new file would take its place.
    if out.exists() && !out.is_file() {
        return Err(Error::Io { path: path(), source: io::Error::other("not a regular file") });
    }
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::Io { path: path(), source: io::ErrorKind::NotADirectory.into() }),
        Err(source) => Err(Error::Io { path: path(), source }),
    }
}

/// Writes a text to a file beside `out` and then calls that `out`: nobody sees half a file, and after an error nothing
/// is left of it.
pub fn write(out: &Path, text: &str) -> Result<(), Error> {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let partial = out.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    let written = fs::File::create_new(&partial).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, out)
    });
    written.map_err(|source| {
        // It may never have been there.
        let _ = fs::remove_file(&partial);
        Error::Io { path: out.display().to_string(), source }
    })
}
