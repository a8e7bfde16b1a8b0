//! The ranks of a run: processes that a launcher of MPI has started together.

use std::sync::OnceLock;

use interlock::{Error, ranks::Ranks};

use crate::exit;

static RANKS: OnceLock<Ranks> = OnceLock::new();

/// Returns the ranks, if this process was started as one of several.
pub(crate) fn ranks() -> Option<&'static Ranks> {
    RANKS.get()
}

/// Runs the program, with the ranks of MPI if there are several and the command `runs_on_ranks`. Returns its exit code.
pub(crate) fn run(runs_on_ranks: bool, program: impl FnOnce() -> u8 + Send + 'static) -> u8 {
    match several() {
        None => program(),
        Some(size) if !runs_on_ranks => {
            let remedy = "start it alone; only `train` and `bench runtime` run on several ranks";
            exit::code_of(Err(Error::invalid("ranks", format!("{size} for this command"), remedy).into()))
        }
        Some(size) => on_ranks(size, program),
    }
}

/// Returns the number of ranks of which a launcher has started this process as one, if it is one of several.
fn several() -> Option<usize> {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok().filter(|&size: &usize| size > 1);
    // PMIx tells its clients their own rank only.
    let of_slurm = || std::env::var_os("PMIX_RANK").and_then(|_| number("SLURM_NTASKS"));
    number("OMPI_COMM_WORLD_SIZE").or_else(|| number("PMI_SIZE")).or_else(of_slurm)
}

#[cfg(feature = "mpi")]
fn on_ranks(size: usize, program: impl FnOnce() -> u8 + Send + 'static) -> u8 {
    /// How long a rank may be silent.
    const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
    let with_ranks = move |ranks: Option<Ranks>| {
        let Some(ranks) = ranks else {
            let problem = format!("the launcher has started {size}, and MPI knows of one");
            let remedy = "start them with the mpirun of the MPI that this program was built with";
            return exit::code_of(Err(Error::invalid("ranks", problem, remedy).into()));
        };
        // This is the only place that sets it.
        let _ = RANKS.set(ranks);
        program()
    };
    interlock_backends::mpi::run(TIMEOUT, with_ranks).unwrap_or_else(|error| exit::code_of(Err(error.into())))
}

#[cfg(not(feature = "mpi"))]
fn on_ranks(size: usize, _: impl FnOnce() -> u8 + Send + 'static) -> u8 {
    exit::code_of(Err(exit::built_without(&format!("{size} ranks"), "mpi").into()))
}
