//! The actors: one a stage, a strategy actor and a coordinator, and the handle that the outside holds.
//!
//! - A stage actor (`stage.rs`) lives on an arbiter (an OS thread) of its own, pinned to its device. It drives its stage's
//!   [schedule](crate::schedule) with the messages in its mailbox and performs what the schedule says.
//! - The strategy actor (`strategy.rs`) holds the plans of the run and tells every stage what to relay and what to follow. Where plans are
//!   decided on the way it is told what stages measured; it puts a change into every stage's mailbox before it clears the steps concerned.
//! - The coordinator (`coordinator.rs`) feeds micro-batches to the first stage, within its credits and of cleared steps only, and gathers what
//!   stages report.
//! - Where devices have links that delay, one thread (`delay.rs`) holds activations and gradients back until they arrive.
//! - [`Feeder`] keeps a pipeline supplied with batches.
//! - [`Pipeline`] is the outside's handle: it starts the actors on a thread of its own and turns every failure into one typed error.
//!
//! Only this module and those below it know actix.

mod address;
mod arrivals;
mod coordinator;
mod delay;
mod feeder;
mod messages;
mod pipeline;
mod sent;
mod stage;
mod strategy;
mod wire;

pub use feeder::Feeder;
pub use messages::{Feed, PipelineEvent};
pub use pipeline::{Pipeline, PipelineSettings};
pub use sent::Sent;
