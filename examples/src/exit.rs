//! Exit codes of the command: 0 done, 1 a run failed or did not repeat its reference run, 2 refused before anything was written, 130 stopped by a
//! signal.

use std::{fmt, process::ExitCode};

use interlock::Error;

/// The exit code after Ctrl-C, SIGTERM or SIGHUP, once or twice.
pub(crate) const STOPPED: u8 = 130;

/// The reason why a command ended early.
#[derive(Debug)]
pub(crate) enum Exit {
    /// The command was refused before anything was written.
    Refused(String),
    /// The command failed after it had begun.
    Failed(String),
    /// The command was stopped by a signal, and has saved its work and said so.
    Stopped,
}

impl Exit {
    /// Returns the failure of a command that had begun.
    pub(crate) fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Returns the refusal of what this program was built without.
#[allow(dead_code)] // a build with all features has no use for it
pub(crate) fn built_without(what: &str, feature: &str) -> Error {
    Error::invalid(what, "this program was built without it", format!("rebuild with --features {feature}"))
}

impl From<Error> for Exit {
    fn from(error: Error) -> Self {
        match error.is_refusal() {
            true => Self::Refused(error.to_string()),
            false => Self::Failed(error.to_string()),
        }
    }
}

/// Prints the error, and returns the exit code.
#[allow(clippy::print_stderr)] // errors are printed here
pub(crate) fn report(done: Result<(), Exit>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit::Refused(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
        Err(Exit::Failed(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(1)
        }
        Err(Exit::Stopped) => ExitCode::from(STOPPED),
    }
}
