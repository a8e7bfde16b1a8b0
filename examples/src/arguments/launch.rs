//! The arguments of `launch`.

use clap::{Args, ValueEnum};

use crate::launch::{RanksOfHost, host_name};

/// The program that starts ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Launcher {
    /// That of Open MPI.
    #[default]
    Mpirun,
    /// That of MPICH, which is called mpirun too.
    Mpich,
    /// That of Slurm, within an allocation.
    Srun,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("where").required(true).args(["hosts", "ranks"]))]
pub(crate) struct Launch {
    /// Hosts, each with its number of ranks, such as node1:2,node2:2; a host without a number has one rank
    #[arg(long, value_delimiter = ',', value_name = "HOST[:RANKS],…")]
    pub(crate) hosts: Vec<RanksOfHost>,
    /// Ranks, on this machine; with srun on the allocated ones
    #[arg(short = 'n', long, value_name = "N", value_parser = at_least_one)]
    pub(crate) ranks: Option<usize>,
    /// The program that starts them
    #[arg(long, value_enum, default_value_t, value_name = "LAUNCHER")]
    pub(crate) with: Launcher,
    /// The network to use, if hosts have several, such as 10.0.0.0/24 or eth0; for mpirun, and an interface for mpich
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// There may be more ranks than cores; for mpirun
    #[arg(long)]
    pub(crate) oversubscribe: bool,
    /// Start the job and wait for its end, instead of printing the line
    #[arg(long)]
    pub(crate) run: bool,
    /// How often a job that failed, or lost a rank, is started again; it goes on from its newest checkpoint
    #[arg(long, default_value_t = 0, value_name = "N", requires = "run")]
    pub(crate) retries: u32,
    /// Hosts that take the place of those that do not answer at a retry
    #[arg(long, value_delimiter = ',', value_name = "HOST,…", requires = "hosts", value_parser = host_name)]
    pub(crate) spares: Vec<String>,
    /// `train` and its arguments
    #[arg(last = true, required = true, value_name = "train …")]
    pub(crate) command: Vec<String>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|ranks| *ranks > 0).ok_or_else(|| "use 1 or more".to_owned())
}
