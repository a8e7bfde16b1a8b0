//! A cut of a model into stages, and its simulated step.

use crate::simulator::{Scenario, Simulated};

/// A cut of a model into stages, with the result of its simulation.
#[derive(Clone, Debug)]
pub struct PlannedCut {
    /// The units of each stage.
    pub units_per_stage: Vec<usize>,
    /// The simulated scenario.
    pub scenario: Scenario,
    /// The result of the simulation.
    pub simulated: Simulated,
    /// Whether no other cut has a shorter simulated step: all were compared, or in every cut the busiest stage has as much work as this step takes.
    pub proven: bool,
}
