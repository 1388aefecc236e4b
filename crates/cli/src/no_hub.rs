//! `--model` in a build without the feature `hub`: folders alone.

use std::path::{Path, PathBuf};

use headwise::{Error, Gpu, Precision, Source};

/// There is none.
pub enum Repository {}

/// What is no folder stays the caller's to name.
pub fn repository(_model: &Path) -> Result<Option<Repository>, Error> {
    Ok(None)
}

pub fn preview(repository: &Repository) -> Result<Source, Error> {
    match *repository {}
}

pub fn fetch(
    repository: &Repository,
    _gpu: &Gpu,
    _precision: Option<Precision>,
    _quiet: bool,
) -> Result<Source, Error> {
    match *repository {}
}

pub fn cache() -> Option<PathBuf> {
    None
}
