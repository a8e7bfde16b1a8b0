//! The schedule: what a stage does next.
//!
//! Each stage has one [`StageSchedule`]. It takes events ([`Event`]) and returns actions ([`Action`]). It depends on the gradient plan, the credits
//! and what has been done; it knows no tensors, no actors and no clock. The actor drives it with messages, the simulator with costs.
//!
//! # Invariants
//! - A stage begins the forward passes of a step when it has made the updates of all steps before, and never sends a
//!   micro-batch for which it has no *credit*.
//! - Forward passes, heads and parameter gradients are done in the order of micro-batches, whatever arrives when: their sums
//!   and running statistics do not depend on timing.
//! - The update comes when nothing that was run forward is left to do: no backward pass and no head ever sees parameters newer
//!   than its forward pass.

mod action;
mod kind;
mod policy;
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
