//! The check of a module's gradients against differences of its forward pass.
//!
//! Along a random direction `d` the loss `Σ c·y` changes by `gradient · d`. The check measures that change by central differences with two step
//! sizes. The difference between the two results estimates their error, which is large near kinks (ReLU, max pooling) and where rounding dominates. A
//! gradient is refused only if it differs from them by more than that error in most directions.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Device, Tensor, Var};
use rand::RngExt;

use super::{Autograd, Reached, StageModule};
use crate::{Activation, Error, Pass, Result, Wants, random::Key};

pub(super) const REMEDY: &str = "candle's softmax_last_dim, layer_norm, rms_norm, rope and detach have no backward pass, and that of \
    max_pool2d is wrong: use candle_nn::ops::softmax, layer_norm_slow, rms_norm_slow or rope_slow, or the layers of interlock-backends";

/// The distance between the two ends of a step, as a fraction of the size of a tensor's values.
const STEP: f64 = 2e-3;
/// The number of examples of a random input.
const EXAMPLES: usize = 4;
/// The number of directions that must agree before a gradient is accepted.
const ACCEPT: usize = 2;
/// The number of directions that must disagree before a gradient is refused.
const REFUSE: usize = 4;

/// A floating-point tensor that the output may depend on.
struct CheckedTensor {
    /// Its position in the input, or among the parameters.
    at: TensorPosition,
    /// The value at which the gradient is checked: its own, moved a little away from zeros, ties and kinks.
    base: Tensor,
    /// The size of its values.
    scale: f64,
    /// Whether its gradient is checked.
    wanted: bool,
}

#[derive(Clone, Copy)]
enum TensorPosition {
    Input(usize),
    Parameter(usize),
}

/// Sets parameters and buffers back to the values that they had.
struct Restore(Vec<(Var, Tensor)>);

impl Drop for Restore {
    fn drop(&mut self) {
        for (var, value) in &self.0 {
            if let Err(error) = var.set(value) {
                tracing::error!("a parameter could not be restored after the check of gradients: {error}");
            }
        }
    }
}

struct Check<'a, M> {
    layer: &'a Autograd<M>,
    x: Activation,
    pass: Pass,
    places: Vec<CheckedTensor>,
    vars: Vec<Option<Var>>,
    key: Key,
}

impl<M: StageModule> Autograd<M> {
    /// Checks the gradients in `wants` near the input `x`, and that the input's is not zero by construction.
    ///
    /// # Errors
    /// If one is zero or incomplete; the message names it.
    pub(super) fn check_at(&self, x: &Activation, pass: &Pass, wants: Wants) -> Result<()> {
        let (check, _restore) = Check::new(self, x, pass, wants)?;
        check.run()?;
        if wants.input { check.refuse_constant() } else { Ok(()) }
    }

    /// Checks all gradients on a few random examples of the shape `input`, and that the input's gradient is not zero by construction. Returns
    /// whether the module takes such an input; otherwise nothing was checked.
    pub(super) fn check_at_random(&self, input: &[usize], device: &Device) -> Result<bool> {
        let shape = [&[EXAMPLES], input].concat();
        let x = noise(&Tensor::zeros(shape, DType::F32, device)?, 1.0, Key::new(0).named("gradient check input"))?;
        let (check, _restore) = Check::new(self, &x.into(), &Pass::train(0, 0, 0), Wants::BOTH)?;
        let bases = check.bases();
        if !matches!(catch_unwind(AssertUnwindSafe(|| check.value(&bases))), Ok(Ok(_))) {
            return Ok(false);
        }
        check.run()?;
        check.refuse_constant()?;
        Ok(true)
    }
}

impl<'a, M: StageModule> Check<'a, M> {
    fn new(layer: &'a Autograd<M>, x: &Activation, pass: &Pass, wants: Wants) -> Result<(Self, Restore)> {
        let key = Key::new(0).named("gradient check");
        let mut vars = Vec::new();
        let mut restore = Vec::new();
        let buffers = layer.buffers.iter().map(|tensor| (false, tensor));
        for (is_parameter, tensor) in layer.parameters.iter().map(|(_, tensor)| (true, tensor)).chain(buffers) {
            // Tensors from a builder other than a stage's may be constants.
            let var = if tensor.is_variable() { Some(Var::from_tensor(tensor)?) } else { None };
            if let Some(var) = &var {
                restore.push((var.clone(), var.as_tensor().copy()?.detach()));
            }
            if is_parameter {
                vars.push(var);
            }
        }
        let parameters = vars
            .iter()
            .enumerate()
            .filter_map(|(i, var)| Some((TensorPosition::Parameter(i), var.as_ref()?.as_tensor())));
        let inputs = x.tensors().iter().enumerate().map(|(i, tensor)| (TensorPosition::Input(i), tensor));
        let mut places = Vec::new();
        for (number, (at, value)) in inputs.chain(parameters).filter(|(_, t)| t.dtype().is_float()).enumerate() {
            let scale = size(value)?;
            let wanted = match at {
                TensorPosition::Input(_) => wants.input,
                TensorPosition::Parameter(_) => wants.parameters,
            };
            let base = (value.detach() + noise(value, scale * 0.1, key.named("base").with(number as u64))?)?;
            places.push(CheckedTensor { at, base, scale, wanted });
        }
        let pass = Pass { track: false, save: true, ..*pass };
        Ok((Self { layer, x: x.clone(), pass, places, vars, key }, Restore(restore)))
    }

    fn run(&self) -> Result<()> {
        let wanted: Vec<usize> = (0..self.places.len()).filter(|&i| self.places[i].wanted).collect();
        let bases = self.bases();
        let y = self.value(&bases)?;
        if wanted.is_empty() {
            return Ok(());
        }
        if y != self.value(&bases)? {
            tracing::warn!(
                "the gradients of a module are not checked, since two forward passes of one input differ: it draws random numbers of its \
                 own (candle's Dropout does; that of interlock-backends draws numbers that depend on seed and step only)"
            );
            return Ok(());
        }
        let c = self.output_gradient(&y);
        let gradients = self.gradients(&bases, &c)?;
        if self.disagreement(&wanted, &c, &gradients)?.is_none() {
            return Ok(());
        }
        for &i in &wanted {
            if let Some((measured, given)) = self.disagreement(&[i], &c, &gradients)? {
                let problem = match given {
                    0.0 => "the gradient is zero".to_owned(),
                    _ => format!(
                        "the gradient is incomplete, {given:.3e} where differences of the forward pass give {measured:.3e}"
                    ),
                };
                return Err(self.refuse(self.places[i].at, problem));
            }
        }
        Ok(())
    }

    /// Refuses a module whose output depends on its input although the input's gradient is zero everywhere (rounding, signs).
    fn refuse_constant(&self) -> Result<()> {
        let is_input = |place: &CheckedTensor| matches!(place.at, TensorPosition::Input(_));
        let Some(at) = self.places.iter().find(|place| is_input(place)).map(|place| place.at) else { return Ok(()) };
        let mut outputs = Vec::new();
        for round in 0..3 {
            let key = self.key.named("far").with(round);
            let far = |place: &CheckedTensor| match place.at {
                TensorPosition::Input(i) => {
                    Ok((&place.base + noise(&place.base, 2.0 * place.scale, key.with(i as u64))?)?)
                }
                TensorPosition::Parameter(_) => Ok(place.base.clone()),
            };
            let point = self.places.iter().map(far).collect::<Result<Vec<_>>>()?;
            let y = self.value(&point)?;
            let gradients = self.gradients(&point, &self.output_gradient(&y))?;
            for (place, gradient) in self.places.iter().zip(gradients) {
                if is_input(place) && gradient.iter().any(|&g| g != 0.0) {
                    return Ok(());
                }
            }
            outputs.push(y);
        }
        if outputs.windows(2).all(|pair| pair[0] != pair[1]) && outputs.iter().flatten().all(|y| y.is_finite()) {
            return Err(self.refuse(at, "the gradient is zero".to_owned()));
        }
        Ok(())
    }

    fn refuse(&self, at: TensorPosition, problem: String) -> Error {
        let subject = match at {
            TensorPosition::Input(_) if self.x.tensors().len() == 1 => "its input".to_owned(),
            TensorPosition::Input(i) => format!("tensor {i} of its input"),
            TensorPosition::Parameter(i) => format!("parameter {}", self.layer.parameters[i].0),
        };
        let remedy = format!("{REMEDY}; if the module stops it on purpose, call Autograd::without_gradient_check");
        Error::invalid(subject, problem, remedy)
    }

    /// Compares slopes along random directions in `moved` with those of `gradients`. If most disagree, returns both slopes of one direction.
    fn disagreement(&self, moved: &[usize], c: &[f64], gradients: &[Vec<f64>]) -> Result<Option<(f64, f64)>> {
        let (mut agreed, mut disagreed) = (0, 0);
        for round in 0.. {
            let key = self.key.named("direction").with(round);
            let mut directions = Vec::new();
            let mut given = 0.0;
            for (i, place) in self.places.iter().enumerate() {
                let direction = match moved.contains(&i) {
                    true => noise(&place.base, place.scale, key.with(i as u64))?,
                    false => place.base.zeros_like()?,
                };
                given += dot(&numbers(&direction)?, &gradients[i]);
                directions.push(direction);
            }
            let mut size = 0.0_f64;
            let mut loss = |step: f64| -> Result<f64> {
                let there = |(place, direction): (&CheckedTensor, &Tensor)| Ok((&place.base + (direction * step)?)?);
                let point = self.places.iter().zip(&directions).map(there).collect::<Result<Vec<_>>>()?;
                let y = self.value(&point)?;
                size = y.iter().zip(c).map(|(y, c)| (y * c).powi(2)).sum::<f64>().sqrt();
                Ok(dot(&y, c))
            };
            let measured = (loss(STEP)? - loss(-STEP)?) / (2.0 * STEP);
            let again = (loss(STEP / 2.0)? - loss(-STEP / 2.0)?) / STEP;
            // The rounding error of the outputs, and the difference between the two step sizes.
            let rounding = 2e-6 * size / STEP;
            let tolerance = 6.0 * (measured - again).abs() + 5e-3 * (measured.abs() + given.abs()) + rounding;
            // A non-finite value counts as agreement: the run itself reports it.
            match (measured - given).abs() > tolerance && (again - given).abs() > tolerance {
                true => disagreed += 1,
                false => agreed += 1,
            }
            if agreed == ACCEPT {
                return Ok(None);
            }
            if disagreed == REFUSE {
                return Ok(Some((measured, given)));
            }
        }
        Ok(None)
    }

    fn bases(&self) -> Vec<Tensor> {
        self.places.iter().map(|place| place.base.clone()).collect()
    }

    /// Sets the parameters to their values in `point` and returns the input there.
    fn input_at(&self, point: &[Tensor]) -> Result<Activation> {
        let mut x = self.x.tensors().to_vec();
        for (place, value) in self.places.iter().zip(point) {
            match place.at {
                TensorPosition::Input(i) => x[i] = value.clone(),
                TensorPosition::Parameter(i) => {
                    if let Some(var) = &self.vars[i] {
                        var.set(value)?;
                    }
                }
            }
        }
        Ok(Activation::new(x))
    }

    /// Computes all floating-point outputs at `point`.
    fn value(&self, point: &[Tensor]) -> Result<Vec<f64>> {
        let y = self.layer.module.forward(&self.input_at(point)?, &self.pass)?;
        let outputs = y.tensors().iter().filter(|t| t.dtype().is_float()).map(numbers);
        Ok(outputs.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Random weights of the outputs.
    fn output_gradient(&self, y: &[f64]) -> Vec<f64> {
        let mut stream = self.key.named("output gradient").stream();
        y.iter().map(|_| f64::from(stream.random::<f32>()) * 2.0 - 1.0).collect()
    }

    /// Computes the gradients at `point`, one for each place; zeros where there is none.
    fn gradients(&self, point: &[Tensor], c: &[f64]) -> Result<Vec<Vec<f64>>> {
        let graph = self.layer.graph(&self.input_at(point)?, &self.pass)?;
        let mut rest = c;
        let mut output_gradient = Vec::new();
        for y in graph.outputs.iter().filter(|t| t.dtype().is_float()) {
            let (own, others) = rest.split_at(y.elem_count().min(rest.len()));
            output_gradient.push(Tensor::new(own, y.device())?.to_dtype(y.dtype())?.reshape(y.shape())?);
            rest = others;
        }
        let Reached { input, parameters } =
            self.layer.differentiate(&graph, &Activation::new(output_gradient), Wants::BOTH)?;
        let mut inputs = input.iter();
        self.places
            .iter()
            .map(|place| {
                let gradient = match place.at {
                    TensorPosition::Input(_) => inputs.next(),
                    TensorPosition::Parameter(i) => parameters[i].as_ref(),
                };
                gradient.map_or_else(|| Ok(vec![0.0; place.base.elem_count()]), numbers)
            })
            .collect()
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.detach().flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The root mean square of a tensor's values, at least 0.1.
fn size(tensor: &Tensor) -> Result<f64> {
    let values = numbers(tensor)?;
    Ok((dot(&values, &values) / values.len().max(1) as f64).sqrt().max(0.1))
}

/// Random values between `-size` and `size`, shaped as `like`.
fn noise(like: &Tensor, size: f64, key: Key) -> Result<Tensor> {
    let mut stream = key.stream();
    let values: Vec<f32> =
        (0..like.elem_count()).map(|_| ((stream.random::<f32>() * 2.0 - 1.0) as f64 * size) as f32).collect();
    Ok(Tensor::from_vec(values, like.shape(), &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())?)
}
