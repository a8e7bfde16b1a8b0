//! Tests of the log lines of a run, on stderr and in its folder.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{fs, process::Command};

use common::{SMALL, err};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn log_lines_are_text_or_json() {
    let folder = TempDir::new().unwrap();
    let train = |name: &str, level: Option<&str>, more: &[&str]| {
        let arguments = [&["train", "--plain", "--out", name], &SMALL[..], more].concat();
        let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
        command.args(arguments).current_dir(folder.path()).env_remove("RUST_LOG");
        level.map(|level| command.env("RUST_LOG", level));
        let output = command.output().unwrap();
        (err(&output), fs::read_to_string(folder.path().join(name).join("run.log")).unwrap())
    };
    let objects = |text: &str| -> Vec<Value> { text.lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    let (shown, log) = train("text", None, &["--set=lr_schedule.warmup_steps=0"]);
    assert!(shown.is_empty() && log.contains("INFO") && log.contains("finished"), "{shown}{log}");
    let (shown, log) = train("json", Some("info"), &["--log-format", "json"]);
    for lines in [objects(&shown), objects(&log)] {
        let finished = lines.iter().find(|line| line["message"] == "finished").unwrap();
        assert_eq!((&finished["level"], &finished["steps"]), (&"INFO".into(), &3.into()));
    }
    let (shown, log) = train("warmup", None, &[]);
    for lines in [shown, log] {
        assert!(lines.contains("lr_schedule.warmup_steps: 20 of 3 steps"), "{lines}");
    }
    // The level applies to the file too, and a failure is printed once on the terminal.
    let (shown, log) = train("failed", Some("error"), &["--set=optimizer.lr=1e30"]);
    assert_eq!((shown.matches("micro-batch 0").count(), log.lines().count()), (1, 1), "{shown}{log}");
    assert!(shown.starts_with("error: stage ") && log.contains("ERROR"), "{shown}{log}");
    let (shown, _) = train("failed-json", None, &["--log-format", "json", "--set=optimizer.lr=1e30"]);
    let (lines, words) = shown.split_at(shown.find("error: ").unwrap());
    assert_eq!(objects(lines).last().unwrap()["level"], "ERROR");
    assert!(words.contains("marked as failed"), "{words}");
}
