//! Runs that are killed, started twice, damaged or changed, and continued. `system.rs`: full disks, few descriptors, signals.
//!
//! The numbers of tries are those of a short form; `just soak` sets them higher.

#![cfg(unix)]
#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "../common/command.rs"]
mod common;
#[path = "../common/kept.rs"]
mod kept;
mod system;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{done, err, interlock, json, out, refused};
use kept::{IMAGES, TEXT, events, results};
use tempfile::TempDir;

/// Returns how often to try something: `short`, or what this variable of the environment says.
fn tries(variable: &str, short: usize) -> usize {
    std::env::var(variable).map_or(short, |count| count.parse().unwrap())
}

fn start(folder: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
    command.args(arguments).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Starts a run of the configuration `c.toml`, and waits for its checkpoint after `checkpoint` steps.
fn started(folder: &Path, steps: u64, checkpoint: u64) -> Child {
    let steps = format!("--set=steps={steps}");
    let mut child = start(folder, &["train", "--config", "c.toml", &steps, "--out", "run", "--quiet"]);
    let (place, began) = (folder.join(format!("run/checkpoints/step-{checkpoint}")), Instant::now());
    while !place.exists() {
        assert!(began.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// The state of numbers that look random; other ones in each round of a soak.
fn seed(number: u64) -> u64 {
    let round: u64 = std::env::var("INTERLOCK_SOAK_ROUND").map_or(0, |round| round.parse().unwrap());
    number + 1000 * round
}

/// A number that looks random, for the moments at which runs are killed.
fn pseudo_random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_as_the_uninterrupted_one() {
    let folder = TempDir::new().unwrap();
    let mut state = seed(1);
    for (name, config) in [("images", IMAGES), ("text", TEXT)] {
        fs::write(folder.path().join(format!("{name}.toml")), config).unwrap();
        let (config, whole) = (format!("{name}.toml"), format!("{name}-whole"));
        let began = Instant::now();
        done(&interlock(folder.path(), &["train", "--quiet", "--config", &config, "--out", &whole]));
        let time = began.elapsed();
        let expected = results(&folder.path().join(&whole), 40);
        assert!(expected.len() >= 9, "{:?}", expected.keys());
        let mut kills = 0;
        for round in 0.. {
            let run = format!("{name}-{round}");
            let resume = ["train", "--quiet", "--config", &config, "--resume", "auto", "--out", &run];
            loop {
                let mut child = start(folder.path(), &resume);
                let moment = time.mul_f64(0.1 + 0.9 * (pseudo_random(&mut state) % 1000) as f64 / 1000.0);
                std::thread::sleep(moment);
                if let Some(status) = child.try_wait().unwrap() {
                    assert!(status.success(), "{}", err(&interlock(folder.path(), &resume)));
                    break;
                }
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
            }
            let run = folder.path().join(run);
            assert!(results(&run, 40) == expected, "{name} after {kills} kills");
            assert_eq!(events(&run), events(&folder.path().join(&whole)));
            assert_eq!(
                json(&run.join("report.json"))["final"],
                json(&folder.path().join(&whole).join("report.json"))["final"]
            );
            done(&interlock(folder.path(), &["check", run.to_str().unwrap()]));
            fs::remove_dir_all(run).unwrap();
            if kills >= tries("INTERLOCK_SOAK_KILLS", 6) {
                println!("{name}: {kills} kills, {} rounds", round + 1);
                break;
            }
        }
    }
}

#[test]
fn of_two_runs_on_one_folder_exactly_one_runs() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("text.toml"), TEXT).unwrap();
    for round in 0..tries("INTERLOCK_SOAK_PAIRS", 4) {
        let run = format!("run-{round}");
        let arguments = ["train", "--quiet", "--config", "text.toml", "--set=steps=8", "--out", &run];
        let arguments = match round % 2 {
            0 => arguments.to_vec(),
            _ => [&arguments[..], &["--resume", "auto"]].concat(),
        };
        let both = [(); 2].map(|()| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
            command.args(&arguments).current_dir(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        });
        let ended = both.map(|child| child.wait_with_output().unwrap());
        let codes: Vec<Option<i32>> = ended.iter().map(|output| output.status.code()).collect();
        let messages: Vec<String> = ended.iter().map(err).collect();
        // With --resume auto the second may also come when the first has ended.
        let is_late = round % 2 == 1 && codes == [Some(0), Some(0)];
        assert!(is_late || codes == [Some(0), Some(2)] || codes == [Some(2), Some(0)], "{codes:?} {messages:?}");
        let refusal = messages.concat();
        assert!(is_late || refusal.contains("it exists") || refusal.contains("writes it"), "{refusal}");
        done(&interlock(folder.path(), &["check", &run]));
    }
    // Without --out both get a folder of their own, even in the same second.
    let arguments = ["train", "--quiet", "--config", "text.toml", "--set=steps=1"];
    let both = [(); 3].map(|()| start(folder.path(), &arguments));
    assert!(both.into_iter().all(|mut child| child.wait().unwrap().success()));
    assert_eq!(fs::read_dir(folder.path().join("runs")).unwrap().count(), 3);
}

#[test]
fn a_run_that_was_killed_while_it_began_begins_again() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("c.toml"), TEXT).unwrap();
    let arguments = ["train", "--quiet", "--config", "c.toml", "--set=steps=4", "--out", "run", "--resume", "auto"];
    let run = folder.path().join("run");
    let written =
        ["lock", "data.json.part", "data.json", "environment.json", "status.json", "config.toml", "events.jsonl"];
    for until in 0..=written.len() {
        fs::create_dir(&run).unwrap();
        for file in &written[..until] {
            let whole = folder.path().join("whole").join(file);
            fs::write(run.join(file), fs::read(whole).unwrap_or_default()).unwrap();
        }
        done(&interlock(folder.path(), &arguments));
        done(&interlock(folder.path(), &["check", "run"]));
        let _ = fs::remove_dir_all(folder.path().join("whole"));
        fs::rename(&run, folder.path().join("whole")).unwrap();
        let status = folder.path().join("whole/status.json");
        fs::write(status, r#"{"state":"running"}"#).unwrap();
    }
}

/// A finished run of 8 steps in the folder `run`.
fn finished(config: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("c.toml"), config).unwrap();
    done(&interlock(folder.path(), &["train", "--quiet", "--config", "c.toml", "--set=steps=8", "--out", "run"]));
    folder
}

#[test]
fn a_run_continues_only_with_what_may_change() {
    let folder = finished(TEXT);
    let resume = |more: &[&str]| interlock(folder.path(), &[&["train", "--plain", "--resume", "run"], more].concat());
    let shown = done(&resume(&[]));
    assert!(shown.contains("has finished; to train longer, give more steps"), "{shown}");
    let refused = |arguments: &[&str], words: &[&str]| refused(folder.path(), &[&["train"], arguments].concat(), words);
    let to_ten = ["--resume", "run", "--set=steps=10"];
    refused(
        &[&to_ten[..], &["--set=seed=9", "--set=optimizer.lr=2e-3"]].concat(),
        &["seed was 6, is 9; ", "optimizer.lr was"],
    );
    refused(&[&to_ten[..], &["--set=dtype=bf16"]].concat(), &["dtype was"]);
    refused(&[&to_ten[..], &["--set=data.limit=100"]].concat(), &["data.limit was 200, is 100"]);
    refused(&[&to_ten[..], &["--out", "other"]].concat(), &["--out", "continues in its own folder"]);
    refused(&["--resume", "auto"], &["there is no --out"]);
    refused(&["--resume", "none"], &["none", "is not the folder of a run"]);
    refused(
        &["--resume", "run", "--set=steps=10", "--set=partition.stages=2"],
        &[
            "partition: the strategy cannot go on from what it has decided",
            "it is of 3 stages, not 2",
            "keep the partition",
        ],
    );

    let shown = done(&resume(&["--set=steps=10", "--set=checkpoint.keep=1"]));
    assert!(shown.contains("continues the run in run after 8 steps"), "{shown}");
    assert_eq!(json(&folder.path().join("run/report.json"))["steps"], 10);
    assert_eq!(fs::read_dir(folder.path().join("run/checkpoints")).unwrap().count(), 1);
    let page = done(&interlock(folder.path(), &["report", "run"]));
    assert!(!page.is_empty());
}

#[test]
fn a_run_continues_under_another_partition_and_on_other_devices() {
    let folder =
        finished(&TEXT.replace("name = \"adaptive\"\nadaptive = { every = 5, window = 2, below = 0.99 }", "width = 2"));
    let more = ["--set=steps=12", "--set=partition.stages=2", "--set=devices=[\"cpu:threads=2\"]", "--set=in_flight=3"];
    let shown = interlock(folder.path(), &[&["train", "--plain", "--resume", "run"], &more[..]].concat());
    assert!(done(&shown).contains("after 8 steps"));
    assert!(
        err(&shown).contains("aux.") || out(&shown).contains("aux."),
        "the head that begins anew is named: {}",
        err(&shown)
    );
    assert_eq!(json(&folder.path().join("run/report.json"))["stages"].as_array().unwrap().len(), 2);
    done(&interlock(folder.path(), &["eval", "run"]));
    done(&interlock(folder.path(), &["check", "run"]));
}

#[test]
fn a_run_without_an_end_has_the_weights_of_its_last_checkpoint() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("c.toml"), TEXT).unwrap();
    let mut child = started(folder.path(), 1_000_000, 12);
    let writes = interlock(folder.path(), &["train", "--resume", "run"]);
    assert_eq!(writes.status.code(), Some(2));
    assert!(err(&writes).contains(&format!("process {} writes it", child.id())), "{}", err(&writes));
    child.kill().unwrap();
    child.wait().unwrap();
    let scored = interlock(folder.path(), &["eval", "run"]);
    done(&scored);
    assert!(err(&scored).contains("the run has not finished; its weights after "), "{}", err(&scored));
    done(&interlock(
        folder.path(),
        &["train", "--quiet", "--config", "c.toml", "--set=steps=1", "--set=init_from=run", "--out", "next"],
    ));
}

#[test]
fn damage_is_found_and_named_and_what_is_whole_is_used() {
    let folder = finished(IMAGES);
    let run = folder.path().join("run");
    assert!(
        done(&interlock(folder.path(), &["check", "run"]))
            .contains("train --resume continues from: checkpoints/step-8")
    );
    let shard = run.join("model/model-00002-of-00003.safetensors");
    let whole = fs::read(&shard).unwrap();
    let mut state = seed(2);
    for _ in 0..tries("INTERLOCK_SOAK_FLIPS", 10) {
        let mut flipped = whole.clone();
        flipped[pseudo_random(&mut state) as usize % whole.len()] ^= 1 << (pseudo_random(&mut state) % 8);
        fs::write(&shard, flipped).unwrap();
        let scored = interlock(folder.path(), &["eval", "run"]);
        assert!(
            scored.status.code() == Some(2)
                && err(&scored).contains("model-00002-of-00003.safetensors: the file is damaged")
        );
    }
    let (index, aside) = (run.join("model/model.safetensors.index.json"), run.join("aside"));
    fs::rename(&index, &aside).unwrap();
    let scored = interlock(folder.path(), &["eval", "run"]);
    done(&scored);
    let used = "model/model.safetensors.index.json is missing; its weights after 8 steps are used";
    assert!(err(&scored).contains(used), "{}", err(&scored));
    fs::rename(&aside, &index).unwrap();
    let newest = run.join("checkpoints/step-8/state/model.safetensors.index.json");
    fs::write(&newest, fs::read_to_string(&newest).unwrap().replace("optimizer", "optimiser")).unwrap();
    let checked = interlock(folder.path(), &["check", "run"]);
    assert_eq!(checked.status.code(), Some(1));
    let shown = out(&checked);
    assert!(shown.contains("weights to use: none") && shown.contains("continues from: checkpoints/step-4"), "{shown}");
    assert!(err(&checked).contains("2 parts of the run are damaged"), "{}", err(&checked));
    let resumed = interlock(folder.path(), &["train", "--plain", "--resume", "run", "--set=steps=10"]);
    assert!(done(&resumed).contains("after 4 steps"), "{}", err(&resumed));
    assert!(run.join("checkpoints/damaged-step-8").exists() || run.join("checkpoints/step-8").exists());
    done(&interlock(folder.path(), &["check", "run"]));
}

#[test]
fn a_run_goes_on_if_its_checkpoints_cannot_be_written_and_says_why() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("c.toml"), TEXT).unwrap();
    let mut child = started(folder.path(), 400, 4);
    let checkpoints = folder.path().join("run/checkpoints");
    // Something takes the folder away, and puts a file in its place before the run makes it again.
    let away = folder.path().join("away");
    while fs::rename(&checkpoints, &away).is_err() || fs::write(&checkpoints, "").is_err() {
        let _ = fs::remove_dir_all(&away);
        assert!(child.try_wait().unwrap().is_none(), "the run ended before its folder could be taken away");
    }
    assert!(child.wait().unwrap().success());
    let log = fs::read_to_string(folder.path().join("run/run.log")).unwrap();
    assert!(log.contains("could not be written") && log.contains("training goes on"), "{log}");
    assert_eq!(json(&folder.path().join("run/status.json"))["state"], "finished");
    done(&interlock(folder.path(), &["eval", "run"]));
}
