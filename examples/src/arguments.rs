//! The command line.

mod top;
mod width;

pub(crate) use width::Width;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use interlock::{ActivationDtype, schedule::PolicyName};
use serde::{Serialize, Serializer};

use crate::bench::WorkloadName;
pub(crate) use top::Top;

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 a run or a case failed; 2 refused before anything was written;
130 stopped by Ctrl-C or SIGTERM: once, after the step, with the run saved; twice, at once";

/// Trains neural networks cut in depth across devices, with interlocking backpropagation.
///
/// Without a command: `interlock train`, with the built-in configuration.
#[derive(Debug, Parser)]
#[command(name = "interlock", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model; without a configuration, a ResNet of four stages on embedded images
    Train(Train),
    /// Predict what training costs with several cuts, widths and numbers of micro-batches, and recommend one
    Plan(Box<Plan>),
    /// Score every head of a trained run on its validation data
    Eval(Eval),
    /// Watch runs that serve metrics, live on the terminal
    Top(Top),
    /// Continue a text with a trained language model
    Generate(Generate),
    /// Train once for each interlock width and seed, and compare
    Compare(Compare),
    /// Write one page about a run, or several side by side: curves, throughput, timeline, configuration
    Report(Report),
    /// Replay golden cases: recorded runs that must be reproduced to the last digit
    Replay(Replay),
    /// Measure what things cost on this machine
    #[command(subcommand)]
    Bench(Bench),
    /// List the devices of this machine
    Devices,
    /// Print the configuration that a run would have
    Config(Config),
}

impl Default for Command {
    fn default() -> Self {
        Self::Train(Train::default())
    }
}

/// Where a configuration comes from.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Source {
    /// Configuration file (TOML); the built-in configuration where none is given
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) config: Option<PathBuf>,
    /// Set one key of the configuration, such as optimizer.lr=0.1; may be repeated
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub(crate) sets: Vec<String>,
}

#[derive(Args, Debug, Default)]
pub(crate) struct Train {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Folder to write the run to; must not exist [default: runs/<name>-<time>]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Measure what the model's units cost on the devices, and cut it so that a step is predicted to be shortest
    #[arg(long)]
    pub(crate) auto: bool,
    /// Write the report here too
    #[arg(long, value_name = "FILE.json")]
    pub(crate) report: Option<PathBuf>,
    /// Write what each stage did when in the run's last steps: a picture (.svg), or a trace for ui.perfetto.dev (.json)
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// How many steps the trace shows [default: 4]
    #[arg(long, value_name = "N", requires = "trace", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) trace_steps: Option<u64>,
    /// Serve metrics for Prometheus at this address while the run goes, such as 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Go on serving metrics for so many seconds after the run's end
    #[arg(long, value_name = "SECONDS", default_value_t = 0, requires = "metrics")]
    pub(crate) metrics_linger: u64,
    /// Write scalars for TensorBoard too, to the folder tensorboard in the run's folder
    #[arg(long)]
    pub(crate) tensorboard: bool,
    /// Print plain lines instead of a progress bar
    #[arg(long)]
    pub(crate) plain: bool,
    /// Print nothing but errors
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Form of log lines, on stderr and in the run's run.log; RUST_LOG says which there are [default: text]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

/// The form of log lines: for people, or one object a line. (The options stay on a line each as long as no value explains itself.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Args, Debug, Default)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Plan for one of the workloads of `bench` instead of a configuration
    #[arg(long, conflicts_with_all = ["config", "sets"])]
    pub(crate) workload: Option<WorkloadName>,
    /// The devices to measure on and to plan for, separated by commas: those of the configuration where none is given
    #[arg(long, value_delimiter = ',', value_name = "DEVICE,…")]
    pub(crate) devices: Vec<String>,
    /// Every stage (and every replica) has a device of its own, like the one measured, and shares nothing with others
    #[arg(long)]
    pub(crate) dedicated: bool,
    /// Numbers of stages to try [default: that of the configuration]
    #[arg(long, value_delimiter = ',', value_name = "K,…")]
    pub(crate) stages: Vec<usize>,
    /// Interlock widths to try; e2e is end-to-end [default: the configuration's strategy]
    #[arg(long, value_delimiter = ',', value_name = "N,…,e2e")]
    pub(crate) widths: Vec<Width>,
    /// Numbers of micro-batches to try [default: that of the configuration]
    #[arg(long, value_delimiter = ',', value_name = "M,…")]
    pub(crate) micro_batches: Vec<usize>,
    /// Predict this cut, the units of each stage, instead of finding the best
    #[arg(long, value_delimiter = ',', value_name = "U,…", conflicts_with = "stages")]
    pub(crate) units_per_stage: Vec<usize>,
    /// Take the costs of units from this file, written by `bench units --out`, instead of measuring; one for each size of a micro-batch
    #[arg(long, value_name = "FILE.json")]
    pub(crate) costs: Vec<PathBuf>,
    /// Data-parallel replicas of every stage; their gradients are added up over the links. Implies --dedicated
    #[arg(long, default_value_t = 1, value_name = "R")]
    pub(crate) replicas: usize,
    /// Latency of the links between devices, in microseconds
    #[arg(long, default_value_t = 0.0, value_name = "L")]
    pub(crate) latency_us: f64,
    /// Bandwidth of the links between devices, in gigabits a second [default: unlimited]
    #[arg(long, value_name = "G")]
    pub(crate) gbps: Option<f64>,
    /// Memory of each device in MiB, for --dedicated; otherwise what this machine has free for all of them
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_mib: Option<u64>,
    /// Draw the recommended schedule (.svg), or write it as a trace for Perfetto (.json); may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Vec<PathBuf>,
    /// Print the result as JSON on the last line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Eval {
    /// The run's folder
    pub(crate) run: PathBuf,
    /// Leave the network early, at the head of this stage
    #[arg(long, value_name = "K")]
    pub(crate) stage: Option<usize>,
    /// Score the values at the best evaluation instead of the last
    #[arg(long)]
    pub(crate) best: bool,
    /// Print the scores as JSON on the last line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Generate {
    /// The run's folder
    pub(crate) run: PathBuf,
    /// The text to continue
    #[arg(long)]
    pub(crate) prompt: String,
    /// Flattens (above 1) or sharpens (below 1) the distribution; 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8)]
    pub(crate) temperature: f64,
    /// Draw among the likeliest K tokens only
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// The seed of the draws
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Number of tokens to add
    #[arg(long, default_value_t = 200)]
    pub(crate) tokens: usize,
}

#[derive(Args, Debug)]
pub(crate) struct Compare {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Interlock widths, separated by commas; e2e is end-to-end
    #[arg(long, value_delimiter = ',', required = true, value_name = "N,…,e2e")]
    pub(crate) widths: Vec<Width>,
    /// Number of seeds a width: the configuration's seed and those that follow it
    #[arg(long, default_value_t = 1)]
    pub(crate) seeds: u64,
    /// Folder to write the tables to; must not exist [default: runs/<name>-compare-<time>]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print the table as JSON on the last line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Report {
    /// The folders of the runs; they may have failed or still be under way
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// The page [default: report.html in the run's folder]; to be given where there are several runs
    #[arg(long, value_name = "FILE.html")]
    pub(crate) out: Option<PathBuf>,
    /// Write each plot to this folder too, as PNG and as SVG
    #[arg(long, value_name = "DIR")]
    pub(crate) plots: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Replay {
    /// Folders of cases, each with case.json and tensors.safetensors
    #[arg(required = true, value_name = "CASE_DIR")]
    pub(crate) cases: Vec<PathBuf>,
    /// The device to replay on
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Time whole training steps on random data, after two steps that are not counted
    Step(BenchStep),
    /// Measure what each unit of a model, and a head behind it, costs in time and memory on given devices
    Units(BenchUnits),
    /// Time the steps of stages that compute nothing and sleep as long as they are told
    Runtime(BenchRuntime),
    /// Time messages between two stages that do nothing, and see whether they are copied
    Mailbox(BenchMailbox),
}

#[derive(Args, Debug)]
pub(crate) struct BenchUnits {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Measure this instead of a configuration's model
    #[arg(long, conflicts_with_all = ["config", "sets"])]
    pub(crate) workload: Option<WorkloadName>,
    /// The devices, which are measured at the same time; the configuration's, or all cores as one device, where none is given
    #[arg(long, num_args = 1.., value_name = "NAME")]
    pub(crate) devices: Vec<String>,
    /// Micro-batches a step; the configuration's, or 1, where none is given
    #[arg(long, value_name = "M")]
    pub(crate) micro_batches: Option<usize>,
    /// In which dtype a workload's activations cross boundaries and are kept [default: f32]
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
    /// What to train
    #[arg(long)]
    pub(crate) workload: WorkloadName,
    /// Number of stages: 1, 2 or 4
    #[arg(long, default_value_t = 2, value_name = "K")]
    pub(crate) stages: usize,
    /// Units of each stage, instead of the workload's own cut
    #[arg(long, value_delimiter = ',', value_name = "U,…", conflicts_with = "stages")]
    pub(crate) units_per_stage: Vec<usize>,
    /// Interlock width; below the number of stages every head is trained, at it there is none
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(crate) width: usize,
    /// Threads of each stage's device; auto divides the cores of the machine among the stages
    #[arg(long, default_value = "auto", value_name = "T")]
    pub(crate) threads: Threads,
    /// Micro-batches a step
    #[arg(long, default_value_t = 1, value_name = "M")]
    pub(crate) micro_batches: usize,
    /// Every stage keeps only its input, and runs the forward pass again before it pulls back
    #[arg(long)]
    pub(crate) recompute: bool,
    /// In which dtype activations cross boundaries and are kept
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub(crate) dtype: Dtype,
    /// Serve metrics for Prometheus at this address meanwhile, to see what they cost
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Steps that are timed
    #[arg(long, default_value_t = 20, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct BenchRuntime {
    /// Number of stages
    #[arg(long, default_value_t = 4, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) stages: u16,
    /// Interlock width; e2e is end-to-end
    #[arg(long, default_value = "3", value_name = "N")]
    pub(crate) width: Width,
    /// Micro-batches a step
    #[arg(long, default_value_t = 1, value_name = "M")]
    pub(crate) micro_batches: usize,
    /// Milliseconds of a forward pass of one micro-batch through a stage
    #[arg(long, default_value_t = 5.0, value_name = "MS")]
    pub(crate) forward_ms: f64,
    /// Milliseconds of an auxiliary head
    #[arg(long, default_value_t = 2.0, value_name = "MS")]
    pub(crate) head_ms: f64,
    /// Milliseconds of a pull-back to a stage's input
    #[arg(long, default_value_t = 5.0, value_name = "MS")]
    pub(crate) input_gradient_ms: f64,
    /// Milliseconds of the parameters' gradients after it
    #[arg(long, default_value_t = 5.0, value_name = "MS")]
    pub(crate) parameter_gradient_ms: f64,
    /// Milliseconds that an activation or a gradient is on its way to a neighbour
    #[arg(long, default_value_t = 0.0, value_name = "MS")]
    pub(crate) transfer_ms: f64,
    /// Gigabits a second that leave a stage for each neighbour; unlimited where none are given
    #[arg(long, value_name = "G")]
    pub(crate) gbps: Option<f64>,
    /// Bytes of an activation; a multiple of 4
    #[arg(long, default_value_t = 4096, value_name = "B")]
    pub(crate) bytes: usize,
    /// What comes first when a stage could do several things
    #[arg(long, value_enum, default_value_t = Schedule::Interlock)]
    pub(crate) schedule: Schedule,
    /// Room of each boundary in micro-batches; the schedule's own choice where none is given
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
    /// All forward passes of a step first, then the pull-backs
    FillDrain,
    /// A micro-batch's pull-back before the next one's forward pass
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

/// A dtype on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dtype {
    /// As they are computed
    F32,
    /// Rounded, in half of the bytes
    Bf16,
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
    /// So many for each stage.
    Each(usize),
    /// What suits machine and stages.
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
                _ => Err(format!("{number:?} is no number of threads; use auto, 1, 2, …")),
            },
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Config {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Print the JSON schema of configuration files instead
    #[arg(long)]
    pub(crate) schema: bool,
}
