//! The early end of a fit, from another thread.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// A handle that ends a fit early, at the end of a step. Create one with [`Stopper::new`] and give it to
/// [`TrainerBuilder::stop_on`](super::TrainerBuilder::stop_on), or take the trainer's own from [`Trainer::stopper`](super::Trainer::stopper). All
/// clones are the same handle.
///
/// After [`Stopper::stop`], [`Trainer::fit`](super::Trainer::fit) feeds no further batch. All stages finish the steps that have been fed, and `fit`
/// returns a [`Report`](super::Report) with `stopped`. The parameters are those of a fit of that many steps, bit for bit. A further `fit` on as many
/// examples continues in the middle of the epoch: after the remaining steps it ends where the whole fit would have ended.
///
/// An evaluation inside `fit` that is stopped is left out of the report, because it covered only a part of the data.
/// [`Trainer::evaluate`](super::Trainer::evaluate) always scores all of it.
///
/// A request ends one fit: the current one, or else the next.
#[derive(Clone, Debug, Default)]
pub struct Stopper(Arc<AtomicBool>);

impl Stopper {
    /// Returns a stopper without a request.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the fit to end. Returns at once. It may be called from any thread, any number of times.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns whether a fit has been asked to end and has not ended yet.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Clears the request, because the fit has ended.
    pub(super) fn done(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
