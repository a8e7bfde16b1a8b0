//! The arguments of `interlock bench`.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use interlock::{ActivationDtype, Precision, tools::schedule::PolicyName};
use serde::{Serialize, Serializer};

use super::{Source, Width, WindowOptions};
use crate::bench::WorkloadName;

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Time whole training steps on random data, after two steps that are not counted
    Step(BenchStep),
    /// Measure time and memory of each unit of a model, and of a head after it, on given devices
    Units(BenchUnits),
    /// Time the steps of stages that compute nothing: they sleep for a given time, or pass on their input, on given devices
    Runtime(BenchRuntime),
    /// Time messages between two stages that do nothing, and count the bytes that are copied
    Mailbox(BenchMailbox),
}

#[derive(Args, Debug)]
pub(crate) struct BenchUnits {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Workload to measure, instead of a configuration's model
    #[arg(long, conflicts_with_all = ["config", "sets"])]
    pub(crate) workload: Option<WorkloadName>,
    /// The devices, which are measured at the same time; also separated by commas [default: the configuration's, or for a workload as with devices = "auto"]
    #[arg(long, num_args = 1.., value_name = "NAME")]
    pub(crate) devices: Vec<String>,
    /// Micro-batches a step [default: the configuration's, or 1 for a workload]
    #[arg(long, value_name = "M")]
    pub(crate) micro_batches: Option<usize>,
    /// Precision in which a workload's layers compute, on devices whose names do not say [default: f32]
    #[arg(long, value_enum, requires = "workload")]
    pub(crate) precision: Option<PrecisionName>,
    /// Dtype in which a workload's activations cross boundaries and are saved [default: as the precision]
    #[arg(long, value_enum, requires = "workload")]
    pub(crate) dtype: Option<Dtype>,
    /// Write the costs to this file, as JSON
    #[arg(long, value_name = "FILE.json")]
    pub(crate) out: Option<PathBuf>,
    /// Print the costs as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct BenchStep {
    /// The workload to train
    #[arg(long)]
    pub(crate) workload: WorkloadName,
    /// Number of stages: 1, 2 or 4
    #[arg(long, default_value_t = 2, value_name = "K")]
    pub(crate) stages: usize,
    /// Units of each stage, instead of the workload's own partition
    #[arg(long, value_delimiter = ',', value_name = "U,…", conflicts_with = "stages")]
    pub(crate) units_per_stage: Vec<usize>,
    /// Interlock width; if it is below the number of stages, every head is trained; otherwise there are no heads
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(crate) width: usize,
    #[command(flatten)]
    pub(crate) windows: WindowOptions,
    /// The devices, also separated by commas; stage k is pinned to device k mod their number
    #[arg(long, num_args = 1.., value_name = "NAME", conflicts_with = "threads")]
    pub(crate) devices: Vec<String>,
    /// Threads of each stage's CPU device; auto uses the GPUs, or, if there are none, divides the cores of the machine among the stages
    #[arg(long, default_value = "auto", value_name = "T")]
    pub(crate) threads: Threads,
    /// Examples a step [default: the workload's own number]
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) batch: Option<u32>,
    /// Micro-batches a step
    #[arg(long, default_value_t = 1, value_name = "M")]
    pub(crate) micro_batches: usize,
    /// Save only the input of each stage, and run its forward pass again before the backward pass
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Precision in which layers compute, on devices whose names do not say
    #[arg(long, value_enum, default_value_t = PrecisionName::F32)]
    pub(crate) precision: PrecisionName,
    /// Dtype in which activations cross boundaries and are saved [default: as the precision]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<Dtype>,
    /// Serve metrics for Prometheus at this address during the run, to measure their cost
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Steps that are timed
    #[arg(long, default_value_t = 20, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl BenchStep {
    /// Returns the number of stages, from `--units-per-stage` or `--stages`.
    pub(crate) fn stages(&self) -> usize {
        if self.units_per_stage.is_empty() { self.stages } else { self.units_per_stage.len() }
    }
}

#[derive(Args, Debug)]
pub(crate) struct BenchRuntime {
    /// Number of stages
    #[arg(long, default_value_t = 4, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) stages: u16,
    /// Interlock width; e2e is end-to-end
    #[arg(long, default_value = "3", value_name = "N")]
    pub(crate) width: Width,
    #[command(flatten)]
    pub(crate) windows: WindowOptions,
    /// Micro-batches a step
    #[arg(long, default_value_t = 1, value_name = "M")]
    pub(crate) micro_batches: usize,
    /// Run stages that pass on their input, on these devices (also separated by commas), instead of stages that sleep; stage k is pinned to device k mod their number
    #[arg(
        long,
        num_args = 1..,
        value_name = "NAME",
        conflicts_with_all = ["forward_ms", "head_ms", "input_gradient_ms", "parameter_gradient_ms", "transfer_ms", "gbps"]
    )]
    pub(crate) devices: Vec<String>,
    /// Milliseconds of a forward pass of one micro-batch through a stage
    #[arg(long, default_value_t = 5.0, value_name = "MS")]
    pub(crate) forward_ms: f64,
    /// Milliseconds of an auxiliary head
    #[arg(long, default_value_t = 2.0, value_name = "MS")]
    pub(crate) head_ms: f64,
    /// Milliseconds of a stage's input gradient
    #[arg(long, default_value_t = 5.0, value_name = "MS")]
    pub(crate) input_gradient_ms: f64,
    /// Milliseconds of a stage's parameter gradients, after the input gradient
    #[arg(long, default_value_t = 5.0, value_name = "MS")]
    pub(crate) parameter_gradient_ms: f64,
    /// Milliseconds that an activation or a gradient takes to the next or previous stage
    #[arg(long, default_value_t = 0.0, value_name = "MS")]
    pub(crate) transfer_ms: f64,
    /// Gigabits a second from a stage to the next or previous one [default: unlimited]
    #[arg(long, value_name = "G")]
    pub(crate) gbps: Option<f64>,
    /// Bytes of an activation; a multiple of 4
    #[arg(long, default_value_t = 4096, value_name = "B")]
    pub(crate) bytes: usize,
    /// Which action a stage starts when several are ready
    #[arg(long, value_enum, default_value_t = Schedule::Interlock)]
    pub(crate) schedule: Schedule,
    /// Micro-batches in flight at each boundary [default: the smallest number, at least 2, that does not make a simulated step longer]
    #[arg(long, value_name = "N")]
    pub(crate) in_flight: Option<usize>,
    /// Steps that are timed
    #[arg(long, default_value_t = 30, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct BenchMailbox {
    /// Bytes of an activation, 8 or more
    #[arg(long, default_value_t = 4096, value_name = "B")]
    pub(crate) bytes: usize,
    /// Activations that are timed
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) messages: u32,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A schedule on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Schedule {
    /// All forward passes of a step first, then the backward passes
    FillDrain,
    /// A micro-batch's backward pass before the next one's forward pass
    OneFOneB,
    /// Gradients that another stage waits for first, parameter gradients while waiting
    Interlock,
}

impl From<Schedule> for PolicyName {
    fn from(schedule: Schedule) -> Self {
        match schedule {
            Schedule::FillDrain => Self::FillDrain,
            Schedule::OneFOneB => Self::OneFOneB,
            Schedule::Interlock => Self::Interlock,
        }
    }
}

/// A precision on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PrecisionName {
    /// In f32 throughout
    F32,
    /// With the factors of products rounded to bf16
    Bf16,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::F32 => Self::F32,
            PrecisionName::Bf16 => Self::Bf16,
        }
    }
}

/// A dtype on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dtype {
    /// In f32, as they are computed
    F32,
    /// Rounded to bf16, which takes half the bytes
    Bf16,
}

impl From<PrecisionName> for Dtype {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::F32 => Self::F32,
            PrecisionName::Bf16 => Self::Bf16,
        }
    }
}

impl From<Dtype> for ActivationDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// Threads of a device on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Threads {
    /// This many for each stage.
    Each(usize),
    /// Chosen by the machine and the stages.
    #[serde(serialize_with = "auto")]
    Auto,
}

fn auto<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("auto")
}

impl std::str::FromStr for Threads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            number => match number.parse() {
                Ok(threads) if threads > 0 => Ok(Self::Each(threads)),
                _ => Err(format!("{number:?} is not a number of threads; use auto, 1, 2, …")),
            },
        }
    }
}
