//! The schedule: the next action of a stage.
//!
//! Each stage has one [`StageSchedule`]. It takes events ([`Event`]) and returns actions ([`Action`]). It depends on the gradient plan, the credits
//! and the actions done so far; it knows no tensors, no actors and no clock. The actor drives it with messages, the simulator with costs.
//!
//! # Invariants
//! - A stage begins the forward passes of a step after the updates of all previous steps, and sends a micro-batch only if it has a *credit* for it.
//! - Forward passes, heads and parameter gradients are done in the order of micro-batches, in whatever order messages arrive. So their sums and the
//!   running statistics do not depend on timing.
//! - The update comes after all work on the step's micro-batches. So no backward pass and no head uses newer parameters than its forward pass.

mod action;
mod kind;
mod policy;
pub(crate) mod readout;
mod stage;
mod work;

pub use action::{Action, MicroBatchId, Purpose, Remaining};
pub(crate) use action::{Event, Unexpected, WaitingFor};
pub use kind::ActionKind;
pub use policy::{Policy, PolicyName};
pub(crate) use stage::{StageRole, StageSchedule};
pub use work::StageWork;

#[cfg(test)]
mod tests;
