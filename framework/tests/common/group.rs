//! Ranks in one process: each with a thread that brings it what others send.
#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Sender, channel},
    },
    thread,
    time::Duration,
};

use interlock::{
    Result,
    ranks::{Arrival, Communicator, Listener, Parcel, Ranks},
};

/// One rank of a group.
pub struct Member {
    rank: usize,
    /// To each rank.
    others: Vec<Sender<Parcel>>,
    listener: Arc<(Mutex<Option<Listener>>, Condvar)>,
    is_cut: Arc<AtomicBool>,
}

impl Communicator for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.others.len()
    }

    fn send(&self, to: usize, parcel: Parcel) -> Result<()> {
        if !self.is_cut.load(Relaxed) {
            // A rank that has ended receives nothing.
            let _ = self.others[to].send(parcel);
        }
        Ok(())
    }

    fn listen(&self, listener: Listener) {
        *self.listener.0.lock().unwrap() = Some(listener);
        self.listener.1.notify_all();
    }
}

/// Returns the ranks of a group, and for each what cuts it off: nothing leaves it any more. `lag` says how long each parcel takes from one rank to another.
pub fn group(
    size: usize,
    timeout: Duration,
    lag: impl Fn(usize, usize) -> Duration,
) -> (Vec<Ranks>, Vec<Arc<AtomicBool>>) {
    let listeners: Vec<Arc<(Mutex<Option<Listener>>, Condvar)>> = (0..size).map(|_| Arc::default()).collect();
    let members = (0..size).map(|rank| {
        let to = |to: usize| {
            let (sender, parcels) = channel::<Parcel>();
            let (listener, lag) = (Arc::clone(&listeners[to]), lag(rank, to));
            thread::spawn(move || {
                for parcel in parcels {
                    thread::sleep(lag);
                    let mut present = listener.0.lock().unwrap();
                    while present.is_none() {
                        present = listener.1.wait(present).unwrap();
                    }
                    if let Some(listen) = &*present {
                        listen(Arrival::Parcel { from: rank, parcel });
                    }
                }
            });
            sender
        };
        let is_cut = Arc::new(AtomicBool::new(false));
        let (others, listener) = ((0..size).map(to).collect(), Arc::clone(&listeners[rank]));
        let member = Member { rank, others, listener, is_cut: Arc::clone(&is_cut) };
        (Ranks::with_timeout(Arc::new(member), timeout).unwrap(), is_cut)
    });
    members.unzip()
}
