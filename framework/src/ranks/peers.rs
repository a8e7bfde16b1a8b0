//! What a rank knows of the others, and where it takes what they send.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Communicator, PULSE, RankEvent, RankMessage};
use crate::{Error, Failure, Origin, Phase, Result, watch::Activity};

/// What reaches the pipeline of this rank.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A message of another rank.
    Message { from: usize, message: RankMessage },
    /// A rank that is lost.
    Lost { rank: usize, cause: String },
}

/// Takes what reaches the pipeline of this rank. Returns whether the pipeline goes on; if not, what comes later is for the next one.
type Route = Box<dyn Fn(Incoming) -> bool + Send + Sync>;

/// What a message is for: the first byte of its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RankMessageKind {
    /// The rank is there.
    Pulse = 0,
    /// It is for the pipeline.
    Pipeline = 1,
    /// Rank 0 shares it.
    Shared = 2,
    /// The program of the rank has ended.
    Left = 3,
    /// It is to be answered at once, so that the time can be measured.
    Echo = 4,
    /// The answer.
    Echoed = 5,
}

impl RankMessageKind {
    const ALL: [Self; 6] = [Self::Pulse, Self::Pipeline, Self::Shared, Self::Left, Self::Echo, Self::Echoed];

    /// Returns a message of this kind without tensors.
    pub(super) fn message(self, rest: &[u8]) -> RankMessage {
        RankMessage { header: [&[self as u8], rest].concat(), tensors: Vec::new() }
    }

    /// Takes the kind off the header of a message.
    fn taken_off(message: &mut RankMessage) -> Option<Self> {
        let kind = *message.header.first()?;
        message.header.remove(0);
        Self::ALL.into_iter().find(|known| *known as u8 == kind)
    }
}

/// The sign of a rank that it is there, and whether its stages do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pulse {
    /// How often what its stages do has changed.
    changes: u64,
    /// Whether none of them does anything.
    is_idle: bool,
}

/// What is known of one rank.
#[derive(Clone, Copy)]
struct Peer {
    /// How many pulses this rank has sent since it heard of the other.
    silence: u32,
    is_lost: bool,
    /// Whether its program has ended.
    has_left: bool,
    pulse: Pulse,
    /// Whether it has done something since it was last asked for.
    moves: bool,
}

/// What is known of the other ranks.
pub(super) struct Peers {
    rank: usize,
    timeout: Duration,
    route: Option<Route>,
    /// What came while there was no route.
    kept: Vec<Incoming>,
    peers: Vec<Peer>,
    /// What the stages of this rank do.
    activities: Vec<Arc<Activity>>,
    share: Sender<Result<Vec<u8>>>,
    /// Takes the ranks that have answered.
    echoed: Sender<usize>,
}

pub(super) fn lock(peers: &Mutex<Peers>) -> MutexGuard<'_, Peers> {
    peers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    pub(super) fn new(
        communicator: &dyn Communicator,
        timeout: Duration,
        share: Sender<Result<Vec<u8>>>,
        echoed: Sender<usize>,
    ) -> Self {
        let pulse = Pulse { changes: 0, is_idle: true };
        let peers =
            vec![Peer { silence: 0, is_lost: false, has_left: false, pulse, moves: false }; communicator.size()];
        let (rank, activities) = (communicator.rank(), Vec::new());
        Self { rank, timeout, route: None, kept: Vec::new(), peers, activities, share, echoed }
    }

    pub(super) fn has_lost(&self, rank: usize) -> bool {
        self.peers.get(rank).is_some_and(|peer| peer.is_lost)
    }

    /// Gives what comes, and what has come already, to `route`.
    pub(super) fn open(&mut self, activities: Vec<Arc<Activity>>, route: Route) {
        (self.activities, self.route) = (activities, Some(route));
        // Nothing overtakes what was kept: what comes meanwhile waits for this.
        std::mem::take(&mut self.kept).into_iter().for_each(|incoming| self.give(incoming));
        for rank in 0..self.peers.len() {
            let Peer { is_lost, has_left, .. } = self.peers[rank];
            if is_lost || has_left {
                self.give(Incoming::Lost { rank, cause: "it is lost, or its program has ended".to_owned() });
            }
        }
    }

    pub(super) fn close(&mut self) {
        (self.route, self.activities) = (None, Vec::new());
    }

    /// Returns whether another rank has done something since this was last asked.
    pub(super) fn move_elsewhere(&mut self) -> bool {
        let others = self.peers.iter_mut().enumerate().filter(|(rank, _)| *rank != self.rank).map(|(_, peer)| peer);
        // All of them, since each forgets what it has been asked for.
        others.filter_map(|peer| (std::mem::take(&mut peer.moves) || !peer.pulse.is_idle).then_some(())).count() > 0
    }

    /// Looks for the other ranks, and returns what tells them that this one is there. It counts pulses and reads no clock, so that the time in which this
    /// program was stopped does not count.
    pub(super) fn pulse(&mut self) -> RankMessage {
        let own = self.rank;
        for rank in (0..self.peers.len()).filter(|&rank| rank != own) {
            let peer = &mut self.peers[rank];
            peer.silence = peer.silence.saturating_add(1);
            if PULSE * (peer.silence - 1) > self.timeout {
                self.lose(rank, format!("nothing has come from it for {} s", self.timeout.as_secs_f64()));
            }
        }
        let present = self.activities.iter().map(|activity| activity.summary());
        let pulse = present.fold(Pulse { changes: 0, is_idle: true }, |sum, (changes, is_idle)| Pulse {
            changes: sum.changes + changes,
            is_idle: sum.is_idle && is_idle,
        });
        // A number and a truth value can always be written.
        RankMessageKind::Pulse.message(&postcard::to_stdvec(&pulse).unwrap_or_default())
    }

    /// Takes what the communicator brings. Returns an answer to send, and the rank that it is for.
    pub(super) fn take(&mut self, event: RankEvent) -> Option<(usize, RankMessage)> {
        let (from, mut message) = match event {
            RankEvent::Message { from, message } => (from, message),
            RankEvent::Lost { rank, cause } => {
                self.lose(rank, cause);
                return None;
            }
        };
        let peer = self.peers.get_mut(from)?;
        peer.silence = 0;
        match RankMessageKind::taken_off(&mut message) {
            Some(RankMessageKind::Pulse) => {
                if let Ok(pulse) = postcard::from_bytes::<Pulse>(&message.header) {
                    peer.moves |= pulse.changes != peer.pulse.changes;
                    peer.pulse = pulse;
                }
            }
            Some(RankMessageKind::Pipeline) => {
                peer.moves = true;
                self.give(Incoming::Message { from, message });
            }
            // The receiver lives as long as the ranks.
            Some(RankMessageKind::Shared) => drop(self.share.send(Ok(message.header))),
            Some(RankMessageKind::Left) => {
                peer.has_left = true;
                self.tell_of_loss(from, "its program has ended; see its output".to_owned());
            }
            Some(RankMessageKind::Echo) => return Some((from, RankMessageKind::Echoed.message(&[]))),
            // The same.
            Some(RankMessageKind::Echoed) => drop(self.echoed.send(from)),
            None => self.lose(from, "what it sends cannot be read; start the same program on all ranks".to_owned()),
        }
        None
    }

    /// Notes that a rank cannot be reached, and tells those who wait for it.
    fn lose(&mut self, rank: usize, cause: String) {
        let Some(peer) = self.peers.get_mut(rank).filter(|peer| !peer.is_lost) else { return };
        peer.is_lost = true;
        self.tell_of_loss(rank, cause);
    }

    /// Tells those who wait for a rank that it does nothing more.
    fn tell_of_loss(&mut self, rank: usize, cause: String) {
        if rank == 0 {
            let failure = Failure::new(Origin::Rank(rank), Phase::Transfer, Error::RankLost(cause.clone()));
            let _ = self.share.send(Err(failure.into()));
        }
        // Without a pipeline, the next one is told that it is lost.
        if self.route.is_some() {
            self.give(Incoming::Lost { rank, cause });
        }
    }

    fn give(&mut self, incoming: Incoming) {
        let Some(route) = &self.route else { return self.kept.push(incoming) };
        if !route(incoming) {
            self.route = None;
        }
    }
}
