//! Programs that run during a test.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// A running program, which is killed when this is dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the program, with its output in a file of the folder.
    pub(crate) fn start(name: &str, command: &mut Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Self { name: name.to_owned(), child, log }
    }

    /// Returns whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Kills it, as the system does to a process when memory runs out.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        self.child.wait().unwrap();
    }

    /// Describes whether it runs, with the end of its output.
    pub(crate) fn describe(&mut self) -> String {
        let state = if self.runs() { "runs" } else { "has ended" };
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("{} {state}; the end of its output:\n{}", self.name, lines[lines.len().saturating_sub(15)..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Calls `look` repeatedly until it returns a value. After `limit` the test fails with the last error, and the output of the processes.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    processes: &mut [&mut Process],
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let since = Instant::now();
    loop {
        let why = match look() {
            Ok(seen) => return seen,
            Err(why) => why,
        };
        if since.elapsed() > limit {
            let outputs: Vec<String> = processes.iter_mut().map(|process| process.describe()).collect();
            panic!("{what}: not within {limit:?}; {why}\n{}", outputs.join("\n"));
        }
        sleep(Duration::from_millis(100));
    }
}

/// Returns `why` as the error unless the condition holds, for `wait_for`.
pub(crate) fn when(condition: bool, why: impl Into<String>) -> Result<(), String> {
    if condition { Ok(()) } else { Err(why.into()) }
}

/// Returns an address of this host on which nobody listens.
pub(crate) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Returns an address of this host on which nobody listens, nor on the `more` ports after it.
#[cfg(feature = "mpi")]
pub(crate) fn free_addresses(more: u16) -> String {
    loop {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let last = address.port().saturating_add(more);
        if (address.port()..=last).all(|port| TcpListener::bind((address.ip(), port)).is_ok()) {
            return address.to_string();
        }
    }
}

/// Starts a run that serves its metrics at `address`, from the built-in configuration with these settings and arguments.
pub(crate) fn run(name: &str, address: &str, folder: &Path, sets: &[&str], more: &[&str]) -> Process {
    run_by(Command::new(env!("CARGO_BIN_EXE_interlock")), name, address, folder, sets, more)
}

/// The same, by a command that starts the program.
pub(crate) fn run_by(
    mut command: Command,
    name: &str,
    address: &str,
    folder: &Path,
    sets: &[&str],
    more: &[&str],
) -> Process {
    command.args(["train", "--plain", "--metrics", address, "--out"]).arg(folder.join(name)).args(more);
    command.arg(format!("--set=name={name:?}"));
    command.args(sets.iter().map(|set| format!("--set={set}")));
    Process::start(name, &mut command, folder)
}

/// Settings of a small network in four stages, for `run`.
pub(crate) const SMALL: [&str; 8] = [
    "data.limit=512",
    "model.planes=[4, 8, 8]",
    "model.blocks=[1, 1, 1]",
    "model.stem_planes=4",
    "partition.stages=4",
    "heads.arch=gbpl_fc",
    "batch_size=32",
    "micro_batches=2",
];
