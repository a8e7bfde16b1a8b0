//! The schedule: what a stage does next.
//!
//! One [`StageSchedule`] a stage. It is told what arrives ([`Event`]) and answers with what to do ([`Action`]), from nothing but
//! the gradient plan, the credits and what has been done: no tensors, no actors, no clock. The actor drives it with real
//! messages; a simulator can drive it with costs.
//!
//! # What it keeps
//! - A stage begins the forward passes of a step when it has made the updates of all steps before, and never sends a
//!   micro-batch for which the next stage has no room (a *credit*).
//! - Forward passes, heads and parameter gradients are done in the order of micro-batches, whatever arrives when: their sums
//!   and running statistics do not depend on timing.
//! - The update comes when nothing that was run forward is left to do: no pull-back and no head ever sees parameters newer
//!   than its forward pass.

mod action;
mod kind;
mod policy;
mod stage;
mod work;

pub use action::{Action, Event, Lack, MicroBatchId, Purpose, Remaining, Unexpected};
pub use kind::ActionKind;
pub use policy::{Policy, PolicyName};
pub use stage::{StageRole, StageSchedule};
pub use work::Work;

#[cfg(test)]
mod tests;
