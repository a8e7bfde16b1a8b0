//! Ranks in one process: each with a thread that brings it what others send.
#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed},
        mpsc::{Sender, channel},
    },
    thread,
    time::Duration,
};

use interlock::{
    Result,
    ranks::{Communicator, Listener, RankEvent, RankMessage, Ranks},
};

/// One rank of a group.
pub struct Member {
    rank: usize,
    /// To each rank.
    others: Vec<Sender<RankMessage>>,
    listener: Arc<(Mutex<Option<Listener>>, Condvar)>,
    /// What does not leave it any more: nothing, [`MESSAGES`] or [`ALL`].
    is_cut: Arc<AtomicU8>,
    /// How many messages with a stage's state have gone to rank 0.
    states: Arc<AtomicUsize>,
}

/// More tensors than any other message has.
const MANY: usize = 5;

/// Messages of the pipeline, but not the signs that the rank is there.
pub const MESSAGES: u8 = 1;
pub const ALL: u8 = 2;

impl Communicator for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.others.len()
    }

    fn send(&self, to: usize, message: RankMessage) -> Result<()> {
        // The first byte of the header tells messages of the pipeline apart.
        let is_cut = match self.is_cut.load(Relaxed) {
            0 => false,
            MESSAGES => message.header[0] == 1,
            _ => true,
        };
        if to == 0 && message.tensors.len() >= MANY {
            self.states.fetch_add(1, Relaxed);
        }
        if !is_cut {
            // A rank that has ended receives nothing.
            let _ = self.others[to].send(message);
        }
        Ok(())
    }

    fn listen(&self, listener: Listener) {
        *self.listener.0.lock().unwrap() = Some(listener);
        self.listener.1.notify_all();
    }
}

/// Returns the ranks of a group, and for each what cuts it off. `lag` says how long each message takes from one rank to another.
pub fn group(
    size: usize,
    timeout: Duration,
    lag: impl Fn(usize, usize) -> Duration,
) -> (Vec<Ranks>, Vec<Arc<AtomicU8>>) {
    let (ranks, cuts, _) = counted_group(size, timeout, lag);
    (ranks, cuts)
}

/// The same, with the number of messages with a stage's state that have gone to rank 0.
pub fn counted_group(
    size: usize,
    timeout: Duration,
    lag: impl Fn(usize, usize) -> Duration,
) -> (Vec<Ranks>, Vec<Arc<AtomicU8>>, Arc<AtomicUsize>) {
    let states = Arc::<AtomicUsize>::default();
    let listeners: Vec<Arc<(Mutex<Option<Listener>>, Condvar)>> = (0..size).map(|_| Arc::default()).collect();
    let members = (0..size).map(|rank| {
        let to = |to: usize| {
            let (sender, messages) = channel::<RankMessage>();
            let (listener, lag) = (Arc::clone(&listeners[to]), lag(rank, to));
            thread::spawn(move || {
                for message in messages {
                    thread::sleep(lag);
                    let mut present = listener.0.lock().unwrap();
                    while present.is_none() {
                        present = listener.1.wait(present).unwrap();
                    }
                    if let Some(listen) = &*present {
                        listen(RankEvent::Message { from: rank, message });
                    }
                }
            });
            sender
        };
        let is_cut = Arc::new(AtomicU8::new(0));
        let (others, listener) = ((0..size).map(to).collect(), Arc::clone(&listeners[rank]));
        let member = Member { rank, others, listener, is_cut: Arc::clone(&is_cut), states: Arc::clone(&states) };
        (Ranks::with_timeout(Arc::new(member), timeout).unwrap(), is_cut)
    });
    let (ranks, cuts) = members.unzip();
    (ranks, cuts, states)
}
