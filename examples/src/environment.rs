//! The program, command line and machine of a run, as in `environment.json`.

use std::{path::Path, time::SystemTime};

use interlock::{Error, Result};
use interlock_backends::{Backends, Instructions, core_count};
use serde::{Deserialize, Serialize};

use crate::{memory, program::program};

/// The file's name in a run's folder.
pub(crate) const FILE: &str = "environment.json";

/// A program on a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// The program's version.
    pub(crate) version: String,
    /// The revision of the source that it was built from.
    pub(crate) revision: String,
    /// When the program was started: RFC 3339, in UTC.
    pub(crate) started: String,
    /// The command line, argument by argument.
    pub(crate) command: Vec<String>,
    /// The operating system.
    pub(crate) os: String,
    /// The processor's architecture.
    pub(crate) architecture: String,
    /// The processor's model; null if the system does not report it.
    pub(crate) cpu: Option<String>,
    /// Cores that the program may use.
    pub(crate) cores: usize,
    /// Memory of the machine in bytes; null if the system does not report it.
    pub(crate) memory_bytes: Option<u64>,
    /// The vector instructions in use.
    pub(crate) instructions: String,
    /// The devices of the machine.
    pub(crate) devices: Vec<Device>,
}

/// A device as `interlock devices` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    /// Its name.
    pub(crate) name: String,
    /// A description of the device.
    pub(crate) description: String,
}

/// The environment variables that the program reads.
const VARIABLES: [&str; 1] = ["INTERLOCK_CPU_INSTRUCTIONS"];

/// Those that tests of the crates read.
const OF_TESTS: [&str; 4] = ["INTERLOCK_TEST_", "INTERLOCK_MUTATIONS", "INTERLOCK_SOAK_", "INTERLOCK_CLUSTER_"];

/// Refuses variables that begin with `INTERLOCK_` and that nothing reads, since they are misspelt, and unknown names of instructions.
///
/// # Errors
/// If there is one.
pub(crate) fn check_variables() -> Result<()> {
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let known = |name: &str| VARIABLES.contains(&name) || OF_TESTS.iter().any(|start| name.starts_with(start));
    let mut unknown = names.filter(|name| name.starts_with("INTERLOCK_") && !known(name));
    match unknown.next() {
        Some(name) => Err(Error::invalid(
            format!("environment variable {name}"),
            "there is no such variable",
            format!("unset it; the variables are {}", VARIABLES.join(", ")),
        )),
        None => Instructions::requested().map(|_| ()),
    }
}

impl Environment {
    /// Returns the environment of this process.
    pub(crate) fn of_this_process() -> Self {
        let here = std::env::current_dir().unwrap_or_default();
        let arguments = std::env::args_os().skip(1).map(|argument| without_folder(&argument.to_string_lossy(), &here));
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: env!("SOURCE_REVISION").to_owned(),
            started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            command: std::iter::once(program().to_owned()).chain(arguments).collect(),
            os: std::env::consts::OS.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            cpu: cpu_model(),
            cores: core_count(),
            memory_bytes: memory::total_bytes(),
            instructions: Instructions::in_use().to_string(),
            devices: Backends::default()
                .list()
                .into_iter()
                .map(|(name, description)| Device { name, description })
                .collect(),
        }
    }

    /// Returns the command line, quoted for a shell.
    pub(crate) fn command_line(&self) -> String {
        self.command.iter().map(|argument| quoted(argument)).collect::<Vec<_>>().join(" ")
    }
}

/// Returns an argument with paths below `folder` relative to it, also after a `=`.
fn without_folder(argument: &str, folder: &Path) -> String {
    let (key, value) = match argument.split_once('=') {
        Some((key, value)) => (format!("{key}="), value),
        None => (String::new(), argument),
    };
    match Path::new(value).strip_prefix(folder) {
        Ok(rest) if folder.is_absolute() && !rest.as_os_str().is_empty() => format!("{key}{}", rest.display()),
        _ => argument.to_owned(),
    }
}

fn quoted(argument: &str) -> String {
    let is_safe = |c: char| c.is_alphanumeric() || "-_=+.,:/@%".contains(c);
    match !argument.is_empty() && argument.chars().all(is_safe) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

/// Returns the processor's model, as Linux reports it.
fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, model) = text.lines().find(|line| line.starts_with("model name"))?.split_once(':')?;
    Some(model.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_below_the_working_folder_become_relative() {
        let short = |argument: &str| without_folder(argument, Path::new("/a/b"));
        assert_eq!(short("/a/b/c/d.toml"), "c/d.toml");
        assert_eq!(short("--out=/a/b/c"), "--out=c");
        for kept in ["/a/bc/d", "/a/b", "--set", "seed=3", "/x/y", ""] {
            assert_eq!(short(kept), kept);
        }
        assert_eq!(without_folder("x", Path::new("")), "x");
    }

    #[test]
    fn command_line_is_quoted_for_a_shell() {
        let mut environment = Environment::of_this_process();
        environment.command = ["interlock", "--set", "a.b=[1, 2]", "it's", ""].map(str::to_owned).to_vec();
        assert_eq!(environment.command_line(), r"interlock --set 'a.b=[1, 2]' 'it'\''s' ''");
        let text = serde_json::to_string(&environment).unwrap();
        assert_eq!(serde_json::from_str::<Environment>(&text).unwrap(), environment);
    }
}
