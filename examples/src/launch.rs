//! `interlock launch`: the line that starts a job of several ranks, printed or run; and the retries of a job that failed.

use std::{
    fmt,
    process::{Child, Command, ExitStatus, Stdio},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use interlock::{Error, Result};

use crate::{
    arguments::{self, Launch, Launcher, Train},
    exit::{Exit, STOPPED, built_without},
    interrupt::{self, Next},
    program::Program,
    terminal::{note, say},
};

/// How long a host may take to answer before a retry.
const ANSWER: Duration = Duration::from_secs(20);

/// The time before a retry, in which the rest of a job ends.
const PAUSE: Duration = Duration::from_secs(2);

/// The most ranks of a host.
const MOST_RANKS: usize = 1 << 16;

/// How often a job that runs is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A host, and how many ranks it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RanksOfHost {
    name: String,
    ranks: usize,
}

impl FromStr for RanksOfHost {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, ranks) = text.split_once(':').unwrap_or((text, "1"));
        let is_name = !name.is_empty() && !name.starts_with('-') && name.chars().all(is_plain);
        match ranks.parse::<usize>() {
            Ok(ranks @ 1..=MOST_RANKS) if is_name => Ok(Self { name: name.to_owned(), ranks }),
            _ => Err("a host is a name, or a name and a number of ranks, such as node1:2".to_owned()),
        }
    }
}

/// Reads the name of a host.
pub(crate) fn host_name(text: &str) -> std::result::Result<String, String> {
    match text.parse::<RanksOfHost>() {
        Ok(RanksOfHost { name, .. }) if !text.contains(':') => Ok(name),
        _ => Err("a spare host is a name: it gets the ranks of the host whose place it takes".to_owned()),
    }
}

impl fmt::Display for RanksOfHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.ranks)
    }
}

/// A job: what is started, and where.
struct Job<'a> {
    arguments: &'a Launch,
    hosts: Vec<RanksOfHost>,
    program: String,
    /// The arguments of `train`.
    train: Vec<String>,
}

pub(crate) fn run<P: Program>(arguments: &Launch) -> Result<(), Exit> {
    let train = train_of::<P>(&arguments.command)?;
    check(arguments, &train)?;
    let program = std::env::current_exe().map_err(Exit::failed)?.display().to_string();
    let mut job = Job { arguments, hosts: arguments.hosts.clone(), program, train: arguments.command.clone() };
    if !arguments.run {
        say(&job.line().iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
        return Ok(());
    }
    if cfg!(not(feature = "mpi")) {
        return Err(built_without("launch --run", "mpi").into());
    }
    let running = Running::default();
    let handle = running.clone();
    interrupt::on_signal(move |is_first| {
        handle.stop(is_first);
        if is_first { Next::GoOn } else { Next::End }
    });
    let mut spares = arguments.spares.clone().into_iter();
    for retry in 0.. {
        let code = running.wait_for(&job.line())?.code();
        match code {
            Some(0) => return Ok(()),
            _ if running.is_stopped() => return Err(Exit::Stopped),
            Some(code) if code == i32::from(STOPPED) => return Err(Exit::Stopped),
            Some(2) => return Err(Exit::Refused("the job was refused; see above".to_owned())),
            _ if retry == arguments.retries => return Err(Exit::Failed(ended(code, retry))),
            _ => {}
        }
        note(&format!("{}; it is started again", ended(code, retry)));
        thread::sleep(PAUSE);
        job.replace_lost_hosts(&mut spares, &running)?;
        if train.resume.is_none() {
            let resume = ["train", "--resume", "auto"].map(str::to_owned);
            job.train = [&resume[..], &arguments.command[1..]].concat();
        }
    }
    Ok(())
}

/// Returns what follows `--` as the arguments of `train`.
fn train_of<P: Program>(command: &[String]) -> Result<Train, Exit> {
    match arguments::parsed::<P>(command) {
        arguments::Command::Train(train) if command.first().is_some_and(|word| word == "train") => Ok(train),
        _ => Err(Error::invalid("launch", quoted(&command.join(" ")), "launch starts `train` only").into()),
    }
}

/// Checks what the command line cannot.
fn check(arguments: &Launch, train: &Train) -> Result<()> {
    if arguments.retries == 0 && !arguments.spares.is_empty() {
        let right = "give --retries too, or leave them out";
        return Err(Error::invalid("--spares", "they serve a retry, and there is none", right));
    }
    if arguments.retries > 0 && train.out.is_none() && train.resume.is_none() {
        let right = "name the run's folder: --out or --resume";
        return Err(Error::invalid("--retries", "a run without a folder of its own cannot go on", right));
    }
    let slurm = arguments.with == Launcher::Srun;
    if slurm && !arguments.spares.is_empty() {
        let right = "let Slurm choose the hosts of a retry: sbatch --requeue";
        return Err(Error::invalid("--spares", "srun has the hosts of its allocation", right));
    }
    if arguments.with == Launcher::Mpich {
        if arguments.oversubscribe {
            let right = "leave it out: with MPICH there may always be more ranks than cores";
            return Err(Error::invalid("--oversubscribe", "it is an option of Open MPI", right));
        }
        if let Some(network) = arguments.network.as_ref().filter(|network| network.contains('/')) {
            let right = "name an interface, such as eth0: MPICH knows networks by these";
            return Err(Error::invalid("--network", network.clone(), right));
        }
    }
    if slurm && (arguments.network.is_some() || arguments.oversubscribe) {
        let option = if arguments.oversubscribe { "--oversubscribe" } else { "--network" };
        return Err(Error::invalid(option, "it is an option of mpirun", "set it in Slurm's allocation"));
    }
    if slurm && arguments.hosts.iter().any(|host| host.ranks != arguments.hosts[0].ranks) {
        let right = "give each host as many, or use --with mpirun";
        return Err(Error::invalid("--hosts", "hosts with different numbers of ranks under srun", right));
    }
    Ok(())
}

impl Job<'_> {
    /// Returns the command line of the launcher.
    fn line(&self) -> Vec<String> {
        let hosts = || self.hosts.iter().map(RanksOfHost::to_string).collect::<Vec<_>>().join(",");
        let count = match self.hosts.is_empty() {
            true => self.arguments.ranks.unwrap_or(1),
            false => self.hosts.iter().map(|host| host.ranks).sum(),
        };
        let mut line = match self.arguments.with {
            Launcher::Mpirun => self.mpirun(hosts),
            Launcher::Mpich => self.mpich(hosts),
            Launcher::Srun => {
                let mut line = vec!["srun".to_owned(), "--mpi=pmix".to_owned(), "--kill-on-bad-exit=1".to_owned()];
                if let Some(first) = self.hosts.first() {
                    let names: Vec<_> = self.hosts.iter().map(|host| host.name.as_str()).collect();
                    line.extend([
                        format!("--nodelist={}", names.join(",")),
                        format!("--ntasks-per-node={}", first.ranks),
                    ]);
                }
                line
            }
        };
        line.extend(["-n".to_owned(), count.to_string(), self.program.clone()]);
        line.extend(self.train.iter().cloned());
        line
    }

    /// Returns the beginning of a line of mpirun, for these hosts.
    fn mpirun(&self, hosts: impl Fn() -> String) -> Vec<String> {
        let mut line = vec!["mpirun".to_owned()];
        let mut add = |words: &[&str]| line.extend(words.iter().map(|word| (*word).to_owned()));
        if !self.hosts.is_empty() {
            add(&["--host", &hosts()]);
            // Without these, mpirun waits five minutes for a host that cannot be reached. It must find out before the ranks do: else it waits as long.
            for (name, value) in [("time", "10"), ("intvl", "5"), ("probes", "3")] {
                add(&["--mca", &format!("oob_tcp_keepalive_{name}"), value]);
            }
        }
        add(&["--bind-to", "none"]);
        if let Some(network) = &self.arguments.network {
            add(&["--mca", "btl_tcp_if_include", network, "--mca", "oob_tcp_if_include", network]);
        }
        if self.arguments.oversubscribe {
            add(&["--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]);
        }
        line
    }

    /// The same for MPICH.
    fn mpich(&self, hosts: impl Fn() -> String) -> Vec<String> {
        let mut line = vec!["mpirun".to_owned()];
        if !self.hosts.is_empty() {
            line.extend(["-hosts".to_owned(), hosts()]);
        }
        if let Some(network) = &self.arguments.network {
            line.extend(["-iface".to_owned(), network.clone()]);
        }
        line.extend(["-bind-to", "none"].map(str::to_owned));
        line
    }

    /// Replaces the hosts that do not answer by spare ones.
    fn replace_lost_hosts(&mut self, spares: &mut impl Iterator<Item = String>, running: &Running) -> Result<(), Exit> {
        for at in 0..self.hosts.len() {
            while !self.answers(&self.hosts[at]) {
                if running.is_stopped() {
                    return Err(Exit::Stopped);
                }
                let name = &self.hosts[at].name;
                let Some(spare) = spares.next() else {
                    return Err(Exit::Failed(format!(
                        "host {name} does not answer, and there is no other; see --spares"
                    )));
                };
                let folder = if at == 0 { "; without a shared folder for the run, it begins anew there" } else { "" };
                note(&format!("host {name} does not answer; {spare} takes its place{folder}"));
                self.hosts[at].name = spare;
            }
        }
        Ok(())
    }

    /// Returns whether a program can be started on a host.
    fn answers(&self, host: &RanksOfHost) -> bool {
        let name = || format!("{}:1", host.name);
        let mut line = match self.arguments.with {
            Launcher::Mpirun => self.mpirun(name),
            Launcher::Mpich => self.mpich(name),
            Launcher::Srun => return true,
        };
        line.extend(["-n", "1", "true"].map(str::to_owned));
        let Ok(mut child) = command_of(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn() else { return false };
        let began = Instant::now();
        while began.elapsed() < ANSWER {
            match child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) => thread::sleep(LOOK),
                Err(_) => break,
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    }
}

fn command_of(line: &[String]) -> Command {
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).stdin(Stdio::null());
    // A Ctrl-C of the terminal comes to this program alone, which passes it on once.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
}

/// The job that runs, if one does, and whether a signal has come.
#[derive(Clone, Default)]
struct Running(Arc<Mutex<(Option<Child>, bool)>>);

impl Running {
    fn lock(&self) -> MutexGuard<'_, (Option<Child>, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.lock().1
    }

    /// Asks the job to end, or ends its launcher at once.
    fn stop(&self, is_first: bool) {
        let mut running = self.lock();
        running.1 = true;
        if let Some(child) = &mut running.0 {
            match is_first {
                true => terminate(child),
                // It may have ended by now.
                false => drop(child.kill()),
            }
        }
    }

    /// Starts a job and waits for its end.
    fn wait_for(&self, line: &[String]) -> Result<ExitStatus, Exit> {
        {
            let mut running = self.lock();
            if running.1 {
                return Err(Exit::Stopped);
            }
            let child = command_of(line).spawn();
            running.0 =
                Some(child.map_err(|e| Exit::Refused(format!("{}: it cannot be started: {e}; install it", line[0])))?);
        }
        loop {
            let mut running = self.lock();
            if let (Some(child), _) = &mut *running
                && let Some(status) = child.try_wait().map_err(Exit::failed)?
            {
                // Its number may belong to another process from now on.
                running.0 = None;
                return Ok(status);
            }
            drop(running);
            thread::sleep(LOOK);
        }
    }
}

/// Ends a job as `kill` does, so that the launcher ends its ranks.
#[cfg(unix)]
fn terminate(child: &mut Child) {
    if let Ok(process) = child.id().try_into() {
        // SAFETY: the child has not been waited for, so that the number is still its own.
        unsafe { libc::kill(process, libc::SIGTERM) };
    }
}

#[cfg(not(unix))]
fn terminate(child: &mut Child) {
    let _ = child.kill();
}

/// Returns how a job ended, in words; without an exit code a signal has ended it.
fn ended(code: Option<i32>, retry: u32) -> String {
    let how = code.map_or_else(|| "was ended by a signal".to_owned(), |code| format!("ended with exit code {code}"));
    match retry {
        0 => format!("the job {how}"),
        _ => format!("the job {how} at retry {retry}"),
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c)
}

/// Returns a word as a shell reads it.
fn quoted(word: &str) -> String {
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_with_numbers_of_ranks() {
        let host = |text: &str| text.parse::<RanksOfHost>().map(|host| host.to_string());
        assert_eq!(host("a").unwrap(), "a:1");
        assert_eq!(host("node-1.local:12").unwrap(), "node-1.local:12");
        for wrong in ["", ":2", "a:", "a:0", "a:x", "a b", "--x:2", "a;b", "a:18446744073709551615", "a:65537"] {
            assert!(host(wrong).unwrap_err().contains("such as node1:2"), "{wrong}");
        }
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("--set=a.b=1,2"), "--set=a.b=1,2");
        assert_eq!(quoted("placement.stages=[[0], [1]]"), "'placement.stages=[[0], [1]]'");
        assert_eq!(quoted("it's $HOME"), "'it'\\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
