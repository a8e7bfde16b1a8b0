//! `interlock check`: compares the files of a run with their checksums.

use std::path::Path;

use interlock::{
    Checkpoint, Error, Report, Result, Weights,
    tools::checkpoint::{BEST, MODEL, checkpoints_in, weights_in},
};
use serde_json::Value;

use crate::{
    arguments::Check,
    events,
    exit::Exit,
    run_folder::{self, RunFolder, Status},
    table::table,
    terminal::print,
};

/// A part of a run's folder, and what was found.
struct Found {
    name: String,
    is_checkpoint: bool,
    /// What is in it, or why it cannot be used.
    result: Result<String>,
}

pub(crate) fn run(arguments: &Check) -> Result<(), Exit> {
    let folder = RunFolder::open_any(&arguments.run)?;
    let found = parts(&folder);
    let mut shown = table(&["part", "state"]).named_by(1);
    for Found { name, result, .. } in &found {
        let state = match result {
            Ok(content) => format!("whole: {content}"),
            Err(error) => format!("DAMAGED: {error}"),
        };
        shown.add_row([name.clone(), state]);
    }
    print(&shown.to_string())?;
    let checkpoint = found.iter().find(|part| part.is_checkpoint && part.result.is_ok());
    // Where the other commands look.
    let place = weights_in(folder.path());
    let weights = match Weights::load(&place) {
        Ok(_) => place.strip_prefix(folder.path()).unwrap_or(&place).display().to_string(),
        Err(_) => "none".to_owned(),
    };
    print(&format!("weights to use: {}", if weights.is_empty() { "." } else { &weights }))?;
    let continues_from = checkpoint.map_or("none, there is no whole checkpoint", |part| &part.name);
    print(&format!("train --resume continues from: {continues_from}"))?;
    match found.iter().filter(|part| part.result.is_err()).count() {
        0 => Ok(()),
        1 => Err(Exit::Failed("one part of the run is damaged".to_owned())),
        damaged => Err(Exit::Failed(format!("{damaged} parts of the run are damaged"))),
    }
}

/// Reads all parts of a run.
fn parts(folder: &RunFolder) -> Vec<Found> {
    let path = folder.path();
    let mut found = Vec::new();
    let mut add = |name: String, result: Result<String>| found.push(Found { name, is_checkpoint: false, result });
    let record = |what: &str| Ok(what.to_owned());
    add("config.toml".to_owned(), folder.config::<toml::Table>().and_then(|_| record("the configuration")));
    add("data.json".to_owned(), folder.data().and_then(|_| record("the description of the data")));
    add("status.json".to_owned(), folder.status().map(|status| describe(&status)));
    add("events.jsonl".to_owned(), events(path));
    for name in [run_folder::REPORT, "strategy.json"] {
        if path.join(name).exists() {
            let read = match name {
                run_folder::REPORT => run_folder::read_json::<Report>(&path.join(name)).map(drop),
                _ => run_folder::read_json::<Value>(&path.join(name)).map(drop),
            };
            add(name.to_owned(), read.and_then(|()| record("JSON")));
        }
    }
    if let Some(result) = folder.timeline().transpose() {
        add("timeline.json".to_owned(), result.and_then(|_| record("the timeline of the last steps")));
    }
    let weights = |folder: &Path| {
        Weights::load(folder).map(|weights| match weights.len() {
            1 => "1 tensor".to_owned(),
            count => format!("{count} tensors"),
        })
    };
    if path.join(MODEL).exists() {
        add(format!("{MODEL}/"), weights(&path.join(MODEL)));
    } else if path.join("model.safetensors.index.json").exists() {
        add("model.safetensors.index.json".to_owned(), weights(path));
    }
    if path.join(BEST).exists() {
        add(format!("{BEST}/"), weights(&path.join(BEST)));
    }
    for (steps, checkpoint) in checkpoints_in(path) {
        let name = checkpoint.strip_prefix(path).unwrap_or(&checkpoint).display().to_string();
        let result = Checkpoint::load(&checkpoint).map(|_| format!("all of the run after {steps} steps"));
        found.push(Found { name, is_checkpoint: true, result });
    }
    found
}

/// Describes the events of a run.
fn events(run: &Path) -> Result<String> {
    let path = run.join(events::FILE);
    match path.exists() {
        true => events::read(&path).map(|events| format!("{} events", events.len())),
        false => Err(Error::file(path, "there is no such file")),
    }
}

/// Describes the state of a run.
fn describe(status: &Status) -> String {
    match status {
        Status::Running => "running, or killed".to_owned(),
        Status::Finished => "finished".to_owned(),
        Status::Stopped { steps } => format!("stopped after {steps} steps"),
        Status::Failed { cause } => format!("failed: {cause}"),
    }
}
