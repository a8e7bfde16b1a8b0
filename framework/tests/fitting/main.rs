//! Fits one after another, data sets that are wrong, and callers' code that panics. `after_errors.rs`: the trainer after an error.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

mod after_errors;
#[path = "../common/models.rs"]
mod common;

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use common::{Chain, Perceptron, Spiral};
use interlock::{
    Batch, Criterion, CrossEntropy, Dataset, EarlyStopping, EarlyStoppingConfig, Error, Key, Length, Local, Loss,
    LrScheduleConfig, ModelSpec, Origin, PendingScore, Result, Score, Stopper, Targets, TrainEvent, Trainer,
    TrainerBuilder, Unit,
    tools::schedule::{MicroBatchId, Purpose},
};

fn builder() -> TrainerBuilder {
    Trainer::builder(Perceptron { layers: 3, fault: None }).stages(3).batch_size(8).seed(4)
}

/// A data set that notes which examples are read, and a change that is made to every batch.
#[derive(Clone)]
struct Noting {
    examples: usize,
    read: Arc<Mutex<Vec<usize>>>,
    change: fn(Batch) -> Batch,
}

impl Noting {
    fn new(examples: usize, change: fn(Batch) -> Batch) -> Self {
        Self { examples, read: Arc::default(), change }
    }

    fn taken(&self) -> Vec<usize> {
        std::mem::take(&mut self.read.lock().unwrap())
    }
}

impl Dataset for Noting {
    fn len(&self) -> usize {
        self.examples
    }

    fn batch(&self, numbers: &[usize], key: Option<Key>) -> Result<Batch> {
        self.read.lock().unwrap().extend(numbers);
        Ok((self.change)(Spiral { examples: self.examples }.batch(numbers, key)?))
    }
}

/// The bits of every parameter.
fn bits(trainer: &Trainer) -> Vec<u32> {
    let values = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    trainer.snapshot().unwrap().into_iter().flat_map(|(_, tensor)| values(tensor)).map(f32::to_bits).collect()
}

fn is_permutation(mut numbers: Vec<usize>, examples: usize) -> bool {
    numbers.sort_unstable();
    numbers == (0..examples).collect::<Vec<_>>()
}

#[test]
fn a_second_fit_begins_a_new_epoch_and_trains_the_same_length_again() {
    let epochs = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&epochs);
    let mut trainer = builder()
        .steps(5)
        .callback(move |event: &TrainEvent<'_>| {
            if let TrainEvent::StepDone { step, epoch, .. } = event {
                seen.lock().unwrap().push((*step, *epoch));
            }
        })
        .build()
        .unwrap();
    // Three steps an epoch: the first fit ends in the middle of its second epoch.
    let data = Noting::new(20, |batch| batch);
    assert_eq!(trainer.fit(data.clone()).unwrap().steps, 5);
    let first = data.taken();
    assert!(is_permutation(first[..20].to_vec(), 20));
    // As many steps again, of a new epoch.
    assert_eq!(trainer.fit(data.clone()).unwrap().steps, 10);
    let second = data.taken();
    assert!(is_permutation(second[..20].to_vec(), 20));
    assert_ne!(first[..20], second[..20]);
    // Other data, two steps an epoch.
    let other = Noting::new(16, |batch| batch);
    trainer.set_length(Length::Epochs(2));
    assert_eq!(trainer.fit(other.clone()).unwrap().steps, 14);
    let third = other.taken();
    assert!(is_permutation(third[..16].to_vec(), 16) && is_permutation(third[16..].to_vec(), 16));
    let expected = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5];
    assert!(epochs.lock().unwrap().iter().copied().eq((0..).zip(expected)), "{epochs:?}");
}

#[test]
fn the_learning_rate_goes_on_by_step_count() {
    let rates = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&rates);
    let mut trainer = builder()
        .epochs(1)
        .lr_schedule(LrScheduleConfig::Cosine { warmup_steps: 0, final_fraction: 0.0, total_steps: Some(6) })
        .callback(move |event: &TrainEvent<'_>| {
            if let TrainEvent::StepDone { stages, .. } = event {
                seen.lock().unwrap().push(stages[0].updated.lr);
            }
        })
        .build()
        .unwrap();
    for _ in 0..2 {
        trainer.fit(Spiral { examples: 20 }).unwrap();
    }
    let rates = rates.lock().unwrap();
    assert!(rates.len() == 6 && rates.is_sorted_by(|a, b| a > b), "{rates:?}");
}

#[test]
fn a_stopped_fit_is_followed_by_the_rest_of_its_epoch() {
    let stopper = Stopper::new();
    let ask = stopper.clone();
    let mut trainer = builder()
        .epochs(2)
        .stop_on(&stopper)
        .callback(move |event: &TrainEvent<'_>| {
            if let TrainEvent::StepDone { step: 0, .. } = event {
                ask.stop();
            }
        })
        .build()
        .unwrap();
    let data = Noting::new(80, |batch| batch);
    let report = trainer.fit(data.clone()).unwrap();
    assert!(report.stopped && report.steps < 10);
    let read = data.taken();
    let done = report.steps as usize * 8;
    // Batches were read ahead; what was not trained on is read again.
    let mut numbers = read[..done].to_vec();
    trainer.set_length(Length::Steps(10 - report.steps));
    assert_eq!(trainer.fit(data.clone()).unwrap().steps, 10);
    numbers.extend(data.taken());
    assert!(is_permutation(numbers, 80));
}

fn refused(data: &Noting) -> String {
    let mut trainer = builder().build().unwrap();
    let error = trainer.fit(data.clone()).unwrap_err();
    let Error::Failed(failure) = &error else { panic!("{error}") };
    assert_eq!(failure.origin, Origin::Data, "{error}");
    let scored = builder().build().unwrap().evaluate(data.clone()).unwrap_err();
    assert!(matches!(scored, Error::Failed(failure) if failure.origin == Origin::Data));
    error.to_string()
}

#[test]
fn a_data_set_that_returns_another_number_of_examples_is_refused() {
    let few = refused(&Noting::new(20, |batch| {
        let inputs = batch.inputs.try_map(|t| Ok(t.narrow(0, 0, 3)?)).unwrap();
        Batch { inputs, targets: batch.targets.narrow(0, 0, 3).unwrap() }
    }));
    assert!(few.contains("asked for 8 examples and returned inputs of shape [3, 2]"), "{few}");
    let uneven = refused(&Noting::new(20, |batch| {
        let targets = batch.targets.narrow(0, 0, batch.targets.elem_count() - 1).unwrap();
        Batch { targets, ..batch }
    }));
    assert!(uneven.contains("asked for 8 examples and returned targets of shape [7]"), "{uneven}");
}

#[test]
fn values_that_are_not_finite_are_blamed_on_the_data() {
    let spoil: fn(Batch) -> Batch = |batch| {
        // The spiral's first points lie at 0.
        let points = batch.inputs.single().unwrap();
        let values = points.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values: Vec<f32> = values.into_iter().map(|x| if x == 0.0 { f32::NAN } else { x }).collect();
        Batch { inputs: Tensor::from_vec(values, points.dims(), &Device::Cpu).unwrap().into(), ..batch }
    };
    let error = refused(&Noting::new(20, spoil));
    assert!(error.contains("the inputs of example") && error.contains("an infinity or a NaN"), "{error}");
    assert!(!error.contains("learning rate"), "{error}");
    let error = refused(&Noting::new(20, |batch| {
        let targets = batch.targets.to_dtype(DType::F32).unwrap();
        Batch { targets: (targets / 0.0).unwrap(), ..batch }
    }));
    assert!(error.contains("the targets of example"), "{error}");
}

#[test]
fn targets_that_are_no_classes_end_the_run() {
    let changed: [fn(Tensor) -> Tensor; 3] = [
        |targets| (targets.to_dtype(DType::F32).unwrap() + 0.7).unwrap(),
        |targets| (targets.to_dtype(DType::F32).unwrap() - 0.7).unwrap(),
        |targets| (targets.to_dtype(DType::I64).unwrap() + f64::from(1_u32 << 31) * 2.0).unwrap(),
    ];
    for change in changed {
        struct Changed(fn(Tensor) -> Tensor);
        impl Dataset for Changed {
            fn len(&self) -> usize {
                20
            }
            fn batch(&self, numbers: &[usize], key: Option<Key>) -> Result<Batch> {
                let batch = Spiral { examples: 20 }.batch(numbers, key)?;
                Ok(Batch { targets: (self.0)(batch.targets.clone()), ..batch })
            }
        }
        let error = builder().build().unwrap().fit(Changed(change)).unwrap_err().to_string();
        assert!(error.contains("at position 0 of the batch; targets are"), "{error}");
        assert!(builder().build().unwrap().evaluate(Changed(change)).is_err());
        // A loss that looks at the targets before anything is sent blames them too.
        let counts = || builder().loss(CrossEntropy { ignore_index: Some(9), ..Default::default() }).build().unwrap();
        for found in [counts().fit(Changed(change)).map(drop), counts().evaluate(Changed(change)).map(drop)] {
            let Err(Error::Failed(failure)) = found else { panic!("accepted") };
            assert_eq!(failure.origin, Origin::Data);
        }
    }
}

#[test]
fn settings_that_could_do_nothing_are_refused() {
    let data = Spiral { examples: 20 };
    let mut best = builder().epochs(1).keep_best(Criterion::Loss).build().unwrap();
    let error = best.fit(data).unwrap_err().to_string();
    assert_eq!(error, "keep_best: there is no validation set; give one, such as fit((train, validation))");
    best.fit((data, data)).unwrap();

    // The learning rate would never fall, and nothing would be evaluated.
    let plateau = LrScheduleConfig::ReduceOnPlateau { factor: 0.5, patience: 1, threshold: 0.1, min_fraction: 0.0 };
    for (builder, setting) in
        [(builder().lr_schedule(plateau), "lr_schedule (reduce_on_plateau)"), (builder().eval_every(2), "eval_every")]
    {
        let mut trainer = builder.epochs(1).build().unwrap();
        let before = bits(&trainer);
        let error = trainer.fit(data).unwrap_err();
        let right = "there is no validation set; give one, such as fit((train, validation))";
        assert_eq!(error.to_string(), format!("{setting}: {right}"));
        assert!(error.is_refusal() && trainer.steps() == 0 && bits(&trainer) == before);
        trainer.fit((data, data)).unwrap();
    }

    let mut none = builder().epochs(1).build().unwrap();
    none.set_length(Length::Steps(0));
    assert_eq!(none.fit(data).unwrap_err().to_string(), "steps: 0; use 1 or more");
    none.set_length(Length::Steps(1));
    assert_eq!(none.fit(data).unwrap().steps, 1);

    let loss = |k: usize| builder().strategy(interlock::EndToEnd).head_loss(k, CrossEntropy::default()).build();
    let error = loss(1).err().unwrap().to_string();
    assert!(error.starts_with("head_loss: stage 1 has no head"), "{error}");
    loss(2).unwrap();
}

#[test]
fn a_head_loss_that_counts_other_targets_ends_the_run() {
    let data = Spiral { examples: 20 };
    let fit = |ignore_index| {
        let own = CrossEntropy { ignore_index, ..CrossEntropy::default() };
        builder().strategy(Local).epochs(1).head_loss(1, own).build().unwrap().fit(data)
    };
    fit(None).unwrap();
    let error = fit(Some(0)).unwrap_err().to_string();
    assert!(error.starts_with("the loss of head 1: its scores count ") && error.contains("counts 8;"), "{error}");
}

#[test]
fn a_validation_set_whose_targets_do_not_count_is_refused() {
    let none =
        Noting::new(20, |batch| Batch { targets: (batch.targets.zeros_like().unwrap() + 9.0).unwrap(), ..batch });
    let mut trainer =
        builder().loss(CrossEntropy { ignore_index: Some(9), ..Default::default() }).epochs(1).build().unwrap();
    let expected = "validation set: the loss counts none of its targets; give others";
    assert_eq!(trainer.evaluate(none.clone()).unwrap_err().to_string(), expected);
    assert_eq!(trainer.fit((Spiral { examples: 20 }, none)).unwrap_err().to_string(), expected);
    trainer.fit((Spiral { examples: 20 }, Spiral { examples: 20 })).unwrap();
}

#[test]
fn more_micro_batches_than_examples_of_a_batch_are_refused() {
    let error = builder().micro_batches(9).build().err().unwrap().to_string();
    assert_eq!(error, "micro_batches: 9; a batch has 8 examples: use 1 to 8");
    builder().micro_batches(8).epochs(1).build().unwrap().fit(Spiral { examples: 20 }).unwrap();
}

/// A chain of scalars in which only the first unit can have a head.
struct OneHead(Chain);

impl ModelSpec for OneHead {
    fn units(&self) -> Result<Vec<Unit>> {
        self.0.units()
    }

    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        match unit {
            0 => self.0.head(unit, arch),
            _ => Err(Error::invalid("heads.arch", format!("no head after unit {unit}"), "use one after unit 0")),
        }
    }
}

#[test]
fn stages_end_where_their_heads_are_possible() {
    let cut = |stages| {
        let builder = Trainer::builder(OneHead(Chain { length: 4 })).strategy(Local).stages(stages);
        builder.layout().map(|layout| layout.partition.units_per_stage().to_vec())
    };
    // Two units each would be even.
    assert_eq!(cut(2).unwrap(), [1, 3]);
    let error = cut(3).unwrap_err().to_string();
    assert!(error.contains("no head after unit"), "{error}");
}

#[test]
fn a_gradient_of_a_micro_batch_that_is_not_there_is_an_error() {
    let layout = builder().layout().unwrap();
    let mut stage = layout.blueprints[0].build().unwrap();
    let micro_batch = MicroBatchId { step: 3, purpose: Purpose::Train, index: 0, count: 1 };
    let gradient = Tensor::zeros((8, 2), DType::F32, &Device::Cpu).unwrap();
    let failure = stage.accept_gradient(micro_batch, 1, &gradient.into()).unwrap_err();
    assert!((failure.origin, failure.step) == (Origin::Stage(0), Some(3)), "{failure}");
}

/// A loss without an accuracy, whose score never improves.
struct Constant;

impl Loss for Constant {
    fn count(&self, targets: &Tensor) -> Result<f64> {
        CrossEntropy::default().count(targets)
    }

    fn score(&self, _: &Tensor, targets: &Targets) -> Result<PendingScore> {
        Ok(Score { loss: 1.0, count: self.count(targets.given())?, correct: None }.into())
    }

    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(PendingScore, Tensor)> {
        CrossEntropy::default().differentiate(output, targets, total)
    }
}

#[test]
fn the_best_accuracy_of_a_loss_that_has_none_is_refused() {
    let data = Spiral { examples: 20 };
    let mut trainer = builder().loss(Constant).epochs(2).keep_best(Criterion::Accuracy).build().unwrap();
    let error = trainer.fit((data, data)).unwrap_err();
    assert_eq!(error.to_string(), "keep_best: the loss has no accuracy; compare by \"loss\" instead");
    // Only the evaluation of the first epoch shows that there is none.
    assert!(error.is_refusal() && trainer.best().is_none() && trainer.steps() == 3);
    let mut trainer = builder().loss(Constant).epochs(2).keep_best(Criterion::Loss).build().unwrap();
    trainer.fit((data, data)).unwrap();
    assert_eq!(trainer.best().unwrap().steps, 3);
}

#[test]
fn early_stopping_counts_from_the_beginning_in_the_fit_after_it_stopped() {
    let data = Spiral { examples: 20 };
    let config = EarlyStoppingConfig { patience: 2, min_delta: 0.0, metric: Criterion::Loss };
    let builder = builder().steps(20).eval_every(1).loss(Constant).callback(EarlyStopping::new(config).unwrap());
    let mut trainer = builder.build().unwrap();
    assert_eq!(trainer.fit((data, data)).unwrap().steps, 3);
    assert_eq!(trainer.fit((data, data)).unwrap().steps, 5);
}

#[test]
fn a_training_set_that_is_empty_is_refused_with_a_remedy_that_helps() {
    let error = builder().build().unwrap().fit(Spiral { examples: 0 }).unwrap_err();
    assert_eq!(error.to_string(), "training set: it has no examples; give at least one");
    assert!(error.is_refusal());
}

#[test]
fn no_devices_are_refused_by_their_name() {
    let error = Trainer::builder(Perceptron { layers: 2, fault: None }).devices(vec![]).layout().err().unwrap();
    assert!(error.to_string().starts_with("devices: the list is empty"), "{error}");
}

#[test]
fn a_callback_that_panics_ends_the_fit_with_an_error() {
    let mut trainer = builder()
        .callback(|event: &TrainEvent<'_>| {
            if let TrainEvent::StepDone { step: 1, .. } = event {
                panic!("no disk");
            }
        })
        .build()
        .unwrap();
    let error = trainer.fit(Spiral { examples: 50 }).unwrap_err();
    assert!(matches!(&error, Error::Panicked(text) if text == "a callback: no disk"), "{error}");
    assert!(trainer.fit(Spiral { examples: 50 }).unwrap_err().to_string().contains("build a new trainer"));
}

/// A loss that panics when it counts targets.
struct Uncounted;

impl Loss for Uncounted {
    fn count(&self, _: &Tensor) -> Result<f64> {
        panic!("nothing to count");
    }

    fn score(&self, _: &Tensor, _: &Targets) -> Result<PendingScore> {
        Ok(Score::default().into())
    }

    fn differentiate(&self, output: &Tensor, _: &Targets, _: f64) -> Result<(PendingScore, Tensor)> {
        Ok((Score::default().into(), output.zeros_like()?))
    }
}

#[test]
fn a_loss_that_panics_on_the_callers_thread_is_an_error() {
    let mut trainer = builder().loss(Uncounted).build().unwrap();
    let error = trainer.evaluate(Spiral { examples: 8 }).unwrap_err();
    assert!(matches!(&error, Error::Panicked(text) if text == "nothing to count"), "{error}");
    let mut trainer = builder().loss(Uncounted).build().unwrap();
    assert!(matches!(trainer.fit(Spiral { examples: 8 }).unwrap_err(), Error::Panicked(_)));
}

#[test]
fn a_trainer_can_be_sent_to_another_thread() {
    fn sendable<T: Send>(value: T) -> T {
        value
    }
    let mut trainer = sendable(sendable(builder()).build().unwrap());
    let steps = std::thread::spawn(move || trainer.fit(Spiral { examples: 20 }).unwrap().steps).join().unwrap();
    assert_eq!(steps, 3);
}
