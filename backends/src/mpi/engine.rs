//! The loop that makes every call of MPI.

use std::{
    collections::VecDeque,
    mem,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use candle_core::Tensor;
use interlock::{
    Error, Result,
    ranks::{Host, Listener, RankEvent, RankMessage, Ranks},
};
use serde::{Deserialize, Serialize};

use super::{
    calls::{Request, World, pieces},
    elements::{Form, Receiving, place_of},
};

/// The tag of labels, and that of everything that follows a label.
const LABEL: i32 = 1;
const CONTENT: i32 = 2;
/// The most bytes of a label.
const LABEL_BYTES: usize = 2048;
/// How long the loop looks for messages without a pause after it has found one.
const BUSY: Duration = Duration::from_micros(100);
/// The same while a message is on its way: MPI moves it piece by piece, and only while it is called.
const BUSY_MOVING: Duration = Duration::from_millis(2);
/// The shortest and the longest pause of a loop that finds nothing; while a message is on its way, all are short.
const PAUSE: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];
/// How long what is still being sent may take when all ranks are ended.
const LAST: Duration = Duration::from_secs(1);

/// What the loop is told.
pub(super) enum Command {
    Send { to: usize, message: RankMessage },
    Listen(Listener),
}

/// What comes before the tensors of a message.
#[derive(Serialize, Deserialize)]
struct Contents {
    header: Vec<u8>,
    tensors: Vec<Form>,
}

/// The first byte of a label whose other bytes are the contents, and of one whose other bytes are their length: they follow.
const SHORT: u8 = 0;
const LONG: u8 = 1;

/// What has been read of a label.
enum Label {
    Contents(Contents),
    Long(usize),
}

/// A message, or a part of one, that is being sent.
struct Sending {
    to: usize,
    /// Its pieces.
    requests: Vec<Request>,
    memory: Memory,
}

/// What MPI reads from while a message is being sent.
#[expect(dead_code, reason = "it is kept, not read")]
enum Memory {
    Bytes(Vec<u8>),
    Tensor(Tensor),
}

/// The rest of a message that is being received. MPI writes into its memory as long as there are requests.
enum Rest {
    Contents { bytes: Vec<u8>, requests: Vec<Request> },
    Tensors { header: Vec<u8>, tensors: Vec<Receiving>, requests: Vec<Request> },
}

/// What comes from one rank.
#[derive(Default)]
struct Source {
    /// Labels of messages that have not begun to be received.
    labels: VecDeque<Label>,
    present: Option<Rest>,
    is_lost: bool,
}

pub(super) struct Engine {
    world: World,
    commands: Receiver<Command>,
    sender: Sender<Command>,
    sending: Vec<Sending>,
    /// The label that is being received from each other rank: the rank, and the memory.
    expected: Vec<(usize, Box<[u8; LABEL_BYTES]>)>,
    /// Their requests.
    requests: Vec<Request>,
    sources: Vec<Source>,
    listener: Option<Listener>,
    /// What has arrived while nobody listened.
    kept: Vec<RankEvent>,
}

impl Engine {
    pub(super) fn start() -> Result<Self> {
        let world = World::start()?;
        let (sender, commands) = channel();
        let sources = (0..world.size).map(|_| Source::default()).collect();
        let (sending, expected, requests) = (Vec::new(), Vec::new(), Vec::new());
        let kept = Vec::new();
        let mut engine = Self { world, commands, sender, sending, expected, requests, sources, listener: None, kept };
        let own = engine.rank();
        for rank in (0..engine.size()).filter(|&rank| rank != own) {
            let mut place = Box::new([0; LABEL_BYTES]);
            // SAFETY: the engine keeps the memory until the request is done or cancelled.
            let request = unsafe { expect(&engine.world, rank, &mut place) }?;
            engine.expected.push((rank, place));
            engine.requests.push(request);
        }
        Ok(engine)
    }

    pub(super) fn rank(&self) -> usize {
        self.world.rank
    }

    pub(super) fn size(&self) -> usize {
        self.world.size
    }

    pub(super) fn hosts(&self) -> Vec<Host> {
        self.world.hosts.clone()
    }

    pub(super) fn commands(&self) -> Sender<Command> {
        self.sender.clone()
    }

    /// Whether a message is on its way.
    fn is_moving(&self) -> bool {
        !self.sending.is_empty() || self.sources.iter().any(|source| source.present.is_some())
    }

    /// Sends and receives until `is_over`.
    pub(super) fn work_until(&mut self, mut is_over: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let (mut found, mut pause) = (Instant::now(), PAUSE[0]);
        while !is_over(self)? {
            let busy = if self.is_moving() { BUSY_MOVING } else { BUSY };
            if self.turn() {
                (found, pause) = (Instant::now(), PAUSE[0]);
            } else if found.elapsed() > busy {
                // Who sends ends the pause.
                thread::park_timeout(pause);
                pause = if self.is_moving() { PAUSE[0] } else { (pause * 2).min(PAUSE[1]) };
            } else {
                thread::yield_now();
            }
        }
        Ok(())
    }

    /// Ends MPI after the program: this rank, when all others have come to their ends too; or all ranks at once with this code, if rank 0 has failed or a rank is
    /// lost. A rank that has failed waits for rank 0, which may be saving.
    pub(super) fn end(mut self, code: u8, ranks: &Ranks) -> Result<u8> {
        let is_first = self.rank() == 0;
        if is_first && code != 0 {
            self.abort(code);
        }
        // None if the ranks cannot meet any more, since one of them is lost.
        let mut meeting = self.world.meet().ok();
        let mut lost = None;
        self.work_until(|engine| {
            // Rank 0 gets as long again to find out and to save, unless MPI says that it is gone.
            let patience = if is_first || engine.sources[0].is_lost { Duration::ZERO } else { ranks.timeout() };
            let is_lost = |&rank: &usize| engine.sources[rank].is_lost || ranks.has_lost(rank);
            let misses_one = meeting.is_none() || (0..engine.size()).any(|rank| is_lost(&rank));
            if misses_one && lost.get_or_insert_with(Instant::now).elapsed() >= patience {
                engine.abort(code.max(1));
            }
            Ok(match meeting.as_mut().map(Request::test) {
                Some(Ok(met)) => met.is_some(),
                Some(Err(_)) => {
                    meeting = None;
                    false
                }
                None => false,
            })
        })?;
        Ok(code)
    }

    /// Sends what can still be sent in a short time, and ends all ranks.
    fn abort(&mut self, code: u8) -> ! {
        let start = Instant::now();
        while start.elapsed() < LAST && (self.turn() || !self.sending.is_empty()) {
            thread::yield_now();
        }
        self.world.abort(code.into())
    }

    /// Does all that can be done at once. Returns whether there was something.
    fn turn(&mut self) -> bool {
        let mut found = false;
        while let Ok(command) = self.commands.try_recv() {
            found = true;
            self.obey(command);
        }
        let mut failed = Vec::new();
        self.sending.retain_mut(|sending| match all_done(&mut sending.requests) {
            Ok(done) => !done,
            Err(error) => {
                // MPI may still read it.
                mem::forget(mem::replace(&mut sending.memory, Memory::Bytes(Vec::new())));
                mem::forget(mem::take(&mut sending.requests));
                failed.push((sending.to, error));
                false
            }
        });
        for (rank, error) in failed {
            self.lose(rank, &error);
        }
        found |= self.take_labels();
        for rank in 0..self.sources.len() {
            match self.take_contents(rank) {
                Ok(some) => found |= some,
                Err(error) => self.lose(rank, &error),
            }
        }
        found
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Listen(listener) => {
                mem::take(&mut self.kept).into_iter().for_each(&listener);
                self.listener = Some(listener);
            }
            Command::Send { to, .. } if self.sources.get(to).is_none_or(|source| source.is_lost) => {}
            Command::Send { to, message } => {
                if let Err(error) = self.send(to, message) {
                    self.lose(to, &error);
                }
            }
        }
    }

    fn tell(&mut self, event: RankEvent) {
        match &self.listener {
            Some(listener) => listener(event),
            None => self.kept.push(event),
        }
    }

    /// Notes that a rank cannot be reached.
    fn lose(&mut self, rank: usize, error: &Error) {
        let lost = Source { is_lost: true, ..Source::default() };
        let before = mem::replace(&mut self.sources[rank], lost);
        let is_new = !before.is_lost;
        // MPI may still write into what has not come to its end.
        mem::forget(before);
        if is_new {
            self.tell(RankEvent::Lost { rank, cause: error.to_string() });
        }
    }

    fn send(&mut self, to: usize, message: RankMessage) -> Result<()> {
        let RankMessage { header, tensors } = message;
        let contents = Contents { header, tensors: tensors.iter().map(Form::of).collect() };
        let contents = postcard::to_stdvec(&contents).map_err(Error::other)?;
        if contents.len() < LABEL_BYTES {
            self.send_bytes(to, [&[SHORT], &*contents].concat(), LABEL)?;
        } else {
            self.send_bytes(to, [&[LONG], &contents.len().to_le_bytes()[..]].concat(), LABEL)?;
            self.send_bytes(to, contents, CONTENT)?;
        }
        for tensor in tensors {
            let (from, bytes) = place_of(&tensor)?;
            self.send_pieces(to, from, bytes, CONTENT, Memory::Tensor(tensor))?;
        }
        Ok(())
    }

    fn send_bytes(&mut self, to: usize, bytes: Vec<u8>, tag: i32) -> Result<()> {
        let (from, length) = (bytes.as_ptr(), bytes.len());
        self.send_pieces(to, from, length, tag, Memory::Bytes(bytes))
    }

    fn send_pieces(&mut self, to: usize, from: *const u8, bytes: usize, tag: i32, memory: Memory) -> Result<()> {
        let at = self.sending.len();
        self.sending.push(Sending { to, requests: Vec::new(), memory });
        for (start, length) in pieces(bytes) {
            // SAFETY: the memory stays beside the requests until all of them are done, or for ever.
            let request = unsafe { self.world.send(from.add(start), length, to, tag) }?;
            self.sending[at].requests.push(request);
        }
        Ok(())
    }

    fn take_labels(&mut self) -> bool {
        let mut found = false;
        loop {
            let (at, taken) = match Request::test_any(&mut self.requests) {
                Ok(None) => return found,
                Ok(Some((at, arrived))) => {
                    let (from, place) = &mut self.expected[at];
                    let label = read_label(&place[..arrived.bytes.min(LABEL_BYTES)]);
                    // SAFETY: the engine keeps the memory until the request is done or cancelled, or for ever.
                    let next = unsafe { expect(&self.world, *from, place) }.map(|request| self.requests[at] = request);
                    (at, next.and(label))
                }
                Err((at, error)) => {
                    // MPI may still write there.
                    mem::forget(mem::replace(&mut self.expected[at].1, Box::new([0; LABEL_BYTES])));
                    (at, Err(error))
                }
            };
            found = true;
            let from = self.expected[at].0;
            match taken {
                _ if self.sources[from].is_lost => {}
                Ok(label) => self.sources[from].labels.push_back(label),
                Err(error) => self.lose(from, &error),
            }
        }
    }

    /// Takes what has arrived of the messages of one rank, in order.
    fn take_contents(&mut self, from: usize) -> Result<bool> {
        let mut found = false;
        loop {
            let source = &mut self.sources[from];
            match &mut source.present {
                None => {
                    let Some(label) = source.labels.pop_front() else { return Ok(found) };
                    self.begin(from, label)?;
                    found = true;
                    continue;
                }
                Some(Rest::Contents { requests, .. } | Rest::Tensors { requests, .. }) => {
                    if !all_done(requests)? {
                        return Ok(found);
                    }
                }
            }
            found = true;
            match source.present.take() {
                Some(Rest::Contents { bytes, .. }) => {
                    let contents = postcard::from_bytes(&bytes).map_err(Error::other)?;
                    self.begin(from, Label::Contents(contents))?;
                }
                Some(Rest::Tensors { header, tensors, .. }) => {
                    let tensors = tensors.into_iter().map(Receiving::into_tensor).collect::<Result<_>>()?;
                    self.tell(RankEvent::Message { from, message: RankMessage { header, tensors } });
                }
                None => {}
            }
        }
    }

    /// Begins to receive what follows a label. What has begun stays with the source, also after an error.
    fn begin(&mut self, from: usize, label: Label) -> Result<()> {
        let rest = match label {
            Label::Long(bytes) => Rest::Contents { bytes: vec![0; bytes], requests: Vec::new() },
            Label::Contents(Contents { header, tensors }) => {
                let tensors = tensors.into_iter().map(Receiving::of).collect::<Result<_>>()?;
                Rest::Tensors { header, tensors, requests: Vec::new() }
            }
        };
        let world = &self.world;
        let receive = |(place, bytes): (*mut u8, usize), requests: &mut Vec<Request>| -> Result<()> {
            for (start, length) in pieces(bytes) {
                // SAFETY: the memory stays beside the requests until all of them are done, or for ever.
                requests.push(unsafe { world.receive(place.add(start), length, from, CONTENT) }?);
            }
            Ok(())
        };
        match self.sources[from].present.insert(rest) {
            Rest::Contents { bytes, requests } => receive((bytes.as_mut_ptr(), bytes.len()), requests),
            Rest::Tensors { tensors, requests, .. } => {
                tensors.iter_mut().try_for_each(|tensor| receive(tensor.place(), requests))
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for ((_, place), request) in self.expected.drain(..).zip(self.requests.drain(..)) {
            if !request.is_none() && request.cancel().is_err() {
                mem::forget(place);
            }
        }
        // MPI may still read or write what has not come to its end.
        mem::forget((mem::take(&mut self.sending), mem::take(&mut self.sources)));
    }
}

/// Lets MPI receive one more label from a rank.
///
/// # Safety
/// The memory must stay where it is, and nobody else may read or write it, until the request is done.
unsafe fn expect(world: &World, from: usize, place: &mut [u8; LABEL_BYTES]) -> Result<Request> {
    // SAFETY: as the caller promises.
    unsafe { world.receive(place.as_mut_ptr(), LABEL_BYTES, from, LABEL) }
}

fn read_label(bytes: &[u8]) -> Result<Label> {
    match bytes.split_first() {
        Some((&SHORT, contents)) => Ok(Label::Contents(postcard::from_bytes(contents).map_err(Error::other)?)),
        Some((&LONG, length)) if length.len() == size_of::<usize>() => {
            Ok(Label::Long(length.iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte))))
        }
        _ => Err(Error::Internal("a label of another rank cannot be read".to_owned())),
    }
}

/// Removes the requests that are done. Returns whether none is left.
fn all_done(requests: &mut Vec<Request>) -> Result<bool> {
    while let Some(request) = requests.last_mut() {
        if request.test()?.is_none() {
            return Ok(false);
        }
        requests.pop();
    }
    Ok(true)
}
