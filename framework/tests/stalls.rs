//! Code of a user's that does not end: it is named, the run ends as a failure, and nothing waits for it.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/bits.rs"]
mod bits;
#[path = "common/models.rs"]
mod common;
#[path = "common/setup.rs"]
mod setup;

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use bits::bits;
use candle_core::Tensor;
use common::{Dense, Paced, Spiral};
use interlock::{
    Activation, Adapt, Batch, Callback, Checkpoint, CheckpointConfig, Control, CrossEntropy, Dataset, Differentiable,
    Error, Failure, FailuresConfig, GradientPlan, Gradients, Interlock, Key, Loss, ModelSpec, OnFailure, Origin,
    Pairwise, Pass, PendingScore, Phase, PlanPhase, PlanSchedule, Result, Saved, Strategy, Targets, TrainEvent,
    Trainer, TrainerBuilder, Unit, Wants, tools::device::Link,
};
use serde_json::Value;

/// Long enough for what does not block, on a busy machine.
const LIMIT: f64 = 2.0;
/// Far longer than a run that ends needs.
const PATIENCE: Duration = Duration::from_secs(60);
const DATA: Spiral = Spiral { examples: 24 };

/// A place in a user's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Forward,
    Backward,
    Head,
    Load,
    Length,
    Count,
    Observe,
    Started,
    StageStep,
    StepDone,
    Evaluated,
    CheckpointSaved,
    Finished,
    State,
}

/// A model, a data set, a strategy, a loss and a callback. One place blocks when it has been reached so often.
#[derive(Clone, Debug)]
struct Blocks {
    place: Place,
    /// Times until then.
    left: Arc<AtomicUsize>,
    open: Arc<(Mutex<bool>, Condvar)>,
    events: Arc<AtomicUsize>,
    /// Whether the first layer fails once, while the second one is blocked.
    fails: Arc<AtomicBool>,
}

impl Blocks {
    fn new(place: Place, times: usize) -> Self {
        let left = Arc::new(AtomicUsize::new(times));
        Self { place, left, open: Arc::default(), events: Arc::default(), fails: Arc::default() }
    }

    fn reach(&self, here: Place) {
        if here == self.place && self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) == Ok(1) {
            let (open, changed) = &*self.open;
            drop(changed.wait_while(open.lock().unwrap(), |open| !*open));
        }
    }

    /// Lets the blocked place go on.
    fn open(&self) {
        *self.open.0.lock().unwrap() = true;
        self.open.1.notify_all();
    }
}

struct Layer {
    inner: Dense,
    number: usize,
    blocks: Blocks,
    is_head: bool,
}

impl Differentiable for Layer {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let Self { inner, number, blocks, is_head } = self;
        if pass.is_train() && *number == 1 {
            blocks.reach(if *is_head { Place::Head } else { Place::Forward });
        }
        let fails_here = *number == 0 && pass.step == 2 && pass.micro_batch == 1;
        if fails_here && blocks.fails.swap(false, SeqCst) {
            while blocks.left.load(SeqCst) > 0 {
                thread::yield_now();
            }
            return Err(Error::Data("the failure that was asked for".to_owned()));
        }
        inner.forward(x, pass)
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        if self.number == 1 && !self.is_head {
            self.blocks.reach(Place::Backward);
        }
        self.inner.backward(saved, output_gradient, wants)
    }
}

impl ModelSpec for Blocks {
    fn units(&self) -> Result<Vec<Unit>> {
        let dims = [(2, 8), (8, 8), (8, 3)];
        let unit = |(number, (inputs, outputs)): (usize, (usize, usize))| {
            let blocks = self.clone();
            Unit::new(format!("layers.{number}"), [outputs], move |vb| {
                let inner = Dense::new(&vb, inputs, outputs, number < 2)?;
                Ok(Layer { inner, number, blocks: blocks.clone(), is_head: false })
            })
            .with_flops((inputs * outputs) as f64)
        };
        Ok(dims.into_iter().enumerate().map(unit).collect())
    }

    fn head(&self, number: usize, _: &str) -> Result<Unit> {
        let blocks = self.clone();
        let head = move |vb| {
            let inner = Dense::new(&vb, 8, 3, false)?;
            Ok(Layer { inner, number, blocks: blocks.clone(), is_head: true })
        };
        Ok(Unit::new("0", [3], head).with_flops(24.0))
    }
}

impl Dataset for Blocks {
    fn len(&self) -> usize {
        self.reach(Place::Length);
        DATA.len()
    }

    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
        self.reach(Place::Load);
        DATA.batch(numbers, augment)
    }
}

impl Loss for Blocks {
    fn count(&self, targets: &Tensor) -> Result<f64> {
        self.reach(Place::Count);
        CrossEntropy::default().count(targets)
    }

    fn score(&self, output: &Tensor, targets: &Targets) -> Result<PendingScore> {
        CrossEntropy::default().score(output, targets)
    }

    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(PendingScore, Tensor)> {
        CrossEntropy::default().differentiate(output, targets, total)
    }
}

impl Strategy for Blocks {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        Interlock::width(2).plan(stages)
    }

    fn adapt(&self, stages: usize) -> Result<Option<Box<dyn Adapt>>> {
        Ok(Some(Box::new(Observer { blocks: self.clone(), stages, known: 4 })))
    }
}

/// Changes nothing.
#[derive(Debug)]
struct Observer {
    blocks: Blocks,
    stages: usize,
    known: u64,
}

impl Adapt for Observer {
    fn may_need(&self, _: usize) -> bool {
        true
    }

    fn known_until(&self) -> u64 {
        self.known
    }

    fn observe(&mut self, step: u64, _: &[Option<f64>]) -> Result<Option<PlanPhase>> {
        self.blocks.reach(Place::Observe);
        self.known = step + 5;
        Ok(None)
    }

    fn state(&self) -> Result<Value> {
        Ok(self.known.into())
    }

    fn restore(&mut self, state: &Value) -> Result<PlanSchedule> {
        self.known = state.as_u64().unwrap_or_default();
        Ok(PlanSchedule::constant(Interlock::width(2).plan(self.stages)?))
    }
}

impl Callback for Blocks {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control> {
        match event {
            TrainEvent::Started { .. } => self.reach(Place::Started),
            TrainEvent::StageStep(_) => self.reach(Place::StageStep),
            TrainEvent::StepDone { .. } => self.reach(Place::StepDone),
            TrainEvent::Evaluated { .. } => self.reach(Place::Evaluated),
            TrainEvent::CheckpointSaved { .. } => self.reach(Place::CheckpointSaved),
            TrainEvent::Finished { .. } => self.reach(Place::Finished),
            _ => {}
        }
        self.events.fetch_add(1, SeqCst);
        Ok(Control::Continue)
    }

    fn state(&self) -> Result<Value> {
        self.reach(Place::State);
        Ok(Value::Null)
    }
}

fn failures() -> FailuresConfig {
    FailuresConfig {
        snapshot_every: 1,
        stall_timeout: Some(LIMIT),
        on_failure: OnFailure::Restart,
        ..Default::default()
    }
}

fn builder(all: &Blocks) -> TrainerBuilder {
    Trainer::builder(all.clone())
        .strategy(all.clone())
        .loss(all.clone())
        .callback(|_: &TrainEvent<'_>| {})
        .callback(all.clone())
        .failures(failures())
        .probes()
        .stages(3)
        .batch_size(6)
        .micro_batches(2)
        .steps(12)
        .eval_every(4)
}

/// Runs `work` on another thread, and fails if it does not end.
fn in_bounded_time<T: Send + 'static>(what: Place, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = channel();
    thread::spawn(move || done.send(work()));
    result.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what:?}: it does not end"))
}

fn stalled(error: Error) -> Failure {
    match error {
        Error::Failed(failure) if matches!(*failure.cause, Error::Stalled(_)) => failure,
        other => panic!("{other}"),
    }
}

#[test]
fn what_blocks_is_named_and_left_alone_and_the_last_whole_weights_are_saved() {
    // Where, how often it is reached before, and what the failure says.
    let stage = |phase, micro_batch| (Origin::Stage(1), phase, Some(2), Some(micro_batch));
    let at = |origin, phase, step| (origin, phase, step, None);
    let cases = [
        (Place::Forward, 5, stage(Phase::Forward, 0)),
        (Place::Head, 6, stage(Phase::Head, 1)),
        (Place::Backward, 9, stage(Phase::Backward, 0)),
        (Place::Load, 4, at(Origin::Data, Phase::Load, Some(2))),
        (Place::Load, 8, at(Origin::Data, Phase::Load, None)),
        (Place::Length, 1, at(Origin::Data, Phase::Load, None)),
        (Place::Length, 3, at(Origin::Data, Phase::Load, None)),
        (Place::Count, 3, at(Origin::Data, Phase::Load, Some(2))),
        (Place::Observe, 3, at(Origin::Strategy, Phase::Plan, Some(2))),
        (Place::Started, 1, at(Origin::Callback(1), Phase::Event, None)),
        (Place::StageStep, 9, at(Origin::Callback(1), Phase::Event, Some(2))),
        (Place::StepDone, 3, at(Origin::Callback(1), Phase::Event, Some(2))),
        (Place::Evaluated, 2, at(Origin::Callback(1), Phase::Event, None)),
        (Place::CheckpointSaved, 1, at(Origin::Callback(1), Phase::Event, None)),
        (Place::Finished, 1, at(Origin::Callback(1), Phase::Event, None)),
        (Place::State, 3, at(Origin::Callback(1), Phase::State, None)),
    ];
    thread::scope(|scope| {
        for (place, times, expected) in cases {
            scope.spawn(move || blocked_at(place, times, expected));
        }
    });
}

fn blocked_at(place: Place, times: usize, expected: (Origin, Phase, Option<u64>, Option<usize>)) {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().to_owned();
    let all = Blocks::new(place, times);
    let every = CheckpointConfig { every_steps: Some(8), ..CheckpointConfig::default() };
    let mut trainer = builder(&all).checkpoint(&run, every).build().unwrap();
    let data = Arc::new(all.clone());
    let (failure, newest, trainer) = in_bounded_time(place, move || {
        let failure = stalled(trainer.fit((data.clone(), data)).unwrap_err());
        (failure, trainer.last_checkpoint(), trainer)
    });
    let Failure { origin, phase, step, micro_batch, .. } = failure;
    let found = (origin, phase, step, micro_batch);
    // Stages may be a step ahead of what is known of the others.
    let is_near = (found.0, found.1, found.3) == (expected.0, expected.1, expected.3)
        && found.2.is_some() == expected.2.is_some();
    assert!(is_near && (found == expected || origin.stage().is_none()), "{place:?}: {found:?}, not {expected:?}");

    // What it has said, and written, stays the last word when the blocked place goes on.
    let saved = Checkpoint::newest(&run).unwrap().map(|(saved, _)| saved);
    match (&newest, &saved) {
        (Some(newest), Some(saved)) => {
            assert_eq!(bits(&newest.weights), bits(&saved.weights), "{place:?}");
            assert_eq!(newest.steps(), saved.steps(), "{place:?}");
        }
        (None, None) => assert!(expected.2.is_none(), "{place:?}: nothing was saved"),
        _ => panic!("{place:?}: the newest copy was not saved"),
    }
    let trainer = in_bounded_time(place, move || {
        let mut trainer = trainer;
        assert!(trainer.fit(DATA).unwrap_err().to_string().contains("its run has failed"));
        assert!(trainer.snapshot().is_err() && trainer.evaluate(DATA).is_err());
        assert_eq!((trainer.stages().len(), trainer.plan().stages()), (3, 3));
        trainer
    });
    in_bounded_time(place, move || drop(trainer));
    let events = all.events.load(SeqCst);
    all.open();
    thread::sleep(Duration::from_millis(300));
    // The event that was blocked may end.
    assert!(all.events.load(SeqCst) <= events + 1, "{place:?}: the run went on");
    let steps = |saved: Option<Checkpoint>| saved.map(|saved| saved.steps());
    assert_eq!(steps(Checkpoint::newest(&run).unwrap().map(|(saved, _)| saved)), steps(saved), "{place:?}");
}

#[test]
fn a_failure_while_another_stage_is_blocked_ends_the_run_or_is_survived() {
    for on_failure in [OnFailure::Stop, OnFailure::Restart] {
        let all = Blocks::new(Place::Forward, 5);
        all.fails.store(true, SeqCst);
        let config = FailuresConfig { on_failure, ..failures() };
        let mut trainer = builder(&all).failures(config).build().unwrap();
        let run = move || {
            let data = Arc::new(all.clone());
            (trainer.fit((data.clone(), data)).map(|report| report.steps), all)
        };
        // The trainer is dropped there too.
        let (ended, all) = in_bounded_time(Place::Forward, run);
        match on_failure {
            OnFailure::Stop => {
                let error = ended.unwrap_err().to_string();
                assert!(error.contains("stage 0, step 2, micro-batch 1") && error.contains("asked for"), "{error}");
            }
            // The stage is built anew: the old one stays blocked.
            OnFailure::Restart => assert_eq!(ended.unwrap(), 12),
        }
        all.open();
    }
}

/// A stage sleeps in every pass, shorter than the limit; one step takes longer.
#[derive(Clone)]
struct Slow(Duration);

impl ModelSpec for Slow {
    fn units(&self) -> Result<Vec<Unit>> {
        let unit = |(i, (inputs, outputs)): (usize, (usize, usize))| {
            let pause = if i == 1 { self.0 } else { Duration::ZERO };
            Unit::new(format!("layers.{i}"), [outputs], move |vb| {
                Ok(Paced(Dense::new(&vb, inputs, outputs, i < 2)?, pause))
            })
            .with_flops((inputs * outputs) as f64)
        };
        Ok([(2, 8), (8, 8), (8, 3)].into_iter().enumerate().map(unit).collect())
    }

    fn head(&self, _: usize, _: &str) -> Result<Unit> {
        Ok(Unit::new("0", [3], move |vb| Dense::new(&vb, 8, 3, false)).with_flops(24.0))
    }
}

#[test]
fn slow_work_is_not_taken_for_blocked_and_computes_the_same_bits() {
    let trained = |pause: f64, failures: Option<FailuresConfig>| {
        let builder = Trainer::builder(Slow(Duration::from_secs_f64(pause))).strategy(Pairwise);
        let builder = builder.failures(failures).stages(3).batch_size(6).micro_batches(3).steps(1);
        let mut trainer = builder.build().unwrap();
        let report = trainer.fit((DATA, DATA)).unwrap();
        let evaluation = trainer.evaluate(DATA).unwrap();
        let (weights, losses) = (bits(&trainer.snapshot().unwrap()), evaluation.last().score.mean_loss());
        (report.steps, weights, losses.to_bits())
    };
    let watched = FailuresConfig { stall_timeout: Some(1.0), snapshot_every: 0, ..FailuresConfig::default() };
    // Three micro-batches of a step take 1.2 s, all with the evaluation much longer.
    assert_eq!(trained(0.4, Some(watched)), trained(0.0, None));
}

#[test]
fn a_message_that_is_long_under_way_is_not_taken_for_lost() {
    let far = Link { latency: 3.0, bandwidth: 1e9 };
    let watched = FailuresConfig { stall_timeout: Some(1.0), snapshot_every: 0, ..FailuresConfig::default() };
    let mut trainer = setup::builder(2, None).devices(setup::devices(far)).failures(watched).steps(1).build().unwrap();
    assert_eq!(trainer.fit(DATA).unwrap().steps, 1);
}

#[test]
fn a_limit_that_is_no_length_of_time_is_refused() {
    for (limit, shown) in [(-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf"), (1e300, "1e300"), (1e-9, "1e-9")] {
        let config = FailuresConfig { stall_timeout: Some(limit), ..FailuresConfig::default() };
        let Err(error) = setup::builder(2, None).failures(config).build() else { panic!("{limit} was taken") };
        let text = error.to_string();
        assert!(text.contains("failures.stall_timeout") && text.contains("600"), "{shown}: {text}");
    }
}
