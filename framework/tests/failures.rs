//! Every failure ends in one typed error, and what cannot be is refused before anything starts.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;
#[path = "common/setup.rs"]
mod setup;

use std::time::Duration;

use common::{Fault, How, Spiral, When};
use interlock::{
    ClipConfig, ClipScope, Dataset, Error, Interlock, OptimizerConfig, Origin, Phase, Trainer, TrainerBuilder,
    tools::device::Link,
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
                        let error = trainer.fit(&data).unwrap_err();
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
    let refused = trainer.fit((&train, &empty)).unwrap_err().to_string();
    assert!(refused.contains("validation set: it has no examples"), "{refused}");
    assert_eq!(trainer.fit(&train).unwrap().steps, 2);
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
        let error = trainer.fit(&BadData { panics }).unwrap_err();
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
    let Error::Failed(failure) = trainer.fit(&Spiral { examples: 21 }).unwrap_err() else { panic!("no stage failed") };
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
