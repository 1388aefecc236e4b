//! One error enum for the whole crate, grouped by kind.
//!
//! Every message names the file, the tensor or the argument, what was found and what was expected.

/// Everything that can go wrong in headwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // -- files ---------------------------------------------------------------------------------
    /// A file could not be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or address.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read but its content is not what it must be.
    #[error("{file}: {field}: found {found}, expected {expected}")]
    BadFile {
        /// The file's path.
        file: String,
        /// The field, tensor or place inside the file.
        field: String,
        /// What the file says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// Two sources contradict each other, or the file asks for something headwise does not run.
    #[error("{file}: {field} is not supported: {why}")]
    Unsupported {
        /// The file's path.
        file: String,
        /// The field or feature.
        field: String,
        /// Why it cannot be run.
        why: String,
    },

    /// A hub did not give a file.
    #[error("{repo} on {hub}: {file}: {message}")]
    Hub {
        /// The hub's address.
        hub: String,
        /// The repository, with its revision where that is not the main branch.
        repo: String,
        /// The file.
        file: String,
        /// The answer's HTTP status, where there was one: 401 and 403 deny, 404 knows no such file.
        status: Option<u16>,
        /// What went wrong, and what may help.
        message: String,
    },

    // -- arguments -----------------------------------------------------------------------------
    /// A caller's argument is out of range.
    #[error("{name}: found {found}, expected {expected}")]
    Argument {
        /// The argument's name.
        name: &'static str,
        /// What was given.
        found: String,
        /// What would be right.
        expected: String,
    },

    // -- the GPU -------------------------------------------------------------------------------
    /// No adapter fits the request.
    #[error("no GPU adapter matches '{}'; found: {found}", .wanted.escape_debug())]
    NoAdapter {
        /// What was asked for.
        wanted: String,
        /// The adapters that are there, or advice when there are none.
        found: String,
    },
    /// The model does not fit.
    #[error("{what} needs {}, but {} gives {}", bytes(*.need), .limit, bytes(*.have))]
    TooLarge {
        /// The thing that does not fit.
        what: String,
        /// Bytes needed.
        need: u64,
        /// Bytes there are.
        have: u64,
        /// The limit that is in the way.
        limit: String,
    },
    /// The device refused a command or ran out of memory.
    #[error("GPU error in {during}: {message}")]
    Gpu {
        /// What was being done.
        during: String,
        /// The device's own message.
        message: String,
    },
    /// The device is gone (driver reset, unplugged, destroyed). Load the model again on a new [`crate::Gpu`].
    #[error("the GPU device was lost: {reason}")]
    DeviceLost {
        /// What the backend reports.
        reason: String,
    },

    /// The model computed what is no number.
    #[error(
        "{what}: found {found}, expected finite numbers; edits scale them too far, where there are any, the model's weights are \
         damaged, or its numbers are too large for the precision or the kernels that were chosen"
    )]
    NotFinite {
        /// What was computed.
        what: &'static str,
        /// What it is.
        found: String,
    },

    // -- flow ----------------------------------------------------------------------------------
    /// The caller cancelled the work.
    #[error("cancelled")]
    Cancelled,
    /// Work on a thread of its own came to no end: it panicked, as a callback of the program may, or had no thread. Models and
    /// devices are as they were.
    #[error("a panic in {during}: {message}")]
    Panic {
        /// What was being done.
        during: String,
        /// The panic's words.
        message: String,
    },
    /// The tokenizer refused the text or its own file.
    #[error("{file}: tokenizer: {message}")]
    Tokenizer {
        /// The tokenizer's file.
        file: String,
        /// Its message.
        message: String,
    },
}

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A [`Error::BadFile`] from anything printable.
    pub(crate) fn bad_file(
        file: impl Into<String>,
        field: impl Into<String>,
        found: impl ToString,
        expected: impl ToString,
    ) -> Self {
        Error::BadFile {
            file: file.into(),
            field: field.into(),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    /// An [`Error::Argument`] from anything printable.
    pub(crate) fn argument(name: &'static str, found: impl ToString, expected: impl ToString) -> Self {
        Error::Argument { name, found: found.to_string(), expected: expected.to_string() }
    }
}

/// Bytes for people: `4.9 GiB`, `20.1 MiB`, `512 B`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let (mut value, mut unit) = (n as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}
