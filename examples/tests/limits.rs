//! Numbers and files that no machine can hold are refused, quickly, and before anything is written.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{
    fs::{self, File},
    io::Write,
};

use common::{SMALL, done, interlock, refused};
use flate2::{Compression, write::GzEncoder};
use tempfile::TempDir;

/// A run of a perceptron, to which settings are added.
const MLP: [&str; 7] = [
    "train",
    "--out",
    "run",
    "--set=model=mlp",
    "--set=model.hidden=[8]",
    "--set=partition.stages=2",
    "--set=heads.arch=fc",
];

#[test]
fn numbers_that_no_machine_can_hold_are_refused() {
    let folder = TempDir::new().unwrap();
    let many = "1000000000000";
    let on_text =
        ["--set=data=shakespeare", "--set=data.context=64", "--set=model=transformer", "--set=model.preset=gpt-nano"];
    for (settings, words) in [
        (vec!["model.hidden=[100000,100000]"], &["memory: ", "at least 112.", "--memory-limit"][..]),
        (vec!["model.hidden=[16777216,16777216]"], &["memory: ", "TiB"]),
        (vec![&*format!("in_flight={many}")], &["in_flight: ", "use 1 to 65536"]),
        (vec![&format!("batch_size={many}"), &format!("micro_batches={many}")], &["micro_batches: ", "use 1 to 4096"]),
        (
            vec![
                "batch_size=8192",
                "micro_batches=4096",
                "model.hidden=[4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4]",
                "partition.stages=17",
            ],
            &["4096 with 17 stages", "at most 3855"],
        ),
        (vec![&format!("partition.stages={many}")], &["partition.stages", "use 1 to 2"]),
        (vec!["model.hidden=[99999999999]"], &["model.dims[1]", "16777216"]),
    ] {
        let settings: Vec<String> = settings.iter().map(|setting| format!("--set={setting}")).collect();
        let settings: Vec<&str> = MLP.into_iter().chain(settings.iter().map(String::as_str)).collect();
        refused(folder.path(), &settings, words);
    }
    let cut = "--set=partition.units_per_stage=[9223372036854775807,9223372036854775807,2]";
    refused(folder.path(), &["train", "--out", "run", cut], &["partition.units_per_stage", "the model has 5"]);
    for (settings, words) in [
        (["model.width=16777216", "model.heads=1", "model.layers=4000"], &["memory: ", "EiB"][..]),
        (["model.vocab=16777216", "model.width=4800", "model.heads=3"], &["memory: "]),
        (["model.layers=65536", "model.width=48", "model.heads=3"], &["model.layers", "1 to 4096"]),
        (["data.context=1000000000000", "model.width=48", "model.heads=3"], &["too few for a window"]),
    ] {
        let settings = settings.map(|setting| format!("--set={setting}"));
        let settings: Vec<&str> = ["train", "--out", "run", "--set=heads.arch=ln_fc", "--set=partition.stages=2"]
            .into_iter()
            .chain(on_text)
            .chain(settings.iter().map(String::as_str))
            .collect();
        refused(folder.path(), &settings, words);
    }
}

#[test]
fn commands_compare_with_the_memory_that_they_are_given() {
    let folder = TempDir::new().unwrap();
    let hidden =
        ["--set=model=mlp", "--set=model.hidden=[30000,30000]", "--set=partition.stages=2", "--set=heads.arch=fc"];
    for command in [
        &["train", "--out", "run"][..],
        &["compare", "--seeds=2", "--out=run"],
        &["lr-find"],
        &["plan"],
        &["bench", "units"],
    ] {
        let arguments = [command, &hidden, &["--memory-limit", "8GiB"]].concat();
        refused(folder.path(), &arguments, &["at least 10.", "there are 8.0 GiB (--memory-limit)"]);
    }
    refused(folder.path(), &["bench", "mailbox", "--bytes=1000000", "--memory-limit=3MB"], &["--bytes", "3.8 MiB"]);
    refused(folder.path(), &["bench", "runtime", "--bytes=1000000", "--memory-limit=500kB"], &["--bytes"]);
    refused(folder.path(), &["train", "--memory-limit", "8"], &["8GiB"]);
    // What fits is trained: parameters, gradients and momentum take 300 KiB.
    let fits = [&["train", "--quiet", "--out", "run", "--memory-limit", "64MiB"], &SMALL[..]].concat();
    done(&interlock(folder.path(), &fits));
}

#[test]
fn small_files_that_become_large_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut bomb = GzEncoder::new(File::create(path("bomb.gz")).unwrap(), Compression::fast());
    (0..64).for_each(|_| bomb.write_all(&vec![b'a'; 1 << 20]).unwrap());
    bomb.finish().unwrap();
    let text =
        ["--set=data.kind=text", "--set=data.path=bomb.gz", "--set=model=transformer", "--set=model.preset=gpt-nano"];
    let arguments = [&["train", "--out", "run", "--memory-limit", "200MiB"], &text[..]].concat();
    refused(folder.path(), &arguments, &["bomb.gz", "more than 40 MiB (unpacked)"]);

    fs::write(path("large.toml"), "# comment\n".repeat(1 << 17)).unwrap();
    refused(folder.path(), &["train", "--config", "large.toml", "--out", "run"], &["large.toml", "more than 1.0 MiB"]);
    let nested =
        |open: &str, close: &str, count: usize| format!("name = {}1{}", open.repeat(count), close.repeat(count));
    for (name, text) in [
        ("lists.toml", nested("[", "]", 100_000)),
        ("tables.toml", nested("{a=", "}", 100_000)),
        ("dots.toml", format!("{}a = 1", "a.".repeat(100_000))),
        ("headers.toml", format!("[{}a]", "a.".repeat(100_000))),
    ] {
        fs::write(path(name), text).unwrap();
        refused(folder.path(), &["train", "--config", name, "--out", "run"], &[]);
    }
    refused(
        folder.path(),
        &["train", "--out", "run", "--set", &format!("{}a=1", "a.".repeat(50_000))],
        &["more than 32 parts"],
    );

    // A file of a terabyte, which takes no space on the disk, is not read.
    let header = br#"{"a":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}"#;
    let mut weights = File::create(path("large.safetensors")).unwrap();
    weights.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    weights.write_all(header).unwrap();
    if weights.set_len(8 + header.len() as u64 + (1 << 40)).is_ok() {
        let arguments = ["train", "--out", "run", "--set=init_from=large.safetensors"];
        refused(folder.path(), &arguments, &["large.safetensors", "1048576 MiB", "more than the memory"]);
    }
}
