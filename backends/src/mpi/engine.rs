//! The loop that makes every call of MPI.

use std::{
    collections::VecDeque,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use candle_core::Tensor;
use interlock::{
    Error, Result,
    ranks::{Arrival, Listener, Parcel},
};
use serde::{Deserialize, Serialize};

use super::{
    calls::{Request, World, pieces},
    elements::{Form, Incoming, place_of},
};

/// The tag of labels, and that of everything that follows a label.
const LABEL: i32 = 1;
const CONTENT: i32 = 2;
/// The most bytes of a label.
const LABEL_BYTES: usize = 2048;
/// How many labels MPI may receive before this program looks.
const LABELS: usize = 16;
/// How long the loop looks for messages without a pause after it has found one.
const BUSY: Duration = Duration::from_micros(100);
/// The shortest and the longest pause of a loop that finds nothing.
const PAUSE: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];

/// How long what is still being sent may take when all ranks are ended.
const SHORT_END: Duration = Duration::from_secs(1);

/// What the loop is told.
pub(super) enum Command {
    Send { to: usize, parcel: Parcel },
    Listen(Listener),
}

/// What comes before the tensors of a parcel.
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

/// A message that is being sent.
struct Sending {
    to: usize,
    /// Its pieces.
    requests: Vec<Request>,
    _memory: Memory,
}

/// What MPI reads from while a message is being sent.
#[expect(dead_code, reason = "it is kept, not read")]
enum Memory {
    Bytes(Vec<u8>),
    Tensor(Tensor),
}

/// The rest of a parcel that is being received.
enum Rest {
    Contents(Vec<u8>, Vec<Request>),
    Tensors { header: Vec<u8>, tensors: Vec<Incoming>, requests: Vec<Request> },
}

/// What comes from one rank.
#[derive(Default)]
struct Source {
    /// Labels whose parcels have not begun to be received.
    labels: VecDeque<Label>,
    present: Option<Rest>,
}

pub(super) struct Engine {
    world: World,
    commands: Receiver<Command>,
    sender: Sender<Command>,
    sending: Vec<Sending>,
    /// Labels that are being received, in order.
    labels: VecDeque<(Box<[u8; LABEL_BYTES]>, Request)>,
    sources: Vec<Source>,
    listener: Option<Listener>,
    /// What has arrived while nobody listened.
    kept: Vec<Arrival>,
    lost: Vec<bool>,
}

impl Engine {
    pub(super) fn start() -> Result<Self> {
        let world = World::start()?;
        let (sender, commands) = channel();
        let size = world.size;
        let mut engine = Self {
            world,
            commands,
            sender,
            sending: Vec::new(),
            labels: VecDeque::new(),
            sources: (0..size).map(|_| Source::default()).collect(),
            listener: None,
            kept: Vec::new(),
            lost: vec![false; size],
        };
        for _ in 0..LABELS {
            engine.expect_label()?;
        }
        Ok(engine)
    }

    pub(super) fn rank(&self) -> usize {
        self.world.rank
    }

    pub(super) fn size(&self) -> usize {
        self.world.size
    }

    pub(super) fn commands(&self) -> Sender<Command> {
        self.sender.clone()
    }

    /// Sends and receives until `is_over`.
    pub(super) fn work_until(&mut self, is_over: impl Fn() -> bool) {
        let (mut found, mut pause) = (Instant::now(), PAUSE[0]);
        while !is_over() {
            if self.turn() {
                (found, pause) = (Instant::now(), PAUSE[0]);
            } else if found.elapsed() > BUSY {
                // Who sends ends the pause.
                thread::park_timeout(pause);
                pause = (pause * 2).min(PAUSE[1]);
            } else {
                thread::yield_now();
            }
        }
    }

    /// Sends what is left, and ends MPI: all ranks at once with this code if `ends_all` is set, or else this one when all others have come here.
    pub(super) fn end(mut self, code: u8, longest: Duration, ends_all: bool) -> Result<u8> {
        let start = Instant::now();
        // What goes to a rank that is lost never leaves.
        let longest_sending = if ends_all { SHORT_END } else { longest };
        while start.elapsed() < longest_sending {
            if !self.turn() {
                if self.sending.is_empty() {
                    break;
                }
                thread::sleep(PAUSE[0]);
            }
        }
        if ends_all {
            self.world.abort(code.into());
        }
        // Another rank may never come to its end, and MPI waits for all.
        let rank = self.rank();
        let last = move || {
            thread::sleep(longest);
            #[expect(clippy::print_stderr, reason = "there is nobody else to tell")]
            {
                eprintln!("error: rank {rank} has ended, and waited {} s for the others", longest.as_secs_f64());
            }
            std::process::exit(code.max(1).into());
        };
        let name = "interlock-end";
        let waits = thread::Builder::new().name(name.to_owned()).spawn(last);
        waits.map_err(|cause| Error::Thread { name, cause })?;
        for (_, request) in self.labels.drain(..) {
            request.cancel()?;
        }
        // MPI may still read or write what did not come to its end.
        std::mem::forget((std::mem::take(&mut self.sending), std::mem::take(&mut self.sources)));
        Ok(code)
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
                std::mem::take(&mut self.kept).into_iter().for_each(&listener);
                self.listener = Some(listener);
            }
            Command::Send { to, .. } if self.lost.get(to) != Some(&false) => {}
            Command::Send { to, parcel } => {
                if let Err(error) = self.send(to, parcel) {
                    self.lose(to, &error);
                }
            }
        }
    }

    fn tell(&mut self, arrival: Arrival) {
        match &self.listener {
            Some(listener) => listener(arrival),
            None => self.kept.push(arrival),
        }
    }

    /// Notes that a rank cannot be reached.
    fn lose(&mut self, rank: usize, error: &Error) {
        if !std::mem::replace(&mut self.lost[rank], true) {
            // MPI may still write into what has not come to its end.
            std::mem::forget(std::mem::take(&mut self.sources[rank]));
            self.tell(Arrival::Lost { rank, cause: error.to_string() });
        }
    }

    fn send(&mut self, to: usize, parcel: Parcel) -> Result<()> {
        let Parcel { header, tensors } = parcel;
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
        self.sending.push(Sending { to, requests: Vec::new(), _memory: memory });
        for (at, length) in pieces(bytes) {
            // SAFETY: the memory stays beside the requests until all of them are done.
            let request = unsafe { self.world.send(from.add(at), length, to, tag) }?;
            self.sending.last_mut().expect("it has just been added").requests.push(request);
        }
        Ok(())
    }

    /// Lets MPI receive one more label.
    fn expect_label(&mut self) -> Result<()> {
        let mut place = Box::new([0; LABEL_BYTES]);
        // SAFETY: the box stays beside the request until it is done.
        let request = unsafe { self.world.receive(place.as_mut_ptr(), LABEL_BYTES, None, LABEL) }?;
        self.labels.push_back((place, request));
        Ok(())
    }

    fn take_labels(&mut self) -> bool {
        let mut found = false;
        while let Some((place, request)) = self.labels.front_mut() {
            let taken = match request.test() {
                Ok(None) => return found,
                Ok(Some(arrived)) => Some((arrived.from, read_label(&place[..arrived.bytes.min(LABEL_BYTES)]))),
                // It is not known which rank it would have come from; who sends to that rank learns it.
                Err(_) => None,
            };
            found = true;
            self.labels.pop_front();
            match taken {
                Some((from, Ok(label))) => self.sources[from].labels.push_back(label),
                Some((from, Err(error))) => self.lose(from, &error),
                None => {}
            }
            if self.expect_label().is_err() {
                return found;
            }
        }
        found
    }

    /// Takes what has arrived of the parcels of one rank, in order.
    fn take_contents(&mut self, from: usize) -> Result<bool> {
        let mut found = false;
        loop {
            let source = &mut self.sources[from];
            let (rest, began) = match source.present.take() {
                Some(rest) => (rest, false),
                None => match source.labels.pop_front() {
                    None => return Ok(found),
                    Some(Label::Contents(contents)) => (self.receive_tensors(from, contents)?, true),
                    Some(Label::Long(bytes)) => (self.receive_contents(from, bytes)?, true),
                },
            };
            found |= began;
            match rest {
                Rest::Contents(bytes, mut requests) => {
                    if !all_done(&mut requests)? {
                        self.sources[from].present = Some(Rest::Contents(bytes, requests));
                        return Ok(found);
                    }
                    let contents = postcard::from_bytes(&bytes).map_err(Error::other)?;
                    self.sources[from].present = Some(self.receive_tensors(from, contents)?);
                }
                Rest::Tensors { header, tensors, mut requests } => {
                    if !all_done(&mut requests)? {
                        self.sources[from].present = Some(Rest::Tensors { header, tensors, requests });
                        return Ok(found);
                    }
                    let tensors = tensors.into_iter().map(Incoming::into_tensor).collect::<Result<_>>()?;
                    self.tell(Arrival::Parcel { from, parcel: Parcel { header, tensors } });
                }
            }
            found = true;
        }
    }

    fn receive_contents(&mut self, from: usize, bytes: usize) -> Result<Rest> {
        let mut place = vec![0; bytes];
        let requests = self.receive_pieces(from, place.as_mut_ptr(), bytes)?;
        Ok(Rest::Contents(place, requests))
    }

    fn receive_tensors(&mut self, from: usize, contents: Contents) -> Result<Rest> {
        let (mut tensors, mut requests) = (Vec::new(), Vec::new());
        for form in contents.tensors {
            let mut incoming = Incoming::of(form)?;
            let (place, bytes) = incoming.place();
            requests.extend(self.receive_pieces(from, place, bytes)?);
            tensors.push(incoming);
        }
        Ok(Rest::Tensors { header: contents.header, tensors, requests })
    }

    fn receive_pieces(&mut self, from: usize, place: *mut u8, bytes: usize) -> Result<Vec<Request>> {
        // SAFETY: whoever calls this keeps the place beside the requests until they are done.
        pieces(bytes)
            .map(|(at, length)| unsafe { self.world.receive(place.add(at), length, Some(from), CONTENT) })
            .collect()
    }
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
