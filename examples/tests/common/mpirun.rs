//! Starts ranks.

use std::process::Command;

/// The command that starts `size` ranks of the program with these arguments.
pub(crate) fn mpirun(size: usize, arguments: &[&str]) -> Command {
    let size = size.to_string();
    let mut command = Command::new("mpirun");
    // More ranks than cores; as root, and without reading the memory of other processes, as in a container.
    command.args(["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]);
    command.args(["--mca", "btl_vader_single_copy_mechanism", "none", "-n", &size]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.arg(env!("CARGO_BIN_EXE_interlock")).args(arguments);
    command
}
