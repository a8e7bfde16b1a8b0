//! Tests of the command on the GPUs `cuda:0` and `cuda:1`, real or emulated (see backends/cuda/README.md).
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{path::Path, process::Command};

use common::{SMALL, done, err, interlock, json, refused, train};
use serde_json::Value;
use tempfile::TempDir;

/// Returns the report of a small run with `more` settings.
fn report(more: &[&str]) -> Value {
    let folder = TempDir::new().unwrap();
    done(&train(folder.path(), &[&SMALL[..], more].concat()));
    json(&folder.path().join("run/report.json"))
}

fn loss(report: &Value) -> f64 {
    report["final"]["loss"].as_f64().unwrap()
}

fn devices(report: &Value) -> Vec<&str> {
    report["stages"].as_array().unwrap().iter().map(|stage| stage["device"].as_str().unwrap()).collect()
}

#[test]
fn images_are_learned_equally_on_cpu_gpus_and_both() {
    for settings in [
        &["--set=micro_batches=3"][..],
        &["--set=strategy.width=1", "--set=clip.max_norm=0.5"],
        &["--set=clip.max_norm=0.5", "--set=clip.scope=\"global\"", "--set=recompute=true"],
    ] {
        let run = |devices: &str| report(&[settings, &[&format!("--set=devices={devices}")]].concat());
        let cpu = loss(&run("[\"cpu\"]"));
        for names in [&["cuda:0", "cuda:1"][..], &["cuda:0"], &["cuda:1", "cpu"], &["cpu", "cuda:0"]] {
            let there = run(&format!("{names:?}"));
            let error = (loss(&there) - cpu).abs() / cpu;
            assert!(error < 1e-4, "{names:?}, {settings:?}: {} on GPUs, {cpu} on the CPU", loss(&there));
            let expected: Vec<&str> = (0..2).map(|stage| names[stage % names.len()]).collect();
            assert_eq!(devices(&there), expected);
        }
    }
}

#[test]
fn auto_takes_the_gpus() {
    let auto = report(&["--set=devices=\"auto\""]);
    assert!(devices(&auto).iter().all(|device| device.starts_with("cuda:")), "{auto}");
}

#[test]
fn bf16_learns_nearly_the_same() {
    let cpu = loss(&report(&["--set=devices=[\"cpu\"]"]));
    for names in
        ["[\"cuda:0,precision=bf16\"]", "[\"cuda:0,precision=bf16\", \"cpu\"]", "[\"cpu\", \"cuda:1,precision=bf16\"]"]
    {
        let half = loss(&report(&[&format!("--set=devices={names}")]));
        assert!(half != cpu && (half - cpu).abs() < 0.05 * cpu, "{names}: {half}, {cpu} on the CPU");
    }
}

#[test]
fn text_is_learned_equally_on_cpu_and_gpus() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/shakespeare-gpt.toml");
    let perplexity = |devices: &str| {
        let folder = TempDir::new().unwrap();
        let settings = [
            "--config",
            config.to_str().unwrap(),
            "--set=steps=4",
            "--set=eval_every=4",
            "--set=data.limit=32",
            "--set=data.context=16",
            "--set=data.validation_fraction=0.002",
            "--set=model.width=16",
            "--set=partition.stages=2",
            "--set",
            devices,
        ];
        done(&train(folder.path(), &settings));
        json(&folder.path().join("run/report.json"))["final"]["perplexity"].as_f64().unwrap()
    };
    let [cpu, gpus] = ["devices=[\"cpu\"]", "devices=[\"cuda:0\", \"cuda:1\"]"].map(perplexity);
    assert!((gpus / cpu - 1.0).abs() < 1e-3, "{gpus} on GPUs, {cpu} on the CPU");
}

#[test]
fn devices_are_listed_and_unknown_ones_refused_with_a_remedy() {
    let folder = TempDir::new().unwrap();
    let listed = done(&interlock(folder.path(), &["devices"]));
    assert!(listed.contains("cuda:0") && listed.contains("compute capability"), "{listed}");
    let refused = |device: &str, words: &[&str]| {
        let devices = format!("--set=devices=[{device:?}]");
        refused(folder.path(), &[&["train", "--out", "run", &devices], &SMALL[..]].concat(), words);
    };
    refused("cuda:99", &["device cuda:99: there", "that this process may use; use cuda:0"]);
    refused("cuda:one", &["\"one\" is not a number", "write cuda:N"]);
    refused("cuda:0,precision=f16", &["unknown precision \"f16\"", "bf16"]);
}

#[test]
fn without_gpus_the_cpu_is_used_and_gpus_are_refused() {
    let folder = TempDir::new().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
        // The first variable hides real GPUs, the second one emulated GPUs.
        command.env("CUDA_VISIBLE_DEVICES", "-1").env("EMULATED_CUDA_DEVICES", "0");
        command.args(arguments).current_dir(folder.path()).output().unwrap()
    };
    let listed = done(&run(&["devices"]));
    assert!(
        listed.contains("the NVIDIA driver finds no GPU that this process may use; see what nvidia-smi"),
        "{listed}"
    );
    done(&run(&[&["train", "--quiet", "--out", "run"], &SMALL[..]].concat()));
    assert!(devices(&json(&folder.path().join("run/report.json"))).iter().all(|device| device.starts_with("cpu")));
    let output = run(&[&["train", "--out", "other", "--set=devices=[\"cuda:0\"]"], &SMALL[..]].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("device cuda:0: the NVIDIA driver finds no GPU"), "{}", err(&output));
    assert!(!folder.path().join("other").exists());
}

#[test]
fn steps_and_transfers_are_timed_on_gpus() {
    let folder = TempDir::new().unwrap();
    let measure = |arguments: &[&str]| -> Value {
        let shown = done(&interlock(folder.path(), &[&["bench"], arguments, &["--json"]].concat()));
        serde_json::from_str(shown.lines().last().unwrap()).unwrap()
    };
    let transfers =
        ["runtime", "--steps=5", "--stages=3", "--width=2", "--bytes=4096", "--devices", "cuda:0", "cuda:1"];
    let transfers = measure(&transfers);
    assert_eq!(transfers["devices"], serde_json::json!(["cuda:0", "cuda:1"]));
    assert!(transfers["step_seconds"].as_f64().unwrap() > 0.0);
}
