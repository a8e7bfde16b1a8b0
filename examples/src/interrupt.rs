//! Ctrl-C and SIGTERM: the first ends a run at a step's end, the second ends the program at once.

use std::process;

use interlock::{Error, Result};

use crate::exit;

/// What becomes of the program after a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It goes on, and ends by itself.
    GoOn,
    /// It ends now.
    End,
}

/// From now on calls `handle` for each signal, on a thread of its own, and tells it whether it is the first one.
///
/// # Errors
/// If the system does not let signals be handled.
pub(crate) fn on_signal(mut handle: impl FnMut(bool) -> Next + Send + 'static) -> Result<()> {
    let mut first = true;
    listen(move || {
        if handle(std::mem::replace(&mut first, false)) == Next::End {
            process::exit(exit::STOPPED.into());
        }
    })
}

fn cannot(error: impl std::fmt::Display) -> Error {
    Error::other(format!("Ctrl-C cannot be handled: {error}"))
}

/// Calls `handle` on a thread of its own, for each signal.
#[cfg(unix)]
fn listen(mut handle: impl FnMut() + Send + 'static) -> Result<()> {
    use signal_hook::{
        consts::{SIGINT, SIGTERM},
        iterator::Signals,
    };

    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(cannot)?;
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || signals.forever().for_each(|_| handle())).map(drop).map_err(cannot)
}

/// Calls `handle` on a thread of its own, for each Ctrl-C.
#[cfg(not(unix))]
fn listen(handle: impl FnMut() + Send + 'static) -> Result<()> {
    ctrlc::set_handler(handle).map_err(cannot)
}
