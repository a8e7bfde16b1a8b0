//! Ending a run early, from another thread.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Ends a run early, at a step's end. From [`Trainer::stopper`](super::Trainer::stopper) or for
/// [`TrainerBuilder::stop_on`](super::TrainerBuilder::stop_on); clones are the same.
///
/// Once asked, [`Trainer::fit`](super::Trainer::fit) feeds no further batch; all stages finish the steps that have been fed, and it returns a
/// [`Report`](super::Report) that says `stopped`. The parameters are those of a run of that many steps, bit for bit, and the trainer can go
/// on: a further `fit` of the steps that are left ends where the whole run would have ended. An evaluation inside `fit` scores what has been
/// fed and is then left out of the report, since it would speak of a part of the data; [`Trainer::evaluate`](super::Trainer::evaluate) always
/// scores all.
///
/// A request ends one run: the one under way, or else the next one.
#[derive(Clone, Debug, Default)]
pub struct Stopper(Arc<AtomicBool>);

impl Stopper {
    /// One that nobody has asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the run to end. Returns at once, whatever the run does; may be called from any thread, any number of times.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether a run has been asked to end and has not ended yet.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The request has been followed.
    pub(super) fn done(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
