//! How a command ends: 0 done, 1 a run or a case failed, 2 refused before anything was written.

use std::{fmt, process::ExitCode};

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Exit {
    /// Nothing was written.
    Refused(String),
    /// Something was begun and failed.
    Failed(String),
}

impl Exit {
    /// A failure after something was begun, whatever its kind.
    pub(crate) fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<interlock::Error> for Exit {
    fn from(error: interlock::Error) -> Self {
        match error.is_refusal() {
            true => Self::Refused(error.to_string()),
            false => Self::Failed(error.to_string()),
        }
    }
}

/// Tells the user, and gives the exit code.
#[allow(clippy::print_stderr)] // the place where a program's errors are printed
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
    }
}
