//! Runs a command in the background, for the tests of this crate.
#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use crate::common::SMALL;

/// Gives a command this action for SIGHUP, whatever that of the tests is.
pub fn set_hangup(command: &mut Command, action: libc::sighandler_t) {
    let set = move || {
        // SAFETY: `signal` may be called between fork and exec.
        unsafe { libc::signal(libc::SIGHUP, action) };
        Ok(())
    };
    // SAFETY: as above.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, set) };
}

/// A running command, which is killed when this is dropped.
pub struct Running {
    pub child: Child,
    folder: PathBuf,
}

impl Running {
    pub fn start(folder: &Path, arguments: &[&str]) -> Self {
        Self::start_changed(folder, arguments, |command| {
            set_hangup(command, libc::SIG_DFL);
        })
    }

    /// Starts a command after `change`.
    pub fn start_changed(folder: &Path, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let file = |name: &str| File::create(folder.join(name)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
        command.args(arguments).current_dir(folder).env_remove("RUST_LOG");
        command.stdout(file("out")).stderr(file("err"));
        change(&mut command);
        Self { child: command.spawn().unwrap(), folder: folder.to_owned() }
    }

    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// Calls `ask` repeatedly until it returns a value, for at most two minutes.
    pub fn wait<T>(&mut self, what: &str, mut ask: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(answer) = ask(self) {
                return answer;
            }
            if begun.elapsed() > Duration::from_secs(120) {
                panic!("no {what} after two minutes\n{}{}", self.text("out"), self.text("err"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a file of the folder contains these words.
    pub fn wait_for(&mut self, name: &str, words: &str) {
        self.wait(words, |running| {
            let ended = running.child.try_wait().unwrap();
            let found = running.text(name).contains(words);
            assert!(found || ended.is_none(), "{ended:?} without {words:?}\n{}", running.text("err"));
            found.then_some(())
        });
    }

    pub fn send(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Sends a signal twice at once, as `timeout` does to a process and to its group.
    pub fn send_twice(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid, &pid]).status().unwrap().success());
    }

    pub fn end(&mut self) -> ExitStatus {
        self.wait("end", |running| running.child.try_wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a run that continues until it is stopped.
pub fn endless(folder: &Path, more: &[&str]) -> Running {
    let endless = ["train", "--out", "run", "--set=steps=1000000", "--set=eval_every=3"];
    let small: Vec<&str> = SMALL.iter().copied().filter(|set| !set.contains("epochs")).collect();
    Running::start(folder, &[&endless, &small[..], more].concat())
}

/// Returns an address of this machine on which nobody listens.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}
