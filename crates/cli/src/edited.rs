//! `--edit`: what is changed in a model's heads and experts while it works.

use std::{fs::File, io::Read, ops::Deref, path::Path};

use clap::Args;
use headwise::{Edit, Edits, Error, Model, Precision};
use serde::Serialize;

use super::{
    args::{COMMON, ModelArgs, Shared},
    demo::Demo,
};

/// The longest file that says what to edit, or to record.
const MAX_FILE: u64 = 16 << 20;

/// Options of the commands that let a model work.
#[derive(Args)]
pub struct TaskArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Change heads or experts: L1H2:scale=0, L3A5:off, a JSON file
    #[arg(long, value_name = "EDIT", help_heading = COMMON)]
    edit: Vec<String>,
}

impl Deref for TaskArgs {
    type Target = ModelArgs;

    fn deref(&self) -> &ModelArgs {
        &self.model
    }
}

impl TaskArgs {
    /// All edits, one after the other.
    pub fn edits(&self) -> Result<Edits, Error> {
        let mut edits = Edits::new();
        for text in &self.edit {
            match text.parse::<Edit>() {
                Ok(edit) => edits.extend([edit]),
                Err(_) if is_file(Path::new(text)) => {
                    edits.extend(plan_file(Path::new(text), "edits", Edits::from_json)?.iter().cloned());
                }
                Err(wrong) => return Err(wrong),
            }
        }
        edits.check()?;
        Ok(edits)
    }

    /// As [`load_in`](Self::load_in), in the precision that the user asks for.
    pub fn load(&self, shared: &Shared, built_in: Demo) -> Result<Model, Error> {
        self.load_in(self.precision(), shared, built_in)
    }

    /// As [`ModelArgs::load_in`], with the edits.
    pub fn load_in(
        &self,
        precision: Option<Precision>,
        shared: &Shared,
        built_in: Demo,
    ) -> Result<Model, Error> {
        // What is no edit is said before a model is loaded for nothing.
        let edits = self.edits()?;
        self.model.load_in(precision, shared, built_in)?.edited(&edits)
    }
}

/// What a command prints as JSON, and the edits that it came by, where there are any.
#[derive(Serialize)]
pub struct WithEdits<'a, T> {
    #[serde(flatten)]
    report: T,
    #[serde(flatten)]
    edits: Option<&'a Edits>,
}

impl<'a, T> WithEdits<'a, T> {
    /// What came of a model's work with edits.
    pub fn new(report: T, edits: &'a Edits) -> Self {
        Self { report, edits: Some(edits).filter(|edits| !edits.is_empty()) }
    }
}

/// Whether what is no edit is meant as a file of them: such files end with `.json`, or are there.
fn is_file(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json")) || path.exists()
}

/// What a file of JSON says, by `parse`.
pub fn plan_file<T>(path: &Path, field: &str, parse: impl Fn(&str) -> Result<T, Error>) -> Result<T, Error> {
    let shown = path.display().to_string();
    let io = |source| Error::Io { path: shown.clone(), source };
    let mut text = String::new();
    let bytes =
        File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text)).map_err(io)?;
    let wrong = |found: String, expected: String| Error::BadFile {
        file: shown.clone(),
        field: field.to_owned(),
        found,
        expected,
    };
    if bytes as u64 > MAX_FILE {
        return Err(wrong("more than 16 MiB".to_owned(), "at most 16 MiB".to_owned()));
    }
    parse(text.trim_start_matches('\u{feff}')).map_err(|error| match error {
        Error::Argument { found, expected, .. } => wrong(found, expected),
        other => other,
    })
}
