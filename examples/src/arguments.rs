//! The command line.

mod bench;
mod top;
mod width;

pub(crate) use bench::{Bench, BenchMailbox, BenchRuntime, BenchStep, BenchUnits, Dtype, Schedule, Threads};
pub(crate) use top::Top;
pub(crate) use width::Width;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::WorkloadName;

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

#[derive(Args, Debug)]
pub(crate) struct Config {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Print the JSON schema of configuration files instead
    #[arg(long)]
    pub(crate) schema: bool,
}
