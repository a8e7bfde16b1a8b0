//! Ctrl-C, SIGTERM and SIGHUP: before training they end the program at once; of a run, the first stops it after a step, the second ends the program.

use std::{
    process,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use interlock::{Error, Result};

use crate::{exit, terminal};

/// The action of the program after a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Continue; the program ends by itself.
    GoOn,
    /// End now.
    End,
}

/// Is called with whether a signal is the first.
type Handler = Box<dyn FnMut(bool) -> Next + Send>;

/// What is done for a signal; none: the program ends.
static HANDLER: Mutex<Option<Handler>> = Mutex::new(None);

/// Another signal within this time is the same request: job schedulers signal a process and then its group, or one kind of signal after the other.
const SAME_REQUEST: Duration = Duration::from_secs(2);

/// Ends the program with exit code 130 at each signal from now on, until there is a handler. Call it once.
///
/// # Errors
/// If the system refuses to install a handler.
pub(crate) fn install() -> Result<()> {
    let mut first: Option<Instant> = None;
    listen(move |_| {
        let is_first = first.is_none();
        if !is_first && first.is_some_and(|at| at.elapsed() < SAME_REQUEST) {
            return;
        }
        first.get_or_insert_with(Instant::now);
        let mut handler = HANDLER.lock().unwrap_or_else(PoisonError::into_inner);
        if handler.as_mut().map_or(Next::End, |handle| handle(is_first)) == Next::End {
            terminal::finish_soon();
            process::exit(exit::STOPPED.into());
        }
    })
}

/// Calls `handle` for each signal from now on, on its own thread, with whether it is the first signal.
pub(crate) fn on_signal(handle: impl FnMut(bool) -> Next + Send + 'static) {
    *HANDLER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(handle));
}

fn handler_error(error: impl std::fmt::Display) -> Error {
    Error::other(format!("cannot install a handler for Ctrl-C: {error}"))
}

/// Calls `handle` with the number of each signal, on its own thread. A SIGHUP that is ignored, as under `nohup`, stays ignored.
#[cfg(unix)]
fn listen(mut handle: impl FnMut(i32) + Send + 'static) -> Result<()> {
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM},
        iterator::Signals,
    };

    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(hangup)).map_err(handler_error)?;
    let thread = std::thread::Builder::new().name("signals".to_owned());
    let started = thread.spawn(move || signals.forever().for_each(&mut handle));
    started.map(drop).map_err(|cause| Error::Thread { name: "signals", cause })
}

/// Returns whether the process ignores a signal.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: without a new action `sigaction` changes nothing, and writes the present one to `action`, for which zeros are valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Calls `handle` for each Ctrl-C, on its own thread.
#[cfg(not(unix))]
fn listen(mut handle: impl FnMut(i32) + Send + 'static) -> Result<()> {
    ctrlc::set_handler(move || handle(0)).map_err(handler_error)
}
