//! The planner: which cut, width and number of micro-batches make a step short, and what they cost in memory, before anything is trained.
//!
//! A [`Profile`] tells what each unit of a model costs on the devices; a [`Setup`] adds units up to stages and simulates them
//! ([`simulator`](crate::simulator)). [`Setup::predict`] tells what a given cut comes to, [`Setup::best_cut`] finds the best.

mod cut;
pub(crate) mod profile;
mod search;
mod setup;

pub use cut::Cut;
pub use profile::{DeviceCosts, HeadCosts, MemoryMeter, Profile, UnitCosts};
pub use setup::{Placement, Replicas, Setup};

#[cfg(test)]
mod tests;
