//! The ranks of a run: the processes that train one model together, each with some of its stages.

mod links;
mod packing;
mod peers;
mod spread;

pub(crate) use packing::{packed, unpacked};
pub(crate) use peers::Incoming;
pub(crate) use spread::{Spread, share_of};

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use candle_core::Tensor;

use crate::{Error, Result, watch::Activity};
use peers::{Peers, RankMessageKind};

/// What one rank sends to another: a header, and tensors.
///
/// Every tensor is contiguous and on the host, so that a communicator can send its elements from where they lie. They do not change before they have
/// been sent.
#[derive(Clone, Debug)]
pub struct RankMessage {
    /// The header.
    pub header: Vec<u8>,
    /// The tensors.
    pub tensors: Vec<Tensor>,
}

/// The machine of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name. Ranks of the same name are on one machine.
    pub name: String,
    /// How many cores a process of it may use.
    pub cores: usize,
}

/// What a communicator tells its listener.
#[derive(Debug)]
pub enum RankEvent {
    /// A message has arrived.
    Message {
        /// The rank that sent it.
        from: usize,
        /// The message.
        message: RankMessage,
    },
    /// A rank cannot be reached any more.
    Lost {
        /// The rank.
        rank: usize,
        /// The reason.
        cause: String,
    },
}

/// Receives what arrives at a rank.
pub type Listener = Box<dyn Fn(RankEvent) + Send>;

/// The connection of one rank to all others, such as MPI.
///
/// Calls come from any thread and return without waiting for other ranks.
pub trait Communicator: Send + Sync + 'static {
    /// Returns the number of this rank, counted from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn size(&self) -> usize;

    /// Returns the host of each rank. By default all are on this one.
    fn hosts(&self) -> Vec<Host> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        vec![Host { name: String::new(), cores }; self.size()]
    }

    /// Hands a message over to be sent to rank `to`. Messages from one rank to another arrive in order.
    ///
    /// # Errors
    /// If it cannot be sent.
    fn send(&self, to: usize, message: RankMessage) -> Result<()>;

    /// Sets who receives all that arrives and has arrived. [`Ranks`] calls this once. The listener returns soon. It may call [`Self::send`], so hold no lock
    /// that `send` takes while you call it.
    fn listen(&self, listener: Listener);
}

/// The ranks that train one model together. Rank 0 has the [`Trainer`](crate::Trainer); the others
/// [serve](crate::TrainerBuilder::serve) their stages to it.
///
/// A clone is another handle of the same ranks.
#[derive(Clone)]
pub struct Ranks(Arc<RanksInner>);

struct RanksInner {
    communicator: Arc<dyn Communicator>,
    /// How long a rank may be silent.
    timeout: Duration,
    /// The pipelines so far. All ranks count them alike, so that what is left of one is not taken for a part of the next.
    pipelines: AtomicU64,
    peers: Arc<Mutex<Peers>>,
    /// What rank 0 has shared; an error if it is lost.
    shared: Mutex<Receiver<Result<Vec<u8>>>>,
    /// The ranks that have answered an echo.
    echoes: Mutex<Receiver<usize>>,
    /// Dropped with the last handle; this ends the thread of the pulses.
    _until: Sender<()>,
}

/// How long a rank may be silent, by default.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The shortest such time.
const SHORTEST: Duration = Duration::from_secs(1);
/// The time from one sign of life to the next.
const PULSE: Duration = Duration::from_millis(200);

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ranks").field("rank", &self.rank()).field("size", &self.size()).finish_non_exhaustive()
    }
}

impl Ranks {
    /// The ranks that a communicator connects. Each tells the others five times a second that it is there, whatever its stages do. One that is silent for
    /// 30 s is lost, and the run fails.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn new(communicator: impl Communicator) -> Result<Self> {
        Self::with_timeout(Arc::new(communicator), TIMEOUT)
    }

    /// The same with another time for which a rank may be silent, at least 1 s.
    ///
    /// # Errors
    /// If it is shorter, or the system has no thread left.
    pub fn with_timeout(communicator: Arc<dyn Communicator>, timeout: Duration) -> Result<Self> {
        if timeout < SHORTEST {
            let problem = format!("{} s", timeout.as_secs_f64());
            return Err(Error::invalid("timeout of ranks", problem, "use 1 s or more"));
        }
        let (share, shared) = channel();
        let (echoed, echoes) = channel();
        let peers = Arc::new(Mutex::new(Peers::new(&*communicator, timeout, share, echoed)));
        let (until, over) = channel();
        let (known, sender) = (Arc::clone(&peers), Arc::clone(&communicator));
        let name = "interlock-ranks";
        let pulses = move || {
            while let Err(RecvTimeoutError::Timeout) = over.recv_timeout(PULSE) {
                let pulse = peers::lock(&known).pulse();
                for rank in (0..sender.size()).filter(|&rank| rank != sender.rank()) {
                    // A rank that cannot be sent to is silent soon.
                    let _ = sender.send(rank, pulse.clone());
                }
            }
        };
        // It ends by itself.
        drop(
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(pulses)
                .map_err(|cause| Error::Thread { name, cause })?,
        );
        let known = Arc::clone(&peers);
        // The communicator keeps the listener.
        let answers = Arc::downgrade(&communicator);
        communicator.listen(Box::new(move |event| {
            let answer = peers::lock(&known).take(event);
            if let (Some((to, message)), Some(communicator)) = (answer, answers.upgrade()) {
                // A rank that cannot be sent to is silent soon.
                let _ = communicator.send(to, message);
            }
        }));
        let (shared, echoes, pipelines) = (Mutex::new(shared), Mutex::new(echoes), AtomicU64::new(0));
        Ok(Self(Arc::new(RanksInner { communicator, timeout, pipelines, peers, shared, echoes, _until: until })))
    }

    /// Returns the number of this rank, counted from 0.
    pub fn rank(&self) -> usize {
        self.0.communicator.rank()
    }

    /// Returns the number of ranks.
    pub fn size(&self) -> usize {
        self.0.communicator.size()
    }

    /// Returns the host of each rank.
    pub fn hosts(&self) -> Vec<Host> {
        self.0.communicator.hosts()
    }

    /// Returns the number of a rank among those of its host, and how many these are.
    pub fn place_on_host(&self, rank: usize) -> (usize, usize) {
        let hosts = self.hosts();
        let name = |rank: usize| hosts.get(rank).map(|host| &host.name);
        let count = |ranks: std::ops::Range<usize>| ranks.filter(|other| name(*other) == name(rank)).count();
        (count(0..rank), count(0..self.size()))
    }

    /// Returns how long a rank may be silent.
    pub fn timeout(&self) -> Duration {
        self.0.timeout
    }

    /// Returns whether a rank is known to be lost: it is silent, or cannot be understood or reached.
    pub fn has_lost(&self, rank: usize) -> bool {
        peers::lock(&self.0.peers).has_lost(rank)
    }

    /// Sends the other ranks what they need before they can serve, such as a configuration. Call it on rank 0.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn share(&self, bytes: &[u8]) -> Result<()> {
        (1..self.size()).try_for_each(|rank| self.0.communicator.send(rank, RankMessageKind::Shared.message(bytes)))
    }

    /// Waits for what rank 0 [shares](Self::share) next. Call it on other ranks.
    ///
    /// # Errors
    /// If rank 0 is lost.
    pub fn shared(&self) -> Result<Vec<u8>> {
        let shared = self.0.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.recv().unwrap_or_else(|_| Err(Error::Ended("rank 0".to_owned())))
    }

    /// Tells the others that the program of this rank has ended, so that none of them waits for it.
    pub fn leave(&self) {
        for rank in (0..self.size()).filter(|&rank| rank != self.rank()) {
            // One that cannot be told is lost or has ended.
            let _ = self.0.communicator.send(rank, RankMessageKind::Left.message(&[]));
        }
    }

    /// Counts one more pipeline and returns its number.
    pub(crate) fn next_pipeline(&self) -> u64 {
        self.0.pipelines.fetch_add(1, Relaxed) + 1
    }

    /// Sends a message of the pipeline.
    pub(crate) fn send(&self, to: usize, message: RankMessage) -> Result<()> {
        let RankMessage { header, tensors } = message;
        self.0.communicator.send(to, RankMessage { tensors, ..RankMessageKind::Pipeline.message(&header) })
    }

    /// Gives what comes, and what has come already, to `route`, until [`Self::close`] or until it returns false, which ends the pipeline. `activities` says what
    /// the stages of this rank do.
    pub(crate) fn open(
        &self,
        activities: Vec<Arc<Activity>>,
        route: impl Fn(Incoming) -> bool + Send + Sync + 'static,
    ) {
        peers::lock(&self.0.peers).open(activities, Box::new(route));
    }

    /// Keeps what comes for the next pipeline.
    pub(crate) fn close(&self) {
        peers::lock(&self.0.peers).close();
    }

    /// Returns whether another rank has done something since this was last asked.
    pub(crate) fn move_elsewhere(&self) -> bool {
        peers::lock(&self.0.peers).move_elsewhere()
    }
}
