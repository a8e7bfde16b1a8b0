//! Items for tools that inspect or drive a run: benchmarks, planners, reports, the `interlock` command, and the tests of backends.
//!
//! **Not part of the stable surface**: any release may change these items. To build and train models, the items at the root of this crate are enough.

/// Stages as actors: the pipeline that [`Trainer`](crate::Trainer) runs, and what it reports.
pub mod actor {
    pub use crate::{
        actor::{Feed, Feeder, Pipeline, PipelineEvent, PipelineSettings, Sent},
        data::Examples,
    };
}

/// The checkpoints of a run on disk.
pub mod checkpoint {
    pub use crate::checkpoint::{BEST, CHECKPOINTS, FileEntry, MODEL, Manifest, WEIGHTS, checkpoints_in, weights_in};
}

/// The hooks of emulated devices and the planner, and links between devices.
pub mod device {
    pub use crate::device::{DeviceHooks, Part, PartKind, for_stage, link::Link, run_on};
}

/// The kind of a named tensor, and the mode of a forward pass.
pub mod differentiation {
    pub use crate::differentiation::{Mode, TensorKind};
}

/// Deadlocks: which stages wait for each other.
pub mod error {
    pub use crate::error::{Deadlock, Wait};
}

/// Files that are written completely or not at all, also if the power fails.
pub mod files {
    pub use crate::files::{create_folder, write, write_output};
}

/// The metrics that a run records, with their kinds, labels and meanings.
pub mod metrics {
    pub use crate::metrics::{
        Metric, MetricKind, SECONDS_BUCKETS, describe,
        table::{self, ALL, MEMORY, PHASES},
    };
}

/// The partition of a model into stages.
pub mod model {
    pub use crate::model::{Partition, parameters::Entry, partition::PartitionConfig};
}

/// Names that are nearly right.
pub mod names {
    pub use crate::names::{misspelt, nearest};
}

/// The built-in optimizers, and learning-rate schedules.
pub mod optimizer {
    pub use crate::optimizer::{
        AdamW, ClipFactor, ParameterSettings, Sgd, built_in,
        lr_schedule::{LrRule, LrSchedule},
    };
}

/// The computation of a pipeline by plain calls, stage after stage.
pub mod plain {
    pub use crate::plain::PlainPipeline;
}

/// The costs of units on a device, and the search for the fastest cut.
pub mod planner {
    pub use crate::planner::{
        DeviceCosts, HeadCosts, MemoryMeter, Placement, PlannedCut, PlannerSetup, Profile, Replicas, UnitCosts,
    };
}

/// The actions of stages and their order.
pub mod schedule {
    pub use crate::schedule::{Action, ActionKind, MicroBatchId, Policy, PolicyName, Purpose, Remaining, StageWork};
}

/// The simulation of steps from the costs of actions.
pub mod simulator {
    pub use crate::simulator::{
        Bottleneck, CriticalPath, HOP, Scenario, Segment, Simulated, StageCosts, least_in_flight, simulate,
    };
}

/// Sleeping to an exact time.
pub mod sleep {
    pub use crate::device::sleep::until;
}

/// One stage without its actor.
pub mod stage {
    pub use crate::stage::{
        ActionContext, CaptureTo, Outcome, Payload, ReadoutVersion, Stage, StageBlueprint, StageCapture, StageSettings,
        StageState, StepNumbers, StepReading, Trainable, Updated,
    };
}

/// Strategies as configuration files give them, and their state.
pub mod strategy {
    pub use crate::strategy::{
        AdaptiveState, FollowConfig, Plans, StrategyConfig, StrategyName, Widened, WidthPhaseConfig,
    };
}

/// The actions of stages with their times: recorded, read, drawn.
pub mod timeline {
    pub use crate::timeline::{Drawing, Span, Timeline, escape};
}

/// The parts of a report, and the layout of a trainer.
pub mod trainer {
    pub use crate::trainer::{
        Best, BestReport, EveryReport, FinalReport, Followed, HeadScore, Layout, LeastMemory, PhaseReport, StageReport,
    };
}

/// The transport of messages between stages.
pub mod transport {
    pub use crate::transport::{
        Built, CoordinatorMessage, MessageHeader, MessageKind, StageMailbox, StageMessage, StageStep, Transport,
    };
}
