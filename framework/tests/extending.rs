//! What users bring along: optimizers, learning rates, callbacks, moving averages, and the state of a strategy.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use candle_core::Tensor;
use common::{Chain, Perceptron, Slope, Spiral, given, scalars};
use interlock::{
    Adaptive, Batch, Callback, Control, Criterion, Dataset, EarlyStopping, EarlyStoppingConfig, EmaConfig, Error,
    Interlock, Key, Length, Optimizer, OptimizerConfig, OptimizerContext, ParameterGroup, ParameterUpdate, Result,
    StageOverride, TrainEvent, Trainer, TrainerBuilder, Weights,
};

fn bits(tensors: Weights) -> BTreeMap<String, Vec<u32>> {
    let bits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect();
    tensors.into_iter().map(|(name, tensor)| (name, bits(tensor))).collect()
}

fn scalar(weights: &Weights, name: &str) -> f32 {
    weights.get(name).unwrap().to_vec1::<f32>().unwrap()[0]
}

fn perceptron() -> TrainerBuilder {
    Trainer::builder(Perceptron { layers: 4, fault: None })
        .stages(4)
        .strategy(Interlock::width(2))
        .probes()
        .batch_size(6)
        .micro_batches(2)
        .seed(5)
        .steps(12)
}

/// The input 1, as often as asked for.
#[derive(Clone, Copy)]
struct Ones;

impl Dataset for Ones {
    fn len(&self) -> usize {
        6
    }

    fn batch(&self, numbers: &[usize], _: Option<Key>) -> Result<Batch> {
        Ok(scalars(&vec![1.0; numbers.len()]))
    }
}

/// One scalar `w`, which begins at 1; its gradient is 1 in every step.
fn one_scalar() -> TrainerBuilder {
    Trainer::builder(Chain { length: 1 }).loss(Slope(1.0)).initial_values(given(&[("s0.weight", 1.0)])).batch_size(6)
}

/// Moves every parameter by the learning rate, whatever its gradient, and counts its updates.
struct March(u32, Arc<Mutex<Vec<(usize, bool, u32)>>>, (usize, bool));

impl Optimizer for March {
    fn update(&mut self, lr: f64, parameters: &[ParameterUpdate<'_>]) -> Result<()> {
        self.0 += 1;
        self.1.lock().unwrap().push((self.2.0, self.2.1, self.0));
        for parameter in parameters {
            let decayed = (parameter.var.as_detached_tensor() * (1.0 - parameter.weight_decay))?;
            parameter.var.set(&(decayed - lr * parameter.lr_scale)?)?;
        }
        Ok(())
    }
}

#[test]
fn every_stage_and_every_head_has_an_own_instance_of_the_users_optimizer() {
    let updates = Arc::default();
    let log = Arc::clone(&updates);
    let constants = OptimizerConfig {
        lr: 0.25,
        weight_decay: 0.5,
        groups: vec![ParameterGroup {
            patterns: vec!["aux.*".to_owned()],
            lr_scale: Some(2.0),
            weight_decay: Some(0.0),
            frozen: false,
        }],
        stages: vec![StageOverride { stage: 1, lr: Some(0.5), ..StageOverride::default() }],
        ..OptimizerConfig::default()
    };
    let make =
        move |context: &OptimizerContext<'_>| Ok(March(0, Arc::clone(&log), (context.stage(), context.is_head())));
    let values = given(&[("s0.weight", 2.0), ("s1.weight", 4.0), ("aux.0.weight", 8.0)]);
    let mut trainer = Trainer::builder(Chain { length: 2 })
        .stages(2)
        .strategy(Interlock::width(1))
        .loss(Slope(1.0))
        .optimizer((constants, make))
        .initial_values(values)
        .batch_size(6)
        .steps(2)
        .build()
        .unwrap();
    trainer.fit(Ones).unwrap();
    let weights = trainer.snapshot().unwrap();
    // w ← w/2 - 0.25, w ← w/2 - 0.5 and w ← w - 2·0.25, twice.
    assert_eq!(scalar(&weights, "s0.weight"), 0.125);
    assert_eq!(scalar(&weights, "s1.weight"), 0.25);
    assert_eq!(scalar(&weights, "aux.0.weight"), 7.0);
    let mut updates = updates.lock().unwrap().clone();
    updates.sort_unstable();
    let expected = [(0, false, 1), (0, false, 2), (0, true, 1), (0, true, 2), (1, false, 1), (1, false, 2)];
    assert_eq!(updates, expected);
}

#[test]
fn a_function_of_the_step_sets_the_learning_rate_of_every_stage() {
    let plain = OptimizerConfig { lr: 0.5, momentum: 0.0, ..OptimizerConfig::default() };
    let builder = || one_scalar().optimizer(plain.clone()).steps(3);
    let mut trainer = builder().lr_schedule(|step: u64| [1.0, 0.5, 0.25][step as usize]).build().unwrap();
    trainer.fit(Ones).unwrap();
    // 1 - 0.5·(1 + 0.5 + 0.25)
    assert_eq!(scalar(&trainer.snapshot().unwrap(), "s0.weight"), 0.125);
    let error =
        builder().lr_schedule(|step: u64| 1.0 - step as f64).build().unwrap().fit(Ones).unwrap_err().to_string();
    assert!(error.contains("step 2") && error.contains("lr_schedule: its factor is -1"), "{error}");
}

#[test]
fn evaluations_and_copies_use_the_moving_average_and_training_does_not() {
    let plain = OptimizerConfig { lr: 0.5, momentum: 0.0, ..OptimizerConfig::default() };
    let losses = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&losses);
    let mut trainer = one_scalar()
        .optimizer(plain)
        .ema(EmaConfig { decay: 0.5, from_step: 1 })
        .keep_best(Criterion::Loss)
        .eval_every(1)
        .steps(4)
        .callback(move |event: &TrainEvent<'_>| match event {
            TrainEvent::Evaluated { evaluation, .. } => sink.lock().unwrap().push(evaluation.last().score.mean_loss()),
            TrainEvent::StepDone { stages, .. } => sink.lock().unwrap().push(stages[0].score.unwrap().mean_loss()),
            _ => {}
        })
        .build()
        .unwrap();
    trainer.fit((Ones, Ones)).unwrap();
    // The loss is w. Training sees 1, 0.5, 0, -0.5; after its updates w is 0.5, 0, -0.5, -1 and the average none, 0, -0.25, -0.625.
    assert_eq!(*losses.lock().unwrap(), [1.0, 0.5, 0.5, 0.0, 0.0, -0.25, -0.5, -0.625]);
    assert_eq!(scalar(&trainer.snapshot().unwrap(), "s0.weight"), -0.625);
    assert_eq!(scalar(&trainer.best().unwrap().weights, "s0.weight"), -0.625);
}

/// Every number of every training step, to the bit.
fn numbers(builder: TrainerBuilder) -> Vec<(usize, u64, u64, u64)> {
    let numbers = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&numbers);
    let data = Spiral { examples: 48 };
    let mut trainer = builder
        .eval_every(3)
        .callback(move |event: &TrainEvent<'_>| {
            if let TrainEvent::StepDone { stages, .. } = event {
                sink.lock().unwrap().extend(stages.iter().map(|stage| {
                    let loss = stage.score.unwrap().loss;
                    (stage.stage, stage.step, loss.to_bits(), stage.updated.gradient_norm.to_bits())
                }));
            }
        })
        .build()
        .unwrap();
    trainer.fit((data, data)).unwrap();
    let numbers = numbers.lock().unwrap().clone();
    assert_eq!(numbers.len(), 48);
    numbers
}

#[test]
fn a_moving_average_changes_no_bit_of_training_and_frozen_parameters_stay() {
    let averaged = || perceptron().ema(EmaConfig { decay: 0.9, from_step: 2 });
    assert_eq!(numbers(perceptron()), numbers(averaged()));

    let frozen = ParameterGroup { patterns: vec!["*0*".to_owned()], lr_scale: None, weight_decay: None, frozen: true };
    let optimizer = OptimizerConfig { groups: vec![frozen], ..OptimizerConfig::default() };
    let data = Spiral { examples: 48 };
    let trained = |builder: TrainerBuilder| {
        let mut trainer = builder.optimizer(optimizer.clone()).build().unwrap();
        let before = bits(trainer.snapshot().unwrap());
        trainer.fit(data).unwrap();
        (before, bits(trainer.snapshot().unwrap()))
    };
    let ((before, own), (_, average)) = (trained(perceptron()), trained(averaged()));
    for (name, value) in &own {
        let is_frozen = name.contains('0');
        assert_eq!(&average[name] == value, is_frozen, "{name}");
        assert_eq!(&before[name] == value, is_frozen, "{name}");
    }
}

/// Ends the run at its third evaluation.
#[derive(Default)]
struct ThreeTimes(u32);

impl Callback for ThreeTimes {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control> {
        if let TrainEvent::Evaluated { .. } = event {
            self.0 += 1;
            if self.0 == 3 {
                return Ok(Control::Stop("three times".to_owned()));
            }
        }
        Ok(Control::Continue)
    }
}

#[test]
fn a_callback_ends_a_run_at_an_evaluation_and_the_report_tells_why() {
    let data = Spiral { examples: 48 };
    let mut trainer = perceptron().eval_every(2).callback(ThreeTimes::default()).build().unwrap();
    let report = trainer.fit((data, data)).unwrap();
    assert_eq!((report.steps, report.stopped, report.evaluated), (6, false, true));
    assert_eq!(report.stop_reason.as_deref(), Some("three times"));
    let mut six = perceptron().eval_every(2).steps(6).build().unwrap();
    six.fit((data, data)).unwrap();
    assert_eq!(bits(trainer.snapshot().unwrap()), bits(six.snapshot().unwrap()));
    // It goes on where it ended.
    trainer.set_length(Length::Steps(6));
    let report = trainer.fit((data, data)).unwrap();
    assert_eq!((report.steps, report.stop_reason), (12, None));
    let mut whole = perceptron().eval_every(2).build().unwrap();
    whole.fit((data, data)).unwrap();
    assert_eq!(bits(trainer.snapshot().unwrap()), bits(whole.snapshot().unwrap()));
}

struct Fails;

impl Callback for Fails {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control> {
        match event {
            TrainEvent::StepDone { .. } => Err(Error::other("no disk")),
            _ => Ok(Control::Continue),
        }
    }
}

#[test]
fn an_error_of_a_callback_is_the_error_of_the_fit() {
    let error = perceptron().callback(Fails).build().unwrap().fit(Spiral { examples: 48 }).unwrap_err();
    assert!(matches!(&error, Error::Other(_)) && error.to_string() == "no disk", "{error}");
}

#[test]
fn early_stopping_ends_a_run_that_does_not_improve_and_needs_a_validation_set() {
    let early = |metric| EarlyStopping::new(EarlyStoppingConfig { patience: 2, min_delta: 0.0, metric }).unwrap();
    // The gradient is 1 and the rate 0.5: the loss falls, in the third and fourth step it does not.
    let builder = |metric| {
        one_scalar()
            .optimizer(OptimizerConfig { lr: 0.5, momentum: 0.0, ..OptimizerConfig::default() })
            .lr_schedule(|step: u64| f64::from(u8::from(step < 2)))
            .eval_every(1)
            .steps(9)
            .callback(early(metric))
    };
    let report = builder(Criterion::Loss).build().unwrap().fit((Ones, Ones)).unwrap();
    assert_eq!(report.steps, 4);
    let reason = report.stop_reason.unwrap();
    assert!(reason.starts_with("early stopping: the validation loss has not improved on 0 by more than 0"), "{reason}");
    let error = builder(Criterion::Accuracy).build().unwrap().fit((Ones, Ones)).unwrap_err().to_string();
    assert!(error.starts_with("early_stopping.metric: the loss has no accuracy"), "{error}");
    let error = builder(Criterion::Loss).eval_every(None).build().unwrap().fit(Ones).unwrap_err().to_string();
    assert!(error.starts_with("early_stopping: there is no validation set"), "{error}");
}

#[test]
fn a_run_that_continues_from_a_strategys_state_decides_as_the_whole_run() {
    let data = Spiral { examples: 48 };
    let rule = Adaptive { every: 2, window: 2, below: 0.9, width: 1, max_width: None };
    let optimizer = OptimizerConfig { lr: 0.05, momentum: 0.0, ..OptimizerConfig::default() };
    let builder = || perceptron().strategy(rule.clone()).optimizer(optimizer.clone());
    let mut whole = builder().steps(24).build().unwrap();
    whole.fit(data).unwrap();
    assert!(whole.plans().phases().len() > 2, "some widths have grown");
    for stopped_at in [1, 5, 6, 13] {
        let mut first = builder().steps(stopped_at).build().unwrap();
        first.fit(data).unwrap();
        let state = first.strategy_state().unwrap();
        let mut second = builder()
            .initial_values(first.snapshot().unwrap())
            .strategy_state(state)
            .first_step(stopped_at)
            .steps(24 - stopped_at)
            .build()
            .unwrap();
        let report = second.fit(data).unwrap();
        assert_eq!(report.steps, 24);
        assert_eq!(second.plans(), whole.plans(), "stopped at {stopped_at}");
        assert_eq!(second.strategy_state().unwrap(), whole.strategy_state().unwrap());
        assert_eq!(bits(second.snapshot().unwrap()), bits(whole.snapshot().unwrap()));
    }
    let refused = perceptron().strategy_state(serde_json::json!({})).layout().map(drop).unwrap_err();
    assert!(
        refused.is_refusal() && refused.to_string().starts_with("strategy state: this strategy has no state"),
        "{refused}"
    );
}
