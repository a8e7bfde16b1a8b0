//! How a command ends: 0 done, 1 a run or a case failed, 2 refused before anything was written, 130 stopped by a signal.

use std::{fmt, process::ExitCode};

/// The exit code of what was stopped by Ctrl-C or SIGTERM, whether it saved its work or was stopped a second time before it could.
pub(crate) const STOPPED: u8 = 130;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Exit {
    /// Nothing was written.
    Refused(String),
    /// Something was begun and failed.
    Failed(String),
    /// It was asked to stop, saved what there was, and has said so.
    Stopped,
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
        Err(Exit::Stopped) => ExitCode::from(STOPPED),
    }
}
