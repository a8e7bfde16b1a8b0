//! Runs of several ranks, started by `mpirun`: the same bits as in one process, and an end in bounded time whatever happens to a rank.
//!
//! Needs the feature `mpi`. The numbers of tries are those of a short form; `just cluster` sets them higher.

#![cfg(unix)]
#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;
#[path = "common/kept.rs"]
mod kept;
#[path = "common/mpirun.rs"]
mod mpirun;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{done, err, interlock, json};
use kept::{IMAGES, TEXT, events, results};
use serde_json::Value;
use tempfile::TempDir;

/// How long a job may take after a rank has been killed or stopped: a rank may be silent for 30 s, and the others wait as long again for rank 0.
const BOUND: Duration = Duration::from_secs(120);

/// Returns how often to try something: `short`, or what this variable of the environment says.
fn tries(variable: &str, short: usize) -> usize {
    std::env::var(variable).map_or(short, |count| count.parse().unwrap())
}

/// The command that starts `size` ranks in a folder.
fn mpirun(folder: &Path, size: usize, arguments: &[&str]) -> Command {
    let mut command = mpirun::mpirun(size, &[&[mpirun::PROGRAM], arguments].concat());
    command.current_dir(folder);
    command
}

fn ranks(folder: &Path, size: usize, arguments: &[&str]) -> Output {
    mpirun(folder, size, arguments).output().unwrap()
}

/// The configurations, in a folder.
fn configurations() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("images.toml"), IMAGES).unwrap();
    fs::write(folder.path().join("text.toml"), TEXT).unwrap();
    folder
}

#[test]
fn several_ranks_train_the_same_bits() {
    let folder = configurations();
    for (name, width) in
        [("images", ""), ("text", ""), ("images", "strategy={width=1}"), ("text", "strategy={name=\"end_to_end\"}")]
    {
        let config = format!("{name}.toml");
        let mut train = vec!["train", "--quiet", "--config", &*config, "--out", "whole"];
        if !width.is_empty() {
            train.extend(["--set", width]);
        }
        done(&interlock(folder.path(), &train));
        let whole = folder.path().join("whole");
        for (size, placement) in [(2, "placement={}"), (3, "placement={}"), (2, "placement.stages=[[1], [0, 2]]")] {
            let more = [&train[..], &["--set", placement]].concat();
            let more: Vec<&str> = more.into_iter().map(|word| if word == "whole" { "run" } else { word }).collect();
            done(&ranks(folder.path(), size, &more));
            let run = folder.path().join("run");
            assert!(results(&run, 40) == results(&whole, 40), "{name} {width}: {size} ranks, {placement}");
            assert_eq!(events(&run), events(&whole));
            assert_eq!(json(&run.join("report.json"))["final"], json(&whole.join("report.json"))["final"]);
            fs::remove_dir_all(run).unwrap();
        }
        fs::remove_dir_all(whole).unwrap();
    }
}

#[test]
fn a_run_that_has_finished_is_not_trained_again() {
    let folder = configurations();
    let train = ["train", "--config", "text.toml", "--set=steps=4", "--resume", "auto", "--out", "run"];
    done(&ranks(folder.path(), 2, &train));
    let again = done(&ranks(folder.path(), 2, &train));
    assert!(again.contains("has finished; to train longer, give more steps"), "{again}");
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let folder = configurations();
    done(&interlock(folder.path(), &["train", "--quiet", "--config", "text.toml", "--out", "whole"]));
    for (first, then) in [(1, 3), (3, 1), (2, 3)] {
        let on = |size: usize, arguments: &[&str]| match size {
            1 => done(&interlock(folder.path(), arguments)),
            _ => done(&ranks(folder.path(), size, arguments)),
        };
        on(
            first,
            &[
                "train",
                "--quiet",
                "--config",
                "text.toml",
                "--set=steps=17",
                "--set=lr_schedule.total_steps=40",
                "--out",
                "run",
            ],
        );
        on(then, &["train", "--quiet", "--resume", "run", "--set=steps=40"]);
        let run = folder.path().join("run");
        let (found, expected) = (results(&run, 40), results(&folder.path().join("whole"), 40));
        assert!(found == expected, "{first} ranks, then {then}");
        fs::remove_dir_all(run).unwrap();
    }
}

#[test]
fn replicas_train_as_one_process_with_more_micro_batches() {
    let folder = configurations();
    let losses = |out: &str| -> Vec<f64> {
        let text = fs::read_to_string(folder.path().join(out).join("events.jsonl")).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let stages =
            events.filter(|event| event["event"] == "step").flat_map(|step| step["stages"].as_array().unwrap().clone());
        stages.filter_map(|stage| stage["loss"].as_f64()).collect()
    };
    for (config, of_each, of_all) in
        [("text.toml", "micro_batches=1", "micro_batches=2"), ("images.toml", "micro_batches=2", "micro_batches=4")]
    {
        let train = |out, sets: &[&'static str]| {
            let fixed = ["train", "--quiet", "--config", config, "--set=dtype=f32", "--out", out];
            fixed.into_iter().chain(sets.iter().flat_map(|set| ["--set", set])).collect::<Vec<_>>()
        };
        done(&interlock(folder.path(), &train("alone", &[of_all])));
        let expected = losses("alone");
        let mut bits = None;
        for size in [2, 4] {
            done(&ranks(folder.path(), size, &train("run", &[of_each, "replicas=2", "replica_statistics=mean"])));
            // Sums are added up in another order.
            let found = losses("run");
            assert_eq!(found.len(), expected.len());
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 2e-3 * b), "{found:?} {expected:?}");
            let run = folder.path().join("run");
            let found = results(&run, 40);
            assert!(*bits.get_or_insert_with(|| found.clone()) == found, "{config} on {size} ranks");
            fs::remove_dir_all(run).unwrap();
        }
        fs::remove_dir_all(folder.path().join("alone")).unwrap();
    }
    // What was trained by several ranks is used by one process.
    let train = ["train", "--quiet", "--config", "text.toml", "--out", "run", "--set=steps=4", "--set=replicas=2"];
    let serves = [&train[..], &["--metrics", "127.0.0.1:0", "--set=placement.stages=[[0, 1, 2]]"]].concat();
    done(&ranks(folder.path(), 2, &serves));
    assert!(!folder.path().join("run/targets.json").exists());
    assert!(done(&interlock(folder.path(), &["eval", "run"])).contains("perplexity"));
    // A change of the number of replicas is a change of the run.
    let changed = interlock(folder.path(), &["train", "--quiet", "--resume", "run", "--set=replicas=1"]);
    assert!(changed.status.code() == Some(2) && err(&changed).contains("replicas"), "{}", err(&changed));
}

#[test]
fn a_run_with_automatic_placement_goes_on_with_any_number_of_ranks_and_keeps_its_cut() {
    let folder = configurations();
    let config = |run: &str| -> toml::Table {
        fs::read_to_string(folder.path().join(run).join("config.toml")).unwrap().parse().unwrap()
    };
    let auto = "--set=placement=auto";
    let train = ["train", "--quiet", "--config", "text.toml", "--set=steps=40", "--out"];
    done(&ranks(folder.path(), 2, &[&train[..], &["placed", auto]].concat()));
    assert_eq!(config("placed")["placement"].to_string(), "\"auto\"");
    let units: Vec<i64> = config("placed")["partition"]["units_per_stage"].clone().try_into().unwrap();
    assert_eq!(units.len(), 3);
    // The run is that of one process with the same cut.
    let cut = format!("--set=partition={{units_per_stage={units:?}}}");
    done(&interlock(folder.path(), &[&train[..], &["alone", &cut]].concat()));
    assert!(results(&folder.path().join("placed"), 40) == results(&folder.path().join("alone"), 40));
    // With other ranks, with one process, and with the configuration from which it began, the cut stays.
    done(&ranks(folder.path(), 3, &["train", "--quiet", "--resume", "placed", "--set=steps=44"]));
    done(&interlock(folder.path(), &["train", "--quiet", "--resume", "placed", "--set=steps=48"]));
    let begun =
        ["train", "--quiet", "--resume", "auto", "--config", "text.toml", "--set=steps=52", "--set=partition={}"];
    done(&ranks(folder.path(), 2, &[&begun[..], &[auto, "--out", "placed"]].concat()));
    let after: Vec<i64> = config("placed")["partition"]["units_per_stage"].clone().try_into().unwrap();
    assert_eq!(after, units);
    // A cut that is given stays; without a number of stages each rank of a replica has one.
    let own = [1, 1, units.iter().sum::<i64>() - 2];
    let cut = format!("--set=partition={{units_per_stage={own:?}}}");
    done(&ranks(folder.path(), 2, &[&train[..], &["given", auto, &cut]].concat()));
    assert_eq!(config("given")["partition"]["units_per_stage"].to_string(), format!("{own:?}"));
    let replicas = ["replicas", auto, "--set=replicas=2", "--set=partition={}", "--set=steps=4"];
    done(&ranks(folder.path(), 4, &[&train[..4], &["--out"], &replicas].concat()));
    let units: Vec<i64> = config("replicas")["partition"]["units_per_stage"].clone().try_into().unwrap();
    assert_eq!(units.len(), 2);
    let odd = ranks(folder.path(), 3, &[&train[..4], &["--out", "odd", auto, "--set=replicas=2"]].concat());
    assert!(odd.status.code() == Some(2) && err(&odd).contains("replicas: 2 on 3 ranks"), "{}", err(&odd));
}

#[test]
fn each_rank_has_devices_of_its_own() {
    let folder = configurations();
    let train = ["train", "--quiet", "--config", "text.toml", "--set=steps=4", "--set=placement.stages=[[0, 2], [1]]"];
    let devices = |size: usize, sets: &[&str]| -> Vec<String> {
        done(&ranks(folder.path(), size, &[&train[..], sets, &["--out", "run"]].concat()));
        let report = json(&folder.path().join("run/report.json"));
        fs::remove_dir_all(folder.path().join("run")).unwrap();
        report["stages"].as_array().unwrap().iter().map(|s| s["device"].as_str().unwrap().to_owned()).collect()
    };
    let named = "--set=placement.devices=[[\"cpu:threads=1\", \"cpu:threads=2\"], [\"cpu:threads=3\"]]";
    let one_of_each = ["cpu:threads=1", "cpu:threads=3", "cpu:threads=2"];
    assert_eq!(devices(2, &["--set=devices=auto", named]), one_of_each);
    // Each replica has the same.
    assert_eq!(devices(4, &["--set=devices=auto", named, "--set=replicas=2"]), one_of_each);
    // Two ranks share the cores of this machine.
    let cores = thread::available_parallelism().unwrap().get();
    let auto = devices(2, &["--set=devices=auto"]);
    assert_eq!(auto[1], format!("cpu:threads={}", (cores / 2).max(1)));
    let refused = |size: usize, sets: &[&str], words: &str| {
        let output = match size {
            1 => interlock(folder.path(), &[&train[..], sets].concat()),
            _ => ranks(folder.path(), size, &[&train[..], sets].concat()),
        };
        assert_eq!(output.status.code(), Some(2), "{}", err(&output));
        assert!(err(&output).contains(words), "{}", err(&output));
    };
    refused(2, &[named], "placement.devices: devices are given too; give one of them");
    let three = "--set=placement.devices=[[\"cpu\"], [\"cpu\"], [\"cpu\"]]";
    refused(2, &["--set=devices=auto", three], "3 lists for 2 ranks; give one for each rank");
    let none = "--set=placement.devices=[[\"cpu\"], []]";
    refused(2, &["--set=devices=auto", none], "the list of rank 1 is empty; name at least one device");
    let other = "--set=placement.devices=[[\"cpu\"], [\"cpu:9\"]]";
    let lacking = ranks(folder.path(), 2, &[&train[..], &["--set=devices=auto", other]].concat());
    assert!(!lacking.status.success() && err(&lacking).contains("rank 1: device cpu:9"), "{}", err(&lacking));
    let plan = ["plan", "--config", "text.toml", "--set=devices=auto", "--set=placement={devices=[[\"cpu\"]]}"];
    done(&interlock(folder.path(), &plan));
    refused(1, &["--set=devices=auto", "--set=placement={devices=[[\"cpu\"]]}"], "there is only one process");
}

#[test]
fn the_runtime_is_measured_on_several_ranks() {
    let folder = configurations();
    let bench = ["bench", "runtime", "--stages", "8", "--width", "2", "--steps", "20", "--forward-ms", "10", "--json"];
    let measured: Value = serde_json::from_str(done(&ranks(folder.path(), 2, &bench)).trim()).unwrap();
    let (step, simulated) = (&measured["step_seconds"], &measured["simulated_step_seconds"]);
    let [step, simulated] = [step, simulated].map(|seconds| seconds.as_f64().unwrap());
    // Far less than if all stages worked one after another, 8 · (10 + 2 + 5 + 5) ms and relays. This machine may be busy.
    assert!(step > 0.9 * simulated && step < 0.17, "{measured}");
}

/// A job that is killed if a test fails.
struct Job(Option<Child>);

impl Job {
    fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // mpirun ends its ranks.
            signal(child.id(), "TERM");
            let _ = child.wait();
        }
    }
}

/// Starts a long run, and waits for its checkpoint after four steps.
fn started(folder: &Path, size: usize, arguments: &[&str]) -> Job {
    let long = ["train", "--quiet", "--config", "images.toml", "--out", "run"];
    let mut command = mpirun(folder, size, &[&long[..], arguments].concat());
    let mut job = Job(Some(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()));
    let (place, began) = (folder.join("run/checkpoints/step-4"), Instant::now());
    while !place.exists() {
        assert!(began.elapsed() < BOUND && job.0.as_mut().unwrap().try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(5));
    }
    job
}

/// Returns the processes of a job's ranks: rank `r` is the one whose environment says so.
fn process(job: u32, rank: usize) -> u32 {
    let is_rank = |process: &PathBuf| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        let parent = fs::read_to_string(process.join("stat")).unwrap_or_default();
        let parent = parent.rsplit(") ").next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
        let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
        parent == job.to_string() && environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let found = processes.into_iter().find(is_rank).unwrap();
    found.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

fn signal(process: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap().success());
}

/// Waits for the end of a job. Returns its exit code and its errors.
fn ended(mut job: Job) -> (i32, String) {
    let began = Instant::now();
    while job.0.as_mut().unwrap().try_wait().unwrap().is_none() {
        assert!(began.elapsed() < BOUND, "the job does not end");
        thread::sleep(Duration::from_millis(20));
    }
    let output = job.0.take().unwrap().wait_with_output().unwrap();
    (output.status.code().unwrap(), err(&output))
}

#[test]
fn a_job_ends_when_a_rank_is_killed_and_goes_on_to_the_same_bits() {
    let folder = configurations();
    done(&interlock(folder.path(), &["train", "--quiet", "--config", "images.toml", "--out", "whole"]));
    let expected = results(&folder.path().join("whole"), 40);
    for round in 0..tries("INTERLOCK_CLUSTER_KILLS", 3) {
        let job = started(folder.path(), 3, &[]);
        thread::sleep(Duration::from_millis(round as u64 * 37 % 400));
        signal(process(job.id(), round % 3), "KILL");
        let (code, message) = ended(job);
        assert!(code != 0, "{message}");
        done(&ranks(folder.path(), 3, &["train", "--quiet", "--resume", "run"]));
        assert!(results(&folder.path().join("run"), 40) == expected, "round {round}");
        fs::remove_dir_all(folder.path().join("run")).unwrap();
    }
}

/// Returns the processes that this one has started.
fn children(of: u32) -> Vec<u32> {
    let parent = |process: &Path| -> Option<u32> {
        let status = fs::read_to_string(process.join("stat")).ok()?;
        status.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let own = processes.filter(|process| parent(process) == Some(of));
    own.map(|process| process.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect()
}

/// Starts `launch` with more ranks than cores.
fn launch(folder: &Path, arguments: &[&str]) -> Job {
    let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
    command.args(["launch", "--oversubscribe", "--run"]).args(arguments).current_dir(folder);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    Job(Some(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()))
}

#[test]
fn launch_replaces_a_host_that_does_not_answer() {
    let folder = configurations();
    let on = |spares: &[&'static str]| {
        let hosts = ["--hosts", "localhost:1,no-such-host:1", "--retries", "1"];
        let train = ["--", "train", "--quiet", "--config", "text.toml", "--set=steps=4", "--out", "run"];
        ended(launch(folder.path(), &[&hosts[..], spares, &train].concat()))
    };
    let (code, message) = on(&[]);
    assert!(code == 1 && message.contains("host no-such-host does not answer, and there is no other"), "{message}");
    let (code, message) = on(&["--spares", "127.0.0.1"]);
    assert!(code == 0 && message.contains("host no-such-host does not answer; 127.0.0.1 takes its place"), "{message}");
    assert_eq!(json(&folder.path().join("run/status.json"))["state"], "finished");
}

#[test]
fn launch_starts_a_job_again_that_has_lost_a_rank() {
    let folder = configurations();
    done(&interlock(folder.path(), &["train", "--quiet", "--config", "images.toml", "--out", "whole"]));
    let train = ["--", "train", "--quiet", "--config", "images.toml", "--out", "run"];
    let mut job = launch(folder.path(), &[&["-n", "3", "--retries", "2"], &train[..]].concat());
    let began = Instant::now();
    while !folder.path().join("run/checkpoints/step-4").exists() {
        assert!(began.elapsed() < BOUND && job.0.as_mut().unwrap().try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(5));
    }
    signal(process(children(job.id())[0], 1), "KILL");
    let (code, message) = ended(job);
    assert_eq!(code, 0, "{message}");
    assert!(message.contains("the job ended with exit code 137; it is started again"), "{message}");
    assert!(results(&folder.path().join("run"), 40) == results(&folder.path().join("whole"), 40));
}

#[test]
fn launch_ends_with_the_job_that_is_stopped_or_refused() {
    let folder = configurations();
    let (code, message) =
        ended(launch(folder.path(), &["-n", "2", "--retries=3", "--", "train", "--set=steps=0", "--out", "run"]));
    assert!(code == 2 && !message.contains("started again"), "{message}");
    let train = ["--", "train", "--quiet", "--config", "images.toml", "--out", "run", "--set=steps=1000000"];
    let patient = "--set=early_stopping.patience=1000000";
    let job = launch(folder.path(), &[&["-n", "2", "--retries=3"], &train[..], &[patient]].concat());
    let began = Instant::now();
    while !folder.path().join("run/checkpoints/step-4").exists() {
        assert!(began.elapsed() < BOUND);
        thread::sleep(Duration::from_millis(5));
    }
    signal(job.id(), "TERM");
    let (code, message) = ended(job);
    assert!(code == 130 && !message.contains("started again"), "{message}");
    done(&interlock(folder.path(), &["check", "run"]));
}

#[test]
fn a_rank_that_stands_still_is_named_and_ends_the_job() {
    let folder = configurations();
    for round in 0..tries("INTERLOCK_CLUSTER_STOPS", 1) {
        let rank = (round + 1) % 3;
        let job = started(folder.path(), 3, &["--set=steps=1000000", "--set=early_stopping.patience=1000000"]);
        let stopped = process(job.id(), rank);
        signal(stopped, "STOP");
        let (code, message) = ended(job);
        assert_eq!(code, 1, "{message}");
        assert!(message.contains(&format!("rank {rank}, transfer: nothing has come from it for 30 s")), "{message}");
        done(&interlock(folder.path(), &["check", "run"]));
        fs::remove_dir_all(folder.path().join("run")).unwrap();
    }
}

#[test]
fn a_job_that_is_stopped_is_saved() {
    let folder = configurations();
    let job = started(folder.path(), 2, &["--set=steps=1000000", "--set=early_stopping.patience=1000000"]);
    signal(process(job.id(), 0), "TERM");
    let (code, message) = ended(job);
    assert_eq!(code, 130, "{message}");
    assert_eq!(json(&folder.path().join("run/status.json"))["state"], "stopped");
    done(&interlock(folder.path(), &["check", "run"]));
}

#[test]
fn a_failure_of_any_rank_is_that_of_the_job() {
    let folder = configurations();
    // The last stage's loss becomes infinite, on rank 1.
    let arguments =
        ["train", "--quiet", "--config", "images.toml", "--out", "run", "--set=optimizer.lr=1e30", "--set=dtype=f32"];
    let alone = interlock(folder.path(), &arguments);
    assert_eq!(alone.status.code(), Some(1));
    // Which stage finds it first depends on their pace.
    let is_cause = || {
        let cause = json(&folder.path().join("run/status.json"))["cause"].as_str().unwrap().to_owned();
        assert!(cause.starts_with("stage ") && cause.contains("a smaller learning rate or clipping"), "{cause}");
    };
    is_cause();
    fs::remove_dir_all(folder.path().join("run")).unwrap();
    let together = ranks(folder.path(), 2, &arguments);
    assert_eq!(together.status.code(), Some(1));
    is_cause();
}

#[test]
fn what_several_ranks_cannot_do_is_refused() {
    let folder = configurations();
    let refused = |size: usize, arguments: &[&str], words: &str| {
        let output = ranks(folder.path(), size, arguments);
        assert_eq!(output.status.code(), Some(2), "{}", err(&output));
        assert!(err(&output).contains(words), "{}", err(&output));
        assert!(!folder.path().join("run").exists());
    };
    let train = ["train", "--quiet", "--config", "text.toml", "--out", "run"];
    refused(4, &train, "4 ranks for 3 stages; start at most 3");
    refused(2, &[&train[..], &["--set=placement.stages=[[0, 1]]"]].concat(), "lists for 1 ranks; there are 2");
    refused(2, &[&train[..], &["--set=failures.on_failure=restart"]].concat(), "restarts with several ranks");
    refused(3, &[&train[..], &["--set=replicas=2"]].concat(), "replicas: 2 on 3 ranks; start a multiple of 2 ranks");
    refused(2, &["plan", "--config", "text.toml"], "2 for this command; start it alone");
    // Started by the launcher of another MPI than that of the program.
    let mut other = Command::new(mpirun::PROGRAM);
    let other = other.args(train).env("PMI_SIZE", "2").current_dir(folder.path()).output().unwrap();
    assert!(
        other.status.code() == Some(2) && err(&other).contains("has started 2, and MPI knows of one"),
        "{}",
        err(&other)
    );
    let alone = interlock(folder.path(), &[&train[..], &["--set=replicas=2"]].concat());
    assert!(alone.status.code() == Some(2) && err(&alone).contains("such as mpirun -n 2"), "{}", err(&alone));
    let alone = interlock(folder.path(), &[&train[..], &["--set=placement.stages=[[0, 1, 2]]"]].concat());
    assert!(alone.status.code() == Some(2) && err(&alone).contains("there is only one process"), "{}", err(&alone));
}
