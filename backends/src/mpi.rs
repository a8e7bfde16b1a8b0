//! Ranks over MPI: a [`Communicator`] between the processes that `mpirun`, `srun` or an operator has started.
//!
//! One thread makes every call of MPI, the one that calls [`run`], and never waits inside of one. The program runs on a thread of its own, and what it
//! sends goes through a queue.

mod calls;
mod elements;
mod engine;

use std::{
    sync::{Arc, Mutex, PoisonError, mpsc::Sender},
    thread::Thread,
    time::Duration,
};

use interlock::{
    Error, Result,
    ranks::{Communicator, Listener, Parcel, Ranks},
};

use engine::{Command, Engine};

/// The variables of the environment by which launchers tell a process that it is a rank: those of Open MPI, of MPICH and others by PMI, and of PMIx.
const LAUNCHED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"];
/// How long a rank whose program has ended waits for the others, before it ends alone.
const END: Duration = Duration::from_secs(60);

/// Runs `program` on a thread of its own, with the ranks of MPI if this process was started as one of several, and returns its exit code. Call it in
/// `main`, on the first thread.
///
/// If rank 0 ends with another code than 0, all ranks end with it; so do they if rank 0 is lost. A rank that waits for others longer than a minute after its program has ended ends alone.
///
/// `timeout` says how long a rank may be silent before the others take it for lost.
///
/// # Errors
/// If MPI cannot be started, or the system has no thread left.
pub fn run(timeout: Duration, program: impl FnOnce(Option<Ranks>) -> u8 + Send + 'static) -> Result<u8> {
    if LAUNCHED.iter().all(|name| std::env::var_os(name).is_none()) {
        return Ok(program(None));
    }
    let mut engine = Engine::start()?;
    if engine.size() == 1 {
        return Ok(program(None));
    }
    let member = Member {
        rank: engine.rank(),
        size: engine.size(),
        commands: Mutex::new(engine.commands()),
        engine: std::thread::current(),
    };
    let ranks = Ranks::with_timeout(Arc::new(member), timeout)?;
    let known = ranks.clone();
    let name = "interlock-main";
    let main = std::thread::current();
    let program = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let code = program(Some(ranks));
            main.unpark();
            code
        })
        .map_err(|cause| Error::Thread { name, cause })?;
    engine.work_until(|| program.is_finished());
    let code = program.join().unwrap_or(1);
    // Without rank 0 there is nothing to wait for.
    engine.end(code, END, code != 0 && (known.rank() == 0 || known.has_lost(0)))
}

/// One rank.
struct Member {
    rank: usize,
    size: usize,
    commands: Mutex<Sender<Command>>,
    engine: Thread,
}

impl Member {
    fn command(&self, command: Command) -> Result<()> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.send(command).map_err(|_| Error::Ended("MPI".to_owned()))?;
        self.engine.unpark();
        Ok(())
    }
}

impl Communicator for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn send(&self, to: usize, parcel: Parcel) -> Result<()> {
        self.command(Command::Send { to, parcel })
    }

    fn listen(&self, listener: Listener) {
        // After the end of the engine nothing arrives.
        let _ = self.command(Command::Listen(listener));
    }
}
