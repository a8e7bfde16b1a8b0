//! Exit codes of the command: 0 done; 1 a run failed, did not repeat its reference run, or its output could not be written; 2 refused before anything
//! was written; 130 stopped by a signal.

use std::{fmt, io, process};

use interlock::Error;

use crate::terminal::{self, colours, note, print_styled};

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

    fn message(self) -> Option<String> {
        match self {
            Self::Refused(message) | Self::Failed(message) => Some(message),
            Self::Stopped => None,
        }
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

/// Prints the error, and returns the exit code. Output that could not be written is an error too.
pub(crate) fn code_of(done: Result<(), Exit>) -> u8 {
    let written = terminal::finish();
    let code = match &done {
        Err(Exit::Refused(_)) => 2,
        Err(Exit::Failed(_)) => 1,
        Err(Exit::Stopped) => STOPPED,
        Ok(()) => u8::from(written.is_err()),
    };
    let mut errors: Vec<String> =
        [done, written].into_iter().filter_map(Result::err).filter_map(Exit::message).collect();
    // `print` has the same error.
    errors.dedup();
    errors.iter().for_each(|message| note(&format!("error: {message}")));
    // The errors too. One of stdout has been reported.
    let _ = terminal::finish();
    code
}

/// Prints help, the version, or the error of a command line, and ends the process.
pub(crate) fn with_message(message: &clap::Error) -> ! {
    let text = message.render();
    let coloured = if message.use_stderr() { colours(&io::stderr()) } else { colours(&io::stdout()) };
    print_styled(&if coloured { text.ansi().to_string() } else { text.to_string() }, message.use_stderr());
    let code = match terminal::finish() {
        Err(Exit::Failed(unwritten)) => {
            note(&format!("error: {unwritten}"));
            1
        }
        _ => message.exit_code(),
    };
    process::exit(code)
}
