//! The planner: finds the cut, width and number of micro-batches with short steps, and their memory, before anything is trained.
//!
//! A [`Profile`] holds the cost of each unit of a model on the devices. A [`Setup`] adds up the units of each stage and simulates the stages
//! ([`simulator`](crate::simulator)). [`Setup::predict`] predicts the step of a given cut, [`Setup::best_cut`] finds the best cut.

mod cut;
pub(crate) mod profile;
mod search;
mod setup;

pub use cut::Cut;
pub use profile::{DeviceCosts, HeadCosts, MemoryMeter, Profile, UnitCosts};
pub use setup::{Placement, Replicas, Setup};

#[cfg(test)]
mod tests;
