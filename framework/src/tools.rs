//! What tools need that look into a run or carry it: benchmarks, planners, reports, the `interlock` command, and the tests of backends.
//!
//! **Not part of the stable surface**: any release may change what lies here. To build and train models the items at the root of this crate are
//! enough.

/// Stages as actors: the pipeline that [`Trainer`](crate::Trainer) runs, and what it reports.
pub mod actor {
    pub use crate::actor::{Feed, Feeder, Pipeline, PipelineEvent, PipelineSettings, Sent};
}

/// What emulated devices and the planner ask of a device, and links between devices.
pub mod device {
    pub use crate::device::{DeviceHooks, Part, PartKind, for_stage, link::Link, run_on};
}

/// Whether a named tensor is trained; training or evaluation.
pub mod differentiation {
    pub use crate::differentiation::{Kind, Mode};
}

/// What a run reports that cannot go on: which stages wait for what.
pub mod error {
    pub use crate::error::{Deadlock, Wait};
}

/// Files that are written whole or not at all.
pub mod files {
    pub use crate::model::weights::write_text;
}

/// The metrics that a run records, with their kinds, labels and meanings.
pub mod metrics {
    pub use crate::metrics::{
        Metric, MetricKind, SECONDS_BUCKETS, describe,
        table::{self, ALL, MEMORY, PHASES},
    };
}

/// How a model is cut into stages.
pub mod model {
    pub use crate::model::{Partition, parameters::Entry, partition::PartitionConfig};
}

/// The optimizers that ship, as values.
pub mod optimizer {
    pub use crate::optimizer::{
        AdamW, ClipFactor, ParameterSettings, Sgd,
        lr_schedule::{LrRule, LrSchedule},
        plain,
    };
}

/// The computation of a pipeline by plain calls, stage after stage.
pub mod plain {
    pub use crate::plain::PlainPipeline;
}

/// What units cost on a device, and which cut and placement is fastest.
pub mod planner {
    pub use crate::planner::{
        Cut, DeviceCosts, HeadCosts, MemoryMeter, Placement, Profile, Replicas, Setup, UnitCosts,
    };
}

/// When a stage does what.
pub mod schedule {
    pub use crate::schedule::{Action, ActionKind, MicroBatchId, Policy, PolicyName, Purpose, Remaining, StageWork};
}

/// How long steps take, from what each action costs.
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
        Outcome, Payload, Stage, StageBlueprint, StageSettings, StageState, StepNumbers, StepReading, Trainable,
        Updated,
    };
}

/// Strategies as a configuration file names them, and what they have done.
pub mod strategy {
    pub use crate::strategy::{AdaptiveState, Plans, StrategyConfig, StrategyName, Widened, WidthPhaseConfig};
}

/// What stages did when: recorded, read, drawn.
pub mod timeline {
    pub use crate::timeline::{Drawing, Span, Timeline, escape};
}

/// The parts of a report, and how a trainer is laid out.
pub mod trainer {
    pub use crate::trainer::{
        Best, BestReport, EveryReport, FinalReport, Followed, HeadScore, Layout, PhaseReport, StageReport,
    };
}

/// What carries messages between stages.
pub mod transport {
    pub use crate::transport::{Built, Inbox, MessageHeader, MessageKind, Report, StageMessage, StageStep, Transport};
}
