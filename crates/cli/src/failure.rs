//! Why a command ended early, and what that means for the shell.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, error::ErrorKind};
use headwise::Error;

/// Why a command ended early.
pub enum Failure {
    /// What the library reports, or the command itself in the same words. Exit code 1; 130 if the user cancelled.
    Failed(Error),
    /// What was said already. Exit code 1.
    Told,
    /// The command line does not say what to do. Exit code 2, as for everything that clap finds.
    Usage(clap::Error),
    /// The reader of stdout has seen enough, as `head` does. Exit code 0.
    ClosedPipe,
}

impl Failure {
    /// A usage error of the command `name`.
    pub fn usage(name: &str, message: &str) -> Self {
        let mut command = super::Cli::command();
        command.build();
        Self::Usage(match command.find_subcommand_mut(name) {
            Some(command) => command.error(ErrorKind::MissingRequiredArgument, message),
            None => command.error(ErrorKind::MissingRequiredArgument, message),
        })
    }

    /// Says on stderr what is to be said.
    pub fn report(self) -> ExitCode {
        match self {
            // What a shell itself says of a command that Ctrl-C ended.
            Self::Failed(error @ Error::Cancelled) => {
                print(&error.to_string());
                ExitCode::from(130)
            }
            Self::Failed(error) => {
                print(&error.to_string());
                ExitCode::FAILURE
            }
            Self::Told => ExitCode::FAILURE,
            // clap's own exit code for these is 2.
            Self::Usage(error) => error.exit(),
            Self::ClosedPipe => ExitCode::SUCCESS,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Only stdout is written to by means of `io::Result`.
impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::Failed(Error::Io { path: "stdout".to_owned(), source }),
        }
    }
}

/// Prints a message on one line: those of drivers come with line breaks.
pub fn print(message: &str) {
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    // With stderr closed there is nobody left to tell.
    let _ = writeln!(io::stderr(), "error: {}", lines.join(" "));
}
