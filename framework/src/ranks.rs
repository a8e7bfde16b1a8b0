//! The ranks of a run: the processes that train one model together, each with some of its stages.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Failure, Origin, Phase, Result, watch::Activity};

/// What one rank sends to another: a header, and tensors.
///
/// Every tensor is contiguous and on the host, so that a communicator can send its elements from where they lie. They must not change before they have
/// been sent.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// The header.
    pub header: Vec<u8>,
    /// The tensors.
    pub tensors: Vec<Tensor>,
}

/// What a communicator tells its listener.
#[derive(Debug)]
pub enum Arrival {
    /// A parcel.
    Parcel {
        /// The rank that sent it.
        from: usize,
        /// The parcel.
        parcel: Parcel,
    },
    /// A rank that cannot be reached any more.
    Lost {
        /// The rank.
        rank: usize,
        /// What is known of it.
        cause: String,
    },
}

/// Receives what arrives at a rank.
pub type Listener = Box<dyn Fn(Arrival) + Send>;

/// The connection of one rank to all others, such as MPI.
///
/// Calls come from any thread and return without waiting for the other ranks.
pub trait Communicator: Send + Sync + 'static {
    /// Returns the number of this rank, counted from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn size(&self) -> usize;

    /// Hands a parcel over to be sent to rank `to`. Parcels from one rank to another arrive in order.
    ///
    /// # Errors
    /// If it cannot be sent.
    fn send(&self, to: usize, parcel: Parcel) -> Result<()>;

    /// Sets who receives all that arrives and has arrived. [`Ranks`] calls this once. The listener returns soon; it is called by a thread that does not
    /// call [`Self::send`], or not inside of it.
    fn listen(&self, listener: Listener);
}

/// What reaches the pipeline of this rank.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A message of another rank.
    Message { from: usize, parcel: Parcel },
    /// A rank that is lost.
    Lost { rank: usize, cause: String },
}

/// Takes what reaches the pipeline of this rank. Returns whether the pipeline goes on; if not, what comes later is for the next one.
type Route = Arc<dyn Fn(Incoming) -> bool + Send + Sync>;

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
    state: Arc<Mutex<RanksState>>,
    /// What rank 0 has shared; an error if it is lost.
    shared: Mutex<Receiver<Result<Vec<u8>>>>,
    /// Dropped with the last handle; this ends the thread of the pulses.
    _until: Sender<()>,
}

/// What is known of the other ranks.
struct RanksState {
    rank: usize,
    route: Option<Route>,
    /// What came while there was no route.
    kept: Vec<Incoming>,
    peers: Vec<Peer>,
    /// What the stages of this rank do.
    activities: Vec<Arc<Activity>>,
    share: Sender<Result<Vec<u8>>>,
}

/// What is known of one rank.
#[derive(Clone, Copy, Default)]
struct Peer {
    /// How often this rank has looked for it since it was heard last.
    looks: u32,
    is_lost: bool,
    pulse: Pulse,
    /// Whether it has done something since it was last asked for.
    moves: bool,
}

/// The sign of a rank that it is there, and whether its stages do something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pulse {
    /// How often what its stages do has changed.
    changes: u64,
    /// Whether none of them does anything.
    is_idle: bool,
}

/// The first byte of a header: a pulse, a message to the pipeline, or what rank 0 shares.
const PULSE: u8 = 0;
const MESSAGE: u8 = 1;
const SHARED: u8 = 2;
/// How often a rank looks for another in the time that it may be silent.
const LOOKS: u32 = 8;
/// How long a rank may be silent, by default.
const TIMEOUT: Duration = Duration::from_secs(30);

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ranks").field("rank", &self.rank()).field("size", &self.size()).finish_non_exhaustive()
    }
}

impl Ranks {
    /// The ranks that a communicator connects. Each tells the others several times in 30 s that it is there, whatever its stages do. One that is silent for
    /// longer is lost, and the run fails.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn new(communicator: impl Communicator) -> Result<Self> {
        Self::with_timeout(Arc::new(communicator), TIMEOUT)
    }

    /// The same with another time for which a rank may be silent. It must be the same for all ranks.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn with_timeout(communicator: Arc<dyn Communicator>, timeout: Duration) -> Result<Self> {
        let peers = vec![Peer::default(); communicator.size()];
        let (share, shared) = channel();
        let state = RanksState {
            rank: communicator.rank(),
            route: None,
            kept: Vec::new(),
            peers,
            activities: Vec::new(),
            share,
        };
        let state = Arc::new(Mutex::new(state));
        let (until, over) = channel();
        let (known, sender) = (Arc::clone(&state), Arc::clone(&communicator));
        let name = "interlock-ranks";
        let pulses = move || {
            while let Err(RecvTimeoutError::Timeout) = over.recv_timeout(timeout / LOOKS) {
                look(&known, &*sender, timeout);
            }
        };
        // It ends by itself.
        drop(
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(pulses)
                .map_err(|cause| Error::Thread { name, cause })?,
        );
        let known = Arc::clone(&state);
        communicator.listen(Box::new(move |arrival| arrived(&known, arrival)));
        let (shared, pipelines) = (Mutex::new(shared), AtomicU64::new(0));
        Ok(Self(Arc::new(RanksInner { communicator, timeout, pipelines, state, shared, _until: until })))
    }

    /// Returns the number of this rank, counted from 0.
    pub fn rank(&self) -> usize {
        self.0.communicator.rank()
    }

    /// Returns the number of ranks.
    pub fn size(&self) -> usize {
        self.0.communicator.size()
    }

    /// Returns how long a rank may be silent.
    pub fn timeout(&self) -> Duration {
        self.0.timeout
    }

    /// Returns whether a rank is known to be lost.
    pub fn has_lost(&self, rank: usize) -> bool {
        lock(&self.0.state).peers.get(rank).is_some_and(|peer| peer.is_lost)
    }

    /// Sends the other ranks what they need before they can serve, such as a configuration. Call it on rank 0.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn share(&self, bytes: &[u8]) -> Result<()> {
        let header = [&[SHARED], bytes].concat();
        (1..self.size())
            .try_for_each(|rank| self.0.communicator.send(rank, Parcel { header: header.clone(), tensors: Vec::new() }))
    }

    /// Waits for what rank 0 [shares](Self::share) next. Call it on other ranks.
    ///
    /// # Errors
    /// If rank 0 is lost.
    pub fn shared(&self) -> Result<Vec<u8>> {
        let shared = self.0.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.recv().unwrap_or_else(|_| Err(Error::Ended("rank 0".to_owned())))
    }

    /// Counts one more pipeline and returns its number.
    pub(crate) fn next_pipeline(&self) -> u64 {
        self.0.pipelines.fetch_add(1, Relaxed) + 1
    }

    /// Sends a message.
    pub(crate) fn send(&self, to: usize, mut parcel: Parcel) -> Result<()> {
        parcel.header.insert(0, MESSAGE);
        self.0.communicator.send(to, parcel)
    }

    /// Gives what comes, and what has come already, to `route`, until [`Self::close`]. `activities` says what the stages of this rank do.
    pub(crate) fn open(
        &self,
        activities: Vec<Arc<Activity>>,
        route: impl Fn(Incoming) -> bool + Send + Sync + 'static,
    ) {
        let mut state = lock(&self.0.state);
        state.activities = activities;
        state.route = Some(Arc::new(route));
        // Nothing overtakes what was kept: what comes meanwhile waits for the lock.
        std::mem::take(&mut state.kept).into_iter().for_each(|incoming| state.give(incoming));
        let lost = |(rank, peer): (usize, &Peer)| peer.is_lost.then(|| silent(rank, self.0.timeout));
        let lost: Vec<_> = state.peers.iter().enumerate().filter_map(lost).collect();
        lost.into_iter().for_each(|incoming| state.give(incoming));
    }

    /// Keeps what comes for the next pipeline.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.0.state);
        (state.route, state.activities) = (None, Vec::new());
    }

    /// Returns whether another rank has done something since this was last asked.
    pub(crate) fn move_elsewhere(&self) -> bool {
        let mut state = lock(&self.0.state);
        let watched = state.watched();
        let peers = &mut state.peers[watched];
        peers.iter_mut().fold(false, |moves, peer| std::mem::take(&mut peer.moves) || !peer.pulse.is_idle || moves)
    }
}

fn lock(state: &Mutex<RanksState>) -> MutexGuard<'_, RanksState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn silent(rank: usize, timeout: Duration) -> Incoming {
    Incoming::Lost { rank, cause: format!("nothing has come from it for {} s", timeout.as_secs_f64()) }
}

impl RanksState {
    /// The ranks that this one watches: rank 0 all others, and these rank 0.
    fn watched(&self) -> std::ops::Range<usize> {
        if self.rank == 0 { 1..self.peers.len() } else { 0..1 }
    }

    fn give(&mut self, incoming: Incoming) {
        if let Incoming::Lost { rank: rank @ 0, cause } = &incoming {
            let failure = Failure::new(Origin::Rank(*rank), Phase::Transfer, Error::RankLost(cause.clone()));
            let _ = self.share.send(Err(failure.into()));
        }
        let Some(route) = &self.route else { return self.kept.push(incoming) };
        if !route(incoming) {
            self.route = None;
        }
    }
}

/// Tells the other ranks that this one is there, and looks for them.
fn look(state: &Mutex<RanksState>, communicator: &dyn Communicator, timeout: Duration) {
    let mut state = lock(state);
    let present = state.activities.iter().map(|activity| activity.summary());
    let pulse = present.fold(Pulse { changes: 0, is_idle: true }, |sum, (changes, is_idle)| Pulse {
        changes: sum.changes + changes,
        is_idle: sum.is_idle && is_idle,
    });
    // A pulse is a number and a truth value.
    let mut header = vec![PULSE];
    header.extend(postcard::to_stdvec(&pulse).unwrap_or_default());
    for rank in state.watched() {
        if state.peers[rank].is_lost {
            continue;
        }
        // A rank that cannot be sent to is silent soon.
        let _ = communicator.send(rank, Parcel { header: header.clone(), tensors: Vec::new() });
        state.peers[rank].looks += 1;
        // The first look may come right after a pulse.
        if state.peers[rank].looks > LOOKS + 1 {
            state.peers[rank].is_lost = true;
            // Without a pipeline it is told to the next one.
            if state.route.is_some() || rank == 0 {
                state.give(silent(rank, timeout));
            }
        }
    }
}

/// Takes what the communicator brings.
fn arrived(state: &Mutex<RanksState>, arrival: Arrival) {
    let mut state = lock(state);
    match arrival {
        Arrival::Parcel { from, mut parcel } => {
            let Some(peer) = state.peers.get_mut(from) else { return };
            peer.looks = 0;
            let kind = parcel.header.first().copied();
            if kind == Some(PULSE) {
                if let Ok(pulse) = postcard::from_bytes::<Pulse>(&parcel.header[1..]) {
                    peer.moves |= pulse.changes != peer.pulse.changes;
                    peer.pulse = pulse;
                }
                return;
            }
            peer.moves = true;
            if !parcel.header.is_empty() {
                parcel.header.remove(0);
            }
            if kind == Some(SHARED) {
                // The receiver lives as long as the ranks.
                let _ = state.share.send(Ok(parcel.header));
                return;
            }
            state.give(Incoming::Message { from, parcel });
        }
        Arrival::Lost { rank, cause } => {
            let Some(peer) = state.peers.get_mut(rank).filter(|peer| !peer.is_lost) else { return };
            peer.is_lost = true;
            state.give(Incoming::Lost { rank, cause });
        }
    }
}

/// The ranks of a run, and the rank of each stage.
#[derive(Clone, Debug)]
pub struct Spread {
    /// The ranks.
    pub ranks: Ranks,
    /// The rank of each stage.
    pub homes: Vec<usize>,
    /// What all ranks must agree in, a line each.
    pub agreement: String,
}

impl Spread {
    /// Spreads `stages` stages over ranks: `given` has the stages of each rank; by default each has about as many, in order.
    ///
    /// # Errors
    /// If there are fewer stages than ranks, or `given` does not name every stage once, or has another number of ranks.
    pub fn new(ranks: Ranks, stages: usize, given: Option<&[Vec<usize>]>) -> Result<Self> {
        let refuse = |problem: String, remedy: String| Err(Error::invalid("placement.stages", problem, remedy));
        let size = ranks.size();
        let Some(given) = given else {
            if stages < size {
                let remedy = format!("start at most {stages}, or cut the model into {size} stages");
                return Err(Error::invalid("ranks", format!("{size} ranks for {stages} stages"), remedy));
            }
            // The first ranks have one more, if they cannot all have as many.
            let homes = (0..size).flat_map(|rank| {
                let own = stages / size + usize::from(rank < stages % size);
                std::iter::repeat_n(rank, own)
            });
            return Ok(Self { ranks, homes: homes.collect(), agreement: String::new() });
        };
        if given.len() != size {
            return refuse(format!("lists for {} ranks", given.len()), format!("there are {size}"));
        }
        let mut homes = vec![None; stages];
        for (rank, own) in given.iter().enumerate() {
            for &stage in own {
                match homes.get_mut(stage) {
                    Some(home @ None) => *home = Some(rank),
                    Some(Some(_)) => return refuse(format!("stage {stage} twice"), "name each stage once".to_owned()),
                    None => {
                        let remedy = format!("stages are 0 to {}", stages - 1);
                        return refuse(format!("stage {stage}"), remedy);
                    }
                }
            }
        }
        match homes.iter().position(Option::is_none) {
            Some(stage) => refuse(format!("stage {stage} is missing"), "name each stage once".to_owned()),
            None => {
                let homes = homes.into_iter().flatten().collect();
                Ok(Self { ranks, homes, agreement: String::new() })
            }
        }
    }

    /// Returns the stages of a rank.
    pub fn stages_of(&self, rank: usize) -> Vec<usize> {
        (0..self.homes.len()).filter(|&stage| self.homes[stage] == rank).collect()
    }

    /// Returns whether a stage is in this process.
    pub(crate) fn is_here(&self, stage: usize) -> bool {
        self.homes[stage] == self.ranks.rank()
    }
}

/// Returns a contiguous tensor on the host with the elements in the order in which they lie in memory, and the axes of `tensor` in that order.
pub(crate) fn packed(tensor: &Tensor) -> Result<(Tensor, Vec<u8>)> {
    let tensor = tensor.detach().to_device(&Device::Cpu)?;
    let mut axes: Vec<usize> = (0..tensor.rank()).collect();
    // Of axes with equal strides, such as those of one element, the order does not matter; it stays.
    axes.sort_by_key(|&axis| std::cmp::Reverse(tensor.stride()[axis]));
    let in_memory = tensor.permute(&*axes)?;
    match in_memory.is_contiguous() {
        true => Ok((in_memory, axes.into_iter().map(|axis| axis as u8).collect())),
        false => Ok((tensor.contiguous()?, (0..tensor.rank() as u8).collect())),
    }
}

/// Returns the tensor that [`packed`] made `tensor` of.
///
/// # Errors
/// If `axes` are not the axes of it.
pub(crate) fn unpacked(tensor: &Tensor, axes: &[u8]) -> Result<Tensor> {
    let places: Option<Vec<usize>> =
        (0..axes.len()).map(|axis| axes.iter().position(|&there| usize::from(there) == axis)).collect();
    match places.filter(|places| places.len() == tensor.rank()) {
        Some(places) => Ok(tensor.permute(&*places)?),
        None => Err(Error::Internal(format!("a tensor of shape {:?} arrived with axes {axes:?}", tensor.dims()))),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    struct Alone(usize);

    impl Communicator for Alone {
        fn rank(&self) -> usize {
            0
        }

        fn size(&self) -> usize {
            self.0
        }

        fn send(&self, _: usize, _: Parcel) -> Result<()> {
            Ok(())
        }

        fn listen(&self, _: Listener) {}
    }

    #[test]
    fn stages_are_spread_in_order_or_as_given() {
        let spread =
            |ranks, stages, given: Option<&[Vec<usize>]>| Spread::new(Ranks::new(Alone(ranks)).unwrap(), stages, given);
        assert_eq!(spread(3, 8, None).unwrap().homes, [0, 0, 0, 1, 1, 1, 2, 2]);
        assert_eq!(spread(2, 2, None).unwrap().homes, [0, 1]);
        let given = spread(2, 3, Some(&[vec![2, 0], vec![1]])).unwrap();
        assert_eq!((given.homes.clone(), given.stages_of(0)), (vec![0, 1, 0], vec![0, 2]));
        assert!(given.is_here(0) && !given.is_here(1));
        let refused =
            |ranks, stages, given: Option<&[Vec<usize>]>| spread(ranks, stages, given).unwrap_err().to_string();
        assert!(refused(3, 2, None).contains("3 ranks for 2 stages; start at most 2"));
        assert!(refused(2, 2, Some(&[vec![0, 1]])).contains("lists for 1 ranks"));
        assert!(refused(2, 2, Some(&[vec![0], vec![0]])).contains("stage 0 twice"));
        assert!(refused(2, 2, Some(&[vec![0], vec![2]])).contains("stage 2; stages are 0 to 1"));
        assert!(refused(2, 2, Some(&[vec![0], vec![]])).contains("stage 1 is missing"));
    }

    #[test]
    fn tensors_keep_values_and_layout() {
        let values = Tensor::arange(0_f32, 120.0, &Device::Cpu).unwrap().reshape((2, 3, 4, 5)).unwrap();
        let channels_last = values.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap().permute((0, 3, 1, 2)).unwrap();
        let some = values.narrow(1, 1, 2).unwrap();
        let scalar = Tensor::new(3_u32, &Device::Cpu).unwrap();
        for tensor in [values, channels_last, some, scalar] {
            let (packed, axes) = packed(&tensor).unwrap();
            assert!(packed.is_contiguous());
            let back = unpacked(&packed, &axes).unwrap();
            assert_eq!(back.dims(), tensor.dims());
            let flat = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(&back), flat(&tensor));
            if packed.elem_count() == 120 {
                assert_eq!(back.stride(), tensor.stride());
            }
        }
        let two = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
        for axes in [&[0_u8][..], &[0, 0], &[1, 2], &[0, 1, 2]] {
            assert!(unpacked(&two, axes).is_err(), "{axes:?}");
        }
    }
}
