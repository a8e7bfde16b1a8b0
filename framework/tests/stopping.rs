//! A run that is asked to end does so at a step's end, as if it had been that long from the start, and can be gone on with.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use candle_core::Tensor;
use common::{Perceptron, Spiral};
use interlock::{
    Batch, Dataset, Interlock, Key, Length, LrScheduleConfig, Report, Result, Stopper, TrainEvent, Trainer,
    TrainerBuilder, Weights,
};

const STEPS: u64 = 20;

fn builder(width: usize) -> TrainerBuilder {
    Trainer::builder(Perceptron { layers: 4, fault: None })
        .stages(4)
        .strategy(Interlock::width(width))
        .probes()
        .micro_batches(2)
        .batch_size(6)
        .seed(5)
        .steps(STEPS)
}

/// Asks at the end of step `at`, counted from 1.
fn asks(stopper: &Stopper, at: u64) -> impl FnMut(&TrainEvent<'_>) + Send + 'static {
    let stopper = stopper.clone();
    move |event: &TrainEvent<'_>| {
        if let TrainEvent::StepDone { step, .. } = event
            && step + 1 == at
        {
            stopper.stop();
        }
    }
}

fn same(a: &Weights, b: &Weights) {
    let bits = |t: &Tensor| -> Vec<u32> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
    };
    assert_eq!(a.len(), b.len());
    for ((name, x), (other, y)) in a.iter().zip(b) {
        assert_eq!((name, bits(x)), (other, bits(y)));
    }
}

fn whole(builder: TrainerBuilder, data: Spiral) -> (Weights, Report) {
    let mut trainer = builder.build().unwrap();
    let report = trainer.fit(data).unwrap();
    (trainer.snapshot().unwrap(), report)
}

#[test]
fn the_parameters_are_those_of_a_run_of_that_many_steps() {
    let data = Spiral { examples: 50 };
    for width in [1, 2, 4] {
        let stopper = Stopper::new();
        let mut trainer = builder(width).stop_on(&stopper).callback(asks(&stopper, 5)).build().unwrap();
        let report = trainer.fit(data).unwrap();
        // The step, and those that had been fed by then: one in each stage at the most, and the two that are handed over ahead.
        assert!(report.stopped && (5..STEPS).contains(&report.steps), "{}", report.steps);
        assert_eq!((trainer.steps(), stopper.is_requested()), (report.steps, false));
        let (expected, other) = whole(builder(width).steps(report.steps), data);
        same(&trainer.snapshot().unwrap(), &expected);
        assert!(!other.stopped);
        assert_eq!((report.final_scores, report.evaluated), (other.final_scores, false));
        assert_eq!(trainer.evaluate(data).unwrap().heads().len(), 4);
    }
}

#[test]
fn the_steps_that_are_left_end_where_the_whole_run_ends() {
    let data = Spiral { examples: 50 };
    let cosine = LrScheduleConfig::Cosine { warmup_steps: 3, final_fraction: 0.0, total_steps: None };
    let stopper = Stopper::new();
    let mut trainer =
        builder(3).lr_schedule(cosine.clone()).stop_on(&stopper).callback(asks(&stopper, 7)).build().unwrap();
    let first = trainer.fit(data).unwrap();
    assert!(first.stopped);
    trainer.set_length(Length::Steps(STEPS - first.steps));
    let second = trainer.fit(data).unwrap();
    assert_eq!((second.steps, second.stopped), (STEPS, false));
    same(&trainer.snapshot().unwrap(), &whole(builder(3).lr_schedule(cosine), data).0);
}

#[test]
fn who_asks_before_the_run_gets_none_and_the_next_one_goes_on() {
    let data = Spiral { examples: 50 };
    let mut trainer = builder(2).build().unwrap();
    let before = trainer.snapshot().unwrap();
    trainer.stopper().stop();
    // An evaluation by itself is no run.
    assert_eq!(trainer.evaluate(data).unwrap().last().score.count, 50.0);
    let report = trainer.fit((data, data)).unwrap();
    assert_eq!((report.steps, report.stopped, report.evaluated), (0, true, false));
    assert_eq!(report.final_scores.loss, None, "nothing was scored");
    same(&trainer.snapshot().unwrap(), &before);
    let report = trainer.fit((data, data)).unwrap();
    assert_eq!((report.steps, report.stopped, report.evaluated), (STEPS, false, true));
}

/// Asks when a batch of these numbers is taken, and counts batches.
#[derive(Clone)]
struct Asking {
    stopper: Stopper,
    at: usize,
    taken: Arc<AtomicUsize>,
}

impl Dataset for Asking {
    fn len(&self) -> usize {
        300
    }

    fn batch(&self, numbers: &[usize], key: Option<Key>) -> Result<Batch> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        if numbers.contains(&self.at) {
            self.stopper.stop();
        }
        Spiral { examples: self.len() }.batch(numbers, key)
    }
}

#[test]
fn an_evaluation_ends_after_what_was_fed_and_is_left_out() {
    let data = Spiral { examples: 50 };
    let stopper = Stopper::new();
    let taken = Arc::new(AtomicUsize::new(0));
    let validation = Asking { stopper: stopper.clone(), at: 60, taken: Arc::clone(&taken) };
    let evaluated = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&evaluated);
    let mut trainer = builder(2)
        .eval_every(4)
        .stop_on(&stopper)
        .callback(move |event: &TrainEvent<'_>| {
            if matches!(event, TrainEvent::Evaluated { .. }) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        })
        .build()
        .unwrap();
    let report = trainer.fit((data, validation)).unwrap();
    assert_eq!((report.steps, report.stopped, report.evaluated), (4, true, false));
    assert_eq!(evaluated.load(Ordering::Relaxed), 0);
    // Of its 50 batches those up to the eleventh, and the few that were handed over ahead.
    assert!((11..30).contains(&taken.load(Ordering::Relaxed)), "{taken:?}");
    let (expected, other) = whole(builder(2).steps(4), data);
    same(&trainer.snapshot().unwrap(), &expected);
    assert_eq!(report.final_scores, other.final_scores);
    // The rest of the run, with all of its evaluations, the one that was left out included.
    let validation = Spiral { examples: 20 };
    trainer.set_length(Length::Steps(STEPS - 4));
    let report = trainer.fit((data, validation)).unwrap();
    assert_eq!((report.steps, report.stopped, report.evaluated), (STEPS, false, true));
    assert_eq!(evaluated.load(Ordering::Relaxed), 5);
    same(&trainer.snapshot().unwrap(), &whole(builder(2), data).0);
}

#[test]
fn a_request_at_the_end_of_an_evaluation_keeps_it() {
    let data = Spiral { examples: 50 };
    let stopper = Stopper::new();
    let ask = stopper.clone();
    let mut trainer = builder(2)
        .eval_every(6)
        .stop_on(&stopper)
        .callback(move |event: &TrainEvent<'_>| {
            if matches!(event, TrainEvent::Evaluated { steps: 12, .. }) {
                ask.stop();
            }
        })
        .build()
        .unwrap();
    let report = trainer.fit((data, data)).unwrap();
    assert_eq!((report.steps, report.stopped, report.evaluated), (12, true, true));
    assert_eq!(report.final_scores.accuracy, trainer.evaluate(data).unwrap().last().score.accuracy());
}

#[test]
fn reports_of_older_runs_were_not_stopped() {
    let data = Spiral { examples: 50 };
    let mut value = serde_json::to_value(whole(builder(2).steps(1), data).1).unwrap();
    value.as_object_mut().unwrap().remove("stopped").unwrap();
    assert!(!serde_json::from_value::<Report>(value).unwrap().stopped);
}
