//! The folder of a run as far as its weights and checkpoints go: where they lie, and which checkpoints are whole.
//!
//! | folder | holds |
//! |---|---|
//! | `RUN/checkpoints/step-N/` | the checkpoint after `N` steps |
//! | `RUN/model/` | the weights to use |
//! | `RUN/best/` | the weights of the best evaluation |
//!
//! A checkpoint is written to a folder beside its place, and renamed when it is complete. Its `manifest.json`, written last, has sizes and checksums of
//! all other files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::{
    Error, Result,
    checksum::{self, damaged},
    files,
};

/// The folder of the checkpoints within that of a run.
pub const CHECKPOINTS: &str = "checkpoints";
/// The folder of the weights to use within that of a run.
pub const MODEL: &str = "model";
/// The folder of the weights of the best evaluation within that of a run.
pub const BEST: &str = "best";
const MANIFEST: &str = "manifest.json";
/// The index of weights in a folder.
pub const WEIGHTS: &str = "model.safetensors.index.json";
/// What the name of a checkpoint's folder begins with; the number of steps follows.
const STEP: &str = "step-";
/// What the names of folders end with that are not in their place: one being written, one that is being replaced, and one that is being removed. They begin
/// with a dot.
pub(crate) const PART: &str = ".part";
pub(crate) const OLD: &str = ".old";
const GONE: &str = ".gone";
/// The same for folders to which other ranks write their shards of a checkpoint.
const RANKS: &str = ".ranks";
/// The version of the format of manifests.
const FORMAT: u32 = 1;

/// The contents of a manifest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// The version of the library that wrote the checkpoint.
    pub program: String,
    /// The number of optimizer steps that had been made.
    pub steps: u64,
    /// The files by their path within the folder.
    pub files: BTreeMap<String, FileEntry>,
    checksum: String,
}

/// The size and the checksum of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its size.
    pub bytes: u64,
    checksum: String,
}

impl FileEntry {
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let (checksum, bytes) = checksum::of_file(path)?;
        Ok(Self { bytes, checksum })
    }

    pub(crate) fn checksum(&self) -> &str {
        &self.checksum
    }
}

impl Manifest {
    /// Writes the manifest of the checkpoint in `folder`, as the last of its files. Those that are `known` are not read again.
    ///
    /// # Errors
    /// If a file cannot be read, or the manifest cannot be written.
    pub(crate) fn write(folder: &Path, steps: u64, known: &BTreeMap<String, FileEntry>) -> Result<()> {
        let names = files_in(folder, "").map_err(|e| Error::file(folder, e))?;
        let entry = |name: &String| {
            let known = known.get(name).cloned();
            Ok((name.clone(), known.map_or_else(|| FileEntry::of(&folder.join(name)), Ok)?))
        };
        let manifest = Self {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            steps,
            files: names.iter().map(entry).collect::<Result<_>>()?,
            checksum: checksum::PLACE.to_owned(),
        };
        let path = folder.join(MANIFEST);
        let text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::file(&path, e))?;
        files::write(&path, checksum::seal(&text))
    }

    /// Returns whether `folder` is a checkpoint, whole or not.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(MANIFEST).is_file()
    }

    /// Returns the manifest of the newest checkpoint of the run in `run` whose files are as they were written.
    pub fn newest(run: &Path) -> Option<Self> {
        checkpoints_in(run).iter().find_map(|(_, path)| Self::verified(path).ok())
    }

    /// Reads the manifest of the checkpoint in `folder`, and compares the files with it.
    ///
    /// # Errors
    /// If it, or a file that it lists, is missing or is not as it was written; the error names the file.
    pub fn verified(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let text =
            fs::read_to_string(&path).map_err(|e| Error::file(&path, format!("{e}; the checkpoint is incomplete")))?;
        let manifest: Self = serde_json::from_str(&text).map_err(|e| Error::file(&path, damaged(e)))?;
        if !checksum::is_sealed(&text, &manifest.checksum) {
            return Err(Error::file(&path, damaged("its text is not the one that was written")));
        }
        if manifest.format != FORMAT {
            let cause = format!("format {}; this version reads format {FORMAT}", manifest.format);
            return Err(Error::file(&path, cause));
        }
        for (name, expected) in &manifest.files {
            let file = folder.join(name);
            if FileEntry::of(&file)? != *expected {
                return Err(Error::file(file, damaged("its checksum is not that of the file that was written")));
            }
        }
        Ok(manifest)
    }
}

/// Returns the paths of the files in a folder and those below it, within the folder.
fn files_in(folder: &Path, prefix: &str) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.file_type()?.is_dir() {
            true => names.extend(files_in(&entry.path(), &format!("{name}/"))?),
            false => names.push(name),
        }
    }
    Ok(names)
}

/// Returns the folder of the checkpoint after `steps` steps of the run in `run`.
pub(crate) fn place(run: &Path, steps: u64) -> PathBuf {
    run.join(CHECKPOINTS).join(format!("{STEP}{steps}"))
}

/// Returns the checkpoints of the run in `run`, whole or not, the newest first, each with its number of steps; `run` may also be one of them.
pub fn checkpoints_in(run: &Path) -> Vec<(u64, PathBuf)> {
    let steps = |path: &Path| path.file_name()?.to_str()?.strip_prefix(STEP)?.parse().ok();
    if let Some(own) = steps(run).filter(|_| run.join(MANIFEST).is_file()) {
        return vec![(own, run.to_owned())];
    }
    let entries = fs::read_dir(run.join(CHECKPOINTS)).into_iter().flatten();
    let paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let mut found: Vec<(u64, PathBuf)> = paths.iter().filter_map(|path| Some((steps(path)?, path.clone()))).collect();
    // One that was to replace an older one of the same steps when the program was killed, and that older one. Without a manifest, it was being written.
    let hidden = |path: &PathBuf| {
        Some(path).filter(|path| path.join(MANIFEST).is_file())?;
        let name = path.file_name()?.to_str()?.strip_prefix('.')?.strip_prefix(STEP)?;
        name.strip_suffix(PART).or(name.strip_suffix(OLD))?.parse().ok()
    };
    let left: Vec<(u64, PathBuf)> = paths.iter().filter_map(|path| Some((hidden(path)?, path.clone()))).collect();
    let present: Vec<u64> = found.iter().map(|(steps, _)| *steps).collect();
    found.extend(left.into_iter().filter(|(steps, _)| !present.contains(steps)));
    let is_old = |path: &Path| path.extension() == Some(OLD[1..].as_ref());
    found.sort_by_key(|(steps, path)| (std::cmp::Reverse(*steps), is_old(path)));
    found
}

/// Returns the folder that has the weights of the run in `folder`: `model` in it, or else its newest whole checkpoint; `folder` itself if it has weights of its
/// own, or there are none.
pub fn weights_in(folder: &Path) -> PathBuf {
    let has_own = |folder: &Path| folder.join(WEIGHTS).is_file();
    let model = folder.join(MODEL);
    if let Some(found) = [folder, &model].into_iter().find(|folder| has_own(folder)) {
        return found.to_owned();
    }
    let whole = checkpoints_in(folder).into_iter().find(|(_, path)| Manifest::verified(path).is_ok());
    whole.map_or_else(|| folder.to_owned(), |(_, path)| path)
}

/// Makes a folder for the shards that other ranks write of the checkpoint after `steps` steps of the run in `run`. No other has its name, also not of a run that
/// has ended, some rank of which may still be writing. It is removed when it is dropped.
///
/// # Errors
/// If it cannot be made.
pub(crate) fn folder_for_ranks(run: &Path, steps: u64) -> Result<TempDir> {
    let all = run.join(CHECKPOINTS);
    files::create_folder(&all)?;
    let prefix = format!(".{STEP}{steps}.");
    tempfile::Builder::new().prefix(&prefix).suffix(RANKS).tempdir_in(&all).map_err(|e| Error::file(&all, e))
}

/// Removes the checkpoints of the run in `run` but the newest `keep`, and what an interrupted write has left.
pub(crate) fn prune(run: &Path, keep: usize) {
    // Other ranks may be writing.
    let is_for_ranks = |path: &Path| path.extension() == Some(RANKS[1..].as_ref());
    hidden_in(run).iter().filter(|path| !is_for_ranks(path)).for_each(|path| remove(path));
    for (_, path) in checkpoints_in(run).into_iter().skip(keep) {
        remove(&path);
    }
}

/// Returns the folders of checkpoints that are not in their place.
fn hidden_in(run: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(run.join(CHECKPOINTS)).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))).collect()
}

/// Prepares the folder `run` for checkpoints after `steps` steps: damaged ones of more steps get another name, a whole one that an interrupted write has not
/// put into its place is put there, and what else an interruption has left is removed.
///
/// # Errors
/// If there is a whole one of more steps: it is of another run, or of one that should continue from it.
pub(crate) fn begin_after(run: &Path, steps: u64) -> Result<()> {
    for (newer, path) in checkpoints_in(run).into_iter().filter(|(newer, _)| *newer > steps) {
        if Manifest::verified(&path).is_ok() {
            let problem = format!("{} has a checkpoint after {newer} steps, this run has made {steps}", run.display());
            let remedy = "continue from it (resume), or name another folder";
            return Err(Error::invalid("checkpoint", problem, remedy));
        }
        let aside =
            (1..).map(|n| path.with_file_name(format!("damaged-{STEP}{newer}.{n}"))).find(|path| !path.exists());
        if let Some(aside) = aside {
            fs::rename(&path, aside).map_err(|e| Error::file(&path, e))?;
        }
    }
    for (own, path) in checkpoints_in(run) {
        let place = place(run, own);
        let is_hidden = path != place && path.parent() == place.parent();
        if is_hidden && !place.exists() && Manifest::verified(&path).is_ok() {
            fs::rename(&path, &place).map_err(|e| Error::file(&path, e))?;
        }
    }
    let is_removed = |path: &PathBuf| path.extension() == Some(GONE[1..].as_ref());
    let left = hidden_in(run).into_iter().filter(|path| is_removed(path) || !path.join(MANIFEST).is_file());
    left.for_each(|path| remove(&path));
    Ok(())
}

/// Removes a checkpoint. What an interruption leaves of it is no checkpoint: it has another name then. It does no harm if it stays.
pub(crate) fn remove(path: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{}{GONE}", name.trim_start_matches('.').trim_end_matches(GONE)));
    let aside = if fs::rename(path, &aside).is_ok() { &aside } else { path };
    let _ = fs::remove_dir_all(aside);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_ranks_write_stays_until_its_capture_is_over_or_another_run_begins() {
        let run = tempfile::tempdir().unwrap();
        let run = run.path();
        let [first, second] = [8, 8].map(|steps| folder_for_ranks(run, steps).unwrap());
        assert_ne!(first.path(), second.path());
        let others = [".step-7.part", ".step-9.old", ".step-3.gone"].map(|name| run.join(CHECKPOINTS).join(name));
        others.iter().for_each(|path| fs::create_dir_all(path.join("inner")).unwrap());
        prune(run, 3);
        assert!(first.path().exists() && second.path().exists() && others.iter().all(|path| !path.exists()));
        drop(first);
        assert_eq!(hidden_in(run), [second.path()]);
        // As after a kill.
        let left = second.keep();
        begin_after(run, 0).unwrap();
        assert!(!left.exists());
    }
}
