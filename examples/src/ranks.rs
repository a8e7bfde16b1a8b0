//! The ranks of a run: processes that a launcher of MPI has started together.

use std::sync::OnceLock;

use interlock::ranks::Ranks;

use crate::exit::Exit;

static RANKS: OnceLock<Ranks> = OnceLock::new();

/// Returns the ranks, if this process was started as one of several.
pub(crate) fn ranks() -> Option<&'static Ranks> {
    RANKS.get()
}

/// Refuses a command that several ranks cannot run.
pub(crate) fn refuse_several(command: &str) -> Result<(), Exit> {
    match ranks() {
        None => Ok(()),
        Some(ranks) => Err(Exit::Refused(format!(
            "{command}: started as {} ranks; only `train` runs on several: start it alone",
            ranks.size()
        ))),
    }
}

/// Runs the program, with the ranks of MPI if there are several. Returns its exit code.
#[cfg(feature = "mpi")]
pub(crate) fn run(program: impl FnOnce() -> u8 + Send + 'static) -> u8 {
    /// How long a rank may be silent.
    const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
    let with_ranks = |ranks: Option<Ranks>| {
        if let Some(ranks) = ranks {
            // This is the only place that sets it.
            let _ = RANKS.set(ranks);
        }
        program()
    };
    interlock_backends::mpi::run(TIMEOUT, with_ranks).unwrap_or_else(|error| crate::exit::code_of(Err(error.into())))
}

/// Runs the program, unless this process was started as one of several ranks. Returns its exit code.
#[cfg(not(feature = "mpi"))]
pub(crate) fn run(program: impl FnOnce() -> u8 + Send + 'static) -> u8 {
    let several = |name: &str| std::env::var(name).ok()?.parse().ok().filter(|&size: &usize| size > 1);
    match ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].into_iter().find_map(several) {
        Some(size) => {
            let error = crate::exit::built_without(&format!("{size} ranks"), "mpi");
            crate::exit::code_of(Err(error.into()))
        }
        None => program(),
    }
}
