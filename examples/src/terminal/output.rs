//! What commands print. Nothing that acts on a terminal reaches it, and output that cannot be written is an error.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{
    printer::{self, Stream},
    text::{printable, printable_styled},
};
use crate::exit::Exit;

/// The first error of stdout. Commands go on after it, so that their work is saved, and [`finish`] reports it.
static UNWRITTEN: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line to stdout, while no bar is drawn. If nobody reads stdout, nothing happens: Ctrl-C also ends a `| tee`.
pub(crate) fn say(text: &str) {
    write(&format!("{}\n", printable(text)));
}

/// Prints the result of a command to stdout, as [`say`].
///
/// # Errors
/// If it cannot be written, for example to a full disk.
pub(crate) fn print(text: &str) -> Result<(), Exit> {
    say(text);
    finish()
}

/// Prints text for other programs, such as a script or a configuration, as it is; on a terminal, as [`say`]. Returns whether somebody reads.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_data(text: &str) -> Result<bool, Exit> {
    let reads = match io::stdout().is_terminal() {
        true => write(&printable(text)),
        false => write(text),
    };
    finish().map(|()| reads)
}

/// Prints help to stdout, or another text of the command line's to stderr. Colours stay.
pub(crate) fn print_styled(text: &str, to_stderr: bool) {
    match to_stderr {
        true => print_to_stderr(&printable_styled(text)),
        false => drop(write(&printable_styled(text))),
    }
}

/// Prints a line to stderr: an error, or the progress of a command whose stdout is JSON.
pub(crate) fn note(text: &str) {
    print_to_stderr(&format!("{}\n", printable(text)));
}

/// Writes what is left of the output.
///
/// # Errors
/// If some of it could not be written, unless nobody reads it.
pub(crate) fn finish() -> Result<(), Exit> {
    printer::drain(None);
    keep(io::stdout().flush());
    match UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        Some(error) => Err(Exit::Failed(format!("the output cannot be written to stdout: {error}"))),
        None => Ok(()),
    }
}

/// Waits a moment for what has not been written, before the process ends at once.
pub(crate) fn finish_soon() {
    printer::drain(Some(Duration::from_millis(500)));
}

/// Writes to stdout. Returns whether somebody reads it.
fn write(text: &str) -> bool {
    printer::print(Stream::Out, text.as_bytes())
}

/// Writes to stderr.
pub(super) fn print_to_stderr(text: &str) {
    printer::print(Stream::Err, text.as_bytes());
}

/// Writes to a stream, and waits for it. Returns whether somebody reads it.
pub(super) fn write_now(to: Stream, bytes: &[u8]) -> bool {
    match to {
        Stream::Out => keep(io::stdout().write_all(bytes)),
        // If that fails, there is nowhere to say so.
        Stream::Err => io::stderr().write_all(bytes).is_ok(),
    }
}

/// Keeps the first error. Returns whether somebody reads stdout.
fn keep(written: io::Result<()>) -> bool {
    match written {
        Ok(()) => true,
        Err(error) => {
            let closed = error.kind() == io::ErrorKind::BrokenPipe;
            if !closed {
                UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
            !closed
        }
    }
}
