//! Tests of the lesson `own_data`: a program's own vectors with `train`, `eval`, `predict` and `report`.
//!
//! `cargo test` builds lessons before tests; for this test alone, build them first.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use common::{done, err, json, out};
use serde_json::Value;
use tempfile::TempDir;

fn lesson(folder: &Path, arguments: &[&str]) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_interlock")).with_file_name("examples").join("own_data");
    let program: PathBuf = program.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(program.exists(), "no {}: run cargo build --workspace --examples", program.display());
    Command::new(program).args(arguments).current_dir(folder).output().unwrap()
}

fn printed(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&done(&lesson(folder, arguments))).unwrap()
}

fn refused(folder: &Path, arguments: &[&str], words: &[&str]) {
    let output = lesson(folder, arguments);
    let message = err(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}{message}", out(&output));
    assert!(words.iter().all(|word| message.contains(word)), "{arguments:?}: {message}");
}

#[test]
fn own_vectors_are_trained_scored_and_classified() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    done(&lesson(path, &["train", "--quiet", "--out", "run"]));
    let described = &json(&path.join("run/data.json"))["kind"]["vectors"];
    assert_eq!((&described["width"], &described["class_names"][2]), (&16.into(), &"high".into()));
    let scored = printed(path, &["eval", "run", "--json"]);
    let last = scored.as_array().unwrap().last().unwrap();
    assert!(last["accuracy"].as_f64() > Some(0.9) && last["targets"] == 120, "{scored}");

    // The tone of the lesson's documentation, and one of three times the pitch.
    let low = "0,.4,.7,.9,1,.9,.7,.3,-.1,-.4,-.8,-1,-1,-.9,-.6,-.3";
    let source = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/lessons/own_data.rs")).unwrap();
    assert!(source.contains(&format!("echo {low} > new.csv")));
    let high: Vec<String> = (0..16).map(|at| format!("{:.2}", (1.2 * f64::from(at)).sin())).collect();
    fs::write(path.join("new.csv"), format!("{low}\n{}\n", high.join(","))).unwrap();
    let predicted = printed(path, &["predict", "run", "new.csv", "--top", "3", "--json"]);
    let best = |i: usize| (&predicted[i]["file"], &predicted[i]["classes"][0]["class"]);
    assert_eq!(best(0), (&"new.csv:1".into(), &"low".into()));
    assert_eq!(best(1), (&"new.csv:2".into(), &"high".into()));
    assert_eq!(predicted[0]["classes"].as_array().unwrap().len(), 3);

    fs::write(path.join("labelled.csv"), format!("{low},low\n{},middle\n", high.join(","))).unwrap();
    let other = printed(path, &["eval", "run", "--data", "labelled.csv", "--json"]);
    let last = other.as_array().unwrap().last().unwrap();
    assert_eq!((&last["accuracy"], &last["targets"]), (&0.5.into(), &2.into()));

    refused(
        path,
        &["eval", "run", "--data", "new.csv"],
        &["new.csv: line 1 is wrong", "also a class (low, middle, high)"],
    );
    refused(path, &["predict", "run", "nothing.csv"], &["nothing.csv"]);
    refused(path, &["predict", "run", "--text", "a"], &["--text: the run is on vectors; name files of vectors"]);
    refused(path, &["generate", "run", "--prompt", "a"], &["the run is on vectors; use `own_data predict`"]);
    done(&lesson(path, &["report", "run"]));
    assert!(fs::read_to_string(path.join("run/report.html")).unwrap().contains("accuracy"));
}
