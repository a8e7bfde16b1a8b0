//! Starts ranks.

use std::process::Command;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_interlock");

/// The command that starts `size` ranks of this line: a program and its arguments, after options of `mpirun` for them.
pub(crate) fn mpirun(size: usize, line: &[&str]) -> Command {
    let size = size.to_string();
    let mut command = Command::new("mpirun");
    // More ranks than cores; as root, and without reading the memory of other processes, as in a container.
    command.args(["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]);
    command.args(["--mca", "btl_vader_single_copy_mechanism", "none", "-n", &size]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.args(line);
    command
}
