//! The messages between actors, one struct each.

use std::{sync::mpsc::Sender, time::Instant};

use actix::{Addr, Message};
use candle_core::Tensor;
use serde_json::Value;

use super::{address::StageAddress, coordinator::Coordinator, wire::Wire};
use crate::{
    Activation as Tensors, Batch, Failure, PlanSchedule, Result, Score,
    plan::PlanPhase,
    schedule::{MicroBatchId, Purpose},
    stage::Payload,
    transport::{Built, Report, StageStep},
};

/// To a stage: its connections, and then its build begins.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Connect(pub(super) Wire);

/// From the strategy actor to a stage: what to relay and what to follow, step by step; then its build begins.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Follow {
    pub(super) plans: PlanSchedule,
}

/// From the strategy actor to a stage: other plans from a step on that it cannot have begun.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Change {
    pub(super) phase: PlanPhase,
}

/// From the strategy actor to the coordinator: every stage knows, or has in its mailbox, the plans of all steps below this one.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub(super) struct Cleared {
    pub(super) until: u64,
}

/// From the coordinator to the strategy actor: every stage has finished this step. Sent where plans are decided on the way.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Observe {
    pub(super) step: u64,
    pub(super) stages: Vec<StageStep>,
}

/// From the strategy actor to the coordinator: what came of an [`Observe`].
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Observed {
    pub(super) step: u64,
    pub(super) stages: Vec<StageStep>,
    pub(super) change: Option<PlanPhase>,
}

/// From the outside to the strategy actor: tell what you have decided and remember.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct TellState {
    pub(super) to: Sender<Result<Option<Value>>>,
}

/// To the strategy actor: the stages to tell.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Lead {
    pub(super) stages: Vec<StageAddress>,
    pub(super) coordinator: Addr<Coordinator>,
}

/// When a message was sent, and when it was put into the receiver's mailbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) sent: Instant,
    pub(super) arrived: Instant,
}

impl Way {
    /// Of a message that is sent now and is there at once.
    pub(super) fn now() -> Self {
        let now = Instant::now();
        Self { sent: now, arrived: now }
    }
}

/// A message that may be held back on its way.
pub(super) trait OnItsWay: Message<Result = ()> + Send + 'static {
    fn way(&mut self) -> &mut Way;
}

impl OnItsWay for Activation {
    fn way(&mut self) -> &mut Way {
        &mut self.way
    }
}

impl OnItsWay for Gradient {
    fn way(&mut self) -> &mut Way {
        &mut self.way
    }
}

/// From the stage before (or the coordinator): the input of a forward pass.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Activation {
    pub(super) micro_batch: MicroBatchId,
    pub(super) payload: Payload,
    pub(super) way: Way,
}

/// From the stage behind: the gradient of one loss with respect to the receiver's output.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Gradient {
    pub(super) micro_batch: MicroBatchId,
    pub(super) loss: usize,
    pub(super) tensors: Tensors,
    pub(super) way: Way,
}

/// From the stage behind (or to the coordinator from the first): one more micro-batch may come.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Credit;

/// From the coordinator: the norm of all stages' gradients of a step.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub(super) struct Norm {
    pub(super) step: u64,
    pub(super) norm: f64,
}

/// To every stage, while nothing is in flight: the last stage's validation loss, for schedules that react to it.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub(super) struct Validated {
    pub(super) loss: f64,
}

/// To every stage, while nothing is in flight: how many steps the run has.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub(super) struct Begin {
    pub(super) total_steps: u64,
}

/// To every stage, while nothing is in flight: report a copy of all parameters and buffers.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub(super) struct TakeSnapshot;

/// A stage to itself: do the next action. Comes behind what waits in the mailbox, so that the schedule sees all of it.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub(super) struct Act;

/// From a stage to the coordinator.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Told(pub(super) Report);

/// From the outside to the coordinator: a batch to be fed when there is room.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Feed {
    /// What it is for.
    pub purpose: Purpose,
    /// The step; for evaluations the number of updates that come before it.
    pub step: u64,
    /// Its micro-batches.
    pub pieces: Vec<Batch>,
    /// The number of the first piece, and how many there are in the whole step or evaluation.
    pub first: usize,
    /// How many pieces the whole step or evaluation has.
    pub of: usize,
    /// How many targets count in the whole batch.
    pub total: f64,
}

/// From the outside to the coordinator: pass this on to every stage.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub(super) enum ToAll {
    Begin(Begin),
    Validated(Validated),
    TakeSnapshot(TakeSnapshot),
}

/// What the coordinator tells the outside.
#[derive(Debug)]
pub enum PipelineEvent {
    /// Every stage has been built, in order.
    Ready(Vec<Built>),
    /// The last piece of this feed has been sent to the first stage.
    Fed {
        /// What it was for.
        purpose: Purpose,
        /// Its step.
        step: u64,
    },
    /// One stage has finished a step; stages may be steps apart.
    StageStep(StageStep),
    /// Every stage has finished a step; in order of stages.
    StepDone {
        /// The step, counted from 0.
        step: u64,
        /// What each stage reported.
        stages: Vec<StageStep>,
        /// What takes the place of plans of steps to come, by what was measured in this step or before.
        change: Option<PlanPhase>,
    },
    /// Every stage has scored a micro-batch of an evaluation; in order of stages.
    Scored {
        /// The micro-batch.
        micro_batch: MicroBatchId,
        /// The score of every head that is there.
        scores: Vec<Option<Score>>,
    },
    /// Every stage's parameters and buffers; in order of stages.
    Snapshot(Vec<Vec<(String, Tensor)>>),
    /// A stage failed; there will be no further event.
    Failed(Failure),
}
