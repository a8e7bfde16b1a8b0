//! `interlock top`: the present state of runs on the terminal, from the metrics that they serve.

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
    progress::say,
};
use draw::Choice;
use model::View;
use scrape::Scrape;
use watch::Watch;

/// The longest time until a key is read.
const PATIENCE: Duration = Duration::from_millis(100);

pub(crate) fn run(arguments: &Top) -> Result<(), Exit> {
    if !arguments.once && !io::stdout().is_terminal() {
        let right = "use --once for plain text";
        return Err(Error::invalid("top", "its output is no terminal, which it would draw on", right).into());
    }
    let look = |address: &String| {
        Scrape::fetch(address).map_err(|problem| {
            let right = format!("start the run with `interlock train --metrics {address}`");
            Exit::from(Error::invalid(address.clone(), problem, right))
        })
    };
    let first: Vec<Scrape> = arguments.addresses.iter().map(look).collect::<Result<_, _>>()?;
    if arguments.once {
        std::thread::sleep(arguments.interval);
        for (address, first) in arguments.addresses.iter().zip(&first) {
            say(&plain::text(address, &View::new(Some(first), &look(address)?)));
        }
        return Ok(());
    }
    let mut watches: Vec<Watch> =
        arguments.addresses.iter().zip(first).map(|(address, first)| Watch::new(address, first)).collect();
    let ended = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&ended);
    interrupt::on_signal(move |first| {
        asked.store(true, Ordering::Relaxed);
        if first {
            return Next::GoOn;
        }
        ratatui::restore();
        Next::End
    })?;
    let news = look_again(&arguments.addresses, arguments.interval)?;
    let mut screen = Screen::open().map_err(|e| Exit::Failed(format!("the terminal cannot be drawn on: {e}")))?;
    let shown = show(&mut screen.0, &mut watches, &news, &ended);
    drop(screen);
    shown.map_err(|e| Exit::Failed(format!("the terminal: {e}")))?;
    if ended.load(Ordering::Relaxed) { Err(Exit::Stopped) } else { Ok(()) }
}

/// The terminal in drawing mode. It is restored when this is dropped, and after a panic.
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

/// The result of a reading, and the number of its endpoint.
type News = (usize, Result<Scrape, String>);

/// Reads the endpoints repeatedly, each on its own thread, so that one without an answer does not delay the others.
fn look_again(addresses: &[String], interval: Duration) -> Result<Receiver<News>, Exit> {
    let (tell, news) = channel();
    for (i, address) in addresses.iter().cloned().enumerate() {
        let tell = tell.clone();
        let look = move || {
            loop {
                std::thread::sleep(interval);
                if tell.send((i, Scrape::fetch(&address))).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("look".to_owned()).spawn(look).map_err(Exit::failed)?;
    }
    Ok(news)
}

/// Draws until a key or a signal ends the program.
fn show(
    terminal: &mut DefaultTerminal,
    watches: &mut [Watch],
    news: &Receiver<News>,
    ended: &AtomicBool,
) -> io::Result<()> {
    let mut choice = Choice::default();
    while !ended.load(Ordering::Relaxed) {
        for (i, look) in news.try_iter() {
            if !choice.paused {
                watches[i].take(look);
            }
        }
        let stages = watches[choice.endpoint].view.stages.len();
        choice.stage = choice.stage.min(stages.saturating_sub(1));
        terminal.draw(|frame| draw::draw(frame, watches, choice))?;
        if event::poll(PATIENCE)?
            && let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
            && press(&mut choice, key.code, key.modifiers, stages, watches.len())
        {
            break;
        }
    }
    Ok(())
}

/// Handles a key; returns whether it ends the program.
fn press(choice: &mut Choice, key: KeyCode, modifiers: KeyModifiers, stages: usize, endpoints: usize) -> bool {
    const PAGE: usize = 10;
    let last = stages.saturating_sub(1);
    match key {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('p') => choice.paused = !choice.paused,
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
