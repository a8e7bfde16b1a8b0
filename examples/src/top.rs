//! `interlock top`: shows the state of runs on the terminal, from the metrics that they serve.

mod draw;
mod model;
mod plain;
mod scrape;
#[cfg(test)]
mod tests;
mod watch;
mod words;

use std::{
    io::{self, IsTerminal},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use interlock::Error;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};

use crate::{
    arguments::Top,
    exit::Exit,
    interrupt::{self, Next},
    program::program,
    terminal::say,
};
use draw::Choice;
use model::View;
use scrape::Scrape;
use watch::Watch;

/// The longest time to wait for a key before the screen is drawn again.
const KEY_TIMEOUT: Duration = Duration::from_millis(100);

pub(crate) fn run(arguments: &Top) -> Result<(), Exit> {
    if !arguments.once && !io::stdout().is_terminal() {
        let right = "use --once for plain text";
        return Err(Error::invalid("top", "its output is not a terminal to draw on", right).into());
    }
    if arguments.once {
        return once(arguments);
    }
    let mut watches: Vec<Watch> = arguments.addresses.iter().map(|address| Watch::new(address)).collect();
    let ended = Arc::new(AtomicBool::new(false));
    let set_ended = Arc::clone(&ended);
    interrupt::on_signal(move |first| {
        set_ended.store(true, Ordering::Relaxed);
        if first {
            return Next::GoOn;
        }
        ratatui::restore();
        Next::End
    });
    let readings = fetch_repeatedly(&arguments.addresses, arguments.interval)?;
    let mut screen = Screen::open().map_err(|e| Exit::Failed(format!("cannot draw on the terminal: {e}")))?;
    let shown = show(&mut screen.0, &mut watches, &readings, &ended);
    drop(screen);
    shown.map_err(|e| Exit::Failed(format!("cannot draw on the terminal or read its keys: {e}")))?;
    if ended.load(Ordering::Relaxed) { Err(Exit::Stopped) } else { Ok(()) }
}

/// Prints the values of runs that must be there.
fn once(arguments: &Top) -> Result<(), Exit> {
    let fetch = |address: &String| {
        Scrape::fetch(address).map_err(|problem| Exit::from(Error::invalid(address.clone(), problem, how(address))))
    };
    let first: Vec<Scrape> = arguments.addresses.iter().map(fetch).collect::<Result<_, _>>()?;
    std::thread::sleep(arguments.interval);
    for (address, first) in arguments.addresses.iter().zip(&first) {
        say(&plain::text(address, &View::new(Some(first), &fetch(address)?)));
    }
    Ok(())
}

/// Returns how to start a run that answers at `address`.
fn how(address: &str) -> String {
    format!("start a run with `{} train --metrics {address}`", program())
}

/// The terminal in drawing mode, which is left when this is dropped, and after a panic.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> io::Result<Self> {
        ratatui::try_init().inspect_err(|_| ratatui::restore()).map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// The number of an endpoint, and its metrics or an error.
type Reading = (usize, Result<Scrape, String>);

/// Fetches the metrics of each endpoint repeatedly on its own thread, so that one that does not answer does not delay the others.
fn fetch_repeatedly(addresses: &[String], interval: Duration) -> Result<Receiver<Reading>, Exit> {
    let (sender, readings) = channel();
    for (i, address) in addresses.iter().cloned().enumerate() {
        let sender = sender.clone();
        let fetch = move || {
            loop {
                if sender.send((i, Scrape::fetch(&address))).is_err() {
                    break;
                }
                std::thread::sleep(interval);
            }
        };
        std::thread::Builder::new().name("fetch".to_owned()).spawn(fetch).map_err(Exit::failed)?;
    }
    Ok(readings)
}

/// Draws until a key or a signal ends the program.
fn show(
    terminal: &mut DefaultTerminal,
    watches: &mut [Watch],
    readings: &Receiver<Reading>,
    ended: &AtomicBool,
) -> io::Result<()> {
    let mut choice = Choice::default();
    while !ended.load(Ordering::Relaxed) {
        for (i, scrape) in readings.try_iter() {
            if !choice.paused {
                watches[i].take(scrape);
            }
        }
        let stages = watches[choice.endpoint].view.stages.len();
        choice.stage = choice.stage.min(stages.saturating_sub(1));
        terminal.draw(|frame| draw::draw(frame, watches, choice))?;
        if event::poll(KEY_TIMEOUT)?
            && let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
            && press(&mut choice, key.code, key.modifiers, stages, watches.len())
        {
            break;
        }
    }
    Ok(())
}

/// Handles a key. Returns whether it ends the program.
fn press(choice: &mut Choice, key: KeyCode, modifiers: KeyModifiers, stages: usize, endpoints: usize) -> bool {
    const PAGE: usize = 10;
    let last = stages.saturating_sub(1);
    match key {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('p') => choice.paused = !choice.paused,
        KeyCode::Char('?') => choice.legend = !choice.legend,
        KeyCode::Up => choice.stage = choice.stage.saturating_sub(1),
        KeyCode::Down => choice.stage = (choice.stage + 1).min(last),
        KeyCode::PageUp => choice.stage = choice.stage.saturating_sub(PAGE),
        KeyCode::PageDown => choice.stage = (choice.stage + PAGE).min(last),
        KeyCode::Home => choice.stage = 0,
        KeyCode::End => choice.stage = last,
        KeyCode::Tab => choice.endpoint = (choice.endpoint + 1) % endpoints.max(1),
        KeyCode::BackTab => choice.endpoint = (choice.endpoint + endpoints.max(1) - 1) % endpoints.max(1),
        _ => {}
    }
    false
}
