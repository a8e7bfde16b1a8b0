//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use interlock::ActivationDtype;
use serde::{Serialize, Serializer};

use crate::bench::WorkloadName;

/// Trains neural networks cut in depth across devices, with interlocking backpropagation.
///
/// Without a command: `interlock train`, with the built-in configuration.
#[derive(Debug, Parser)]
#[command(name = "interlock", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model; without a configuration, a ResNet of four stages on embedded images
    Train(Train),
    /// Score every head of a trained run on its validation data
    Eval(Eval),
    /// Continue a text with a trained language model
    Generate(Generate),
    /// Train once for each interlock width and seed, and compare
    Compare(Compare),
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
    /// Write the report here too
    #[arg(long, value_name = "FILE.json")]
    pub(crate) report: Option<PathBuf>,
    /// Print plain lines instead of a progress bar
    #[arg(long)]
    pub(crate) plain: bool,
    /// Print nothing but errors
    #[arg(long)]
    pub(crate) quiet: bool,
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

/// An interlock width on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// A number.
    Number(usize),
    /// The number of stages.
    EndToEnd,
}

impl std::str::FromStr for Width {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "e2e" => Ok(Self::EndToEnd),
            number => {
                number.parse().map(Self::Number).map_err(|_| format!("{number:?} is no width; use 1, 2, … or e2e"))
            }
        }
    }
}

impl std::fmt::Display for Width {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::EndToEnd => f.write_str("e2e"),
        }
    }
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
}

#[derive(Args, Debug)]
pub(crate) struct BenchStep {
    /// What to train
    #[arg(long)]
    pub(crate) workload: WorkloadName,
    /// Number of stages: 1, 2 or 4
    #[arg(long, default_value_t = 2, value_name = "K")]
    pub(crate) stages: usize,
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
    /// Steps that are timed
    #[arg(long, default_value_t = 20, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
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
