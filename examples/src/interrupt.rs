//! Ctrl-C and SIGTERM: the first stops a run after a step, the second ends the program at once.

use std::{
    process,
    time::{Duration, Instant},
};

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

/// The same signal again within this time is the same request: `timeout` and job schedulers signal a process and then its group.
const SAME_REQUEST: Duration = Duration::from_millis(100);

/// Calls `handle` for each signal from now on, on its own thread, with whether it is the first signal.
///
/// # Errors
/// If the system refuses to install a handler.
pub(crate) fn on_signal(mut handle: impl FnMut(bool) -> Next + Send + 'static) -> Result<()> {
    let mut last: Option<(i32, Instant)> = None;
    listen(move |signal| {
        let before = last.replace((signal, Instant::now()));
        if before.is_some_and(|(other, at)| other == signal && at.elapsed() < SAME_REQUEST) {
            return;
        }
        if handle(before.is_none()) == Next::End {
            process::exit(exit::STOPPED.into());
        }
    })
}

fn handler_error(error: impl std::fmt::Display) -> Error {
    Error::other(format!("cannot install a handler for Ctrl-C: {error}"))
}

/// Calls `handle` with the number of each signal, on its own thread.
#[cfg(unix)]
fn listen(mut handle: impl FnMut(i32) + Send + 'static) -> Result<()> {
    use signal_hook::{
        consts::{SIGINT, SIGTERM},
        iterator::Signals,
    };

    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(handler_error)?;
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || signals.forever().for_each(&mut handle)).map(drop).map_err(handler_error)
}

/// Calls `handle` for each Ctrl-C, on its own thread.
#[cfg(not(unix))]
fn listen(mut handle: impl FnMut(i32) + Send + 'static) -> Result<()> {
    ctrlc::set_handler(move || handle(0)).map_err(handler_error)
}
