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
    ranks::{Communicator, Host, Listener, RankMessage, Ranks},
};

use elements::place_of;
use engine::{Command, Engine};

/// The variables of the environment by which launchers tell a process that it is a rank: those of Open MPI, of MPICH and others by PMI, and of PMIx.
const LAUNCHED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"];

/// Runs `program` with the ranks of MPI, if this process was started as one of several, and returns its exit code. Call it in `main`, on the first thread.
/// With several ranks, the program runs on a thread of its own.
///
/// Returns when the programs of all ranks have ended. If that of rank 0 ends with another code than 0, or a rank is lost, all ranks end at once, without
/// returning. A rank may be silent for `timeout`, at least 1 s, before it is taken for lost.
///
/// # Errors
/// If MPI cannot be started or fails, or the system has no thread left.
pub fn run(timeout: Duration, program: impl FnOnce(Option<Ranks>) -> u8 + Send + 'static) -> Result<u8> {
    if LAUNCHED.iter().all(|name| std::env::var_os(name).is_none()) {
        return Ok(program(None));
    }
    let mut engine = Engine::start()?;
    if engine.size() == 1 {
        drop(engine);
        return Ok(program(None));
    }
    let member = Member {
        rank: engine.rank(),
        size: engine.size(),
        hosts: engine.hosts(),
        commands: Mutex::new(engine.commands()),
        engine: std::thread::current(),
    };
    let ranks = Ranks::with_timeout(Arc::new(member), timeout)?;
    let (known, main, name) = (ranks.clone(), std::thread::current(), "interlock-main");
    let program = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let code = program(Some(ranks));
            main.unpark();
            code
        })
        .map_err(|cause| Error::Thread { name, cause })?;
    engine.work_until(|_| Ok(program.is_finished()))?;
    let code = program.join().unwrap_or(1);
    known.leave();
    engine.end(code, &known)
}

/// One rank.
struct Member {
    rank: usize,
    size: usize,
    hosts: Vec<Host>,
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

    fn hosts(&self) -> Vec<Host> {
        self.hosts.clone()
    }

    fn send(&self, to: usize, message: RankMessage) -> Result<()> {
        // What cannot be sent is refused here, before a part of it is sent.
        message.tensors.iter().try_for_each(|tensor| place_of(tensor).map(drop))?;
        self.command(Command::Send { to, message })
    }

    fn listen(&self, listener: Listener) {
        // After the end of the engine nothing arrives.
        let _ = self.command(Command::Listen(listener));
    }
}
