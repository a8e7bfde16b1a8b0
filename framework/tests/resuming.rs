//! Trainers that continue from the weights and the state of another one.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/behind.rs"]
mod behind;
#[path = "common/bits.rs"]
mod bits;
#[path = "common/models.rs"]
mod common;

use std::collections::BTreeMap;

use bits::{Bits, bits};
use candle_core::{Device, Tensor};
use common::{Perceptron, Spiral};
use interlock::{
    Adaptive, Callback, Control, Criterion, EarlyStopping, EarlyStoppingConfig, EmaConfig, EndToEnd, Interlock, Length,
    Local, LrScheduleConfig, Optimizer, OptimizerConfig, OptimizerContext, OptimizerKind, ParameterUpdate, Result,
    Split, StateDict, Strategy, TrainEvent, Trainer, TrainerBuilder, TrainerState, Weights, WidthSchedule,
};
use serde_json::{Value, json};

/// Four steps an epoch.
const DATA: Spiral = Spiral { examples: 24 };

/// Everything about a trainer that a run can change, but wall seconds and where its fit began.
fn everything(trainer: &Trainer) -> (Bits, Bits, Value) {
    let state = trainer.state().unwrap();
    let mut values = serde_json::to_value(&state).unwrap();
    values["best"]["seconds"] = Value::Null;
    values["fit"] = Value::Null;
    (bits(&trainer.snapshot().unwrap()), bits(&state.tensors), values)
}

/// A rule with a tensor for each parameter and a count of its updates: `v ← v/2 + g`, `w ← w - η·v/√t`.
#[derive(Default)]
struct Own {
    updates: u64,
    sums: BTreeMap<String, Tensor>,
}

impl Optimizer for Own {
    fn update(&mut self, lr: f64, parameters: &[ParameterUpdate<'_>]) -> Result<()> {
        self.updates += 1;
        for parameter in parameters {
            let gradient = parameter.gradient()?.detach();
            let sum = match self.sums.remove(parameter.name) {
                Some(sum) => ((sum * 0.5)? + gradient)?,
                None => gradient,
            };
            let change = (&sum * (lr * parameter.lr_scale / (self.updates as f64).sqrt()))?;
            parameter.var.set(&(parameter.var.as_detached_tensor() - change)?)?;
            self.sums.insert(parameter.name.to_owned(), sum);
        }
        Ok(())
    }

    fn state(&self) -> Result<StateDict> {
        let tensors = self.sums.iter().map(|(name, sum)| (format!("sum.{name}"), sum.clone())).collect();
        Ok(StateDict { tensors, values: json!(self.updates) })
    }

    fn restore(&mut self, mut state: StateDict) -> Result<()> {
        self.sums = state.take_all("sum");
        self.updates = state.values.as_u64().unwrap();
        Ok(())
    }
}

fn early(patience: u64, min_delta: f64) -> EarlyStopping {
    EarlyStopping::new(EarlyStoppingConfig { patience, min_delta, metric: Criterion::Loss }).unwrap()
}

/// Three stages that are trained with everything that has a state, except for the optimizer.
fn builder() -> TrainerBuilder {
    without_validation()
        .eval_every(1)
        .keep_best(Criterion::Loss)
        .callback(early(99, 0.0))
        // Every second evaluation that does not halve the loss.
        .lr_schedule(LrScheduleConfig::ReduceOnPlateau { factor: 0.5, patience: 1, threshold: 0.5, min_fraction: 0.0 })
}

/// The same without what needs a validation set.
fn without_validation() -> TrainerBuilder {
    Trainer::builder(Perceptron { layers: 3, fault: None })
        .stages(3)
        .strategy(Interlock::width(2))
        .probes()
        .batch_size(6)
        .micro_batches(2)
        .seed(7)
        .ema(EmaConfig { decay: 0.75, from_step: 2 })
}

fn momentum(builder: TrainerBuilder) -> TrainerBuilder {
    builder.optimizer(OptimizerConfig { lr: 0.2, ..OptimizerConfig::default() })
}

fn adamw(builder: TrainerBuilder) -> TrainerBuilder {
    let constants =
        OptimizerConfig { kind: OptimizerKind::Adamw, lr: 0.02, weight_decay: 0.1, ..OptimizerConfig::default() };
    builder.optimizer(constants)
}

fn own(builder: TrainerBuilder) -> TrainerBuilder {
    let constants = OptimizerConfig { lr: 0.3, ..OptimizerConfig::default() };
    builder.optimizer((constants, |_: &OptimizerContext<'_>| Ok(Own::default())))
}

/// The state after a trip through files.
fn through_files(state: &TrainerState) -> TrainerState {
    let folder = tempfile::tempdir().unwrap();
    state.tensors.save(folder.path()).unwrap();
    let text = serde_json::to_string(state).unwrap();
    let mut read: TrainerState = serde_json::from_str(&text).unwrap();
    read.tensors = Weights::load(folder.path()).unwrap();
    read
}

/// Compares what a trainer comes to in ten steps with what two come to, of which the first trains `first` steps.
fn compare(builder: impl Fn() -> TrainerBuilder, first: u64) {
    compare_on(&(DATA, DATA).into(), builder, first);
}

fn compare_on(data: &Split, builder: impl Fn() -> TrainerBuilder, first: u64) {
    let mut whole = builder().steps(10).build().unwrap();
    let report = whole.fit(data.clone()).unwrap();

    let mut before = builder().steps(first).build().unwrap();
    before.fit(data.clone()).unwrap();
    let (weights, state) = (before.snapshot().unwrap(), through_files(&before.state().unwrap()));
    assert_eq!(state.steps(), first);
    // Neither changes the other, and a state can be taken twice.
    before.set_length(Length::Steps(2));
    before.fit(data.clone()).unwrap();

    let resumed = || builder().initial_values(weights.clone()).restore(state.clone());
    assert!(resumed().first_step(first).layout().is_ok());
    let mut after = resumed().steps(10 - first).build().unwrap();
    assert_eq!(after.steps(), first);
    let resumed = after.fit(data.clone()).unwrap();
    assert_eq!(everything(&after), everything(&whole), "after {first} steps");
    assert_eq!(after.plans(), whole.plans());
    assert_eq!((resumed.steps, resumed.final_scores, resumed.best), (10, report.final_scores, report.best));
    let best = |trainer: &Trainer| trainer.best().map(|best| bits(&best.weights));
    assert_eq!(best(&after), best(&whole));
}

fn width_schedule() -> impl Strategy + 'static {
    WidthSchedule::new(Local).then(3, Interlock::width(2)).then(7, EndToEnd)
}

fn adaptive() -> impl Strategy + 'static {
    Adaptive { every: 2, window: 2, below: 0.99, width: 1, max_width: None }
}

#[test]
fn training_continues_to_the_bit_under_a_width_schedule() {
    // In the first epoch, after it, and in the second.
    for first in [1, 4, 5] {
        compare(|| momentum(builder().strategy(width_schedule())), first);
        compare(|| adamw(builder().strategy(width_schedule())), first);
        compare(|| own(builder().strategy(width_schedule())), first);
    }
}

#[test]
fn training_continues_to_the_bit_under_the_adaptive_strategy() {
    for first in [2, 5, 8] {
        compare(|| momentum(builder().strategy(adaptive())), first);
        compare(|| adamw(builder().strategy(adaptive())), first);
        compare(|| own(builder().strategy(adaptive())), first);
    }
    let mut trainer = momentum(builder().strategy(adaptive())).steps(10).build().unwrap();
    trainer.fit((DATA, DATA)).unwrap();
    assert!(trainer.plans().phases().len() > 1, "a stage has been widened");
}

#[test]
fn training_continues_to_the_bit_without_evaluations_and_on_asynchronous_devices() {
    for first in [1, 5] {
        for optimizer in [momentum, adamw, own] {
            compare_on(&DATA.into(), || optimizer(without_validation()), first);
            compare(|| optimizer(builder()).devices(behind::each(3, behind::When::Polled(2))), first);
        }
    }
}

#[test]
fn weights_alone_do_not_continue_to_the_bit() {
    let trained = |builder: TrainerBuilder, steps| {
        let mut trainer = builder.steps(steps).build().unwrap();
        trainer.fit((DATA, DATA)).unwrap();
        trainer
    };
    for optimizer in [momentum, adamw, own] {
        // Without what has a state of its own beside the optimizer.
        let plain = || optimizer(builder()).ema(None).lr_schedule(LrScheduleConfig::default());
        let whole = bits(&trained(plain(), 10).snapshot().unwrap());
        let weights = trained(plain(), 5).snapshot().unwrap();
        let after = trained(plain().initial_values(weights).first_step(5), 5);
        assert_ne!(bits(&after.snapshot().unwrap()), whole);
    }
}

#[test]
fn early_stopping_counts_the_evaluations_of_both_trainers() {
    // After the first evaluation none is better by 100.
    let builder = || momentum(builder().callback(early(6, 100.0))).steps(20);
    let mut whole = builder().build().unwrap();
    let expected = whole.fit((DATA, DATA)).unwrap();
    assert_eq!(expected.steps, 7);
    let mut before = builder().steps(5).build().unwrap();
    before.fit((DATA, DATA)).unwrap();
    let (weights, state) = (before.snapshot().unwrap(), before.state().unwrap());
    let mut after = builder().initial_values(weights).restore(state).build().unwrap();
    let report = after.fit((DATA, DATA)).unwrap();
    assert_eq!((report.steps, report.stop_reason), (7, expected.stop_reason));
    assert_eq!(everything(&after), everything(&whole));
}

#[test]
fn a_restored_trainer_begins_a_new_epoch_of_other_data() {
    let epochs = |trainer: &mut Trainer, data: &Spiral| {
        trainer.set_length(Length::Steps(1));
        trainer.fit((*data, *data)).unwrap();
        serde_json::to_value(trainer.state().unwrap()).unwrap()["position"].clone()
    };
    let mut before = momentum(builder()).build().unwrap();
    // Before any fit there is nothing to continue.
    assert_eq!(serde_json::to_value(before.state().unwrap()).unwrap()["position"], Value::Null);
    assert_eq!(epochs(&mut before, &DATA), json!({ "examples": 24, "first_epoch": 0, "first_step": 0, "least": 1 }));
    let (weights, state) = (before.snapshot().unwrap(), before.state().unwrap());
    let mut after = momentum(builder()).initial_values(weights).restore(state).build().unwrap();
    let other = Spiral { examples: 12 };
    assert_eq!(epochs(&mut after, &other), json!({ "examples": 12, "first_epoch": 1, "first_step": 1, "least": 1 }));
}

/// A callback that remembers nothing.
struct Watches;

impl Callback for Watches {
    fn on_event(&mut self, _: &TrainEvent<'_>) -> Result<Control> {
        Ok(Control::Continue)
    }
}

#[test]
fn the_state_of_another_run_is_refused_by_name() {
    let mut trainer = momentum(builder()).steps(3).build().unwrap();
    trainer.fit((DATA, DATA)).unwrap();
    let (weights, state) = (trainer.snapshot().unwrap(), trainer.state().unwrap());
    let refused = |builder: TrainerBuilder, words: &str| {
        let error = builder.build().map(drop).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    let from = |builder: TrainerBuilder| builder.initial_values(weights.clone()).restore(state.clone());

    refused(momentum(builder()).restore(state.clone()), "there are no weights with it; give those of the same moment");
    let cut = from(momentum(builder())).units_per_stage([2, 1]);
    refused(cut.allow_unknown(true), "its stages have [1, 1, 1] units, those of the model [2, 1]");
    let model =
        Trainer::builder(Perceptron { layers: 4, fault: None }).units_per_stage([1, 1, 2]).batch_size(6).seed(7);
    refused(
        from(momentum(model)).allow_missing(true).allow_unknown(true),
        "layers.2.weight (is [8, 3], must be [8, 8])",
    );
    refused(from(momentum(builder())).heads(Default::default()).allow_unknown(true), "is of shape");
    refused(from(adamw(builder())), "which AdamW does not have; give the state of AdamW");
    refused(from(momentum(builder())).strategy(adaptive()), "this one decides plans");
    refused(from(momentum(builder())).ema(None), "has a moving average in this state, but ema is not set");
    refused(from(momentum(builder())).first_step(2), "it is of step 3, and first_step is 2");
    refused(
        from(momentum(builder())).seed(8),
        "its run had seed 7, batch size 6, drop_last false, this one has seed 8",
    );
    refused(
        from(momentum(builder())).batch_size(8),
        "this one has seed 7, batch size 8, drop_last false; use the settings",
    );
    let without_callback = momentum(without_validation()).eval_every(1).keep_best(Criterion::Loss);
    refused(from(without_callback), "it is of 1 callbacks that remember something, or lie before one that does; this");
    from(momentum(builder())).callback(Watches).build().unwrap();

    let mut few = state.clone();
    few.tensors.remove("optimizer.1.main.velocity.layers.1.weight").unwrap();
    let from = |state: TrainerState| momentum(builder()).initial_values(weights.clone()).restore(state);
    refused(
        from(few),
        "stage 1, state: trainer state: the tensor optimizer.1.main.velocity.layers.1.weight is missing",
    );
    let mut few = state.clone();
    few.tensors = Weights::default();
    refused(from(few), "the tensor best.layers.0.weight is missing; give the tensors that were saved with it");
    let mut other = state.clone();
    let short = Tensor::new(&[1.0_f32], &Device::Cpu).unwrap();
    other.tensors.insert("optimizer.0.main.velocity.layers.0.weight", short);
    let mut trainer = from(other).build().unwrap();
    let error = trainer.fit((DATA, DATA)).unwrap_err().to_string();
    assert!(error.contains("optimizer state of layers.0.weight: it has 1 values; the parameter has 16"), "{error}");

    let mut text = serde_json::to_value(&state).unwrap();
    text["format"] = json!(2);
    let mut newer: TrainerState = serde_json::from_value(text).unwrap();
    newer.tensors = state.tensors.clone();
    refused(from(newer), "trainer state: it has format 2; this version reads format 1");
}

#[test]
fn an_optimizer_that_fails_to_return_its_state_is_named_by_its_stage() {
    struct Silent;
    impl Optimizer for Silent {
        fn update(&mut self, _: f64, _: &[ParameterUpdate<'_>]) -> Result<()> {
            Ok(())
        }
        fn state(&self) -> Result<StateDict> {
            Err(interlock::Error::other("no memory"))
        }
    }
    let make = |context: &OptimizerContext<'_>| -> Result<Box<dyn Optimizer>> {
        Ok(if context.stage() == 1 { Box::new(Silent) } else { Box::new(Own::default()) })
    };
    let trainer = builder().optimizer(Chosen(make)).build().unwrap();
    assert_eq!(trainer.state().unwrap_err().to_string(), "stage 1, state: no memory");
}

/// A factory of optimizers of several types.
struct Chosen<F>(F);

impl<F> interlock::OptimizerFactory for Chosen<F>
where
    F: Fn(&OptimizerContext<'_>) -> Result<Box<dyn Optimizer>> + Send + Sync,
{
    fn make(&self, context: &OptimizerContext<'_>) -> Result<Box<dyn Optimizer>> {
        (self.0)(context)
    }
}
