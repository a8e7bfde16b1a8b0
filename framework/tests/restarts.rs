//! Runs that go on after failures, and compute what they would have computed without.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/behind.rs"]
mod behind;
#[path = "common/bits.rs"]
mod bits;
#[path = "common/models.rs"]
mod common;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use bits::{Bits, bits};
use candle_core::Tensor;
use common::{Dense, Spiral};
use interlock::{
    Activation, Adaptive, Batch, Criterion, Dataset, Differentiable, EmaConfig, Error, FailuresConfig, Gradients,
    HeadsConfig, HeadsReadout, HeadsTrained, Interlock, Key, LrScheduleConfig, ModelSpec, OnFailure, OnNonfinite,
    OptimizerConfig, OptimizerKind, Pass, Result, Saved, Stopper, TrainEvent, Trainer, TrainerBuilder, Unit, Wants,
};
use proptest::prelude::*;

/// Four steps an epoch.
const DATA: Spiral = Spiral { examples: 24 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Panic,
    Error,
    NotANumber,
}

/// A fault in a unit, in the forward or the backward pass of a step, that comes so often.
#[derive(Clone, Debug)]
struct Fault {
    unit: usize,
    step: u64,
    how: How,
    backward: bool,
    times: Arc<AtomicU64>,
}

impl Fault {
    fn new(unit: usize, step: u64, how: How, backward: bool, times: u64) -> Self {
        Self { unit, step, how, backward, times: Arc::new(AtomicU64::new(times)) }
    }

    /// Panics, or returns the error or whether to spoil values.
    fn strikes(&self, step: u64, backward: bool) -> Result<bool> {
        let is_now = step == self.step && backward == self.backward;
        if !is_now || self.times.fetch_update(SeqCst, SeqCst, |times| times.checked_sub(1)).is_err() {
            return Ok(false);
        }
        match self.how {
            How::Panic => panic!("the fault that was asked for"),
            How::Error => Err(Error::Data("the fault that was asked for".to_owned())),
            How::NotANumber => Ok(true),
        }
    }
}

/// `2 → 8 → 8 → 3`, with faults.
#[derive(Clone)]
struct Faulty(Vec<Fault>);

struct FaultyUnit {
    inner: Dense,
    faults: Vec<Fault>,
}

impl FaultyUnit {
    fn strike(&self, step: u64, backward: bool) -> Result<bool> {
        self.faults.iter().try_fold(false, |strikes, fault| Ok(strikes | fault.strikes(step, backward)?))
    }
}

fn spoil(tensor: &Tensor) -> Result<Tensor> {
    Ok((tensor * f64::NAN)?)
}

impl Differentiable for FaultyUnit {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let strikes = pass.is_train() && self.strike(pass.step, false)?;
        let (y, saved) = self.inner.forward(x, pass)?;
        Ok((if strikes { y.try_map(spoil)? } else { y }, Saved::new((saved, pass.step))))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        let (saved, step): &(Saved, u64) = saved.get()?;
        let mut found = self.inner.backward(saved, output_gradient, wants)?;
        if wants.parameters && self.strike(*step, true)? {
            for (_, gradient) in &mut found.parameters {
                *gradient = spoil(gradient)?;
            }
        }
        Ok(found)
    }
}

impl ModelSpec for Faulty {
    fn units(&self) -> Result<Vec<Unit>> {
        let dims = [(2, 8), (8, 8), (8, 3)];
        let unit = |(i, (inputs, outputs)): (usize, (usize, usize))| {
            let faults: Vec<Fault> = self.0.iter().filter(|fault| fault.unit == i).cloned().collect();
            Unit::new(format!("layers.{i}"), [outputs], move |vb| {
                Ok(FaultyUnit { inner: Dense::new(&vb, inputs, outputs, i < 2)?, faults: faults.clone() })
            })
            .with_flops((inputs * outputs) as f64)
        };
        Ok(dims.into_iter().enumerate().map(unit).collect())
    }

    fn head(&self, _: usize, _: &str) -> Result<Unit> {
        Ok(Unit::new("0", [3], move |vb| Dense::new(&vb, 8, 3, false)).with_flops(24.0))
    }
}

fn builder(faults: Vec<Fault>) -> TrainerBuilder {
    Trainer::builder(Faulty(faults))
        .stages(3)
        .strategy(Interlock::width(2))
        .probes()
        .batch_size(6)
        .micro_batches(2)
        .seed(7)
        .eval_every(3)
        .steps(11)
        .keep_best(Criterion::Loss)
        .ema(EmaConfig { decay: 0.75, from_step: 2 })
        .lr_schedule(LrScheduleConfig::ReduceOnPlateau { factor: 0.5, patience: 1, threshold: 0.5, min_fraction: 0.0 })
        .optimizer(OptimizerConfig { kind: OptimizerKind::Adamw, lr: 0.02, ..OptimizerConfig::default() })
}

fn restarting(snapshot_every: u64) -> FailuresConfig {
    FailuresConfig { on_failure: OnFailure::Restart, snapshot_every, ..FailuresConfig::default() }
}

fn skipping(snapshot_every: u64) -> FailuresConfig {
    FailuresConfig { on_nonfinite: OnNonfinite::SkipStep, snapshot_every, ..FailuresConfig::default() }
}

/// Events in order: those of steps and evaluations with their losses, and those of failures.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<String>>>);

impl Events {
    fn callback(&self) -> impl FnMut(&TrainEvent<'_>) + Send + 'static + use<> {
        let events = self.0.clone();
        move |event| {
            let text = match event {
                TrainEvent::StepDone { step, stages, .. } => {
                    let losses: Vec<_> =
                        stages.iter().map(|stage| stage.score.map(|score| score.mean_loss())).collect();
                    format!("step {step}: {losses:?}")
                }
                TrainEvent::Evaluated { steps, evaluation, .. } => {
                    format!("evaluated after {steps}: {}", evaluation.last().score.mean_loss())
                }
                TrainEvent::Restarted { to_step, .. } => format!("restarted to {to_step}"),
                TrainEvent::StepSkipped { step } => format!("skipped {step}"),
                _ => return,
            };
            events.lock().unwrap().push(text);
        }
    }

    fn take(&self) -> (Vec<String>, Vec<String>) {
        std::mem::take(&mut *self.0.lock().unwrap())
            .into_iter()
            .partition(|text| !text.starts_with("restarted") && !text.starts_with("skipped"))
    }
}

/// Everything that a fit comes to.
fn outcome(builder: TrainerBuilder) -> (Bits, Bits, Vec<String>, Vec<String>) {
    let events = Events::default();
    let mut trainer = builder.callback(events.callback()).build().unwrap();
    assert_eq!(trainer.fit((DATA, DATA)).unwrap().steps, 11);
    let (told, failures) = events.take();
    (bits(&trainer.snapshot().unwrap()), bits(&trainer.state().unwrap().tensors), told, failures)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_run_that_was_restarted_ends_as_one_without_failures(
        unit in 0_usize..3,
        step in 0_u64..11,
        backward: bool,
        how in prop_oneof![Just(How::Panic), Just(How::Error), Just(How::NotANumber)],
        snapshot_every in 1_u64..5,
        adaptive: bool,
        asynchronous: bool,
        shared: bool,
    ) {
        let make = |faults| {
            let mut builder = builder(faults);
            if adaptive {
                builder = builder.strategy(Adaptive { every: 2, window: 2, below: 0.99, width: 1, max_width: None });
            }
            if asynchronous {
                builder = builder.devices(behind::each(3, behind::When::Polled(2)));
            }
            if shared {
                let heads = HeadsConfig { train: HeadsTrained::All, readout: HeadsReadout::Shared, readout_refresh: Some(4), ..HeadsConfig::default() };
                builder = builder.heads(heads).in_flight(2);
            }
            builder
        };
        let (weights, state, told, _) = outcome(make(Vec::new()));
        let second = Fault::new((unit + 1) % 3, (step + 4) % 11, How::Panic, false, 1);
        let after = outcome(make(vec![Fault::new(unit, step, how, backward, 1), second]).failures(restarting(snapshot_every)));
        prop_assert_eq!(after.0, weights);
        prop_assert_eq!(after.1, state);
        prop_assert_eq!(after.2, told);
        prop_assert!(!after.3.is_empty() && after.3.len() <= 2);
    }

    #[test]
    fn a_step_that_is_left_out_changes_nothing_and_uses_up_its_number(
        unit in 0_usize..3,
        step in 0_u64..11,
        backward: bool,
        snapshot_every in 1_u64..5,
        shared: bool,
    ) {
        let make = |faults| {
            let builder = builder(faults).failures(skipping(snapshot_every));
            match shared {
                true => {
                    let heads = HeadsConfig { train: HeadsTrained::All, readout: HeadsReadout::Shared, readout_refresh: Some(4), ..HeadsConfig::default() };
                    builder.heads(heads).in_flight(2)
                }
                false => builder,
            }
        };
        let (weights, state, told, skipped) = outcome(make(vec![Fault::new(unit, step, How::NotANumber, backward, 9)]));
        let expected = [format!("restarted to {}", step - step % snapshot_every.max(1)), format!("skipped {step}")];
        prop_assert_eq!(&skipped[1..], &expected[1..]);
        let (begins, was_told) = (format!("step {step}:"), |begins: &str| told.iter().any(|event| event.starts_with(begins)));
        prop_assert!(!was_told(&begins));
        // Another fault in the same step leaves the same step out.
        let other = outcome(make(vec![Fault::new((unit + 1) % 3, step, How::NotANumber, !backward, 9)]));
        prop_assert_eq!((other.0, other.1, other.2), (weights, state, told));
    }
}

#[test]
fn a_left_out_first_step_equals_a_run_that_begins_after_it() {
    // Without anything that counts steps.
    let plain = |faults| builder(faults).ema(None).lr_schedule(LrScheduleConfig::default()).failures(skipping(2));
    let (weights, ..) = outcome(plain(vec![Fault::new(1, 0, How::NotANumber, true, 9)]));
    let mut later = plain(Vec::new()).first_step(1).steps(10).build().unwrap();
    later.fit((DATA, DATA)).unwrap();
    assert_eq!(bits(&later.snapshot().unwrap()), weights);
}

#[test]
fn a_failure_that_comes_back_ends_the_run_as_do_too_many() {
    let failed = |faults: Vec<Fault>, config: FailuresConfig| {
        let mut trainer = builder(faults).failures(config).build().unwrap();
        trainer.fit((DATA, DATA)).unwrap_err().to_string()
    };
    let error = failed(vec![Fault::new(1, 5, How::Panic, false, 2)], restarting(2));
    assert!(error.contains("stage 1, step 5") && error.contains("the fault that was asked for"), "{error}");
    let often = (4..9).map(|step| Fault::new(0, step, How::Error, true, 1)).collect::<Vec<_>>();
    let error = failed(often.clone(), restarting(1));
    assert!(error.contains("stage 0, step 7"), "the fourth of them: {error}");
    outcome(builder(often).failures(FailuresConfig { max_restarts: 5, ..restarting(1) }));
    // Steps that are left out are counted in a row.
    let spoiled =
        |steps: &[u64]| steps.iter().map(|step| Fault::new(0, *step, How::NotANumber, true, 9)).collect::<Vec<_>>();
    outcome(builder(spoiled(&[1, 2, 3, 5, 6, 8])).failures(skipping(1)));
    let error = failed(spoiled(&[1, 2, 3, 4, 5]), skipping(1));
    assert!(error.contains("step 4"), "{error}");
    // A panic is no value, and a value is a failure like others if steps are not left out.
    assert!(failed(vec![Fault::new(1, 5, How::Panic, false, 1)], skipping(2)).contains("step 5"));
    // Without copies in between it goes back to the beginning.
    let (weights, ..) = outcome(builder(Vec::new()));
    let after = outcome(builder(vec![Fault::new(1, 8, How::Panic, false, 1)]).failures(restarting(0)));
    assert_eq!((after.0, after.3), (weights, vec!["restarted to 0".to_owned()]));
}

/// A data set that fails once at one of its batches.
struct FailsOnce {
    calls: AtomicU64,
    at: u64,
    panics: bool,
}

impl Dataset for FailsOnce {
    fn len(&self) -> usize {
        DATA.len()
    }

    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
        if augment.is_some() && self.calls.fetch_add(1, SeqCst) == self.at {
            assert!(!self.panics, "the disk is gone");
            return Err(Error::Data("the disk is gone".to_owned()));
        }
        DATA.batch(numbers, augment)
    }
}

#[test]
fn a_run_goes_on_after_a_failure_of_its_data_set() {
    let (weights, ..) = outcome(builder(Vec::new()));
    for (at, panics) in [(1, false), (6, true), (10, false)] {
        let data = FailsOnce { calls: AtomicU64::new(0), at, panics };
        let mut trainer = builder(Vec::new()).failures(restarting(2)).build().unwrap();
        // The rehearsal of a data set reads a few examples without augmentation.
        trainer.fit((data, DATA)).unwrap();
        assert_eq!(bits(&trainer.snapshot().unwrap()), weights, "at {at}");
    }
}

#[test]
fn steps_that_are_never_finite_are_left_out_for_good() {
    let spoiled = [1, 4, 6].map(|step| Fault::new(1, step, How::NotANumber, true, u64::MAX)).to_vec();
    let (.., told, failures) = outcome(builder(spoiled).failures(skipping(100)));
    assert!(failures.contains(&"skipped 6".to_owned()) && failures.len() == 6, "{failures:?}");
    assert_eq!(told.iter().filter(|event| event.starts_with("step ")).count(), 8);
}

#[test]
fn a_run_that_was_asked_to_stop_repeats_what_was_told_before_it_stops() {
    let expected = {
        let stopper = Stopper::new();
        let mut trainer = stopping(&stopper, Vec::new()).build().unwrap();
        (trainer.fit((DATA, DATA)).unwrap().steps, bits(&trainer.snapshot().unwrap()))
    };
    assert!(expected.0 >= 8);
    // A step that has been fed fails when the run has been asked to stop.
    for step in 8..expected.0 {
        let stopper = Stopper::new();
        let mut trainer = stopping(&stopper, vec![Fault::new(2, step, How::Panic, false, 1)]).build().unwrap();
        let report = trainer.fit((DATA, DATA)).unwrap();
        assert!(report.stopped && report.steps >= 8, "{}", report.steps);
    }
}

/// A run that is asked to stop after step 7, with many steps in flight.
fn stopping(stopper: &Stopper, faults: Vec<Fault>) -> TrainerBuilder {
    let asked = stopper.clone();
    let stops = move |event: &TrainEvent<'_>| {
        if matches!(event, TrainEvent::StepDone { step: 7, .. }) {
            asked.stop();
        }
    };
    builder(faults).eval_every(100).in_flight(8).failures(restarting(5)).callback(stops).stop_on(stopper)
}
