//! Last batches and micro-batches that are too small for batch norm.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;
#[path = "common/warnings.rs"]
mod warnings;

use std::sync::{Arc, Mutex};

use candle_nn::{BatchNormConfig, ModuleT, VarBuilder, batch_norm, linear};
use common::Spiral;
use interlock::{
    Activation, Autograd, FromModule, FromModuleT, InMemory, ModelSpec, Pass, Result, StageModule, TrainEvent, Trainer,
    TrainerBuilder, Unit, Weights,
    candle_core::{DType, Device, Tensor},
};
use warnings::warnings_of;

/// Where a model has batch norm.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Norm {
    Nowhere,
    InUnit(usize),
    InHeads,
    /// In a unit that uses its running statistics in training too.
    Frozen,
    /// In a unit whose batch norm fails with a message.
    OverImages,
}

/// Three layers of four values, and heads.
struct Net(Norm);

/// Batch norm of vectors `(B, 4)`, of candle.
fn norm(vb: VarBuilder<'static>) -> Result<Autograd<impl StageModule>> {
    Autograd::build(vb, |vb| Ok(FromModuleT(batch_norm(4, BatchNormConfig::default(), vb)?)))
}

struct Fixed(candle_nn::BatchNorm);

impl StageModule for Fixed {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<Activation> {
        Ok(self.0.forward_t(x.single()?, false)?.into())
    }
}

/// Batch norm that refuses a single value for each channel, and has a variable that is named as a statistic is.
struct Strict(candle_nn::BatchNorm);

impl StageModule for Strict {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<Activation> {
        if x.single()?.dim(0)? < 2 {
            return Err(interlock::Error::Data("one value a channel".to_owned()));
        }
        Ok(self.0.forward_t(x.single()?, pass.is_train())?.into())
    }
}

impl ModelSpec for Net {
    fn units(&self) -> Result<Vec<Unit>> {
        let dense = |name: &str, inputs, outputs| {
            Unit::new(name, [outputs], move |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(inputs, outputs, vb)?))))
        };
        let mut units = vec![dense("first", 2, 4), dense("last", 4, 3)];
        let at = match self.0 {
            Norm::InUnit(at) => at,
            _ => 1,
        };
        match self.0 {
            Norm::Nowhere | Norm::InHeads => units.insert(at, dense("middle", 4, 4)),
            // The first unit takes the inputs, whose shape no unit declares.
            Norm::InUnit(0) => {
                units[0] = Unit::new("first", [4], |vb| {
                    Autograd::build(vb, |vb| {
                        let layers =
                            (linear(2, 4, vb.pp("fc"))?, batch_norm(4, BatchNormConfig::default(), vb.pp("bn"))?);
                        Ok(Pair(layers.0, layers.1))
                    })
                })
            }
            Norm::InUnit(_) => units.insert(at, Unit::new("bn", [4], norm)),
            Norm::Frozen => units.insert(
                at,
                Unit::new("bn", [4], |vb| {
                    Autograd::build(vb, |vb| Ok(Fixed(batch_norm(4, BatchNormConfig::default(), vb)?)))
                }),
            ),
            Norm::OverImages => units.insert(
                at,
                Unit::new("bn", [4], |vb| {
                    Autograd::build(vb, |vb| Ok(Strict(batch_norm(4, BatchNormConfig::default(), vb)?)))
                }),
            ),
        }
        Ok(units)
    }

    fn head(&self, _: usize, _: &str) -> Result<Unit> {
        let with_norm = self.0 == Norm::InHeads;
        Ok(Unit::new("", [3], move |vb| {
            let head = Autograd::build(vb.pp("fc"), |vb| Ok(FromModule(linear(4, 3, vb)?)))?;
            let layers = interlock::Sequential::default();
            Ok(if with_norm { layers.add(norm(vb.pp("bn"))?).add(head) } else { layers.add(head) })
        }))
    }
}

struct Pair(candle_nn::Linear, candle_nn::BatchNorm);

impl StageModule for Pair {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<Activation> {
        use candle_nn::Module;
        Ok(self.1.forward_t(&self.0.forward(x.single()?)?, pass.is_train())?.into())
    }
}

/// Batches of four, in two stages.
fn builder(norm: Norm) -> TrainerBuilder {
    Trainer::builder(Net(norm)).stages(2).strategy(interlock::Local).batch_size(4).seed(1)
}

/// The numbers of examples of the steps of a fit.
fn sizes(builder: TrainerBuilder, data: &Spiral) -> (Vec<usize>, Vec<String>, Weights) {
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sizes);
    let watch = move |event: &TrainEvent<'_>| {
        if let TrainEvent::StepDone { examples, .. } = event {
            seen.lock().unwrap().push(*examples);
        }
    };
    let mut trainer = builder.build().unwrap();
    trainer.callback(watch);
    let (report, warnings) = warnings_of(|| trainer.fit(*data));
    report.unwrap();
    let sizes = sizes.lock().unwrap().clone();
    (sizes, warnings, trainer.snapshot().unwrap())
}

fn is_finite(weights: &Weights) -> bool {
    let finite = |tensor: &Tensor| tensor.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().is_finite();
    weights.iter().all(|(_, tensor)| finite(tensor))
}

const NINE: Spiral = Spiral { examples: 9 };

#[test]
fn last_example_of_an_epoch_joins_the_batch_before_it_where_batch_norm_needs_two() {
    for norm in [Norm::InUnit(0), Norm::InUnit(1), Norm::InHeads, Norm::OverImages] {
        let (steps, warnings, weights) = sizes(builder(norm).epochs(2), &NINE);
        assert_eq!(steps, [4, 5, 4, 5], "{norm:?}");
        let said = "batch_size: 1 of 9 training examples are left after the last whole batch";
        assert!(warnings.len() == 1 && warnings[0].starts_with(said), "{norm:?}: {warnings:?}");
        assert!(is_finite(&weights), "{norm:?}");
        let (steps, warnings, _) = sizes(builder(norm).epochs(2).drop_last(true), &NINE);
        assert_eq!((steps, warnings), (vec![4; 4], Vec::new()), "{norm:?}");
        let largest = |drop_last| builder(norm).drop_last(drop_last).largest_batch(&NINE).unwrap();
        assert_eq!([largest(false), largest(true)], [5, 4], "{norm:?}");
    }
    // Three that are left are a batch of their own, in one micro-batch instead of two.
    let (steps, warnings, weights) =
        sizes(builder(Norm::InUnit(1)).micro_batches(2).epochs(1), &Spiral { examples: 7 });
    assert_eq!((steps, warnings, is_finite(&weights)), (vec![4, 3], Vec::new(), true));
}

#[test]
fn other_models_have_a_last_batch_of_one() {
    for norm in [Norm::Nowhere, Norm::Frozen] {
        let (steps, warnings, _) = sizes(builder(norm).epochs(1), &NINE);
        assert_eq!((steps, warnings), (vec![4, 4, 1], Vec::new()), "{norm:?}");
        let (steps, ..) = sizes(builder(norm).batch_size(1).epochs(1), &Spiral { examples: 1 });
        assert_eq!(steps, [1]);
    }
}

#[test]
fn micro_batches_that_are_too_small_are_refused_before_anything_is_trained() {
    let refused = |builder: TrainerBuilder, examples, parts: &[&str]| {
        let data = Spiral { examples };
        let mut trainer = builder.build().unwrap();
        let before = trainer.snapshot().unwrap();
        let error = trainer.check(data).unwrap_err();
        let text = error.to_string();
        assert!(error.is_refusal() && parts.iter().all(|part| text.contains(part)), "{text}");
        assert_eq!(trainer.fit(data).unwrap_err().to_string(), text);
        let same = |(name, tensor): (&str, &Tensor)| {
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            bits(tensor) == bits(before.get(name).unwrap())
        };
        assert!(trainer.snapshot().unwrap().iter().all(same));
        trainer
    };
    let norm = || builder(Norm::InUnit(1));
    refused(norm().micro_batches(4), 9, &["micro_batches: 4 of a batch of 4 have 1 example each", "use at most 2"]);
    refused(norm().batch_size(1), 9, &["batch_size: 1;", "use at least 2"]);
    let needs = "the model needs 2 in a micro-batch (unit 1 \"bn\"";
    refused(builder(Norm::OverImages).batch_size(1), 9, &[needs, "one value a channel"]);
    let mut trainer = refused(norm(), 1, &["training set: it has 1 example;", "give at least 2"]);
    // The trainer can still be used.
    trainer.check(NINE).unwrap();
    assert_eq!(trainer.fit(NINE).unwrap().steps, 2);
}

#[test]
fn errors_of_the_model_and_the_data_stay_where_they_arise() {
    // Inputs that no number of examples makes right.
    let tensor = |shape: (usize, usize)| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let targets = Tensor::zeros(9, DType::U32, &Device::Cpu).unwrap();
    let wide = InMemory::new(tensor((9, 5)), targets).unwrap();
    let mut trainer = builder(Norm::InUnit(1)).build().unwrap();
    trainer.check(wide.clone()).unwrap();
    let error = trainer.fit(wide).unwrap_err().to_string();
    assert!(error.contains("stage 0, step 0") && error.contains("shape mismatch"), "{error}");
}

#[test]
fn trainer_that_continues_keeps_the_joined_batches() {
    let build = || builder(Norm::InUnit(1)).steps(5);
    let (_, _, whole) = sizes(build(), &NINE);
    let mut first = build().steps(3).build().unwrap();
    first.fit(NINE).unwrap();
    let (state, weights) = (first.state().unwrap(), first.snapshot().unwrap());
    let (steps, _, restored) = sizes(build().initial_values(weights).restore(state).steps(2), &NINE);
    assert_eq!(steps, [5, 4]);
    for (name, tensor) in whole.iter() {
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bits(tensor), bits(restored.get(name).unwrap()), "{name}");
    }
}
