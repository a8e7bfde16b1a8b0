//! The terminal, shared by lines and a bar that must not tear each other.

#[cfg(unix)]
mod echo;

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget};
use tracing_subscriber::fmt::MakeWriter;

use crate::progress::say;

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// A bar, drawn again and again, and lines above it.
    Bar,
    /// Lines.
    Lines,
    /// Errors.
    Quiet,
}

impl Verbosity {
    /// A bar where stderr is a terminal, unless told otherwise.
    pub(crate) fn new(plain: bool, quiet: bool) -> Self {
        match (quiet, plain) {
            (true, _) => Self::Quiet,
            (false, false) if io::stderr().is_terminal() => Self::Bar,
            _ => Self::Lines,
        }
    }
}

/// Where a command prints. Clones are the same terminal.
#[derive(Clone, Debug)]
pub(crate) struct Terminal {
    verbosity: Verbosity,
    bar: ProgressBar,
    #[cfg(unix)]
    echo: echo::Echo,
}

impl Terminal {
    pub(crate) fn new(verbosity: Verbosity) -> Self {
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

    /// The bar; it stays hidden until [`Self::show_bar`].
    pub(crate) fn bar(&self) -> &ProgressBar {
        &self.bar
    }

    /// Draws the bar from now on, where one is asked for.
    pub(crate) fn show_bar(&self) {
        if self.verbosity == Verbosity::Bar {
            #[cfg(unix)]
            self.echo.switch_off();
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    /// Takes the bar away for good.
    pub(crate) fn hide_bar(&self) {
        self.bar.finish_and_clear();
        #[cfg(unix)]
        self.echo.restore();
    }

    /// Prints a line of results, to stdout; nothing where only errors are asked for.
    pub(crate) fn say(&self, text: &str) {
        if self.verbosity != Verbosity::Quiet {
            self.bar.suspend(|| say(text));
        }
    }

    /// Prints a line about the run, to stderr; nothing where only errors are asked for.
    pub(crate) fn notice(&self, text: &str) {
        if self.verbosity != Verbosity::Quiet {
            // Who does not listen is not told.
            let _ = self.bar.suspend(|| writeln!(io::stderr(), "{text}"));
        }
    }
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
        // A line comes whole: the subscriber formats it before it writes.
        self.bar.suspend(|| io::stderr().write_all(bytes)).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
