//! What a command says on stderr about the files of its model.

use std::io::{self, Write};

use headwise::ModelInfo;

/// Says what is unusual about the files, unless that was asked not to be said.
pub fn tell(model: &ModelInfo, quiet: bool) {
    for note in model.notes.iter().filter(|_| !quiet) {
        // Losing a remark is no reason to fail.
        let _ = writeln!(io::stderr(), "note: {note}");
    }
}
