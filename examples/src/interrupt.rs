//! Ctrl-C and SIGTERM: the first stops a run after a step, the second ends the program at once.

use std::process;

use interlock::{Error, Result};

use crate::exit;

/// The action of the program after a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Continue; the program ends by itself.
    GoOn,
    /// End now.
    End,
}

/// Calls `handle` for each signal from now on, on its own thread, with whether it is the first signal.
///
/// # Errors
/// If the system refuses to install a handler.
pub(crate) fn on_signal(mut handle: impl FnMut(bool) -> Next + Send + 'static) -> Result<()> {
    let mut first = true;
    listen(move || {
        if handle(std::mem::replace(&mut first, false)) == Next::End {
            process::exit(exit::STOPPED.into());
        }
    })
}

fn handler_error(error: impl std::fmt::Display) -> Error {
    Error::other(format!("cannot install a handler for Ctrl-C: {error}"))
}

/// Calls `handle` for each signal, on its own thread.
#[cfg(unix)]
fn listen(mut handle: impl FnMut() + Send + 'static) -> Result<()> {
    use signal_hook::{
        consts::{SIGINT, SIGTERM},
        iterator::Signals,
    };

    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(handler_error)?;
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || signals.forever().for_each(|_| handle())).map(drop).map_err(handler_error)
}

/// Calls `handle` for each Ctrl-C, on its own thread.
#[cfg(not(unix))]
fn listen(handle: impl FnMut() + Send + 'static) -> Result<()> {
    ctrlc::set_handler(handle).map_err(handler_error)
}
