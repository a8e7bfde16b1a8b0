//! The actors: one for each stage, a strategy actor and a coordinator; and the handle that the caller holds.
//!
//! - A stage actor (`stage.rs`) runs on an arbiter (an OS thread) of its own, pinned to its device. It passes the messages in its mailbox to its
//!   stage's [schedule](crate::schedule) and performs the actions that the schedule returns.
//! - The strategy actor (`strategy.rs`) holds the gradient plans of the run and sends them to every stage. If plans are decided during the run, it
//!   receives what the stages measured, and puts each change into every stage's mailbox before it clears the steps concerned.
//! - The coordinator (`coordinator.rs`) feeds micro-batches of cleared steps to the first stage, as credits allow, and gathers the stages' reports.
//! - If a link delays messages, one thread (`delay.rs`) holds activations and gradients back until they are due.
//! - [`Feeder`] keeps a pipeline supplied with batches.
//! - With several ranks, each has the actors of its own stages; strategy and coordinator are on the first (`hosted.rs`, `serve.rs`). Messages to actors of
//!   other ranks become notes and tensors (`notes.rs`, `exchange.rs`). With replicas, the first rank of each may read its own examples (`reader.rs`).
//! - [`Pipeline`] is the caller's handle: it starts the actors on a thread of its own and turns every failure into one typed error.
//!
//! Only this module and those below it know actix.

mod address;
mod arrivals;
mod coordinator;
mod delay;
mod exchange;
mod feeder;
mod hosted;
mod messages;
mod notes;
mod pipeline;
mod reader;
mod sent;
mod serve;
mod shard_writer;
mod stage;
mod strategy;
mod wire;

pub use feeder::Feeder;
pub use messages::{Feed, PipelineEvent};
pub use pipeline::{Pipeline, PipelineSettings};
pub use sent::Sent;
pub(crate) use serve::{OpenData, serve};
