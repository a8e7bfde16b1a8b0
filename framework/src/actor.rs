//! The actors: one a stage, a strategy actor and a coordinator, and the handle that the outside holds.
//!
//! - A stage actor (`stage.rs`) lives on an arbiter (an OS thread) of its own, pinned to its device. It drives its stage's
//!   [schedule](crate::schedule) with the messages in its mailbox and performs what the schedule says.
//! - The strategy actor (`strategy.rs`) holds the gradient plan and tells every stage what to relay and what to follow.
//! - The coordinator (`coordinator.rs`) feeds micro-batches to the first stage within its credits and gathers what stages report.
//! - [`Pipeline`] is the outside's handle: it starts the actors on a thread of its own and turns every failure into one typed error.
//!
//! Only this module and those below it know actix.

mod coordinator;
mod messages;
mod pipeline;
mod stage;
mod strategy;
mod wire;

pub use messages::{Feed, PipelineEvent};
pub use pipeline::{Pipeline, PipelineSettings};
