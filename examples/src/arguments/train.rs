//! The options of `train`.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
};

use clap::{Args, ValueEnum};

use super::{METRICS_ADDRESS, Source};

#[derive(Args, Debug, Default)]
pub(crate) struct Train {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Folder to write the run to; must not exist, except with --resume auto [default: runs/<name>-<time>]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Continue the run in this folder from its newest checkpoint, as if it had not been interrupted; auto: the run in the folder of --out if there is
    /// one, else begin it. Its own configuration is used; --set may change its length, its partition and devices, checkpoint and failures
    #[arg(long, value_name = "RUN|auto")]
    pub(crate) resume: Option<PathBuf>,
    /// Devices to train on, such as cpu:threads=1,cores=0 cuda:0; also separated by commas [default: the configuration's]
    #[arg(long, num_args = 1.., value_name = "DEVICE")]
    pub(crate) devices: Vec<String>,
    /// Measure the model's units on the devices, and use the partition with the shortest simulated step
    #[arg(long)]
    pub(crate) auto: bool,
    /// Also write the report to this file
    #[arg(long, value_name = "FILE.json")]
    pub(crate) report: Option<PathBuf>,
    /// Write a timeline of the stages in the last steps: a picture (.svg), or a trace for ui.perfetto.dev (.json); may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Vec<PathBuf>,
    /// Number of steps that the trace shows [default: 4]
    #[arg(long, value_name = "N", requires = "trace", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) trace_steps: Option<u64>,
    /// Serve metrics for Prometheus during the run, at this address or else at 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = METRICS_ADDRESS, value_parser = socket_address)]
    pub(crate) metrics: Option<SocketAddr>,
    /// Serve metrics for this many seconds after the end of the run
    #[arg(long, value_name = "SECONDS", default_value_t = 0, requires = "metrics")]
    pub(crate) metrics_linger: u64,
    /// Also write scalars for TensorBoard, to the folder tensorboard in the run's folder
    #[arg(long)]
    pub(crate) tensorboard: bool,
    /// Print plain lines instead of a progress bar
    #[arg(long)]
    pub(crate) plain: bool,
    /// Print only errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Format of log lines, on stderr and in the run's run.log; RUST_LOG selects them [default: text]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

/// Reads an address to serve at; a host's name stands for its first address.
fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let first = text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    first.ok_or_else(|| format!("{text:?} is not an address and port; use one such as {METRICS_ADDRESS}"))
}

/// The format of log lines: text for people, or one JSON object a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}
