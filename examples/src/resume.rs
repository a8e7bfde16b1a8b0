//! `train --resume`: finds the checkpoint that a run continues from, and what of its configuration may change.

use std::path::{Path, PathBuf};

use interlock::{
    Checkpoint, Error, Result,
    tools::{checkpoint::Manifest, model::PartitionConfig},
};
use interlock_models::data::{Data, Description};
use toml::{Table, Value};

use crate::{
    arguments::Train,
    config::{ConfigOf, ConfigText, PlacementChoice, Setting},
    program::Program,
    run_folder::{self, RunFolder, Status},
};

/// The keys whose values may change when a run continues. Keys of tables stand for all in them.
const MAY_CHANGE: [&str; 11] = [
    "steps",
    "epochs",
    "checkpoint",
    "failures",
    "devices",
    "partition",
    "placement",
    "data_from",
    "in_flight",
    "recompute",
    "pipeline",
];

/// The run that continues.
pub(crate) struct Resumed<P: Program> {
    pub(crate) folder: RunFolder,
    pub(crate) config: ConfigOf<P>,
    pub(crate) checkpoint: Checkpoint,
    /// The description of its data.
    description: Description,
}

/// What `--resume` leads to.
pub(crate) enum Found<P: Program> {
    /// A new run.
    Nothing,
    /// A run that was interrupted before its first checkpoint, and begins again in its folder.
    Again(RunFolder),
    /// The run has finished, and nothing is asked that it has not done.
    Finished(RunFolder),
    Run(Box<Resumed<P>>),
}

impl<P: Program> Found<P> {
    /// Looks for the run that the command line asks to continue.
    ///
    /// # Errors
    /// If there is none, another process writes it, it has no whole checkpoint, or a key of its configuration is changed that may not change.
    pub(crate) fn of(arguments: &Train) -> Result<Self> {
        let Some(resume) = &arguments.resume else { return Ok(Self::Nothing) };
        let is_auto = resume.as_os_str() == "auto";
        let path = match (&arguments.out, is_auto) {
            (Some(out), true) if !out.exists() => return Ok(Self::Nothing),
            (Some(out), true) => out,
            (None, true) => {
                let remedy = "name the folder with --out, to continue the run in it or to begin one";
                return Err(Error::invalid("--resume auto", "there is no --out", remedy));
            }
            (Some(_), false) => {
                let remedy = "leave it out: the run continues in its own folder; for a copy, copy the folder first";
                return Err(Error::invalid("--out", "the run of --resume has its folder", remedy));
            }
            (None, false) => resume,
        };
        Self::in_folder(path, arguments, is_auto)
    }

    fn in_folder(path: &Path, arguments: &Train, is_auto: bool) -> Result<Self> {
        if is_auto && RunFolder::is_hardly_begun(path) {
            return Ok(Self::Again(RunFolder::lock(path)?));
        }
        if Manifest::is_in(path) {
            let remedy = "name the folder of its run, which continues from its newest whole checkpoint";
            return Err(Error::invalid(format!("--resume {}", path.display()), "it is a checkpoint", remedy));
        }
        let folder = RunFolder::open_to_continue(path)?;
        let before = folder.config::<ConfigOf<P>>()?;
        let config = match (&arguments.source.config, arguments.source.sets.as_slice()) {
            (None, []) => before.clone(),
            (None, sets) => ConfigText::read::<P>(Some(&path.join(run_folder::CONFIG)))?.with(&Setting::sets(sets)?)?,
            (Some(file), sets) => ConfigText::read::<P>(Some(file))?.with(&Setting::sets(sets)?)?,
        };
        let config = match config.placement {
            // The cut of a run stays: a new measurement might find another.
            PlacementChoice::Auto if config.partition == PartitionConfig::default() => {
                ConfigOf::<P> { partition: before.partition.clone(), ..config }
            }
            _ => config,
        };
        check_changes(&table::<P>(&before)?, &table::<P>(&config)?)?;
        if folder.status()? == Status::Finished && (config.steps, config.epochs) == (before.steps, before.epochs) {
            return Ok(Self::Finished(folder));
        }
        let Some((checkpoint, place)) = Checkpoint::newest(path)? else {
            return match is_auto && !folder.has_weights() {
                // It was interrupted before its first checkpoint.
                true => Ok(Self::Again(folder)),
                false => Err(Error::file(path, "the run has no checkpoint to continue from; begin a new one")),
            };
        };
        // That of the run may have been edited since.
        check_changes(&table::<P>(&config_at::<P>(&place)?)?, &table::<P>(&config)?)?;
        let description = run_folder::read_json(&place.join(run_folder::DATA))?;
        Ok(Self::Run(Box::new(Resumed { folder, config, checkpoint, description })))
    }
}

impl<P: Program> Resumed<P> {
    /// Checks that the data are those of the run.
    ///
    /// # Errors
    /// If their description or the number of examples differs.
    pub(crate) fn check_data(&self, data: &Data) -> Result<()> {
        let differs = |what: String| {
            let remedy = "give the data of the run; to train on others from its weights, begin a run with init_from";
            Err(Error::invalid("data", what, remedy))
        };
        if let Some(what) = difference(&self.description, &data.description) {
            return differs(format!("they are not those of the run: {what}"));
        }
        match self.checkpoint.state.examples() {
            Some(before) if before != data.train.len() => {
                differs(format!("there are {} training examples, in the run there were {before}", data.train.len()))
            }
            _ => Ok(()),
        }
    }
}

/// Returns the configuration that a checkpoint has.
fn config_at<P: Program>(checkpoint: &Path) -> Result<ConfigOf<P>> {
    let path: PathBuf = checkpoint.join(run_folder::CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|e| Error::file(&path, e))?;
    toml::from_str(&text).map_err(|e| Error::file(path, e))
}

fn table<P: Program>(config: &ConfigOf<P>) -> Result<Table> {
    toml::from_str(&config.to_toml()?).map_err(|e| Error::Internal(e.to_string()))
}

/// Checks that only keys have changed that may.
fn check_changes(before: &Table, now: &Table) -> Result<()> {
    let fixed = |table: &Table| {
        let fixed = table.iter().filter(|(key, _)| !MAY_CHANGE.contains(&key.as_str()));
        fixed.map(|(key, value)| (key.clone(), value.clone())).collect::<Table>()
    };
    let mut changes = Vec::new();
    collect("", &Value::Table(fixed(before)), &Value::Table(fixed(now)), &mut changes);
    if changes.is_empty() {
        return Ok(());
    }
    let remedy =
        format!("leave these keys as they were (only {} may change), or begin a new run", MAY_CHANGE.join(", "));
    Err(Error::invalid("--resume", format!("the configuration has changed: {}", changes.join("; ")), remedy))
}

/// Adds a line for each key whose value differs.
fn collect(path: &str, before: &Value, now: &Value, changes: &mut Vec<String>) {
    let (Value::Table(a), Value::Table(b)) = (before, now) else {
        if before != now {
            changes.push(format!("{path} was {before}, is {now}"));
        }
        return;
    };
    let within = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    for (key, value) in a {
        match b.get(key) {
            Some(other) => collect(&within(key), value, other, changes),
            None => changes.push(format!("{} was {value}, is not given", within(key))),
        }
    }
    let new = b.iter().filter(|(key, _)| !a.contains_key(*key));
    changes.extend(new.map(|(key, value)| format!("{} was not given, is {value}", within(key))));
}

/// Describes the first difference of two descriptions; none if they are alike.
pub(crate) fn difference(before: &Description, now: &Description) -> Option<String> {
    let json = |description: &Description| serde_json::to_value(description).unwrap_or_default();
    let (before, now) = (json(before), json(now));
    (before != now).then(|| difference_of("", &before, &now))
}

/// Describes the first difference of two values.
fn difference_of(path: &str, before: &serde_json::Value, now: &serde_json::Value) -> String {
    use serde_json::Value::{Array, Object};
    let within = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (before, now) {
        (Object(a), Object(b)) => {
            let other = a.iter().find(|(key, value)| b.get(*key) != Some(value));
            match other {
                Some((key, value)) => {
                    difference_of(&within(key), value, b.get(key).unwrap_or(&serde_json::Value::Null))
                }
                None => "there are more keys".to_owned(),
            }
        }
        (Array(a), Array(b)) if a.len() != b.len() => format!("{path} had {} values, has {}", a.len(), b.len()),
        (Array(a), Array(b)) => {
            let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or_default();
            difference_of(&within(&at.to_string()), &a[at], &b[at])
        }
        _ => format!("{path} was {before}, is {now}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn keys_that_may_change_are_not_compared_and_all_others_are_named() {
        let before = table("steps = 3\nseed = 1\nin_flight = 3\n[optimizer]\nlr = 0.1\n[clip]\nmax_norm = 1.0");
        check_changes(&before, &before).unwrap();
        let longer =
            table("epochs = 4\nseed = 1\n[partition]\nstages = 2\n[optimizer]\nlr = 0.1\n[clip]\nmax_norm = 1.0");
        check_changes(&before, &longer).unwrap();
        let other = table("steps = 3\nseed = 2\ndtype = 'bf16'\n[optimizer]\nlr = 0.2");
        let error = check_changes(&before, &other).unwrap_err().to_string();
        for part in ["seed was 1, is 2", "optimizer.lr was 0.1, is 0.2", "clip was", "dtype was not given, is \"bf16\""]
        {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_first_difference_of_data_is_described() {
        let value = |text: &str| serde_json::from_str(text).unwrap();
        let before = value(r#"{"kind": {"images": {"classes": 2, "class_names": ["a", "b"]}}}"#);
        let now = value(r#"{"kind": {"images": {"classes": 2, "class_names": ["a", "c"]}}}"#);
        assert_eq!(difference_of("", &before, &now), "kind.images.class_names.1 was \"b\", is \"c\"");
    }
}
