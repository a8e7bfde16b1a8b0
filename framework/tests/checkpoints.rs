//! Checkpoints: written while training goes on, damaged, and continued from.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/behind.rs"]
mod behind;
#[path = "common/bits.rs"]
mod bits;
#[path = "common/models.rs"]
mod common;
#[path = "common/warnings.rs"]
mod warnings;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bits::{Bits, bits};
use common::{Fault, How, Perceptron, Spiral, When};
use interlock::{
    Adaptive, Checkpoint, CheckpointConfig, Criterion, EarlyStopping, EarlyStoppingConfig, EmaConfig, EndToEnd,
    FailuresConfig, HeadsConfig, HeadsReadout, HeadsTrained, Interlock, Local, LrScheduleConfig, OptimizerConfig,
    OptimizerKind, Report, Stopper, TrainEvent, Trainer, TrainerBuilder, Weights, WidthSchedule,
};
use proptest::prelude::*;
use serde_json::Value;

/// Four steps an epoch.
const DATA: Spiral = Spiral { examples: 24 };

/// Everything in a checkpoint but wall seconds.
fn everything(checkpoint: &Checkpoint) -> (Bits, Bits, Value) {
    let mut values = serde_json::to_value(&checkpoint.state).unwrap();
    values["best"]["seconds"] = Value::Null;
    for time in ["seconds", "busy"] {
        values["fit"][time] = Value::Null;
    }
    (bits(&checkpoint.weights), bits(&checkpoint.state.tensors), values)
}

fn every(steps: u64) -> CheckpointConfig {
    CheckpointConfig { every_steps: Some(steps), keep: 99, ..CheckpointConfig::default() }
}

/// A builder with everything that has a state.
fn builder(layers: usize, fault: Option<Fault>) -> TrainerBuilder {
    Trainer::builder(Perceptron { layers, fault })
        .stages(layers)
        .strategy(Interlock::width(2))
        .probes()
        .batch_size(6)
        .micro_batches(2)
        .seed(7)
        .eval_every(3)
        .keep_best(Criterion::Loss)
        .callback(
            EarlyStopping::new(EarlyStoppingConfig { patience: 99, min_delta: 0.0, metric: Criterion::Loss }).unwrap(),
        )
        .lr_schedule(LrScheduleConfig::ReduceOnPlateau { factor: 0.5, patience: 1, threshold: 0.5, min_fraction: 0.0 })
        .optimizer(OptimizerConfig { kind: OptimizerKind::Adamw, lr: 0.02, ..OptimizerConfig::default() })
}

/// The checkpoints of a run, the earliest first.
fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let steps = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().strip_prefix("step-")?.parse::<u64>().ok();
    let mut found: Vec<PathBuf> =
        fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| steps(path).is_some());
    found.sort_by_key(steps);
    found
}

fn same_results(a: &Report, b: &Report) {
    assert_eq!((a.steps, a.final_scores, a.best, &a.plans), (b.steps, b.final_scores, b.best, &b.plans));
}

#[derive(Clone, Copy, Debug)]
enum Plans {
    Width,
    Mean,
    Scheduled,
    Adaptive,
}

impl Plans {
    fn of(self, builder: TrainerBuilder) -> TrainerBuilder {
        match self {
            Self::Width => builder.strategy(Interlock::width(2)),
            Self::Mean => builder.strategy(Interlock::width(3).mean()),
            Self::Scheduled => {
                builder.strategy(WidthSchedule::new(Local).then(3, Interlock::width(2)).then(7, EndToEnd))
            }
            Self::Adaptive => {
                builder.strategy(Adaptive { every: 2, window: 2, below: 0.99, width: 1, max_width: None })
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_run_that_continues_from_any_checkpoint_ends_as_the_uninterrupted_one(
        plans in prop_oneof![Just(Plans::Width), Just(Plans::Mean), Just(Plans::Scheduled), Just(Plans::Adaptive)],
        momentum: bool,
        asynchronous: bool,
        shared: bool,
        micro_batches in 1_usize..4,
        in_flight in 2_usize..5,
        ema in proptest::option::of(0_u64..6),
        eval_every in proptest::option::of(1_u64..6),
        at in 0_usize..11,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let make = || {
            let mut builder = plans.of(builder(4, None))
                .micro_batches(micro_batches)
                .in_flight(in_flight)
                .ema(ema.map(|from_step| EmaConfig { decay: 0.5, from_step }))
                .eval_every(eval_every)
                .steps(11);
            if momentum {
                builder = builder.optimizer(OptimizerConfig { lr: 0.2, ..OptimizerConfig::default() });
            }
            if asynchronous {
                builder = builder.devices(behind::each(4, behind::When::Polled(2)));
            }
            if shared {
                let readout = HeadsReadout::Shared;
                let heads = HeadsConfig { readout, readout_refresh: Some(13), train: HeadsTrained::All, ..HeadsConfig::default() };
                builder = builder.heads(heads);
            }
            builder
        };
        let mut whole = make().checkpoint(folder.path(), every(1)).build().unwrap();
        let report = whole.fit((DATA, DATA)).unwrap();
        let expected = everything(&whole.checkpoint().unwrap());
        let found = checkpoints(folder.path());
        prop_assert_eq!(found.len(), 11);

        let mut after = make().resume(&found[at]).unwrap().build().unwrap();
        prop_assert_eq!(after.steps(), at as u64 + 1);
        let resumed = after.fit((DATA, DATA)).unwrap();
        prop_assert_eq!(everything(&after.checkpoint().unwrap()), expected);
        same_results(&resumed, &report);
    }
}

/// What a callback was told of checkpoints.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn callback(&self) -> impl FnMut(&TrainEvent<'_>) + Send + 'static + use<> {
        let told = self.0.clone();
        move |event| {
            let text = match event {
                TrainEvent::CheckpointSaved { steps, path, .. } => {
                    format!("{steps} in {}", path.file_name().unwrap().display())
                }
                TrainEvent::CheckpointFailed { steps, error } => format!("{steps} failed: {error}"),
                _ => return,
            };
            told.lock().unwrap().push(text);
        }
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[test]
fn the_newest_checkpoints_and_the_best_weights_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("a/run");
    fs::create_dir_all(run.join("checkpoints/.step-1.part")).unwrap();
    let told = Told::default();
    let config = CheckpointConfig { keep: 2, ..every(2) };
    let builder = builder(3, None).checkpoint(&run, config).attach("note.txt", "kept").callback(told.callback());
    let mut trainer = builder.steps(7).build().unwrap();
    trainer.fit((DATA, DATA)).unwrap();
    assert_eq!(told.all(), ["2 in step-2", "4 in step-4", "6 in step-6", "7 in step-7"]);
    assert_eq!(checkpoints(&run), ["step-6", "step-7"].map(|name| run.join("checkpoints").join(name)));
    assert_eq!(fs::read_to_string(run.join("checkpoints/step-7/note.txt")).unwrap(), "kept");
    assert_eq!(bits(&Weights::load(run.join("best")).unwrap()), bits(&trainer.best().unwrap().weights));
    // The folder of a run, and that of a checkpoint, are weights too.
    let last = bits(&trainer.snapshot().unwrap());
    assert_eq!(bits(&Weights::load(&run).unwrap()), last);
    assert_eq!(bits(&Weights::load(run.join("checkpoints/step-7")).unwrap()), last);
}

#[test]
fn a_stopped_fit_ends_with_a_checkpoint_and_makes_up_for_its_evaluation() {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = builder(3, None).steps(9).build().unwrap();
    let expected = whole.fit((DATA, DATA)).unwrap();
    for (stop_at, on_stop) in [(2, true), (4, true), (4, false)] {
        let run = folder.path().join(format!("{stop_at}-{on_stop}"));
        let config = CheckpointConfig { on_stop, ..CheckpointConfig::default() };
        let stopper = Stopper::new();
        let asked = stopper.clone();
        let stops = move |event: &TrainEvent<'_>| {
            if matches!(event, TrainEvent::StageStep(done) if done.step == stop_at) {
                asked.stop();
            }
        };
        let mut first = builder(3, None)
            .checkpoint(&run, config)
            .callback(stops)
            .stop_on(&stopper)
            .in_flight(1)
            .steps(9)
            .build()
            .unwrap();
        assert!(first.fit((DATA, DATA)).unwrap().stopped);
        if !on_stop {
            assert!(!run.join("checkpoints").exists());
            continue;
        }
        let resumed = builder(3, None).callback(|_: &TrainEvent<'_>| {}).resume(&run).unwrap();
        let mut second = resumed.steps(9).build().unwrap();
        assert!((stop_at + 1..9).contains(&second.steps()));
        same_results(&second.fit((DATA, DATA)).unwrap(), &expected);
        assert_eq!(bits(&second.snapshot().unwrap()), bits(&whole.snapshot().unwrap()));
    }
}

#[test]
fn no_change_of_a_byte_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    builder(2, None).checkpoint(folder.path(), every(9)).steps(2).build().unwrap().fit((DATA, DATA)).unwrap();
    let checkpoint = &checkpoints(folder.path())[0];
    let inner = checkpoint.join("state");
    let files: Vec<PathBuf> = [checkpoint, &inner]
        .into_iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()))
        .filter(|path| path.is_file())
        .collect();
    assert_eq!(files.len(), 10, "{files:?}");
    let refused = |file: &Path, how: &str| {
        let error = Checkpoint::load(checkpoint).map(drop).unwrap_err().to_string();
        assert!(error.contains(file.file_name().unwrap().to_str().unwrap()), "{how} of {}: {error}", file.display());
    };
    for file in &files {
        let whole = fs::read(file).unwrap();
        for at in (0..whole.len()).step_by(1 + whole.len() / 40) {
            for bit in [1, 0x20, 0x80] {
                let mut flipped = whole.clone();
                flipped[at] ^= bit;
                fs::write(file, &flipped).unwrap();
                refused(file, &format!("flip at {at}"));
            }
            fs::write(file, &whole[..at]).unwrap();
            refused(file, &format!("cut at {at}"));
            let mut zeroed = whole.clone();
            zeroed[at..].fill(0);
            fs::write(file, &zeroed).unwrap();
            refused(file, &format!("zeros from {at}"));
        }
        fs::remove_file(file).unwrap();
        refused(file, "absence");
        fs::write(file, &whole).unwrap();
    }
    // Two shards for each other.
    let shards = ["00001", "00002"].map(|k| checkpoint.join(format!("model-{k}-of-00002.safetensors")));
    let other = folder.path().join("other");
    for (from, to) in [(&shards[0], &other), (&shards[1], &shards[0]), (&other, &shards[1])] {
        fs::rename(from, to).unwrap();
    }
    refused(&shards[0], "exchange");
    Checkpoint::load(checkpoint).unwrap_err();
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let make = || builder(3, None).checkpoint(folder.path(), CheckpointConfig { keep: 2, ..every(2) });
    make().steps(6).build().unwrap().fit((DATA, DATA)).unwrap();
    let shard = folder.path().join("checkpoints/step-6/state/model-00002-of-00006.safetensors");
    fs::write(&shard, "no tensors").unwrap();
    let (resumed, warnings) = warnings::warnings_of(|| make().resume(folder.path()).unwrap());
    let warnings = warnings.join("\n");
    assert!(
        warnings.contains("the checkpoint after 6 steps is not used") && warnings.contains("state/model-00002"),
        "{warnings}"
    );
    let mut trainer = resumed.steps(8).build().unwrap();
    assert_eq!(trainer.steps(), 4);
    trainer.fit((DATA, DATA)).unwrap();
    let mut whole = builder(3, None).steps(8).build().unwrap();
    whole.fit((DATA, DATA)).unwrap();
    assert_eq!(bits(&trainer.snapshot().unwrap()), bits(&whole.snapshot().unwrap()));
    assert_eq!(
        checkpoints(folder.path()),
        ["step-6", "step-8"].map(|name| folder.path().join("checkpoints").join(name))
    );
    assert!(folder.path().join("checkpoints/damaged-step-6.1").is_dir());

    for path in checkpoints(folder.path()) {
        fs::remove_file(path.join("trainer.json")).unwrap();
    }
    let error = make().resume(folder.path()).map(drop).unwrap_err().to_string();
    assert!(error.contains("step-8/trainer.json"), "{error}");
    let error = make().resume(folder.path().join("none")).map(drop).unwrap_err().to_string();
    assert!(error.contains("there is no checkpoint in it"), "{error}");
}

#[test]
fn another_partition_gets_the_same_parameters_and_the_state_of_their_optimizers() {
    let folder = tempfile::tempdir().unwrap();
    let make = |units: &[usize], sgd: bool| {
        let strategy = Interlock::width(units.len().min(2));
        let builder = builder(4, None)
            .strategy(strategy)
            .ema(EmaConfig { decay: 0.5, from_step: 1 })
            .units_per_stage(units.to_vec());
        match sgd {
            true => builder.optimizer(OptimizerConfig { lr: 0.2, ..OptimizerConfig::default() }),
            false => builder,
        }
    };
    // The state of each parameter of the main part, by name.
    let states = |checkpoint: &Checkpoint| -> Bits {
        let main = bits(&checkpoint.state.tensors).into_iter().filter(|(name, _)| !name.contains("aux."));
        let without_stage = |name: String| match name.split_once(".main.") {
            Some((_, rest)) => rest.to_owned(),
            None => name,
        };
        main.map(|(name, bits)| (without_stage(name), bits)).collect()
    };
    let main = |weights: &Weights| -> Bits {
        bits(weights).into_iter().filter(|(name, _)| !name.starts_with("aux.")).collect()
    };
    for sgd in [true, false] {
        let run = folder.path().join(sgd.to_string());
        let mut trainer = make(&[1, 1, 2], sgd).checkpoint(&run, every(9)).steps(5).build().unwrap();
        trainer.fit((DATA, DATA)).unwrap();
        let before = trainer.checkpoint().unwrap();
        for units in [&[2, 2][..], &[4], &[1, 1, 1, 1], &[2, 1, 1]] {
            let mut other = make(units, sgd).resume(&run).unwrap().steps(7).build().unwrap();
            let now = other.checkpoint().unwrap();
            assert_eq!(main(&now.weights), main(&before.weights));
            assert_eq!(states(&now), states(&before), "{units:?}");
            assert_eq!(other.fit((DATA, DATA)).unwrap().steps, 7);
            // And back.
            let again = other.checkpoint().unwrap();
            let back = make(&[1, 1, 2], sgd).resume_from(again.clone()).steps(8).build().unwrap().checkpoint().unwrap();
            assert_eq!((main(&back.weights), states(&back)), (main(&again.weights), states(&again)));
        }
        // The head behind unit 1 is that of stage 1, or of stage 0.
        let other = make(&[2, 2], sgd).resume(&run).unwrap().build().unwrap().checkpoint().unwrap();
        let head = |checkpoint: &Checkpoint, k: usize| -> Vec<Vec<u32>> {
            let own = format!("aux.{k}.");
            bits(&checkpoint.state.tensors)
                .into_iter()
                .filter(|(name, _)| name.contains(&own))
                .map(|(_, bits)| bits)
                .collect()
        };
        assert!(!head(&other, 0).is_empty());
        assert_eq!(head(&other, 0), head(&before, 1));
    }
    let run = folder.path().join("adaptive");
    let make = |stages| Plans::Adaptive.of(builder(4, None)).stages(stages).steps(3);
    make(4).checkpoint(&run, every(1)).build().unwrap().fit((DATA, DATA)).unwrap();
    let error = make(2).resume(&run).unwrap().build().map(drop).unwrap_err().to_string();
    assert!(error.contains("4 stages") && error.contains('2'), "{error}");
}

#[test]
fn a_fit_that_fails_ends_with_its_newest_capture() {
    let folder = tempfile::tempdir().unwrap();
    for how in [How::Panic, How::Error, How::NotANumber] {
        let fault = Fault { unit: 1, head: false, when: When::BackwardParameters, how, step: 7 };
        let run = folder.path().join(format!("{how:?}"));
        let failing = builder(3, Some(fault))
            .eval_every(99)
            .failures(FailuresConfig { snapshot_every: 2, ..FailuresConfig::default() })
            .checkpoint(&run, CheckpointConfig::default());
        let mut trainer = failing.steps(12).build().unwrap();
        let error = trainer.fit((DATA, DATA)).unwrap_err().to_string();
        assert!(error.contains("stage 1, step 7"), "{error}");
        assert_eq!(trainer.last_checkpoint().unwrap().steps(), 6);
        assert_eq!(checkpoints(&run).len(), 1);
        let mut rest = builder(3, None).eval_every(99).resume(&run).unwrap().steps(12).build().unwrap();
        rest.fit((DATA, DATA)).unwrap();
        let mut whole = builder(3, None).eval_every(99).steps(12).build().unwrap();
        whole.fit((DATA, DATA)).unwrap();
        assert_eq!(bits(&rest.snapshot().unwrap()), bits(&whole.snapshot().unwrap()));
    }
}

#[test]
fn training_goes_on_if_checkpoints_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    fs::write(run.join("checkpoints"), "in the way").unwrap();
    let told = Told::default();
    let mut trainer = builder(3, None).checkpoint(&run, every(2)).callback(told.callback()).steps(4).build().unwrap();
    assert_eq!(trainer.fit((DATA, DATA)).unwrap().steps, 4);
    let told = told.all();
    assert!(
        told.len() == 2 && told.iter().all(|text| text.contains("failed: ") && text.contains("checkpoints")),
        "{told:?}"
    );
    assert_eq!(trainer.last_checkpoint().unwrap().steps(), 4);
}

#[test]
fn settings_out_of_range_are_refused_by_their_key() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |config: CheckpointConfig, key: &str| {
        let error = builder(2, None).checkpoint(folder.path(), config).build().map(drop).unwrap_err();
        assert!(error.is_refusal() && error.to_string().starts_with(key), "{error}");
    };
    refused(every(0), "checkpoint.every_steps: 0");
    for every_minutes in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
        refused(CheckpointConfig { every_minutes, ..CheckpointConfig::default() }, "checkpoint.every_minutes: ");
    }
    let none = CheckpointConfig { keep: 0, ..every(1) };
    builder(2, None).checkpoint(folder.path().join("none"), none).steps(2).build().unwrap().fit((DATA, DATA)).unwrap();
    assert!(!folder.path().join("none").exists());
}

#[test]
fn a_folder_with_checkpoints_of_another_run_is_refused_and_a_shorter_length_too() {
    let folder = tempfile::tempdir().unwrap();
    let make = || builder(3, None).checkpoint(folder.path(), every(2));
    make().steps(4).build().unwrap().fit((DATA, DATA)).unwrap();
    let error = make().steps(4).build().map(drop).unwrap_err().to_string();
    assert!(error.contains("has a checkpoint after 4 steps, this run has made 0; continue from it"), "{error}");
    let mut shorter = make().resume(folder.path()).unwrap().steps(3).build().unwrap();
    for error in [shorter.check((DATA, DATA)).unwrap_err(), shorter.fit((DATA, DATA)).map(drop).unwrap_err()] {
        assert_eq!(
            error.to_string(),
            "steps: the run would have 3 steps, and has made 4; give at least as many to continue it"
        );
    }
}

#[test]
fn a_run_that_a_callback_has_ended_stays_ended_unless_it_gets_longer() {
    let folder = tempfile::tempdir().unwrap();
    let make = || {
        let rule =
            EarlyStopping::new(EarlyStoppingConfig { patience: 1, min_delta: 100.0, metric: Criterion::Loss }).unwrap();
        let builder = builder(3, None).eval_every(2).checkpoint(folder.path(), every(2));
        builder.callback(rule)
    };
    let ended = make().steps(20).build().unwrap().fit((DATA, DATA)).unwrap();
    assert!(ended.steps < 20 && ended.stop_reason.is_some());
    let mut again = make().resume(folder.path()).unwrap().steps(20).build().unwrap();
    let report = again.fit((DATA, DATA)).unwrap();
    assert_eq!(
        (report.steps, report.stop_reason, report.final_scores),
        (ended.steps, ended.stop_reason, ended.final_scores)
    );
    let mut longer = make().resume(folder.path()).unwrap().steps(22).build().unwrap();
    assert!(longer.fit((DATA, DATA)).unwrap().steps > ended.steps);
}

#[test]
fn a_checkpoint_that_was_being_replaced_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let make = || builder(3, None).checkpoint(folder.path(), CheckpointConfig { keep: 1, ..every(9) });
    make().steps(4).build().unwrap().fit((DATA, DATA)).unwrap();
    let place = folder.path().join("checkpoints");
    for hidden in [".step-4.part", ".step-4.old"] {
        fs::rename(place.join("step-4"), place.join(hidden)).unwrap();
        assert_eq!(make().resume(folder.path()).unwrap().steps(5).build().unwrap().steps(), 4);
        // It is in its place now, also if nothing is left to train.
        assert_eq!(checkpoints(folder.path()), [place.join("step-4")]);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
    }
    // One that was being written is none.
    fs::rename(place.join("step-4"), place.join(".step-4.part")).unwrap();
    fs::remove_file(place.join(".step-4.part/manifest.json")).unwrap();
    assert!(Checkpoint::newest(folder.path()).unwrap().is_none());

    // Nor is one that was being removed. The next run removes what is left.
    make().steps(4).build().unwrap().fit((DATA, DATA)).unwrap();
    fs::rename(place.join("step-4"), place.join(".step-4.gone")).unwrap();
    fs::create_dir(place.join(".step-4.part.gone")).unwrap();
    assert!(Checkpoint::newest(folder.path()).unwrap().is_none());
    make().steps(2).build().unwrap();
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
}
