//! Ctrl-C pressed below a bar: the terminal would write `^C` there, and so move the bar away from where it is thought to be.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    process::getpgrp,
    termios::{LocalModes, OptionalActions, tcgetattr, tcgetpgrp, tcsetattr},
};

/// Whether the terminal behind stderr shows control characters as such; clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Echo {
    off: Arc<AtomicBool>,
}

impl Echo {
    /// Has it not show them, until [`Self::restore`].
    pub(super) fn switch_off(&self) {
        if change(true, false) {
            self.off.store(true, Ordering::Relaxed);
        }
    }

    /// Has it show them again, if they were switched off.
    pub(super) fn restore(&self) {
        if self.off.swap(false, Ordering::Relaxed) {
            change(false, true);
        }
    }
}

/// Changes it from one to the other; whether that was to be done, and could be.
fn change(from: bool, to: bool) -> bool {
    let terminal = io::stderr();
    // In the background a process that changes its terminal is halted.
    if tcgetpgrp(&terminal).ok() != Some(getpgrp()) {
        return false;
    }
    let Ok(mut settings) = tcgetattr(&terminal) else { return false };
    if settings.local_modes.contains(LocalModes::ECHOCTL) != from {
        return false;
    }
    settings.local_modes.set(LocalModes::ECHOCTL, to);
    tcsetattr(&terminal, OptionalActions::Now, &settings).is_ok()
}
