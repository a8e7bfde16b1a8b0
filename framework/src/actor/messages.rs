//! The messages between actors, one struct each.

use std::{sync::mpsc::Sender, time::Instant};

use actix::Message;
use candle_core::Tensor;
use serde_json::Value;

use crate::{
    Activation as Tensors, Batch, Failure, PlanSchedule, Result, Score,
    data::Examples,
    plan::PlanPhase,
    schedule::{MicroBatchId, Purpose},
    stage::{CaptureTo, Payload, ReadoutVersion, StageCapture, StageState},
    transport::{Built, CoordinatorMessage, GradientShare, StageStep, Transport},
};

/// To a stage: its connections.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Connect(pub(super) Box<dyn Transport>);

/// From the strategy actor to a stage: the gradient plans by step. The stage then builds its units.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct FollowPlans {
    pub(super) plans: PlanSchedule,
}

/// From the strategy actor to a stage: new plans from a step that it cannot have begun.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Change {
    pub(super) phase: PlanPhase,
}

/// From the strategy actor to the coordinator: the plans of all steps below `until` are in every stage, or in its mailbox.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub(super) struct Cleared {
    pub(super) until: u64,
}

/// From the coordinator to the strategy actor: every stage has finished this step. Sent only if plans are decided during the run.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Observe {
    pub(super) step: u64,
    pub(super) stages: Vec<StageStep>,
    /// Whether the answer has the state of the strategy.
    pub(super) with_state: bool,
}

/// From the strategy actor to the coordinator: the answer to an [`Observe`].
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Observed {
    pub(super) step: u64,
    pub(super) stages: Vec<StageStep>,
    pub(super) change: Option<PlanPhase>,
    pub(super) state: Option<Value>,
}

/// From the pipeline's handle to the strategy actor: send the state of the strategy.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct ReadStrategyState {
    pub(super) to: Sender<Result<Option<Value>>>,
}

/// The times at which a message was sent and put into the receiver's mailbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransferTimes {
    pub(super) sent: Instant,
    pub(super) arrived: Instant,
}

impl TransferTimes {
    /// The times of a message that is sent now and arrives at once.
    pub(super) fn now() -> Self {
        let now = Instant::now();
        Self { sent: now, arrived: now }
    }
}

/// From the previous stage, or the coordinator: the input of a forward pass.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Activation {
    pub(super) micro_batch: MicroBatchId,
    pub(super) payload: Payload,
    pub(super) times: TransferTimes,
}

/// From the coordinator to the rank of a replica's first stage: the examples of a micro-batch, which this rank reads.
pub(super) struct Read {
    pub(super) micro_batch: MicroBatchId,
    pub(super) examples: Examples,
    /// How many targets count in the whole batch.
    pub(super) total: f64,
}

/// From the coordinator to the rank of a replica's first stage: the next micro-batch that this rank reads is the stage's next input.
pub(super) struct GiveRead;

/// From the next stage: the gradient of one loss with respect to the receiver's output.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Gradient {
    pub(super) micro_batch: MicroBatchId,
    pub(super) loss: usize,
    pub(super) tensors: Tensors,
    pub(super) times: TransferTimes,
}

/// From the next stage: a version of the matrix that heads share with the last stage.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Readout {
    pub(super) version: ReadoutVersion,
}

/// From the next stage: one more micro-batch may be sent.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Credit;

/// From the first stage of a replica to the coordinator: one more micro-batch may be sent.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct CreditOfReplica(pub(super) usize);

/// From the same stage of another replica: a part of its gradients, or of the sum of all.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Shared(pub(super) GradientShare);

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

/// To every stage, while nothing is in flight: report the state.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub(super) struct TakeState;

/// To every stage: report the weights and the state. With a step, before the activations of this step: those after its update. Otherwise, while nothing is in
/// flight: those of now.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub(super) struct Capture {
    pub(super) step: Option<u64>,
    pub(super) to: CaptureTo,
}

/// From another rank to the coordinator: what was sent to its stages before the fence is in their mailboxes.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Fenced;

/// From the coordinator to a stage, before the first step: continue from this state.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Restore {
    pub(super) state: Box<StageState>,
}

/// From the pipeline's handle to the coordinator, before the first step: send each stage its state.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct RestoreStages {
    pub(super) states: Vec<StageState>,
}

/// From a stage to itself: do the next action. It queues after the messages already in the mailbox, so that the schedule has seen them.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub(super) struct NextAction;

/// From a stage to the coordinator.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Reported {
    /// The replica that the stage belongs to; 0 if no stage reports.
    pub(super) replica: usize,
    pub(super) report: CoordinatorMessage,
}

impl From<CoordinatorMessage> for Reported {
    /// A report of the first replica.
    fn from(report: CoordinatorMessage) -> Self {
        Self { replica: 0, report }
    }
}

/// From the pipeline's handle to the coordinator: a batch to feed as credits allow.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Feed {
    /// Training or evaluation.
    pub purpose: Purpose,
    /// The step; for evaluations the number of updates made before it.
    pub step: u64,
    /// Its micro-batches; if the other replicas read their own, those of the first replica.
    pub micro_batches: Vec<Batch>,
    /// Those of the other replicas that they read themselves.
    pub elsewhere: Vec<Examples>,
    /// The index of the first of them within the whole step or evaluation.
    pub first_index: usize,
    /// How many micro-batches the whole step or evaluation has.
    pub count: usize,
    /// How many targets count in the whole batch.
    pub total: f64,
    /// If it is set, every stage copies its weights and its state after the step and reports them ([`PipelineEvent::Captured`]). Stages go on meanwhile.
    pub capture: Option<CaptureTo>,
}

/// From the pipeline's handle to the coordinator: send this to every stage.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub(super) enum Broadcast {
    Begin(Begin),
    Validated(Validated),
    TakeSnapshot(TakeSnapshot),
    TakeState(TakeState),
    Capture(Capture),
}

/// An event that the coordinator reports to the pipeline's handle.
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
        /// The change of later plans that the strategy decided after this step.
        change: Option<PlanPhase>,
        /// The state of a strategy that decides plans during the run, if the step is captured ([`Feed::capture`]).
        strategy: Option<Value>,
    },
    /// Every stage's weights and state; in order of stages. It may come before the step's [`Self::StepDone`].
    Captured {
        /// The step after which they were copied; none if nothing was in flight.
        step: Option<u64>,
        /// The weights and the state of each stage.
        stages: Vec<StageCapture>,
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
    /// Every stage's state; in order of stages.
    State(Vec<StageState>),
    /// Every stage continues from the state that it was sent.
    Restored,
    /// A stage failed; there will be no further event.
    Failed(Failure),
}
