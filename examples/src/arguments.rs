//! The command line.

mod bench;
mod launch;
mod tips;
mod top;
mod train;
mod width;

pub(crate) use bench::{
    Bench, BenchMailbox, BenchRuntime, BenchStep, BenchUnits, Dtype, PrecisionName, Schedule, Threads,
};
pub(crate) use launch::{Launch, Launcher};
pub(crate) use top::Top;
pub(crate) use train::{LogFormat, Train};
pub(crate) use width::{Width, WindowOptions};

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::{
    bench::WorkloadName,
    exit,
    plan::Follow,
    program::{ModelSection, Program, program},
};

/// The address at which runs serve metrics and `top` reads them, if none is given.
const METRICS_ADDRESS: &str = "127.0.0.1:9464";

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 a run failed, did not repeat its reference run, or its output could not be written;
2 refused before anything was written; 130 stopped by Ctrl-C, SIGTERM or SIGHUP: training after the step, with the run saved; at the second,
or before training, at once";

/// Trains one neural network on several devices: each device trains some of its layers.
///
/// The layers on a device are a stage. With interlocking backpropagation a stage learns from the loss of a head a few stages downstream, and does not
/// wait for the end of the network. Without a command: `train`, with the built-in configuration.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Memory that this process may use, such as 8GiB: runs and files that cannot fit are refused [default: the machine's free memory, or less in a
    /// control group]
    #[arg(long, global = true, value_name = "SIZE", value_parser = crate::memory::size)]
    pub(crate) memory_limit: Option<u64>,
}

/// Returns the command and the memory limit that this process's arguments give. Prints help, or an error, and ends the process if they give none.
pub(crate) fn parse<P: Program>() -> (Command, Option<u64>) {
    let matches =
        command::<P>().try_get_matches().unwrap_or_else(|error| exit::with_message(&tips::with_tip::<P>(error)));
    let arguments = Arguments::from_arg_matches(&matches);
    let Arguments { command, memory_limit } = arguments.unwrap_or_else(|error| exit::with_message(&error));
    (command.unwrap_or_default(), memory_limit)
}

/// Returns the command that these arguments give. Prints help, or an error, and ends the process if they give none.
pub(crate) fn parsed<P: Program>(arguments: &[String]) -> Command {
    let words = std::iter::once(program()).chain(arguments.iter().map(String::as_str));
    let matches = command::<P>().try_get_matches_from(words);
    let matches = matches.unwrap_or_else(|error| exit::with_message(&tips::with_tip::<P>(error)));
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| exit::with_message(&error));
    arguments.command.unwrap_or_default()
}

/// Returns the description of the command line.
pub(crate) fn command<P: Program>() -> clap::Command {
    let parts = match P::Model::head_parts() {
        [] => String::new(),
        parts => format!("Parts of heads.arch and heads.archs, joined by _:\n  {}", parts.join("\n  ")),
    };
    Arguments::command().name(program()).mut_subcommand("config", |config| config.after_help(parts))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model; without a configuration, the built-in one
    Train(Train),
    /// Simulate steps with several partitions, widths and numbers of micro-batches, and recommend one
    Plan(Box<Plan>),
    /// Compare all files of a run with their checksums, and say which weights and checkpoints can be used
    Check(Check),
    /// Score all heads of a finished run on its validation data, or on other data
    Eval(Eval),
    /// Classify images, or predict how texts go on, with a finished run; its data are not needed
    Predict(Predict),
    /// Watch running pipelines that serve metrics, live on the terminal
    Top(Top),
    /// Continue a text with a finished run on text; its data are not needed
    Generate(Generate),
    /// Write a finished run's model as a folder for transformers, timm, torchvision or nanoGPT, with the lines of Python that load it
    Export(Export),
    /// Train once for each combination of widths or other values and each seed, and compare
    Compare(Compare),
    /// Train for a few steps while the learning rate rises, and suggest a rate
    LrFind(LrFind),
    /// Write one page about a run, or several side by side: curves, throughput, timeline, configuration
    Report(Report),
    /// Repeat reference runs, and compare every tensor with the recorded one, within a tolerance
    Replay(Replay),
    /// Measure steps, units, the runtime and messages on this machine
    #[command(subcommand)]
    Bench(Bench),
    /// Print the line that trains on several hosts or processes by MPI, or run it, again after failures
    Launch(Launch),
    /// List the devices of this machine
    Devices,
    /// Print the configuration of a run, explain a key, or print the schema of configurations
    Config(Config),
    /// Make a folder with a configuration to begin with, or a crate with your own model
    Init(Init),
    /// Print the script that completes this command in a shell
    Completions(Completions),
    /// Print the manual page of this command
    Man(Man),
}

impl Default for Command {
    fn default() -> Self {
        Self::Train(Train::default())
    }
}

/// The file and the single values of a configuration.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Source {
    /// Configuration file (TOML) [default: the built-in configuration]
    #[arg(short, long, value_name = "FILE.toml")]
    pub(crate) config: Option<PathBuf>,
    /// Set one key of the configuration, such as optimizer.lr=0.1; may be repeated. Another kind, such as optimizer=adamw (short for
    /// optimizer.kind=adamw), begins its table anew, with the defaults of that kind
    #[arg(short, long = "set", value_name = "KEY.PATH=VALUE")]
    pub(crate) sets: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// Folder of a run
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
}

#[derive(Args, Debug, Default)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Plan for a workload of `bench` instead of a configuration
    #[arg(long, conflicts_with_all = ["config", "sets"])]
    pub(crate) workload: Option<WorkloadName>,
    /// Devices to measure on and to plan for, such as cpu:threads=1,cores=0 cuda:0; also separated by commas [default: the configuration's]
    #[arg(long, num_args = 1.., value_name = "DEVICE")]
    pub(crate) devices: Vec<String>,
    /// Assume that each stage (and each replica) has its own device, like the measured one
    #[arg(long)]
    pub(crate) dedicated: bool,
    /// Numbers of stages to try [default: the configuration's]
    #[arg(long, value_delimiter = ',', value_name = "K,…")]
    pub(crate) stages: Vec<usize>,
    /// Interlock widths to try; e2e is end-to-end [default: the configuration's strategy]
    #[arg(long, value_delimiter = ',', value_name = "N,…,e2e")]
    pub(crate) widths: Vec<Width>,
    /// Numbers of stages in a block to try; widths count blocks [default: the configuration's]
    #[arg(long, value_delimiter = ',', value_name = "G,…")]
    pub(crate) groups: Vec<usize>,
    /// Losses of its window for a stage to follow: the last one, or the mean of all [default: the configuration's]
    #[arg(long, value_delimiter = ',', value_name = "last,mean")]
    pub(crate) follow: Vec<Follow>,
    /// Numbers of micro-batches to try [default: the configuration's]
    #[arg(long, value_delimiter = ',', value_name = "M,…")]
    pub(crate) micro_batches: Vec<usize>,
    /// Simulate this partition (units of each stage) instead of searching the best
    #[arg(long, value_delimiter = ',', value_name = "U,…", conflicts_with = "stages")]
    pub(crate) units_per_stage: Vec<usize>,
    /// Read the costs of units from this file of `bench units --out` instead of measuring; one for each micro-batch size
    #[arg(long, value_name = "FILE.json")]
    pub(crate) costs: Vec<PathBuf>,
    /// Numbers of replicas to try, among which a batch is divided and whose gradients are summed over the links; more than one implies --dedicated [default: the
    /// configuration's]
    #[arg(long, value_delimiter = ',', value_name = "R,…")]
    pub(crate) replicas: Vec<usize>,
    /// This many ranks with one stage each: tries each number of stages that divides it, with as many replicas
    #[arg(long, value_name = "N", conflicts_with = "replicas")]
    pub(crate) ranks: Option<usize>,
    /// Latency of the links between devices, in microseconds
    #[arg(long, default_value_t = 0.0, value_name = "L")]
    pub(crate) latency_us: f64,
    /// Bandwidth of the links between devices, in gigabits a second [default: unlimited]
    #[arg(long, value_name = "G")]
    pub(crate) gbps: Option<f64>,
    /// Memory in MiB: of each device with --dedicated, otherwise of all together [default: this machine's free memory]
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_mib: Option<u64>,
    /// Write the recommended schedule as a picture (.svg) or a trace for Perfetto (.json); may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Vec<PathBuf>,
    /// Print the result as JSON, and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Eval {
    /// The run's folder
    pub(crate) run: PathBuf,
    /// Devices to compute on, separated by commas, such as cpu; the partition stays that of the run [default: those of its configuration]
    #[arg(long, value_name = "DEVICE,…")]
    pub(crate) devices: Vec<String>,
    /// Score other data instead of the run's validation data: a folder with a folder of images for each class, images in the idx format, CIFAR, or a
    /// text file
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Score only the head of stage K
    #[arg(long, alias = "stage", value_name = "K")]
    pub(crate) head: Option<usize>,
    /// Use the weights of the best evaluation instead of the last
    #[arg(long)]
    pub(crate) best: bool,
    /// Print the scores as JSON, and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Predict {
    /// The run's folder
    pub(crate) run: PathBuf,
    /// For a run on images: images (png, jpg, bmp, webp; with the feature more-images also gif, tif, pnm), folders of them, or files of images in the
    /// idx format; for a run on text: text files, plain or .gz, or - for stdin
    #[arg(required_unless_present = "text", value_name = "INPUT")]
    pub(crate) inputs: Vec<PathBuf>,
    /// A text instead of files
    #[arg(long, conflicts_with = "inputs")]
    pub(crate) text: Option<String>,
    /// Devices to compute on, separated by commas, such as cpu; the partition stays that of the run [default: those of its configuration]
    #[arg(long, value_name = "DEVICE,…")]
    pub(crate) devices: Vec<String>,
    /// Predict with the head of stage K, without the downstream stages [default: the last stage]
    #[arg(long, value_name = "K")]
    pub(crate) head: Option<usize>,
    /// Show the K likeliest classes of each example, or the K likeliest tokens after each text [default: 1 class, 5 tokens]
    #[arg(long, value_name = "K")]
    pub(crate) top: Option<usize>,
    /// Predict for the first N examples or texts only
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Use the weights of the best evaluation instead of the last
    #[arg(long)]
    pub(crate) best: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Generate {
    /// The run's folder
    pub(crate) run: PathBuf,
    /// Devices to compute on, separated by commas, such as cpu; the partition stays that of the run [default: those of its configuration]
    #[arg(long, value_name = "DEVICE,…")]
    pub(crate) devices: Vec<String>,
    /// The text to continue
    #[arg(long)]
    pub(crate) prompt: String,
    /// Temperature of the distribution: above 1 flatter, below 1 sharper; 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8)]
    pub(crate) temperature: f64,
    /// Draw only from the K likeliest tokens
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
pub(crate) struct Export {
    /// The run's folder
    pub(crate) run: PathBuf,
    /// Who loads it: hf, transformers for text and timm for images; torch, nanoGPT for text and torchvision for images
    #[arg(long, value_enum)]
    pub(crate) format: Format,
    /// Folder to write to; must not exist [default: <run>/<format>]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Also write the weights of the auxiliary heads, to heads.safetensors
    #[arg(long)]
    pub(crate) heads: bool,
    /// Use the weights of the best evaluation instead of the last
    #[arg(long)]
    pub(crate) best: bool,
}

/// Who loads an exported model.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    Hf,
    Torch,
}

#[derive(Args, Debug)]
pub(crate) struct Compare {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Interlock widths, separated by commas; e2e is end-to-end. Groups and what stages follow stay those of the configuration
    #[arg(long, value_delimiter = ',', value_name = "N,…,e2e")]
    pub(crate) widths: Vec<Width>,
    /// A key of the configuration and a TOML array of its values, such as 'strategy.follow=["last", "mean"]'; may be repeated, for all combinations
    #[arg(long, value_name = "KEY.PATH=[VALUE, …]")]
    pub(crate) vary: Vec<String>,
    /// Number of seeds for each combination: the configuration's seed and the next ones [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) seeds: Option<u64>,
    /// Folder to write the tables to; must not exist, or be that of the same comparison, whose finished runs then count [default:
    /// runs/<name>-compare-<time>]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Devices to train on, such as cpu:threads=1,cores=0 cuda:0; also separated by commas [default: the configuration's]
    #[arg(long, num_args = 1.., value_name = "DEVICE")]
    pub(crate) devices: Vec<String>,
    /// Print the table as JSON, and nothing else; progress goes to stderr
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct LrFind {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Learning rate of the first step
    #[arg(long, value_name = "RATE", default_value_t = 1e-6)]
    pub(crate) from: f64,
    /// Learning rate of the last step
    #[arg(long, value_name = "RATE", default_value_t = 10.0)]
    pub(crate) to: f64,
    /// Number of steps
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub(crate) steps: u64,
    /// Devices to train on, such as cpu:threads=1,cores=0 cuda:0; also separated by commas [default: the configuration's]
    #[arg(long, num_args = 1.., value_name = "DEVICE")]
    pub(crate) devices: Vec<String>,
    /// Write the losses over the rates as a picture
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// Print the rates and all losses as JSON, and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Report {
    /// The folders of the runs, also of runs that failed or are still running
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// The page; required for several runs [default: report.html in the run's folder]
    #[arg(long, value_name = "FILE.html")]
    pub(crate) out: Option<PathBuf>,
    /// Also write each plot to this folder, as SVG
    #[arg(long, value_name = "DIR")]
    pub(crate) plots: Option<PathBuf>,
    /// Also write each plot as PNG; needs a program that was built with `--features png`
    #[arg(long, requires = "plots")]
    pub(crate) png: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Replay {
    /// Folders of reference runs, each with case.json and tensors.safetensors
    #[arg(required = true, value_name = "DIR")]
    pub(crate) runs: Vec<PathBuf>,
    /// The device to replay on
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

#[derive(Args, Debug)]
pub(crate) struct Config {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Explain this key instead, such as optimizer.lr: what it is, its values, its default
    #[arg(value_name = "KEY.PATH", conflicts_with_all = ["config", "sets", "schema"])]
    pub(crate) key: Option<String>,
    /// Print the JSON schema of configuration files instead
    #[arg(long)]
    pub(crate) schema: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Init {
    /// The folder; files that exist are not replaced
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// Make a crate with an own model, which has this whole command
    #[arg(long = "crate")]
    pub(crate) own_crate: bool,
    /// The checkout on which the crate depends [default: the one that this program was built from]
    #[arg(long, value_name = "DIR", requires = "own_crate")]
    pub(crate) sources: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(crate) struct Man {
    /// Write the pages of this command and all its subcommands to this folder instead
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}
