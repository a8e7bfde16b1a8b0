//! The terminal, on which a bar and lines of text must not overwrite each other.

#[cfg(unix)]
mod echo;
mod output;
mod printer;
mod text;

pub(crate) use output::{finish, finish_soon, note, print, print_data, print_styled, say};
pub(crate) use text::{in_one_line, printable};

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget};
use tracing_subscriber::fmt::MakeWriter;

use text::printable_styled;

/// The amount of output on the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// A bar, and lines above it.
    Bar,
    /// Lines only.
    Lines,
    /// Errors only.
    Quiet,
}

impl Verbosity {
    /// Returns the verbosity for `--plain` and `--quiet`; without both, a bar if stderr is a terminal, otherwise lines.
    pub(crate) fn new(plain: bool, quiet: bool) -> Self {
        match (quiet, plain) {
            (true, _) => Self::Quiet,
            (false, false) if io::stderr().is_terminal() => Self::Bar,
            _ => Self::Lines,
        }
    }
}

/// The terminal that a command prints on. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Terminal {
    verbosity: Verbosity,
    bar: ProgressBar,
    #[cfg(unix)]
    echo: echo::Echo,
}

impl Terminal {
    /// A terminal that holds nobody up: from now on all is printed on a thread of its own.
    pub(crate) fn new(verbosity: Verbosity) -> Self {
        printer::start();
        Self {
            verbosity,
            bar: ProgressBar::hidden(),
            #[cfg(unix)]
            echo: echo::Echo::default(),
        }
    }

    pub(crate) fn verbosity(&self) -> Verbosity {
        self.verbosity
    }

    /// Returns whether it does not keep up with what is printed.
    pub(crate) fn is_behind(&self) -> bool {
        printer::is_behind()
    }

    /// Returns the bar, which stays hidden until [`Self::show_bar`].
    pub(crate) fn bar(&self) -> &ProgressBar {
        &self.bar
    }

    /// Draws the bar from now on, if the verbosity has one.
    pub(crate) fn show_bar(&self) {
        if self.verbosity == Verbosity::Bar {
            #[cfg(unix)]
            self.echo.switch_off();
            if !ProgressDrawTarget::stderr().is_hidden() {
                self.bar.set_draw_target(ProgressDrawTarget::term_like_with_hz(Box::new(printer::Screen::new()), 20));
            }
        }
    }

    /// Removes the bar.
    pub(crate) fn hide_bar(&self) {
        self.bar.finish_and_clear();
        #[cfg(unix)]
        self.echo.restore();
    }

    /// Prints a line of results to stdout, unless only errors are shown.
    pub(crate) fn say(&self, text: &str) {
        if self.verbosity != Verbosity::Quiet {
            self.bar.suspend(|| say(text));
        }
    }

    /// Prints a line about the run to stderr, unless only errors are shown.
    pub(crate) fn notice(&self, text: &str) {
        if self.verbosity != Verbosity::Quiet {
            self.bar.suspend(|| note(text));
        }
    }
}

/// Returns whether text there is coloured.
pub(crate) fn colours(terminal: &impl IsTerminal) -> bool {
    terminal.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty())
}

/// Log lines go to stderr, above the bar.
impl<'a> MakeWriter<'a> for Terminal {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // `bytes` are whole lines, since the subscriber formats a line before it writes.
        let line = String::from_utf8_lossy(bytes);
        let line = if colours(&io::stderr()) { printable_styled(&line) } else { printable(&line) };
        self.bar.suspend(|| output::print_to_stderr(&line));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
