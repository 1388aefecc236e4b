//! What was measured on which adapter, in one small file of JSON: `kernels.json`, a list of notes, the newest last.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Candidate, Family, Measured, candidates, variants_of};
use crate::{
    gpu::{Capabilities, NotePlace},
    ops::{Packed, Variant, Variants},
};

/// The largest file that is read, and the most notes that are kept in it.
const MOST_BYTES: u64 = 64 << 10;
const MOST_NOTES: usize = 32;

/// The choice for one adapter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Note {
    /// Adapter, driver, backend, subgroups and version of headwise.
    adapter: String,
    matmul: String,
    matvec: String,
    measured: Measured,
    /// Whether either is `packed` with quantised weights.
    packed_matmul: bool,
    packed_matvec: bool,
    /// Rows of the matmul's tallest tiles.
    tile_rows: u32,
}

impl Note {
    pub fn new(capabilities: &Capabilities, variants: Variants, measured: Measured) -> Self {
        let matvec = Candidate { variant: variants.matvec, tile_rows: 1 };
        let fits =
            |matmul: &Candidate| variants_of(capabilities, matvec, *matmul, variants.packed) == variants;
        let matmul = candidates(Family::Matmul, capabilities).into_iter().find(fits);
        Self {
            adapter: key(capabilities),
            matvec: variants.matvec.name().to_owned(),
            matmul: variants.matmul.name().to_owned(),
            measured,
            packed_matmul: variants.packed.matmul,
            packed_matvec: variants.packed.matvec,
            tile_rows: matmul.map_or(0, |matmul| matmul.tile_rows),
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    pub fn text(&self) -> String {
        // A struct of texts and a number always has a text.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What it says about this adapter, where that is one of its candidates.
    pub fn variants(&self, capabilities: &Capabilities) -> Option<(Variants, Measured)> {
        let find = |family, name: &str, tile_rows| {
            candidates(family, capabilities)
                .into_iter()
                .find(|candidate| candidate.variant.name() == name && candidate.tile_rows == tile_rows)
        };
        if self.adapter != key(capabilities) {
            return None;
        }
        let matvec = find(Family::Matvec, &self.matvec, 1)?;
        let matmul = find(Family::Matmul, &self.matmul, self.tile_rows)?;
        let packed = Packed { matvec: self.packed_matvec, matmul: self.packed_matmul };
        for (is, family, tile_rows) in [
            (packed.matvec, Family::QuantizedMatvec, 1),
            (packed.matmul, Family::QuantizedMatmul, matmul.tile_rows),
        ] {
            if is {
                find(family, Variant::Packed.name(), tile_rows)?;
            }
        }
        Some((variants_of(capabilities, matvec, matmul, packed), self.measured))
    }
}

/// What a choice is for. A driver's update may change which variant is fastest, and so may one of headwise.
fn key(capabilities: &Capabilities) -> String {
    let Capabilities { name, driver, backend, kind, .. } = capabilities;
    let subgroups =
        capabilities.subgroups.map_or("none".to_owned(), |(least, most)| format!("{least} to {most}"));
    format!(
        "{name}, {kind}, {driver}, {backend}, subgroups {subgroups}, headwise {}",
        env!("CARGO_PKG_VERSION")
    )
}

/// The file of notes. Whatever is wrong with it costs a measurement, never an error.
pub struct Notes(Option<PathBuf>);

impl Notes {
    pub fn of(place: &NotePlace) -> Self {
        let folder = match place {
            NotePlace::UserCache => user_cache(),
            NotePlace::Folder(folder) => Some(folder.clone()),
            NotePlace::Nowhere => None,
        };
        Self(folder.map(|folder| folder.join("kernels.json")))
    }

    /// Where they are, or will be.
    pub fn path(&self) -> Option<&Path> {
        self.0.as_deref()
    }

    /// What the newest note on this adapter says.
    pub fn variants(&self, capabilities: &Capabilities) -> Option<(Variants, Measured)> {
        self.read().iter().rev().find_map(|note| note.variants(capabilities))
    }

    /// Puts a note in place of others on the same adapter.
    pub(super) fn add(&self, note: Note) {
        let Some(path) = &self.0 else { return };
        let mut notes = self.read();
        notes.retain(|other| other.adapter != note.adapter);
        notes.push(note);
        let surplus = notes.len().saturating_sub(MOST_NOTES);
        let texts: Vec<String> = notes[surplus..].iter().map(Note::text).collect();
        if let Err(error) = write(path, &format!("[{}]", texts.join(","))) {
            tracing::debug!(%error, path = %path.display(), "the choice of kernels is not kept");
        }
    }

    fn read(&self) -> Vec<Note> {
        let text = self.0.as_deref().and_then(|path| read(path).ok()).unwrap_or_default();
        let notes: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
        notes.into_iter().filter_map(|note| serde_json::from_value(note).ok()).collect()
    }
}

fn read(path: &Path) -> io::Result<String> {
    // Opening a pipe would wait for somebody to write.
    if !fs::metadata(path)?.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = String::new();
    File::open(path)?.take(MOST_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Under another name first, so that nobody reads half of it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    static WRITES: AtomicU32 = AtomicU32::new(0);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let own = format!("{}-{}", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed));
    let unfinished = path.with_extension(format!("{own}.unfinished"));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&unfinished)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // What cannot be written may not be removable either.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// `HEADWISE_CACHE`, or `headwise` in the platform's folder for caches of this user. A browser has neither.
fn user_cache() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| !path.as_os_str().is_empty());
    if let Some(own) = folder("HEADWISE_CACHE") {
        return Some(own);
    }
    let caches = folder("XDG_CACHE_HOME").filter(|path| path.is_absolute()).or_else(|| {
        if cfg!(windows) {
            folder("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            Some(folder("HOME")?.join("Library/Caches"))
        } else {
            Some(folder("HOME")?.join(".cache"))
        }
    })?;
    Some(caches.join("headwise"))
}
