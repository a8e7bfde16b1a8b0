//! The planner: finds the cut, width and number of micro-batches with short steps, and their memory, before anything is trained.
//!
//! A [`Profile`] holds the cost of each unit of a model on the devices. A [`PlannerSetup`] adds up the units of each stage and simulates the stages
//! ([`simulator`](crate::simulator)). [`PlannerSetup::simulate`] simulates the steps of a given cut, [`PlannerSetup::best_cut`] finds the best cut.

mod cut;
pub(crate) mod profile;
mod search;
mod setup;

pub use cut::PlannedCut;
pub use profile::{DeviceCosts, HeadCosts, MemoryMeter, Profile, UnitCosts};
pub use setup::{Placement, PlannerSetup, Replicas};

#[cfg(test)]
mod tests;
