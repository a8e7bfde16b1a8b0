//! The finished runs of a comparison, kept as soon as each has finished, so that the same comparison continues after them.

use std::{
    collections::HashMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use interlock::{Error, Result, tools::files};
use serde::{Deserialize, Serialize};

use super::RunResult;
use crate::run_folder::{RunFolder, not_through_symlinks};

/// The file with a line for each run.
const FILE: &str = "runs.jsonl";

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    /// The configuration of the run, as a TOML text.
    config: String,
    result: RunResult,
}

/// The finished runs of a comparison, whose folder this process has locked.
pub(super) struct Finished {
    path: PathBuf,
    file: File,
    results: HashMap<String, RunResult>,
    _folder: RunFolder,
}

impl Finished {
    /// Opens the runs of the comparison in `folder`, which may be new. `planned` are the configurations of its runs.
    ///
    /// # Errors
    /// If another process writes to the folder, or it has runs of another comparison.
    pub(super) fn open(folder: &Path, planned: &[String]) -> Result<Self> {
        let locked = RunFolder::lock(folder)?;
        let path = folder.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::file(&path, error)),
        };
        // What follows the last newline was being written when the program was killed.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |end| &text[..=end]);
        let mut results = HashMap::new();
        for line in whole.split_inclusive(|byte| *byte == b'\n') {
            let Line { config, result } = serde_json::from_slice(line)
                .map_err(|e| Error::file(&path, format!("{e}; it is not of a comparison: name another folder")))?;
            if !planned.contains(&config) {
                let problem = "it has a run of another comparison, with other settings";
                let right =
                    "repeat its options to continue it, with more values or seeds if you like, or name another folder";
                return Err(Error::invalid(format!("--out {}", folder.display()), problem, right));
            }
            results.insert(config, result);
        }
        files::write(&path, whole)?;
        let mut options = File::options();
        options.append(true);
        not_through_symlinks(&mut options);
        let file = options.open(&path).map_err(|e| Error::file(&path, e))?;
        Ok(Self { path, file, results, _folder: locked })
    }

    /// Returns whether `folder` is that of a comparison, or of one that was interrupted before it wrote anything.
    pub(super) fn continues_in(folder: &Path) -> bool {
        folder.join(FILE).is_file() || (folder.is_dir() && RunFolder::is_hardly_begun(folder))
    }

    /// Returns the result of the run with this configuration, if it has finished.
    pub(super) fn get(&self, config: &str) -> Option<&RunResult> {
        self.results.get(config)
    }

    /// Keeps the result of a run, also if the power fails.
    pub(super) fn add(&mut self, config: String, result: &RunResult) -> Result<()> {
        let line = Line { config, result: result.clone() };
        let mut text = serde_json::to_vec(&line).map_err(|e| Error::file(&self.path, e))?;
        text.push(b'\n');
        self.file.write_all(&text).and_then(|()| self.file.sync_data()).map_err(|e| Error::file(&self.path, e))
    }
}
