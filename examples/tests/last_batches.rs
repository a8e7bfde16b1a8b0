//! Tests of batches that are too small for batch norm over a map of one pixel.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::fs;

use common::{done, err, interlock, json, refused};
use serde_json::Value;
use tempfile::TempDir;

/// 33 images in batches of 32; maps have one pixel from the third group on.
const CONFIG: &str = r#"
epochs = 1
batch_size = 32
devices = ["cpu:threads=1"]
[data]
kind = "fashion-mnist-mini"
limit = 33
[model]
kind = "resnet"
block = "basic"
stem = "imagenet"
stem_planes = 4
planes = [4, 4, 4, 4]
blocks = [1, 1, 1, 1]
[partition]
stages = 2
[strategy]
width = 1
[heads]
arch = "conv4_bn_gbpl_fc"
"#;

fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.toml"), CONFIG).unwrap();
    folder
}

/// The numbers of examples of the steps of a run.
fn steps(folder: &TempDir, run: &str) -> Vec<u64> {
    let events = fs::read_to_string(folder.path().join(run).join("events.jsonl")).unwrap();
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["event"] == "step").map(|event| event["examples"].as_u64().unwrap()).collect()
}

#[test]
fn last_image_of_an_epoch_joins_the_batch_before_it_or_is_left_out() {
    let folder = folder();
    let train = |run: &str, more: &[&str]| {
        let output = interlock(folder.path(), &[&["train", "--plain", "-c", "config.toml", "-o", run], more].concat());
        done(&output);
        err(&output)
    };
    let said = train("joined", &[]);
    let note = "1 of 33 training examples are left after the last whole batch";
    assert_eq!(said.matches(note).count(), 1, "{said}");
    let log = fs::read_to_string(folder.path().join("joined/run.log")).unwrap();
    assert_eq!(log.matches(note).count(), 1, "{log}");
    assert_eq!(steps(&folder, "joined"), [33]);
    assert_eq!(json(&folder.path().join("joined/report.json"))["steps"], 1);
    let said = train("dropped", &["-s", "drop_last=true"]);
    assert!(!said.contains("training examples"), "{said}");
    assert_eq!(steps(&folder, "dropped"), [32]);
    assert!(fs::read_to_string(folder.path().join("dropped/config.toml")).unwrap().contains("drop_last = true"));
    // Images that are large enough for the model leave batches as they are.
    train("large", &["-s", "model.stem=cifar", "-s", "epochs=1"]);
    assert_eq!(steps(&folder, "large"), [32, 1]);
}

#[test]
fn batches_that_are_too_small_are_refused_by_every_command_that_trains() {
    let folder = folder();
    let path = folder.path();
    let micro = ["-c", "config.toml", "-s", "micro_batches=32", "-s", "data.limit=64"];
    let problem = ["micro_batches: 32 of a batch of 32 have 1 example each", "batch norm", "use at most 16"];
    for command in
        [&["train", "-o", "run"][..], &["train", "--auto"], &["lr-find"], &["plan"], &["compare", "--seeds", "1"]]
    {
        refused(path, &[command, &micro].concat(), &problem);
    }
    let train = ["train", "-c", "config.toml", "-o", "run"];
    refused(path, &[&train[..], &["-s", "batch_size=1"]].concat(), &["batch_size: 1;", "use at least 2"]);
    refused(path, &[&train[..], &["-s", "data.limit=1"]].concat(), &["training set: it has 1 example;", "at least 2"]);
    // Frozen parameters still see the statistics of the batch.
    let frozen = ["-s", "batch_size=1", "-s", r#"optimizer.groups=[{ match = ["layer*"], frozen = true }]"#];
    refused(path, &[&train[..], &frozen].concat(), &["batch_size: 1;"]);
}
