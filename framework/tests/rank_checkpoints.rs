//! Checkpoints of several ranks, each of which writes what its stages have.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/bits.rs"]
mod bits;
#[path = "common/models.rs"]
mod common;
#[path = "common/group.rs"]
mod group;
#[path = "common/on_ranks.rs"]
mod on_ranks;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use bits::{Bits, bits};
use common::{Fault, How, Perceptron, When};
use group::{ALL, counted_group, group};
use interlock::{
    Checkpoint, CheckpointConfig, Criterion, EarlyStopping, EarlyStoppingConfig, EmaConfig, FailuresConfig, Interlock,
    OptimizerConfig, OptimizerKind, Result, TrainEvent, Trainer, TrainerBuilder, Weights,
};
use on_ranks::{DATA, LONG, fit, four, near, on};

fn every(steps: u64) -> CheckpointConfig {
    CheckpointConfig { every_steps: Some(steps), keep: 9, ..CheckpointConfig::default() }
}

fn builder() -> TrainerBuilder {
    let adamw = OptimizerConfig { kind: OptimizerKind::Adamw, lr: 0.02, ..OptimizerConfig::default() };
    let ema = EmaConfig { decay: 0.75, from_step: 2 };
    four()
        .strategy(Interlock::width(2))
        .optimizer(adamw)
        .ema(ema)
        .eval_every(4)
        .keep_best(Criterion::Loss)
        .micro_batches(2)
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The checkpoints of a run: the steps, the weights, the tensors of the state.
fn checkpoints(run: &Path) -> Vec<(u64, Bits, Bits)> {
    let folder = run.join("checkpoints");
    let load = |name: String| {
        let Checkpoint { weights, state } = Checkpoint::load(folder.join(name)).unwrap();
        (state.steps(), bits(&weights), bits(&state.tensors))
    };
    names_in(&folder).into_iter().filter(|name| !name.starts_with('.')).map(load).collect()
}

/// The number of files with the state of a checkpoint.
fn state_files(run: &Path, steps: u64) -> usize {
    let names = names_in(&run.join(format!("checkpoints/step-{steps}/state")));
    names.iter().filter(|name| name.ends_with(".safetensors")).count()
}

#[test]
fn each_rank_writes_its_part_of_the_checkpoint_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("alone");
    let expected = fit(builder().checkpoint(&alone, every(2)));
    let expected_files = checkpoints(&alone);
    // 2, 4, 6, 8, and the end.
    assert_eq!(expected_files.iter().map(|(steps, ..)| *steps).collect::<Vec<_>>(), [2, 4, 6, 8, 9]);
    for (size, elsewhere) in [(2, 2), (4, 3)] {
        let run = folder.path().join(size.to_string());
        let (ranks, _, states) = counted_group(size, LONG, |_, _| Duration::ZERO);
        let (found, others) = on(&ranks, builder, |builder| fit(builder.checkpoint(&run, every(2))));
        assert!(others.iter().all(Result::is_ok), "{others:?}");
        assert!(found == expected);
        // Only the state that the test has asked for at the end has come to rank 0.
        assert_eq!(states.load(Relaxed), elsewhere);
        assert!(checkpoints(&run) == expected_files, "{size} ranks");
        // The best weights have files of their own, once there are any.
        assert_eq!([2, 6].map(|steps| state_files(&run, steps)), [4, 8]);
        let best = bits(&Weights::load(run.join("best")).unwrap());
        assert!(best == bits(&Weights::load(alone.join("best")).unwrap()));
        // One process goes on from what several ranks have written, and the other way round.
        fs::remove_dir_all(run.join("checkpoints/step-9")).unwrap();
        fs::remove_dir_all(run.join("checkpoints/step-8")).unwrap();
        let resumed = |builder: TrainerBuilder| fit(builder.resume(run.join("checkpoints/step-6")).unwrap());
        assert!(resumed(builder()) == expected);
        let (found, others) = on(&near(3), builder, resumed);
        assert!(others.iter().all(Result::is_ok) && found == expected);
    }
}

#[test]
fn after_a_failure_the_newest_copy_counts_whoever_has_written_it() {
    // The third stage fails in step 14, some time after the checkpoint of step 8.
    let fault = Fault { unit: 2, head: false, when: When::Forward, how: How::Error, step: 14 };
    let failing = |snapshot_every: u64| {
        let failures = FailuresConfig { snapshot_every, ..FailuresConfig::default() };
        let model = Perceptron { layers: 4, fault: Some(fault.clone()) };
        Trainer::builder(model).stages(4).batch_size(6).steps(20).seed(7).failures(failures)
    };
    // A snapshot in memory may be older than the checkpoint, or newer.
    for (snapshot_every, newest) in [(6, 12), (0, 8), (5, 10), (15, 8)] {
        let folder = tempfile::tempdir().unwrap();
        let [run, alone] = ["run", "alone"].map(|name| folder.path().join(name));
        let builder = || failing(snapshot_every);
        let newest_of = |builder: TrainerBuilder, run: &Path| {
            let saved = run.join("checkpoints/step-8");
            let until_saved = move |event: &TrainEvent<'_>| {
                // The trainer takes what ranks have written between these.
                let looks = if matches!(event, TrainEvent::StepDone { step: 8.., .. }) { 50 } else { 0 };
                for _ in (0..looks).take_while(|_| !saved.exists()) {
                    thread::sleep(Duration::from_millis(10));
                }
            };
            let mut trainer = builder.checkpoint(run, every(8)).callback(until_saved).build().unwrap();
            trainer.fit(DATA).unwrap_err();
            let last = trainer.last_checkpoint().unwrap();
            let (steps, weights) = trainer.last_weights().unwrap();
            assert!(steps == last.steps() && bits(&weights) == bits(&last.weights));
            (last.steps(), bits(&last.weights), bits(&last.state.tensors))
        };
        let expected = newest_of(builder(), &alone);
        let (found, _) = on(&near(4), builder, |builder| newest_of(builder, &run));
        assert_eq!((found.0, expected.0), (newest, newest), "{snapshot_every}");
        assert!(found == expected);
        assert!(checkpoints(&run) == checkpoints(&alone));
    }
}

#[test]
fn a_rank_that_is_lost_leaves_the_checkpoints_before() {
    let folder = tempfile::tempdir().unwrap();
    let (ranks, cuts) = group(2, Duration::from_secs(1), |_, _| Duration::ZERO);
    let cut = Arc::clone(&cuts[1]);
    let cutting = move |event: &TrainEvent<'_>| {
        if matches!(event, TrainEvent::StepDone { step: 5, .. }) {
            cut.store(ALL, Relaxed);
        }
    };
    let (error, _) = on(&ranks, builder, |builder| {
        let mut trainer = builder.steps(1000).checkpoint(folder.path(), every(2)).callback(cutting).build().unwrap();
        trainer.fit((DATA, DATA)).unwrap_err().to_string()
    });
    assert!(error.contains("rank 1"), "{error}");
    let whole = checkpoints(folder.path());
    assert!(whole.len() >= 2, "{}", whole.len());
    assert!(builder().resume(folder.path()).is_ok());
    let hidden =
        || names_in(&folder.path().join("checkpoints")).into_iter().filter(|name| name.starts_with('.')).count();
    assert_eq!(hidden(), 0);
    let expected = fit(builder());
    assert!(fit(builder().resume(folder.path()).unwrap().checkpoint(folder.path(), every(2))) == expected);
    // What a rank still writes for a run that has ended is removed by the next one.
    fs::create_dir_all(folder.path().join("checkpoints/.step-2.5f-1.ranks")).unwrap();
    fit(builder().resume(folder.path()).unwrap().checkpoint(folder.path(), every(2)));
    assert_eq!(hidden(), 0);
}

#[test]
fn a_step_that_is_captured_twice_ends_with_the_second_capture() {
    let rule = || {
        let config = EarlyStoppingConfig { patience: 1, min_delta: 100.0, metric: Criterion::Loss };
        EarlyStopping::new(config).unwrap()
    };
    for _ in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        // The last evaluation and a checkpoint belong to one step; then the end of the run makes another one of it.
        let stopping = || builder().eval_every(2).steps(20);
        let run = |builder: TrainerBuilder| {
            let failed = Arc::new(AtomicBool::new(false));
            let note = Arc::clone(&failed);
            let noting = move |event: &TrainEvent<'_>| {
                note.fetch_or(matches!(event, TrainEvent::CheckpointFailed { .. }), Relaxed);
            };
            let builder = builder.callback(rule()).callback(noting).checkpoint(folder.path(), every(2));
            let report = builder.build().unwrap().fit((DATA, DATA)).unwrap();
            assert!(report.stop_reason.is_some() && !failed.load(Relaxed));
            report.steps
        };
        let (steps, others) = on(&near(4), stopping, run);
        assert!(steps < 20 && others.iter().all(Result::is_ok), "{others:?}");
        // It stays ended.
        let mut again = stopping().callback(rule()).resume(folder.path()).unwrap().build().unwrap();
        assert_eq!(again.fit((DATA, DATA)).unwrap().steps, steps);
    }
}
