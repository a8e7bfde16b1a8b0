//! Tests of Ctrl-C: the first one ends a run after a step and saves it, the second one ends the program at once.

#![cfg(unix)]
#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;
#[path = "common/running.rs"]
mod running;

use std::{
    fs::File,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use common::{SMALL, done, interlock, json, refused};
use running::{Running, endless, free_address, set_hangup};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn first_signal_ends_the_run_after_a_step_and_saves_it() {
    for signal in ["-INT", "-TERM", "-HUP"] {
        let folder = TempDir::new().unwrap();
        let mut running = endless(folder.path(), &["--plain", "--report", "report.json", "--trace", "steps.svg"]);
        running.wait_for("run/run.log", "evaluated");
        running.send_twice(signal);
        assert_eq!(running.end().code(), Some(130), "{}", running.text("err"));
        assert_eq!(
            running.text("err"),
            "stopping after the steps in progress, with the run saved; again, after two seconds, to end at once\n"
        );
        let report = json(&folder.path().join("run/report.json"));
        let steps = report["steps"].as_u64().unwrap();
        assert!((3..1_000_000).contains(&steps) && report["stopped"] == true, "{report}");
        assert_eq!(report, json(&folder.path().join("report.json")));
        let status = json(&folder.path().join("run/status.json"));
        assert_eq!(status, serde_json::json!({ "state": "stopped", "steps": steps }));
        let out = running.text("out");
        assert!(out.contains(&format!("stopped after {steps} steps")) && out.contains("the run is in run"), "{out}");
        assert!(running.text("run/run.log").contains("stopped"));
        assert!(running.text("steps.svg").starts_with("<svg"));

        let scored = done(&interlock(folder.path(), &["eval", "run", "--json"]));
        let heads: Value = serde_json::from_str(&scored).unwrap();
        assert_eq!(heads.as_array().unwrap().len(), 2);
        refused(folder.path(), &["generate", "run", "--prompt", "x"], &["on images", "interlock predict"]);
    }
}

#[test]
fn stopped_run_on_text_can_generate() {
    let folder = TempDir::new().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/shakespeare-gpt.toml");
    let sets = ["steps=1000000", "eval_every=2", "data.limit=64", "data.context=16", "data.validation_fraction=0.002"];
    let sets: Vec<String> =
        sets.iter().chain(&["model.width=16", "partition.stages=2"]).map(|s| format!("--set={s}")).collect();
    let mut arguments = vec!["train", "--quiet", "--out", "run", "--config", config.to_str().unwrap()];
    arguments.extend(sets.iter().map(String::as_str));
    let mut running = Running::start(folder.path(), &arguments);
    running.wait_for("run/run.log", "evaluated");
    running.send("-INT");
    assert_eq!(running.end().code(), Some(130));
    assert_eq!((running.text("out"), running.text("err")), (String::new(), String::new()));
    let text = done(&interlock(folder.path(), &["generate", "run", "--prompt", "ROMEO", "--tokens", "5"]));
    assert!(text.starts_with("ROMEO"), "{text}");
}

#[test]
fn second_signal_ends_the_program_at_once() {
    let folder = TempDir::new().unwrap();
    // Its first step takes longer than any test.
    let slow = "--set=devices=[\"emulated:forward-ms=3600000\"]";
    let mut running = endless(folder.path(), &["--plain", slow]);
    running.wait_for("run/run.log", "steps 0 to 1000000");
    running.send("-INT");
    running.wait_for("err", "to end at once");
    // Within two seconds another signal is the same request.
    running.send("-TERM");
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(running.child.try_wait().unwrap(), None);
    running.send("-TERM");
    assert_eq!(running.end().code(), Some(130));
    assert!(running.text("err").ends_with("ended; the files of the run are in run\n"), "{}", running.text("err"));
    let status = json(&folder.path().join("run/status.json"));
    assert_eq!((&status["state"], &status["cause"]), (&"failed".into(), &"interrupted before it was saved".into()));
    refused(folder.path(), &["eval", "run"], &["the run has failed", "interrupted"]);
}

/// Starts a command that reads its data from a pipe, and returns the pipe's other end when it reads.
fn reading(folder: &Path, command: &[&str], hangup: libc::sighandler_t) -> (Running, File) {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/text-gpt.toml");
    let pipe = folder.join("input.txt");
    if !pipe.exists() {
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    }
    let arguments = [command, &["--config", config.to_str().unwrap()]].concat();
    let mut running = Running::start_changed(folder, &arguments, |command| set_hangup(command, hangup));
    // Without a reader it cannot be opened.
    let open = |_: &mut Running| File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&pipe).ok();
    let opened = running.wait("reader", open);
    (running, opened)
}

#[test]
fn signal_before_training_ends_every_command_at_once() {
    let folder = TempDir::new().unwrap();
    let commands: [&[&str]; 4] =
        [&["train", "--out", "run"], &["compare", "--seeds", "2", "--out", "run"], &["lr-find"], &["plan"]];
    for command in commands {
        for signal in ["-INT", "-TERM", "-HUP"] {
            let (mut running, _pipe) = reading(folder.path(), command, libc::SIG_DFL);
            running.send(signal);
            assert_eq!(running.end().code(), Some(130), "{command:?} {signal}: {}", running.text("err"));
            assert!(!folder.path().join("run").exists());
        }
    }
}

#[test]
fn ignored_hangup_stays_ignored() {
    let folder = TempDir::new().unwrap();
    let (mut running, mut pipe) = reading(folder.path(), &["train", "--out", "run"], libc::SIG_IGN);
    running.send("-HUP");
    pipe.write_all(b"too short").unwrap();
    drop(pipe);
    assert_eq!(running.end().code(), Some(2), "{}", running.text("err"));
}

#[test]
fn stopped_comparison_keeps_the_finished_runs() {
    let folder = TempDir::new().unwrap();
    let compare = ["compare", "--widths", "2,1", "--seeds", "1000", "--out", "table", "--json"];
    let mut running = Running::start(folder.path(), &[&compare, &SMALL[..]].concat());
    running.wait_for("err", "seed 2");
    running.send("-INT");
    assert_eq!(running.end().code(), Some(130));
    let comparison = json(&folder.path().join("table/compare.json"));
    let runs = comparison["runs"].as_array().unwrap().len();
    assert!((2..1000).contains(&runs), "{runs}");
    assert_eq!(comparison["rows"].as_array().unwrap().len(), 1);
    assert_eq!((&comparison["rows"][0]["width"], &comparison["rows"][0]["runs"]), (&"2".into(), &runs.into()));
    assert_eq!(running.text("table/compare.csv").lines().count(), 1 + runs);
    assert_eq!(comparison, serde_json::from_str::<Value>(&running.text("out")).unwrap());
}

#[test]
fn first_signal_ends_a_finished_run_that_is_still_served() {
    let folder = TempDir::new().unwrap();
    let address = free_address();
    let linger = ["train", "--out", "run", "--metrics", &address, "--metrics-linger", "3600"];
    let mut running = Running::start(folder.path(), &[&linger, &SMALL[..]].concat());
    running.wait_for("out", "the run is in");
    running.send("-INT");
    assert_eq!(running.end().code(), Some(130));
    assert_eq!(json(&folder.path().join("run/status.json"))["state"], "finished");
}

#[test]
fn closed_output_does_not_end_the_run() {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
    command.args([&["train", "--plain", "--out", "run"], &SMALL[..]].concat()).current_dir(folder.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(json(&folder.path().join("run/status.json"))["state"], "finished");
}
