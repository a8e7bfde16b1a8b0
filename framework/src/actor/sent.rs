//! The numbers of messages that actors send to each other.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The numbers of messages sent from actor to actor since the start. Not counted: messages that start a pipeline or go to all stages between steps,
/// and messages of an actor to itself or to the pipeline's handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Activations: from the coordinator to the first stage, and from stage to stage.
    pub activations: u64,
    /// Gradients, from stage to stage.
    pub gradients: u64,
    /// Versions of the matrix that heads share with the last stage, from stage to stage.
    pub readouts: u64,
    /// Credits: from stage to stage, and from the first stage to the coordinator.
    pub credits: u64,
    /// Reports of stages to the coordinator: that they are built, what heads scored, that a step is done, and so on.
    pub reports: u64,
    /// Norms of all stages' gradients, from the coordinator to each stage.
    pub norms: u64,
    /// Parts of gradients and of their sums, between replicas of a stage.
    pub shares: u64,
}

impl Sent {
    /// Returns the number of all messages.
    pub fn total(&self) -> u64 {
        self.activations + self.gradients + self.readouts + self.credits + self.reports + self.norms + self.shares
    }
}

impl std::ops::Add for Sent {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            activations: self.activations + other.activations,
            gradients: self.gradients + other.gradients,
            readouts: self.readouts + other.readouts,
            credits: self.credits + other.credits,
            reports: self.reports + other.reports,
            norms: self.norms + other.norms,
            shares: self.shares + other.shares,
        }
    }
}

/// The messages that one actor has sent. Each actor has its own counter, so that they do not contend.
#[derive(Debug, Default)]
pub(super) struct Counter {
    pub(super) activations: AtomicU64,
    pub(super) gradients: AtomicU64,
    pub(super) readouts: AtomicU64,
    pub(super) credits: AtomicU64,
    pub(super) reports: AtomicU64,
    pub(super) norms: AtomicU64,
    pub(super) shares: AtomicU64,
}

impl Counter {
    pub(super) fn read(&self) -> Sent {
        let read = |count: &AtomicU64| count.load(Relaxed);
        Sent {
            activations: read(&self.activations),
            gradients: read(&self.gradients),
            readouts: read(&self.readouts),
            credits: read(&self.credits),
            reports: read(&self.reports),
            norms: read(&self.norms),
            shares: read(&self.shares),
        }
    }
}

/// Counts one more message.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
