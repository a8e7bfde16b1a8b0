//! Runs the command, for the tests of this crate.
#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

/// Settings of a small run: one epoch of 96 images in two stages. It takes about a second in the dev profile.
pub const SMALL: [&str; 8] = [
    "--set=data.limit=96",
    "--set=epochs=1",
    "--set=model.planes=[4, 8]",
    "--set=model.blocks=[1, 1]",
    "--set=model.stem_planes=4",
    "--set=partition.stages=2",
    "--set=heads.arch=gbpl_fc",
    "--set=batch_size=32",
];

pub fn interlock(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_interlock")).args(arguments).current_dir(folder).output().unwrap()
}

pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that the command succeeded, and returns its stdout.
pub fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}{}", out(output), err(output));
    out(output)
}

/// Asserts that the command ends with exit code 2, that its message contains all `words`, and that it adds nothing to the folder.
pub fn refused(folder: &Path, arguments: &[&str], words: &[&str]) {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let mut names: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        names
    };
    let before = list(folder);
    let output = interlock(folder, arguments);
    let message = err(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    for word in words {
        assert!(message.contains(word), "{arguments:?}: {word:?} is not in {message:?}");
    }
    assert_eq!(list(folder), before, "{arguments:?} wrote something");
}

pub fn train(folder: &Path, more: &[&str]) -> Output {
    interlock(folder, &[&["train", "--plain", "--out", "run"], more].concat())
}

pub fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}
