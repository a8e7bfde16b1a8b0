//! Tests of `interlock compare`.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{collections::BTreeSet, fs, path::Path};

use common::{SMALL, done, err, interlock, json, out, refused, train};
use serde_json::Value;
use tempfile::TempDir;

/// Returns the lines of a CSV file, as cells.
fn csv(path: &Path) -> Vec<Vec<String>> {
    let lines = csv::ReaderBuilder::new().has_headers(false).from_path(path).unwrap().into_records();
    lines.map(|line| line.unwrap().iter().map(str::to_owned).collect()).collect()
}

#[test]
fn widths_are_compared_and_the_table_is_written() {
    let folder = TempDir::new().unwrap();
    let arguments =
        [&["compare", "--widths", "1,e2e", "--seeds", "2", "--out", "table", "--json"], &SMALL[..]].concat();
    let output = interlock(folder.path(), &arguments);
    let printed: Value = serde_json::from_str(&done(&output)).unwrap();
    assert!(err(&output).contains("width 1  seed 1") && err(&output).contains("the tables are in table"));
    assert_eq!(printed, json(&folder.path().join("table/compare.json")));
    assert_eq!((printed["rows"].as_array().unwrap().len(), printed["runs"].as_array().unwrap().len()), (2, 4));
    assert_eq!(printed["rows"][1]["width"], "e2e");
    assert_eq!(printed["runs"][3]["varied"], serde_json::json!({ "strategy.name": "end_to_end" }));
    let lines = csv(&folder.path().join("table/compare.csv"));
    let columns = ["width", "seed", "accuracy", "perplexity", "loss", "examples_per_second", "head_parameters"];
    assert_eq!(lines[0], columns);
    assert_eq!((lines.len(), lines[4][0].as_str(), lines[4][1].as_str()), (5, "e2e", "2"));
    refused(folder.path(), &["compare", "--widths", "1,x"], &["is not a width"]);
    let too_wide = [&["compare", "--widths", "1,3"], &SMALL[..]].concat();
    refused(folder.path(), &too_wide, &["width 3", "1 (local) to 2"]);
}

#[test]
fn seeds_of_one_configuration_are_compared() {
    let folder = TempDir::new().unwrap();
    let arguments = [&["compare", "--seeds", "2", "--out", "table"], &SMALL[..]].concat();
    let shown = done(&interlock(folder.path(), &arguments));
    assert!(shown.contains("\nseed 2  validation accuracy 0."), "{shown}");
    let lines = csv(&folder.path().join("table/compare.csv"));
    assert_eq!((lines.len(), lines[0][0].as_str(), lines[2][0].as_str()), (3, "seed", "2"));
    let comparison = json(&folder.path().join("table/compare.json"));
    assert_eq!((&comparison["rows"][0]["runs"], &comparison["rows"][0]["varied"]), (&2.into(), &serde_json::json!({})));
}

#[test]
fn every_combination_is_trained_with_every_seed() {
    let folder = TempDir::new().unwrap();
    let vary =
        ["--vary", r#"strategy.follow=["last", "mean"]"#, "--vary", r#"heads.arch=["gbpl_fc", "conv4_bn_gbpl_fc"]"#];
    let small: Vec<&str> = SMALL.into_iter().filter(|set| !set.contains("heads.arch")).collect();
    let arguments = [&["compare", "--seeds", "2", "--out", "table"], &vary[..], &small].concat();
    let shown = done(&interlock(folder.path(), &arguments));
    assert!(
        shown.contains("strategy.follow mean  heads.arch conv4_bn_gbpl_fc  seed 2  validation accuracy 0."),
        "{shown}"
    );
    let header = shown.lines().find(|line| line.contains("spread")).unwrap();
    let columns =
        ["strategy.follow", "heads.arch", "runs", "validation accuracy", "spread", "examples/s", "head parameters"];
    assert!(columns.map(|column| header.find(column).unwrap()).is_sorted(), "{header}");

    let lines = csv(&folder.path().join("table/compare.csv"));
    let results = ["seed", "accuracy", "perplexity", "loss", "examples_per_second", "head_parameters"];
    assert_eq!(lines[0], [&columns[..2], &results].concat());
    // A linear layer from 4 channels to 10 classes; before it a convolution of 3 × 3 and batch norm.
    let heads = [("gbpl_fc", "50"), ("conv4_bn_gbpl_fc", "206")];
    let expected = ["last", "mean"].into_iter().flat_map(|follow| {
        let runs = heads.into_iter().flat_map(|head| ["1", "2"].map(|seed| (head, seed)));
        runs.map(move |((arch, parameters), seed)| [follow, arch, seed, parameters])
    });
    let varied = lines[1..].iter().map(|line| [0, 1, 2, 7].map(|cell: usize| line[cell].as_str()));
    assert_eq!(varied.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let losses: Vec<&str> = lines[1..].iter().map(|line| line[5].as_str()).collect();
    // Stages that follow the last loss do not depend on the other head; those that follow the mean do.
    assert_eq!(losses[..2], losses[2..4]);
    assert_eq!(losses.iter().collect::<BTreeSet<_>>().len(), 6);

    let comparison = json(&folder.path().join("table/compare.json"));
    let rows = comparison["rows"].as_array().unwrap();
    assert_eq!((rows.len(), comparison["runs"].as_array().unwrap().len()), (4, 8));
    let varied = serde_json::json!({ "strategy.follow": "mean", "heads.arch": "gbpl_fc" });
    assert_eq!((&rows[2]["varied"], &rows[2]["runs"], rows[2].get("width")), (&varied, &2.into(), None));
    assert_eq!((&comparison["runs"][5]["varied"], &comparison["runs"][5]["seed"]), (&varied, &2.into()));
    let accuracies: Vec<f64> = lines[5..7].iter().map(|line| line[3].parse().unwrap()).collect();
    assert_eq!(rows[2]["mean"].as_f64().unwrap(), (accuracies[0] + accuracies[1]) / 2.0);
    assert_eq!((&rows[2]["head_parameters"], &rows[3]["head_parameters"]), (&50.into(), &206.into()));

    // Each run is the one that `--set` gives.
    done(&train(folder.path(), &[&SMALL[..], &["--set=strategy.follow=mean", "--set=seed=2"]].concat()));
    assert_eq!(
        json(&folder.path().join("run/report.json"))["final"]["loss"].as_f64().unwrap(),
        losses[5].parse::<f64>().unwrap()
    );
}

#[test]
fn whole_strategies_are_compared() {
    let folder = TempDir::new().unwrap();
    let strategies = r#"strategy=[{width=1}, {width=2, follow="mean"}, {name="local", group=2}]"#;
    let arguments = ["compare", "--vary", strategies, "--out", "table", "--json", "--set=heads.train=needed"];
    let output = interlock(folder.path(), &[&arguments, &SMALL[..]].concat());
    let printed: Value = serde_json::from_str(&done(&output)).unwrap();
    assert_eq!(printed, json(&folder.path().join("table/compare.json")));
    let labels = ["{ width = 1 }", r#"{ follow = "mean", width = 2 }"#, r#"{ group = 2, name = "local" }"#];
    for label in labels {
        assert!(err(&output).contains(&format!("strategy {label}  seed 1  validation accuracy")), "{}", err(&output));
    }
    let rows = printed["rows"].as_array().unwrap();
    let each = |key: &str| rows.iter().map(|row| row[key].clone()).collect::<Vec<_>>();
    assert_eq!(
        each("varied"),
        [
            serde_json::json!({ "strategy": { "width": 1 } }),
            serde_json::json!({ "strategy": { "width": 2, "follow": "mean" } }),
            serde_json::json!({ "strategy": { "name": "local", "group": 2 } }),
        ]
    );
    // A block of both stages has no auxiliary head.
    assert_eq!(each("head_parameters"), [50, 50, 0]);
    let lines = csv(&folder.path().join("table/compare.csv"));
    assert_eq!(lines.iter().map(|line| line[0].as_str()).collect::<Vec<_>>(), [&["strategy"], &labels[..]].concat());
}

#[test]
fn wrong_combination_is_refused_before_the_first_run() {
    let folder = TempDir::new().unwrap();
    let refused = |more: &[&str], words: &[&str]| {
        refused(folder.path(), &[&["compare", "--out", "table"], more, &SMALL[..]].concat(), words);
    };
    refused(&[], &["nothing to compare; give --widths"]);
    refused(
        &["--vary", "optimizer.lr=0.1"],
        &["--vary optimizer.lr=0.1: the value is not an array", "strategy.follow="],
    );
    refused(&["--vary", "optimizer.lr=[]"], &["--vary optimizer.lr=[]: the array is empty"]);
    refused(
        &["--vary", "optimizer.rate=[0.1]"],
        &["--vary optimizer.rate=0.1: optimizer of kind = \"sgd\" has no key rate"],
    );
    refused(&["--vary", "seed=[1]"], &["--vary seed=[1]", "--seeds"]);
    refused(&["--vary", "steps=[1]", "--vary", "steps=[2]"], &["--vary steps=[2]: --vary steps=[1] varies steps too"]);
    let group = ["--widths", "1,2", "--vary", "strategy.group=[1, 2]"];
    refused(
        &group,
        &["--widths 2 --vary strategy.group=2: strategy.width: width 2 for stage 0 of 2, in 1 blocks of 2"],
    );
    // Each value is right with another one.
    let widths = ["--vary", "strategy.width=[1, 2]", "--vary", "strategy.group=[1, 2]"];
    refused(&widths, &["--vary strategy.width=2 --vary strategy.group=2: "]);
}

#[test]
fn comparison_with_a_failed_run_keeps_the_finished_ones() {
    let folder = TempDir::new().unwrap();
    let arguments = ["compare", "--vary", "optimizer.lr=[0.01, 1e30, 0.02]", "--out", "table"];
    let output = interlock(folder.path(), &[&arguments, &SMALL[..]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(err(&output).contains("--vary optimizer.lr=1e30 seed 1: "), "{}", err(&output));
    assert!(out(&output).contains("the tables are in table"));
    let lines = csv(&folder.path().join("table/compare.csv"));
    assert_eq!((lines.len(), lines[1][0].as_str()), (2, "0.01"));
    assert_eq!(json(&folder.path().join("table/compare.json"))["rows"].as_array().unwrap().len(), 1);
}

#[test]
fn a_comparison_continues_after_the_runs_that_have_finished() {
    let folder = TempDir::new().unwrap();
    let compare =
        |more: &[&str]| interlock(folder.path(), &[&["compare", "--out", "table"], more, &SMALL[..]].concat());
    let lines = || fs::read_to_string(folder.path().join("table/compare.csv")).unwrap();
    done(&compare(&["--vary", "optimizer.lr=[0.01]"]));
    let first = lines();
    // As if it had been killed in the middle of the next result.
    let runs = folder.path().join("table/runs.jsonl");
    fs::write(&runs, fs::read_to_string(&runs).unwrap() + "{\"config\":").unwrap();
    let output = compare(&["--vary", "optimizer.lr=[0.01, 0.02]", "--seeds", "2"]);
    assert_eq!(done(&output).matches("examples/s\n").count(), 4, "{}", out(&output));
    // The first run has the speed that it had then: it was not made again.
    assert!(lines().starts_with(&first) && lines().lines().count() == 5, "{first}{}", lines());
    refused(
        folder.path(),
        &[&["compare", "--out", "table", "--vary", "optimizer.lr=[0.03]"], &SMALL[..]].concat(),
        &["--out table: it has a run of another comparison"],
    );
}
