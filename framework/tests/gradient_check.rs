//! Modules whose gradients are zero or incomplete are refused; all others are accepted.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::sync::Arc;

use candle_core::{Device, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear};
use interlock::{
    Activation, Autograd, Differentiable, FromModule, FromModuleT, InMemory, ModelSpec, Pairwise, ParameterStore, Pass,
    Predictor, Result, StageModule, Trainer, Unit, Wants,
};

fn builder() -> VarBuilder<'static> {
    ParameterStore::new(5, Arc::default()).builder(&Device::Cpu)
}

type Operation = fn(&Tensor) -> candle_core::Result<Tensor>;

/// Whether the operation, on its own and between linear layers, is refused when it is built; and if not, at its first backward pass.
fn refusal(operation: Operation) -> [Option<String>; 3] {
    let width = 12;
    let alone = |checked: bool| {
        let layer = Autograd::build(builder(), |_| Ok(FromModule(operation))).unwrap();
        if checked {
            return layer.check_gradients(&[width], &Device::Cpu).err().map(|e| e.to_string());
        }
        let values: Vec<f32> = (0..3 * width).map(|i| (i as f32 * 0.7).sin() + 0.01).collect();
        let x = Tensor::from_vec(values, (3, width), &Device::Cpu).unwrap().into();
        let (y, saved) = layer.forward(&x, &Pass::train(0, 0, 0)).unwrap();
        layer.backward(&saved, &y, Wants::BOTH).err().map(|e| e.to_string())
    };
    let between = Autograd::build(builder(), |vb| {
        let (a, b) = (linear(width, width, vb.pp("a"))?, linear(width, 5, vb.pp("b"))?);
        Ok(FromModule(move |x: &Tensor| b.forward(&operation(&a.forward(x)?)?)))
    });
    let between = between.unwrap().check_gradients(&[width], &Device::Cpu).err().map(|e| e.to_string());
    [alone(true), alone(false), between]
}

#[test]
fn gradients_that_an_operation_stops_are_refused_whole_or_in_part() {
    let stopped: [(&str, Operation); 6] = [
        ("softmax", |x| candle_nn::ops::softmax_last_dim(x)),
        ("layer norm", |x| candle_nn::ops::layer_norm(x, &x.get(0)?.ones_like()?, &x.get(0)?.zeros_like()?, 1e-5)),
        ("rms norm", |x| candle_nn::ops::rms_norm(x, &x.get(0)?.ones_like()?, 1e-5)),
        ("detach", |x| Ok(x.detach())),
        ("sum with softmax", |x| x + candle_nn::ops::softmax_last_dim(x)?),
        ("product with detach", |x| x * x.detach()),
    ];
    for (name, operation) in stopped {
        let [built, first, between] = refusal(operation);
        for found in [built, first] {
            let found = found.unwrap_or_else(|| panic!("{name} is accepted"));
            assert!(found.starts_with("its input: the gradient is "), "{name}: {found}");
        }
        assert!(between.is_some(), "{name} between layers is accepted");
    }
    // candle divides the gradient of a window's largest element by the size of the window.
    let pool: Operation = |x| {
        let pooled = x.reshape((x.dim(0)?, 1, 2, 6))?.max_pool2d(2)?.flatten_from(1)?;
        pooled.repeat((1, 4))
    };
    assert!(refusal(pool)[0].as_ref().is_some_and(|e| e.contains("the gradient is incomplete")));
    let constant: [(&str, Operation); 2] = [("round", |x| (x * 3.0)?.round()), ("sign", |x| x.sign())];
    for (name, operation) in constant {
        assert!(refusal(operation)[0].is_some(), "{name} is accepted");
    }
}

#[test]
fn operations_with_a_backward_pass_are_accepted() {
    let sound: [(&str, Operation); 19] = [
        ("identity", |x| Ok(x.clone())),
        ("softmax", |x| candle_nn::ops::softmax(x, 1)),
        ("log softmax", |x| candle_nn::ops::log_softmax(x, 1)),
        ("sum with softmax", |x| x + candle_nn::ops::softmax(x, 1)?),
        ("relu", Tensor::relu),
        ("relu of a large value", |x| (x * 100.0)?.relu()),
        ("leaky relu", |x| candle_nn::ops::leaky_relu(x, 0.1)),
        ("gelu", Tensor::gelu),
        ("gelu by erf", Tensor::gelu_erf),
        ("silu", |x| candle_nn::ops::silu(x)),
        ("sigmoid", |x| candle_nn::ops::sigmoid(x)),
        ("elu", |x| x.elu(1.0)),
        ("tanh", Tensor::tanh),
        ("abs", Tensor::abs),
        ("clamp", |x| x.clamp(-0.5_f32, 0.5_f32)),
        ("max", |x| x.max_keepdim(1)?.broadcast_add(x)),
        ("norm", |x| {
            let x = x.broadcast_sub(&x.mean_keepdim(1)?)?;
            x.broadcast_div(&(x.sqr()?.mean_keepdim(1)? + 1e-5)?.sqrt()?)
        }),
        ("where", |x| x.gt(0.0_f32)?.where_cond(x, &(x * 0.3)?)),
        ("constant", |x| x.zeros_like()),
    ];
    for (name, operation) in sound {
        assert_eq!(refusal(operation), [None, None, None], "{name}");
    }
}

#[test]
fn random_and_unusual_modules_are_accepted() {
    // Drops at random by a generator of its own.
    let dropout = Autograd::build(builder(), |_| Ok(FromModuleT(candle_nn::Dropout::new(0.5)))).unwrap();
    dropout.check_gradients(&[12], &Device::Cpu).unwrap();
    // Takes tokens, not random numbers.
    let embedding = Autograd::build(builder(), |vb| Ok(FromModule(candle_nn::embedding(9, 4, vb)?))).unwrap();
    embedding.check_gradients(&[6], &Device::Cpu).unwrap();
    let tokens = Tensor::new(&[[1_u32, 8, 1], [0, 3, 2]], &Device::Cpu).unwrap().into();
    let (y, saved) = embedding.forward(&tokens, &Pass::train(0, 0, 0)).unwrap();
    assert_eq!(embedding.backward(&saved, &y, Wants::PARAMETERS).unwrap().parameters.len(), 1);
    // Stops a gradient on purpose.
    let through = |x: &Tensor| x + (x.round()? - x)?.detach();
    let estimator = Autograd::build(builder(), move |_| Ok(FromModule(through))).unwrap().without_gradient_check();
    estimator.check_gradients(&[12], &Device::Cpu).unwrap();
    // Takes no such input.
    let fixed = |x: &Tensor| x.reshape((2, 3));
    let fixed = Autograd::build(builder(), move |_| Ok(FromModule(fixed))).unwrap();
    fixed.check_gradients(&[12], &Device::Cpu).unwrap();
}

#[test]
fn the_check_of_gradients_leaves_every_value_as_it_was() {
    let store = ParameterStore::new(5, Arc::default());
    let norm = |vb: VarBuilder| Ok(FromModuleT(candle_nn::batch_norm(6, 1e-5, vb.pp("bn"))?));
    let layer = Autograd::build(store.builder(&Device::Cpu), norm).unwrap();
    let values = || -> Vec<(String, Vec<f32>)> {
        let snapshot = store.snapshot().unwrap().into_iter();
        snapshot.map(|(name, t)| (name, t.flatten_all().unwrap().to_vec1().unwrap())).collect()
    };
    let before = values();
    assert_eq!(before.len(), 4);
    layer.check_gradients(&[6], &Device::Cpu).unwrap();
    assert_eq!(values(), before);
}

#[test]
fn buffers_change_in_tracked_passes_only() {
    let store = ParameterStore::new(5, Arc::default());
    let norm = |vb: VarBuilder| Ok(FromModuleT(candle_nn::batch_norm(6, 1e-5, vb.pp("bn"))?));
    let layer = Autograd::build(store.builder(&Device::Cpu), norm).unwrap();
    let mean = || -> Vec<f32> {
        let entries = store.entries();
        let mean = entries.iter().find(|entry| entry.name == "bn.running_mean").unwrap();
        mean.var.as_detached_tensor().to_vec1().unwrap()
    };
    let x = Tensor::arange(0.0_f32, 24.0, &Device::Cpu).unwrap().reshape((4, 6)).unwrap().into();
    let before = mean();
    // As when a stage runs its forward pass again.
    let recomputed = Pass { track: false, ..Pass::train(0, 0, 0) };
    let (again, _) = layer.forward(&x, &recomputed).unwrap();
    assert_eq!(mean(), before);
    let (first, _) = layer.forward(&x, &Pass::train(0, 0, 0)).unwrap();
    assert_ne!(mean(), before);
    let values = |y: &interlock::Activation| y.single().unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(values(&again), values(&first));
}

#[test]
fn layers_of_a_sequence_are_checked_at_their_first_backward_pass() {
    let checked = |operation: Operation| {
        let layer = Autograd::build(builder(), |_| Ok(FromModule(operation))).unwrap();
        let sequence = interlock::Sequential::default().add(layer);
        let x = Tensor::new(&[[0.3_f32, -1.7, 2.1], [0.2, 0.9, -0.4]], &Device::Cpu).unwrap().into();
        let (y, saved) = sequence.forward(&x, &Pass::train(0, 0, 0)).unwrap();
        sequence.backward(&saved, &y, Wants::BOTH).map(|_| ()).map_err(|error| error.to_string())
    };
    checked(|x| x.sqr()).unwrap();
    // Constant almost everywhere: differences of the forward pass are zero too.
    for operation in [Tensor::sign, Tensor::round] as [Operation; 2] {
        assert!(checked(operation).unwrap_err().contains("its input: the gradient is zero"));
    }
}

/// A linear layer and candle's fused softmax, which has no backward pass.
struct WithSoftmax;

impl ModelSpec for WithSoftmax {
    fn units(&self) -> Result<Vec<Unit>> {
        let layer = Unit::new("fc", [4], |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(3, 4, vb)?))));
        let softmax = |x: &Tensor| candle_nn::ops::softmax_last_dim(x);
        Ok(vec![layer, Unit::new("softmax", [4], move |vb| Autograd::build(vb, |_| Ok(FromModule(softmax))))])
    }
}

#[test]
fn only_training_needs_gradients() {
    let error = Trainer::builder(WithSoftmax).stages(1).build().err().unwrap().to_string();
    assert!(error.contains("softmax") && error.contains("the gradient is zero"), "{error}");
    let tensor = |dims: &[usize]| Tensor::ones(dims, candle_core::DType::F32, &Device::Cpu).unwrap();
    let weights: interlock::Weights = [("fc.weight", tensor(&[4, 3])), ("fc.bias", tensor(&[4]))]
        .map(|(name, t)| (name.to_owned(), t))
        .into_iter()
        .collect();
    let output = Predictor::new(WithSoftmax, weights).unwrap().predict(tensor(&[1, 3])).unwrap();
    assert_eq!(output.to_vec2::<f32>().unwrap(), [[0.25; 4]]);
}

/// Units of which only real inputs show that a gradient stops.
#[derive(Clone, Copy, Debug)]
enum Hidden {
    /// In the first unit, whose input is not declared.
    First,
    /// In the second of two tensors that cross a boundary.
    Skip,
    /// In a layer of a sequence.
    Sequence,
    /// In a head of layers in a sequence.
    Head,
}

/// Returns a sum and what it is of.
struct Fork(Linear);

impl StageModule for Fork {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<Activation> {
        let y = self.0.forward(x.single()?)?;
        Ok(Activation::new(vec![y.tanh()?, y]))
    }
}

/// Adds the softmax of the second tensor to the first.
struct Join;

impl StageModule for Join {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<Activation> {
        let [x, skip] = x.tensors() else { return Err(interlock::Error::Data("two tensors are needed".to_owned())) };
        Ok((x + candle_nn::ops::softmax_last_dim(skip)?)?.into())
    }
}

impl ModelSpec for Hidden {
    fn units(&self) -> Result<Vec<Unit>> {
        let softmax = |x: &Tensor| candle_nn::ops::softmax_last_dim(x);
        let dense = |name: &str, inputs| {
            Unit::new(name, [4], move |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(inputs, 4, vb)?))))
        };
        Ok(match self {
            Self::First => {
                let first = Unit::new("first", [4], move |vb| {
                    Autograd::build(vb, |vb| {
                        let layer = linear(3, 4, vb)?;
                        Ok(FromModule(move |x: &Tensor| softmax(&layer.forward(x)?)))
                    })
                });
                vec![first, dense("second", 4)]
            }
            Self::Skip => vec![
                Unit::new("first", [4], |vb| Autograd::build(vb, |vb| Ok(Fork(linear(3, 4, vb)?)))),
                Unit::new("second", [4], |vb| Autograd::build(vb, |_| Ok(Join))),
            ],
            Self::Sequence => {
                let sequence = Unit::new("second", [4], move |vb: VarBuilder<'static>| {
                    let layer = Autograd::build(vb.pp("fc"), |vb| Ok(FromModule(linear(4, 4, vb)?)))?;
                    let softmax = Autograd::build(vb.pp("softmax"), |_| Ok(FromModule(softmax)))?;
                    Ok(interlock::Sequential::default().add(layer).add(softmax))
                });
                vec![dense("first", 3), sequence]
            }
            Self::Head => vec![dense("first", 3), dense("second", 4)],
        })
    }

    fn head(&self, _: usize, _: &str) -> Result<Unit> {
        let stopped = matches!(self, Self::Head);
        Ok(Unit::new("", [4], move |vb: VarBuilder<'static>| {
            let layer = Autograd::build(vb.pp("fc"), |vb| Ok(FromModule(linear(4, 4, vb)?)))?;
            let last = move |x: &Tensor| if stopped { candle_nn::ops::softmax_last_dim(x) } else { x.tanh() };
            let last = Autograd::build(vb.pp("last"), |_| Ok(FromModule(last)))?;
            Ok(interlock::Sequential::default().add(layer).add(last))
        }))
    }
}

#[test]
fn gradients_that_only_real_inputs_show_are_refused_before_the_first_step() {
    let ones = Tensor::ones((5, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let data = InMemory::new(ones, Tensor::zeros(5, candle_core::DType::U32, &Device::Cpu).unwrap()).unwrap();
    for (model, words) in [
        (Hidden::First, "unit 0 \"first\", backward: parameter first.weight: the gradient is zero"),
        (Hidden::Skip, "unit 1 \"second\", backward: tensor 1 of its input: the gradient is zero"),
        (Hidden::Sequence, "unit 1 \"second\", backward: its input: the gradient is zero"),
        (Hidden::Head, "unit 0 \"aux.0\", head: its input: the gradient is zero"),
    ] {
        // In two stages a boundary lies between the units; a single stage has no auxiliary head.
        for stages in if matches!(model, Hidden::Head) { 2..3 } else { 1..3 } {
            let builder = Trainer::builder(model).strategy(Pairwise).stages(stages);
            let builder = if matches!(model, Hidden::Head) { builder.probes() } else { builder };
            let mut trainer = builder.build().unwrap();
            let error = trainer.check(data.clone()).unwrap_err();
            assert!(error.is_refusal() && error.to_string().contains(words), "{model:?}: {error}");
            assert!(error.to_string().contains("softmax_last_dim"), "{error}");
            assert_eq!(trainer.fit(data.clone()).unwrap_err().to_string(), error.to_string());
            assert_eq!(trainer.steps(), 0);
        }
    }
}
