//! The thread that prints while a command trains, so that a terminal that is paused, or a program that does not read, holds nothing up.

use std::{
    io,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::{Sender, channel},
    },
    time::Duration,
};

use console::Term;
use indicatif::TermLike;

use super::output::write_now;

/// The bytes that may wait to be printed; what comes then is left out.
const MOST: usize = 4 << 20;
/// If more bytes wait than these, the terminal does not keep up.
const BEHIND: usize = 16 << 10;

/// A stream of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

enum Piece {
    Text(Stream, Vec<u8>),
    /// All before it has been printed.
    End(Sender<()>),
}

struct Printer {
    pieces: Sender<Piece>,
    /// Bytes that have not been printed.
    waiting: AtomicUsize,
    /// Texts that were left out since the last one that was taken.
    left_out: AtomicUsize,
}

static PRINTER: OnceLock<Printer> = OnceLock::new();

/// Prints on a thread of its own from now on; without one, if the system has none left.
pub(super) fn start() {
    if PRINTER.get().is_some() {
        return;
    }
    let (pieces, next) = channel();
    let print = move || {
        for piece in next {
            match piece {
                Piece::Text(to, bytes) => {
                    write_now(to, &bytes);
                    if let Some(printer) = PRINTER.get() {
                        printer.waiting.fetch_sub(bytes.len(), SeqCst);
                    }
                }
                // Whoever asked may have gone on.
                Piece::End(done) => drop(done.send(())),
            }
        }
    };
    // The thread of a second one ends at once.
    let printer = Printer { pieces, waiting: AtomicUsize::new(0), left_out: AtomicUsize::new(0) };
    if std::thread::Builder::new().name("printer".to_owned()).spawn(print).is_ok() {
        let _ = PRINTER.set(printer);
    }
}

impl Printer {
    fn take(&self, to: Stream, bytes: &[u8]) -> bool {
        self.waiting.fetch_add(bytes.len(), SeqCst);
        self.pieces.send(Piece::Text(to, bytes.to_vec())).is_ok()
    }
}

/// Prints a text. Returns whether somebody reads, as far as it is known.
pub(super) fn print(to: Stream, bytes: &[u8]) -> bool {
    let Some(printer) = PRINTER.get() else { return write_now(to, bytes) };
    if printer.waiting.load(SeqCst) > MOST {
        printer.left_out.fetch_add(1, SeqCst);
        return true;
    }
    let left_out = printer.left_out.swap(0, SeqCst);
    if left_out > 0 {
        printer.take(Stream::Err, format!("({left_out} lines were left out here)\n").as_bytes());
    }
    printer.take(to, bytes)
}

/// Prints a picture of a bar. In the end texts matter more, although each picture relies on the one before it.
fn print_picture(bytes: &[u8]) {
    match PRINTER.get() {
        Some(printer) if printer.waiting.load(SeqCst) > MOST / 2 => {}
        _ => drop(print(Stream::Err, bytes)),
    }
}

/// Returns whether the terminal does not keep up, because it is slow or paused.
pub(super) fn is_behind() -> bool {
    PRINTER.get().is_some_and(|printer| printer.waiting.load(SeqCst) > BEHIND)
}

/// Waits until all is printed, or for this long.
pub(super) fn drain(longest: Option<Duration>) {
    let Some(printer) = PRINTER.get() else { return };
    let (done, all) = channel();
    if printer.pieces.send(Piece::End(done)).is_ok() {
        // An error says that the thread has ended, or that it took too long.
        match longest {
            Some(longest) => drop(all.recv_timeout(longest)),
            None => drop(all.recv()),
        }
    }
}

/// Stderr as a terminal for a bar.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: Term,
    /// What has been drawn since the last flush.
    drawn: Mutex<String>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { terminal: Term::stderr(), drawn: Mutex::default() }
    }

    fn draw(&self, text: &str) -> io::Result<()> {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
        Ok(())
    }

    fn move_cursor(&self, n: usize, direction: char) -> io::Result<()> {
        if n == 0 { Ok(()) } else { self.draw(&format!("\u{1b}[{n}{direction}")) }
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        self.terminal.size().1
    }

    fn height(&self) -> u16 {
        self.terminal.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.draw(text)?;
        self.draw("\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.draw(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.draw("\r\u{1b}[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let drawn = std::mem::take(&mut *self.drawn.lock().unwrap_or_else(PoisonError::into_inner));
        print_picture(drawn.as_bytes());
        Ok(())
    }
}
