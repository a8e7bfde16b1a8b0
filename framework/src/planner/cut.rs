//! A cut of a model into stages, and its predicted step.

use crate::simulator::{Scenario, Simulated};

/// A cut of a model into stages, and what a simulation of it found.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The units of each stage.
    pub units_per_stage: Vec<usize>,
    /// What was simulated.
    pub scenario: Scenario,
    /// What was found.
    pub simulated: Simulated,
    /// Whether no other cut has a shorter step, by this prediction: all were compared, or the busiest stage of any has as much work as this step
    /// takes.
    pub proven: bool,
}
