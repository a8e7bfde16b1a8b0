//! Runs of replicas whose ranks read their own data, in folders of their own as on hosts that share no disk.
//!
//! Needs the feature `mpi`.

#![cfg(unix)]
#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;
#[path = "common/kept.rs"]
mod kept;
#[path = "common/mpirun.rs"]
mod mpirun;

use std::{fs, path::Path, process::Output};

use common::{done, err};
use kept::results;
use mpirun::{PROGRAM, mpirun};
use tempfile::TempDir;

const CONFIG: &str = r#"
steps = 12
batch_size = 4
eval_every = 6
seed = 6
replicas = 2
devices = ["cpu:threads=1"]
[data]
kind = "text"
path = "text.txt"
context = 8
[model]
kind = "transformer"
width = 8
heads = 2
layers = 2
[partition]
stages = 2
[heads]
arch = "ln_fc"
"#;

/// Trains in these two folders, one rank in each.
fn train(folders: [&Path; 2], sets: &[&str]) -> Output {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let arguments: Vec<&str> = ["train", "--quiet", "-c", "c.toml", "--out", "run"].into_iter().chain(sets).collect();
    let [first, second] = folders.map(|folder| folder.to_str().unwrap());
    let in_folder = |folder| [&["--wdir", folder, PROGRAM][..], &arguments].concat();
    mpirun(1, &[&in_folder(first)[..], &[":", "-n", "1"], &in_folder(second)].concat()).output().unwrap()
}

#[test]
fn each_replica_reads_its_own_files_or_those_of_rank_0() {
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let [first, second] = [folders[0].path(), folders[1].path()];
    let text = "What is read by one rank is what is read by another one.\n".repeat(20);
    fs::write(first.join("c.toml"), CONFIG).unwrap();
    fs::write(first.join("text.txt"), &text).unwrap();
    let bits = || {
        let found = results(&first.join("run"), 12);
        fs::remove_dir_all(first.join("run")).unwrap();
        found
    };
    done(&train([first, second], &["data_from=first"]));
    let expected = bits();
    let refused = |words: &str| {
        let output = train([first, second], &[]);
        assert!(err(&output).contains(words), "{}", err(&output));
        // Rank 0 may have begun.
        let _ = fs::remove_dir_all(first.join("run"));
        output.status.code()
    };
    assert_eq!(refused("rank 1, build: data: text.txt: "), Some(2));
    assert!(!first.join("run").exists());
    assert_eq!(refused("or let rank 0 read all (data_from = \"first\")"), Some(2));
    // As long, with other words.
    fs::write(second.join("text.txt"), text.replace("another", "Another")).unwrap();
    assert_eq!(refused("other targets on this rank than on rank 0"), Some(1));
    fs::write(second.join("text.txt"), &text[..1000]).unwrap();
    assert_eq!(refused("training examples on this rank"), Some(1));
    fs::write(second.join("text.txt"), &text).unwrap();
    done(&train([first, second], &[]));
    assert!(bits() == expected);
}
