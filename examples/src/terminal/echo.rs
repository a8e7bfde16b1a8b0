//! Stops the terminal from writing `^C` for Ctrl-C while a bar is drawn: that would move the bar, and the next update would not clear it.

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

/// The mode `ECHOCTL` of stderr's terminal: whether it writes control characters such as `^C`. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Echo {
    off: Arc<AtomicBool>,
}

impl Echo {
    /// Switches the mode off, until [`Self::restore`].
    pub(super) fn switch_off(&self) {
        if change(true, false) {
            self.off.store(true, Ordering::Relaxed);
        }
    }

    /// Switches the mode on again, if [`Self::switch_off`] has switched it off.
    pub(super) fn restore(&self) {
        if self.off.swap(false, Ordering::Relaxed) {
            change(false, true);
        }
    }
}

/// Changes the mode if it is `from`. Returns whether it has.
fn change(from: bool, to: bool) -> bool {
    let terminal = io::stderr();
    // The system halts a process in the background that changes its terminal.
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
