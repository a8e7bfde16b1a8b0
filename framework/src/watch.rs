//! What threads that run a user's code are doing, and how those who wait for them find that one of them is blocked.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{Error, Failure, Origin, Phase, Result};

/// How often a waiting thread looks at the others before it takes one of them for blocked. It counts looks and reads no clock, so that the time in
/// which the whole program was stopped does not count.
const LOOKS: u32 = 8;

/// One thing that a thread does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doing {
    pub(crate) origin: Origin,
    pub(crate) phase: Phase,
    pub(crate) step: Option<u64>,
    pub(crate) micro_batch: Option<usize>,
}

impl Doing {
    /// Something that belongs to no step.
    pub(crate) const fn new(origin: Origin, phase: Phase) -> Self {
        Self { origin, phase, step: None, micro_batch: None }
    }

    /// The same in step `step`.
    pub(crate) fn in_step(self, step: impl Into<Option<u64>>) -> Self {
        Self { step: step.into(), ..self }
    }

    fn failure(self, cause: Error) -> Failure {
        let Self { origin, phase, step, micro_batch } = self;
        Failure { step, micro_batch, ..Failure::new(origin, phase, cause) }
    }
}

/// What a thread does at present, for those who wait for it.
#[derive(Debug, Default)]
pub(crate) struct Activity(Mutex<Present>);

#[derive(Clone, Copy, Debug, Default)]
struct Present {
    /// None between two things.
    doing: Option<Doing>,
    /// The number of changes of `doing`.
    changes: u64,
    /// Whether nobody waits any more.
    is_left: bool,
}

impl Activity {
    /// Notes what is being done while `work` runs. Inside of it, a part of the work may be noted in the same way.
    pub(crate) fn during<T>(&self, doing: Doing, work: impl FnOnce() -> T) -> T {
        /// Notes again what was done before, also after a panic.
        struct Before<'a>(&'a Activity, Option<Doing>);
        impl Drop for Before<'_> {
            fn drop(&mut self) {
                self.0.change(self.1);
            }
        }
        let _before = Before(self, self.change(Some(doing)));
        work()
    }

    /// Notes what is done from now on, and returns what was done before.
    fn change(&self, doing: Option<Doing>) -> Option<Doing> {
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        present.changes += 1;
        std::mem::replace(&mut present.doing, doing)
    }

    fn present(&self) -> Present {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether nothing is done.
    pub(crate) fn is_idle(&self) -> bool {
        self.present().doing.is_none()
    }

    /// Returns how often what it does has changed, and whether it does nothing.
    pub(crate) fn summary(&self) -> (u64, bool) {
        let Present { changes, doing, .. } = self.present();
        (changes, doing.is_none())
    }

    /// Leaves the thread alone, unless it has gone on since it was seen `stalled`. Returns whether it is left.
    pub(crate) fn leave(&self, stalled: &Stalled) -> bool {
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        present.is_left |= present.changes == stalled.changes;
        present.is_left
    }

    /// Returns whether nobody waits for the thread any more: then it may change nothing that others see.
    pub(crate) fn is_left(&self) -> bool {
        self.present().is_left
    }
}

/// How long others may do one thing while a thread waits for them; none: for ever.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience(Option<Duration>);

/// Why a wait ended without a message.
#[derive(Debug)]
pub(crate) enum NoMessage {
    /// The sender is gone.
    Ended,
    /// One of the others is blocked, or nothing moves.
    Stalled(Stalled),
}

/// What is blocked.
#[derive(Debug)]
pub(crate) struct Stalled {
    pub(crate) failure: Failure,
    /// The changes of its activity by then.
    changes: u64,
}

impl Patience {
    pub(crate) fn new(longest: Option<Duration>) -> Self {
        Self(longest)
    }

    /// Returns whether it has an end.
    pub(crate) fn is_limited(self) -> bool {
        self.0.is_some()
    }

    /// Waits for a message, as long as none of `others` does one thing for too long. If none of them does anything, and `moves` returns false, for as
    /// long, the wait ends too.
    pub(crate) fn receive<T>(
        self,
        from: &Receiver<T>,
        others: &[Arc<Activity>],
        moves: impl Fn() -> bool,
    ) -> Result<T, NoMessage> {
        let Some(longest) = self.0 else { return from.recv().map_err(|_| NoMessage::Ended) };
        let mut seen = vec![(0, 0); others.len()];
        let mut idle = 0;
        loop {
            match from.recv_timeout(longest / LOOKS) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Disconnected) => return Err(NoMessage::Ended),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let seconds = longest.as_secs_f64();
            let mut works = moves();
            for (activity, (changes, looks)) in others.iter().zip(&mut seen) {
                let now = activity.present();
                *looks = if now.changes == *changes { *looks + 1 } else { 1 };
                // The first look may come long after the beginning of what it sees, or right after it.
                if let Some(doing) = now.doing.filter(|_| *looks > LOOKS) {
                    let cause = format!(
                        "it has not ended after {seconds} s (failures.stall_timeout); give more time if it needs it"
                    );
                    let failure = doing.failure(Error::Stalled(cause));
                    return Err(NoMessage::Stalled(Stalled { failure, changes: now.changes }));
                }
                works |= now.doing.is_some() || now.changes != *changes;
                *changes = now.changes;
            }
            idle = if works { 0 } else { idle + 1 };
            if idle > LOOKS {
                let cause = format!(
                    "nothing is done, and no message has come for {seconds} s (failures.stall_timeout); a transport may have lost one"
                );
                let failure = Failure::new(Origin::Coordinator, Phase::Transfer, Error::Stalled(cause));
                return Err(NoMessage::Stalled(Stalled { failure, changes: 0 }));
            }
        }
    }
}

/// A thread that is left alone if it is blocked when it should end.
#[derive(Debug)]
pub(crate) struct Worker {
    thread: Option<JoinHandle<()>>,
    /// Ends with the thread's work.
    over: Receiver<()>,
}

impl Worker {
    /// Starts a thread.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(crate) fn start(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<Self> {
        let (until, over): (Sender<()>, _) = channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            work();
            drop(until);
        });
        Ok(Self { thread: Some(thread.map_err(|cause| Error::Thread { name, cause })?), over })
    }

    /// Waits for its end, unless it is blocked: then it goes on by itself. `activities` says what it does.
    pub(crate) fn join(&mut self, patience: Patience, activities: &[Arc<Activity>]) {
        let Some(thread) = self.thread.take() else { return };
        match patience.receive(&self.over, activities, || false) {
            // A panic of it has been reported by what it has not sent.
            Ok(()) | Err(NoMessage::Ended) => drop(thread.join()),
            Err(NoMessage::Stalled(_)) => tracing::warn!("a thread is left alone, since it does not end"),
        }
    }
}
