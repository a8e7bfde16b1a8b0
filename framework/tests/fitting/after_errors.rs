//! A fit that is refused or fails leaves the trainer usable, and as it was.

use std::sync::{Arc, Mutex};

use candle_core::Tensor;
use interlock::{
    Batch, Callback, Control, Criterion, CrossEntropy, Dataset, EarlyStopping, EarlyStoppingConfig, Error, Key, Length,
    Loss, Origin, PendingScore, Result, Targets, TrainEvent,
};

use crate::{Noting, bits, builder, common::Spiral};

/// Whether an event is of one kind.
type IsKind = fn(&TrainEvent<'_>) -> bool;

/// Fails at its first call for an event of one kind.
struct FailsOnce(bool, IsKind);

impl Callback for FailsOnce {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control> {
        if (self.1)(event) && !std::mem::replace(&mut self.0, true) {
            return Err(Error::other("no disk"));
        }
        Ok(Control::Continue)
    }
}

/// Data whose first batch cannot be made the first time: an error, or a panic.
struct FailsFirst {
    panics: bool,
    failed: Mutex<bool>,
}

impl Dataset for FailsFirst {
    fn len(&self) -> usize {
        20
    }

    fn batch(&self, numbers: &[usize], key: Option<Key>) -> Result<Batch> {
        if !std::mem::replace(&mut *self.failed.lock().unwrap(), true) {
            assert!(!self.panics, "no disk");
            return Err(Error::other("no disk"));
        }
        Spiral { examples: 20 }.batch(numbers, key)
    }
}

/// A loss that fails the first time that it counts targets.
struct CountsLater(Mutex<bool>, CrossEntropy);

impl Loss for CountsLater {
    fn count(&self, targets: &Tensor) -> Result<f64> {
        let counts = std::mem::replace(&mut *self.0.lock().unwrap(), true);
        assert!(counts, "not yet");
        self.1.count(targets)
    }

    fn score(&self, output: &Tensor, targets: &Targets) -> Result<PendingScore> {
        self.1.score(output, targets)
    }

    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(PendingScore, Tensor)> {
        self.1.differentiate(output, targets, total)
    }
}

#[test]
fn early_stopping_without_a_validation_set_is_refused_and_the_trainer_stays_usable() {
    let config = EarlyStoppingConfig { patience: 9, min_delta: 0.0, metric: Criterion::Loss };
    let mut trainer = builder().epochs(2).callback(EarlyStopping::new(config).unwrap()).build().unwrap();
    let before = bits(&trainer);
    let data = Noting::new(20, |batch| batch);
    let error = trainer.fit(data.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "early_stopping: there is no validation set; give one, such as fit((train, validation))"
    );
    assert!(error.is_refusal() && data.taken().is_empty() && trainer.steps() == 0);
    assert_eq!(bits(&trainer), before);
    trainer.evaluate(data.clone()).unwrap();
    trainer.predictor().unwrap();
    assert_eq!(trainer.fit((data.clone(), data.clone())).unwrap().steps, 6);
    let mut other = builder().epochs(2).build().unwrap();
    other.fit((data.clone(), data)).unwrap();
    assert_eq!(bits(&trainer), bits(&other));
}

#[test]
fn what_is_refused_before_the_first_step_leaves_the_trainer_as_it_was() {
    let data = Spiral { examples: 20 };
    let mut whole = builder().epochs(2).build().unwrap();
    whole.fit(data).unwrap();

    let mut few = builder().epochs(2).build().unwrap();
    few.fit(Spiral { examples: 0 }).unwrap_err();
    few.fit((data, Spiral { examples: 0 })).unwrap_err();
    few.evaluate(Spiral { examples: 0 }).unwrap_err();
    few.fit(data).unwrap();
    assert_eq!(bits(&few), bits(&whole));
    // No whole batch of eight.
    let mut few = builder().epochs(2).drop_last(true).build().unwrap();
    few.fit(Spiral { examples: 5 }).unwrap_err();
    assert_eq!(few.fit(data).unwrap().steps, 4);

    for panics in [false, true] {
        let first = || FailsFirst { panics, failed: Mutex::default() };
        let mut trainer = builder().epochs(2).build().unwrap();
        assert!(matches!(trainer.evaluate(first()), Err(Error::Failed(failure)) if failure.origin == Origin::Data));
        let data = Arc::new(first());
        assert!(matches!(trainer.fit(data.clone()), Err(Error::Failed(failure)) if failure.origin == Origin::Data));
        trainer.fit(data).unwrap();
        assert_eq!(bits(&trainer), bits(&whole));
    }
    let mut trainer = builder().epochs(2).loss(CountsLater(Mutex::default(), CrossEntropy::default())).build().unwrap();
    assert!(matches!(trainer.fit(data), Err(Error::Panicked(text)) if text == "not yet"));
    trainer.fit(data).unwrap();
    assert_eq!(bits(&trainer), bits(&whole));
}

#[test]
fn an_error_of_a_callback_between_steps_leaves_the_trainer_where_it_was() {
    let data = Spiral { examples: 40 };
    let mut whole = builder().steps(8).eval_every(2).build().unwrap();
    whole.fit((data, data)).unwrap();
    let events: [(IsKind, u64); 3] = [
        (|event| matches!(event, TrainEvent::Started { .. }), 0),
        (|event| matches!(event, TrainEvent::Evaluated { .. }), 2),
        (|event| matches!(event, TrainEvent::Finished { .. }), 8),
    ];
    for (event, steps) in events {
        let mut trainer = builder().steps(8).eval_every(2).callback(FailsOnce(false, event)).build().unwrap();
        assert_eq!(trainer.fit((data, data)).unwrap_err().to_string(), "no disk");
        assert_eq!(trainer.steps(), steps);
        if steps < 8 {
            trainer.set_length(Length::Steps(8 - steps));
            trainer.fit((data, data)).unwrap();
        }
        assert_eq!(bits(&trainer), bits(&whole), "after {steps} steps");
    }
}
