//! Every failure ends in one typed error, and what cannot be is refused before anything starts.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;
#[path = "common/setup.rs"]
mod setup;

use std::time::Duration;

use candle_core::Tensor;
use common::{Dense, Fault, How, Perceptron, Spiral, When};
use interlock::{
    Adapt, Batch, ClipConfig, ClipScope, CrossEntropy, Dataset, Error, GradientPlan, Interlock, Key, Loss, ModelSpec,
    OptimizerConfig, Origin, PendingScore, Phase, PlanSchedule, Result, Strategy, Targets, TrainEvent, Trainer,
    TrainerBuilder, Unit, tools::device::Link,
};
use setup::{FAR, builder, devices};

#[test]
fn a_failure_anywhere_is_one_typed_error() {
    for head in [false, true] {
        for when in [When::Forward, When::BackwardInput, When::BackwardParameters] {
            for how in [How::Panic, How::Error, How::NotANumber] {
                for (micro_batches, link) in [(1, Link::IMMEDIATE), (3, Link::IMMEDIATE), (3, FAR)] {
                    let fault = Fault { unit: 2, head, when, how, step: 2 };
                    let mut trainer = builder(4, Some(fault.clone()))
                        .strategy(Interlock::width(3))
                        .micro_batches(micro_batches)
                        .devices(devices(link))
                        .steps(10)
                        .build()
                        .unwrap();
                    let data = Spiral { examples: 21 };
                    let (done, result) = std::sync::mpsc::channel();
                    std::thread::spawn(move || {
                        let error = trainer.fit(data).unwrap_err();
                        // The trainer says so again instead of hanging.
                        assert!(trainer.snapshot().is_err());
                        drop(trainer);
                        done.send(error).unwrap();
                    });
                    let error = result.recv_timeout(Duration::from_secs(30)).expect("the failure ends in bounded time");
                    let Error::Failed(failure) = error else { panic!("{fault:?}: {error}") };
                    assert_eq!((failure.stage(), failure.step), (Some(2), Some(2)), "{fault:?}: {failure}");
                    assert_eq!(failure.micro_batch, Some(0), "{fault:?}: {failure}");
                    let phase = match (head, when) {
                        (true, _) => Phase::Head,
                        (false, When::Forward) => Phase::Forward,
                        (false, _) => Phase::Backward,
                    };
                    assert_eq!(failure.phase, phase, "{fault:?}: {failure}");
                }
            }
        }
    }
}

struct Unbuildable;

impl interlock::ModelSpec for Unbuildable {
    fn units(&self) -> interlock::Result<Vec<interlock::Unit>> {
        Ok(vec![interlock::Unit::new("u", [1], |_| -> interlock::Result<interlock::Sequential> {
            panic!("no such layer")
        })])
    }
}

#[test]
fn a_stage_that_cannot_be_built_is_an_error_of_the_builder() {
    let Err(Error::Failed(failure)) = Trainer::builder(Unbuildable).build() else { panic!("it was built") };
    assert_eq!((failure.stage(), failure.phase), (Some(0), Phase::Build));
    assert!(failure.to_string().contains("no such layer"), "{failure}");
}

#[test]
fn an_empty_validation_set_is_refused_before_anything_is_trained() {
    let (train, empty) = (Spiral { examples: 21 }, Spiral { examples: 0 });
    let mut trainer = builder(2, None).steps(2).build().unwrap();
    let refused = trainer.fit((train, empty)).unwrap_err().to_string();
    assert!(refused.contains("validation set: it has no examples"), "{refused}");
    assert_eq!(trainer.fit(train).unwrap().steps, 2);
}

/// An error type of a user's data set.
#[derive(Debug)]
struct Unreadable(usize);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "example {} is unreadable", self.0)
    }
}

impl std::error::Error for Unreadable {}

/// A data set that fails at one example.
#[derive(Clone, Copy)]
struct BadData {
    panics: bool,
}

impl Dataset for BadData {
    fn len(&self) -> usize {
        40
    }

    fn batch(&self, numbers: &[usize], augment: Option<interlock::Key>) -> interlock::Result<interlock::Batch> {
        if numbers.contains(&17) {
            assert!(!self.panics, "example 17 is unreadable");
            return Err(Error::other(Unreadable(17)));
        }
        Spiral { examples: 40 }.batch(numbers, augment)
    }
}

#[test]
fn data_that_fail_in_the_middle_end_the_run() {
    for panics in [false, true] {
        let mut trainer = builder(2, None).strategy(Interlock::width(2)).epochs(2).build().unwrap();
        let error = trainer.fit(BadData { panics }).unwrap_err();
        let Error::Failed(failure) = error else { panic!("{error}") };
        assert_eq!((failure.origin, failure.phase), (Origin::Data, Phase::Load));
        assert!(failure.to_string().ends_with("load: example 17 is unreadable") != panics, "{failure}");
        assert!(failure.to_string().ends_with("load: panicked: example 17 is unreadable") == panics, "{failure}");
        // A user's own error is carried through.
        let own = match &*failure.cause {
            Error::Other(own) => own.downcast_ref::<Unreadable>(),
            _ => None,
        };
        assert_eq!(own.map(|own| own.0), (!panics).then_some(17));
        let source = std::error::Error::source(&failure).map(ToString::to_string);
        assert_eq!(source, Some(failure.cause.to_string()));
    }
}

#[test]
fn an_update_that_overflows_is_a_failure_not_a_result() {
    let optimizer = OptimizerConfig { lr: 1e39, momentum: 0.0, ..OptimizerConfig::default() };
    let mut trainer = builder(2, None).strategy(Interlock::width(2)).optimizer(optimizer).steps(1).build().unwrap();
    let Error::Failed(failure) = trainer.fit(Spiral { examples: 21 }).unwrap_err() else { panic!("no stage failed") };
    assert_eq!((failure.step, failure.phase), (Some(0), Phase::Update), "{failure}");
}

#[test]
fn settings_that_cannot_be_are_refused_before_anything_starts() {
    let refused = |builder: TrainerBuilder, key: &str| {
        let error = builder.layout().err().unwrap();
        assert!(error.is_refusal() && error.to_string().contains(key), "{error}");
    };
    refused(builder(3, None).head_loss(3, interlock::MeanSquaredError), "head_loss");
    refused(builder(3, None).batch_size(0), "batch_size");
    refused(builder(3, None).micro_batches(0), "micro_batches");
    refused(builder(3, None).in_flight(0), "in_flight");
    refused(builder(3, None).epochs(0), "epochs");
    refused(builder(3, None).strategy(Interlock::width(4)), "width");
    refused(builder(3, None).stages(4), "partition");
    refused(builder(3, None).units_per_stage([1, 1]), "partition");
    refused(builder(3, None).devices([]), "devices");
    refused(builder(3, None).optimizer(OptimizerConfig { lr: 0.0, ..OptimizerConfig::default() }), "optimizer.lr");
    refused(builder(3, None).clip(ClipConfig { max_norm: 0.0, scope: ClipScope::Stage }), "clip.max_norm");
}

/// A part of a user's code in which a panic is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Units,
    Head,
    Build,
    Plan,
    Plans,
    Adapt,
    Len,
    Batch,
    Count,
    Score,
    Started,
    StepDone,
    Evaluated,
    Finished,
}

impl Part {
    const ALL: [Self; 14] = [
        Self::Units,
        Self::Head,
        Self::Build,
        Self::Plan,
        Self::Plans,
        Self::Adapt,
        Self::Len,
        Self::Batch,
        Self::Count,
        Self::Score,
        Self::Started,
        Self::StepDone,
        Self::Evaluated,
        Self::Finished,
    ];

    /// Panics in `here` if it is the part.
    fn reach(self, here: Self) {
        assert!(self != here, "in the user's {here:?}");
    }
}

/// A model, a strategy, a loss and a data set, one of which panics.
#[derive(Clone, Debug)]
struct Panics(Part);

impl ModelSpec for Panics {
    fn units(&self) -> Result<Vec<Unit>> {
        self.0.reach(Part::Units);
        let part = self.0;
        let mut units = Perceptron { layers: 3, fault: None }.units()?;
        units[1] = Unit::new("layers.1", [8], move |vb| {
            part.reach(Part::Build);
            Dense::new(&vb, 8, 8, true)
        });
        Ok(units)
    }

    fn head(&self, unit: usize, description: &str) -> Result<Unit> {
        self.0.reach(Part::Head);
        Perceptron { layers: 3, fault: None }.head(unit, description)
    }
}

impl Strategy for Panics {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        self.0.reach(Part::Plan);
        Interlock::width(2).plan(stages)
    }

    fn plans(&self, stages: usize) -> Result<PlanSchedule> {
        self.0.reach(Part::Plans);
        Ok(PlanSchedule::constant(self.plan(stages)?))
    }

    fn adapt(&self, _: usize) -> Result<Option<Box<dyn Adapt>>> {
        self.0.reach(Part::Adapt);
        Ok(None)
    }
}

impl Dataset for Panics {
    fn len(&self) -> usize {
        self.0.reach(Part::Len);
        21
    }

    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
        self.0.reach(Part::Batch);
        Spiral { examples: 21 }.batch(numbers, augment)
    }
}

impl Loss for Panics {
    fn count(&self, targets: &Tensor) -> Result<f64> {
        self.0.reach(Part::Count);
        CrossEntropy::default().count(targets)
    }

    fn score(&self, output: &Tensor, targets: &Targets) -> Result<PendingScore> {
        self.0.reach(Part::Score);
        CrossEntropy::default().score(output, targets)
    }

    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(PendingScore, Tensor)> {
        CrossEntropy::default().differentiate(output, targets, total)
    }
}

#[test]
fn a_panic_anywhere_in_the_users_code_is_a_typed_error() {
    for part in Part::ALL {
        let (done, result) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let watches = move |event: &TrainEvent<'_>| match event {
                TrainEvent::Started { .. } => part.reach(Part::Started),
                TrainEvent::StepDone { .. } => part.reach(Part::StepDone),
                TrainEvent::Evaluated { .. } => part.reach(Part::Evaluated),
                TrainEvent::Finished { .. } => part.reach(Part::Finished),
                _ => {}
            };
            let all = Panics(part);
            let builder = Trainer::builder(all.clone()).strategy(all.clone()).loss(all.clone()).callback(watches);
            let ran = builder.stages(3).steps(4).build().and_then(|mut trainer| trainer.fit((all.clone(), all)));
            done.send(ran.map(drop)).unwrap();
        });
        let ran = result.recv_timeout(Duration::from_secs(30)).expect("it ends in bounded time, without unwinding");
        let error = ran.expect_err(&format!("{part:?}")).to_string();
        assert!(
            error.contains("panicked: ") && error.contains(&format!("in the user's {part:?}")),
            "{part:?}: {error}"
        );
    }
}
