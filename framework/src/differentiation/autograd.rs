//! Modules written as a forward pass only and differentiated by candle's graph.
//!
//! [`Autograd`] makes a [`Differentiable`] of a [`StageModule`] or of any `candle_nn::Module`. Each forward pass copies the input, because
//! candle's graph needs a variable as its leaf. Each backward pass computes all gradients of the graph, also those that are not wanted.
//! Layers that implement [`Differentiable`] themselves do neither; [`InGraph`](graph::InGraph) uses them inside a module's `forward`.

mod check;
mod recorder;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
};

use candle_core::{Device, Tensor, Var};
use candle_nn::{ModuleT, VarBuilder};

use self::recorder::RecordedTensors;
use crate::{
    Activation, Differentiable, Error, Gradients, ParameterGradients, Pass, Precision, Result, Saved, Wants,
    differentiation::{Pending, SavedMemory, TensorKind, graph, tensor_kind},
};

/// A unit of a model, written as its forward pass.
///
/// [`FromModule`] makes one of any `candle_nn::Module`. Your own module:
/// ```
/// use candle_nn::{Linear, Module, VarBuilder, linear};
/// use interlock::{Activation, Pass, Unit, Autograd, StageModule};
///
/// /// `x + tanh(W·x)`
/// struct Block(Linear);
///
/// impl StageModule for Block {
///     fn forward(&self, x: &Activation, _: &Pass) -> interlock::Result<Activation> {
///         let x = x.single()?;
///         Ok((x + self.0.forward(x)?.tanh()?)?.into())
///     }
/// }
///
/// let unit = Unit::new("block", [8], |vb| Autograd::build(vb, |vb| Ok(Block(linear(8, 8, vb.pp("fc"))?))));
/// ```
pub trait StageModule: Send {
    /// Returns the output, computed by candle operations from `x` and the module's parameters.
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<Activation>;
}

/// A `candle_nn::Module` as a [`StageModule`].
pub struct FromModule<M>(pub M);

impl<M: candle_nn::Module + Send> StageModule for FromModule<M> {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<Activation> {
        Ok(self.0.forward(x.single()?)?.into())
    }
}

/// A `candle_nn::ModuleT` as a [`StageModule`]: a module that behaves differently in training, such as batch norm.
///
/// Modules that draw random numbers of their own, such as candle's `Dropout`, work, but neither their runs nor their recomputed forward passes can be
/// repeated. `Dropout` of `interlock-backends` draws numbers that depend on the seed and the step only.
pub struct FromModuleT<M>(pub M);

impl<M: ModuleT + Send> StageModule for FromModuleT<M> {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<Activation> {
        Ok(self.0.forward_t(x.single()?, pass.is_train())?.into())
    }
}

/// A module differentiated by candle's graph.
///
/// Some operations of candle have no backward pass (`softmax_last_dim`, `layer_norm`, `rms_norm` and `rope` of `candle_nn::ops`, and
/// `Tensor::detach`): a gradient stops there without an error. The gradient of `Tensor::max_pool2d` is too small. So the gradients are compared once
/// with finite differences of the forward pass: when the stage is built, or before the first step where the shape of the input is not known earlier
/// (the model's first unit, several input tensors, a layer of a [`Sequential`](crate::Sequential)). A gradient that is zero or incomplete is refused.
pub struct Autograd<M> {
    module: M,
    /// The parameters that the module asked its builder for.
    parameters: Vec<(String, Tensor)>,
    /// The buffers that it asked for, such as running statistics and read-only copies.
    buffers: Vec<Tensor>,
    checked: Checked,
}

/// The gradients that have been checked.
#[derive(Default)]
struct Checked {
    input: AtomicBool,
    parameters: AtomicBool,
}

impl Checked {
    /// Returns which of the gradients in `wants` are unchecked, and marks them as checked.
    fn first(&self, wants: Wants) -> Wants {
        Wants {
            input: wants.input && !self.input.swap(true, Ordering::Relaxed),
            parameters: wants.parameters && !self.parameters.swap(true, Ordering::Relaxed),
        }
    }

    /// Marks `wants` as unchecked again.
    fn reset(&self, wants: Wants) {
        self.input.fetch_and(!wants.input, Ordering::Relaxed);
        self.parameters.fetch_and(!wants.parameters, Ordering::Relaxed);
    }
}

impl<M: StageModule> Autograd<M> {
    /// Builds the module with `build` and wraps it. The tensors that it requests from its builder are its parameters and buffers.
    ///
    /// # Errors
    /// If `build` fails.
    pub fn build(vb: VarBuilder<'static>, build: impl FnOnce(VarBuilder<'static>) -> Result<M>) -> Result<Self> {
        let asked = RecordedTensors::default();
        let module = build(asked.record(vb))?;
        let mut seen = HashSet::new();
        let (parameters, buffers): (Vec<_>, Vec<_>) = asked
            .take()
            .into_iter()
            .filter(|(_, tensor)| seen.insert(tensor.id()))
            .partition(|(name, tensor)| tensor_kind(name) == TensorKind::Parameter && tensor.is_variable());
        let buffers = buffers.into_iter().map(|(_, tensor)| tensor).collect();
        Ok(Self { module, parameters, buffers, checked: Checked::default() })
    }

    /// Turns the check of the gradients off, for modules that stop a gradient on purpose (a straight-through estimator, a gradient
    /// reversal, `detach`).
    #[must_use]
    pub fn without_gradient_check(self) -> Self {
        self.checked.first(Wants::BOTH);
        self
    }

    /// Returns the buffers with copies of their values: modules of candle update running statistics in each training pass.
    fn buffer_values(&self) -> Result<Vec<(Var, Tensor)>> {
        let variables = self.buffers.iter().filter(|tensor| tensor.is_variable());
        variables.map(|tensor| Ok((Var::from_tensor(tensor)?, tensor.copy()?.detach()))).collect()
    }

    /// Runs the module on `x` in a graph of its own.
    fn graph(&self, x: &Activation, pass: &Pass) -> Result<Graph> {
        let leaf = |t: &Tensor| -> Result<Tensor> {
            Ok(if t.dtype().is_float() { Var::from_tensor(&t.detach())?.into_inner() } else { t.detach() })
        };
        let inputs = x.try_map(leaf)?;
        let outputs = self.module.forward(&inputs, pass)?;
        Ok(Graph { inputs: inputs.into_tensors(), outputs: outputs.into_tensors(), pass: *pass })
    }

    /// Computes the gradients of `graph`. A parameter that no gradient reaches has none.
    fn differentiate(&self, graph: &Graph, output_gradient: &Activation, wants: Wants) -> Result<Reached> {
        let outputs: Vec<&Tensor> = graph.outputs.iter().filter(|t| t.dtype().is_float()).collect();
        if outputs.len() != output_gradient.tensors().len() {
            return Err(Error::invalid(
                "backward pass",
                format!("{} output gradients for {} outputs", output_gradient.tensors().len(), outputs.len()),
                "give one for each floating-point tensor of the output",
            ));
        }
        // The gradient of Σ y·c with respect to anything is the gradient of the loss, where c is the output gradient.
        let mut objective: Option<Tensor> = None;
        for (y, c) in outputs.into_iter().zip(output_gradient.tensors()) {
            let term = (y * c.detach().to_dtype(y.dtype())?)?.sum_all()?;
            objective = Some(match objective {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        let objective = objective.ok_or_else(|| {
            Error::invalid("backward pass", "the module's output has no floating-point tensor", "return at least one")
        })?;
        let (gradients, mut collected) = graph::collect(wants.parameters, || objective.backward())?;

        let mut reached = Reached::default();
        if wants.input {
            for leaf in graph.inputs.iter().filter(|t| t.dtype().is_float()) {
                reached.input.push(match gradients.get(leaf) {
                    Some(gradient) => gradient.detach(),
                    None => leaf.zeros_like()?.detach(),
                });
            }
        }
        if wants.parameters {
            for (_, parameter) in &self.parameters {
                let mut sum = gradients.get(parameter).map(Tensor::detach);
                for (_, gradient) in collected.extract_if(.., |(id, _)| *id == parameter.id()) {
                    sum = Some(match sum {
                        Some(sum) => (sum + gradient)?,
                        None => gradient,
                    });
                }
                reached.parameters.push(sum);
            }
        }
        Ok(reached)
    }
}

/// The inputs and outputs of one forward pass, which hold candle's graph between them.
struct Graph {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    pass: Pass,
}

/// The gradients that candle's graph returned.
#[derive(Default)]
struct Reached {
    /// One for each floating-point tensor of the input, if they are wanted.
    input: Vec<Tensor>,
    /// One for each parameter, if they are wanted; none where no gradient reaches it.
    parameters: Vec<Option<Tensor>>,
}

impl<M: StageModule> Differentiable for Autograd<M> {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        // Parameters are `f32`, and candle's operations take operands of one dtype.
        let x = Precision::F32.enter(x)?;
        if !pass.is_train() {
            return Ok((self.module.forward(&x.detach(), pass)?.detach(), Saved::nothing()));
        }
        let kept = if pass.track { Vec::new() } else { self.buffer_values()? };
        let graph = self.graph(&x, pass)?;
        for (buffer, value) in kept {
            buffer.set(&value)?;
        }
        let result = Activation::new(graph.outputs.clone()).detach();
        // The memory of values inside the graph is not known.
        let memory: Vec<SavedMemory> = graph.inputs.iter().chain(&graph.outputs).map(SavedMemory::of_tensor).collect();
        Ok((result, Saved::new(graph).with_memory(memory)))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        let graph: &Graph = saved.get()?;
        let first = self.checked.first(wants);
        if first.input || first.parameters {
            self.check_at(&Activation::new(graph.inputs.clone()).detach(), &graph.pass, first)?;
        }
        let reached = self.differentiate(graph, output_gradient, wants)?;
        let mut gradients = Gradients::default();
        if !reached.input.is_empty() {
            gradients.input = Some(Activation::new(reached.input));
        }
        for ((name, parameter), gradient) in self.parameters.iter().zip(reached.parameters) {
            let gradient = gradient.ok_or_else(|| {
                Error::invalid(
                    name,
                    "no gradient reaches the parameter",
                    format!("use it in `forward`; {}", check::REMEDY),
                )
            })?;
            gradients.parameters.push((parameter.id(), gradient));
        }
        Ok(gradients)
    }

    /// Computes both in one backward pass; the pending value is the parameter gradients.
    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        self.backward(saved, output_gradient, Wants::BOTH)?.into_backward_input()
    }

    fn backward_parameters(&self, _: &Saved, pending: Pending) -> Result<ParameterGradients> {
        pending.take()
    }

    fn check_gradients(&self, input: &[usize], device: &Device) -> Result<()> {
        let first = self.checked.first(Wants::BOTH);
        if (first.input || first.parameters) && !self.check_at_random(input, device)? {
            self.checked.reset(first);
        }
        Ok(())
    }

    fn has_unchecked_gradients(&self) -> bool {
        let Checked { input, parameters } = &self.checked;
        ![input, parameters].into_iter().all(|checked| checked.load(Ordering::Relaxed))
    }
}
