//! Differentiable functions: a forward pass that saves activations, and a backward pass for a given output gradient.
//!
//! For `y = f(x, w)` and the output gradient `c = ∂l/∂y` of a loss `l`, the input gradient is `∂l/∂x = c·∂f/∂x` and the parameter gradient
//! is `∂l/∂w = c·∂f/∂w`. A stage computes input gradients of several losses, and parameter gradients of the losses that it follows. So the
//! two can be computed separately, the parameter gradients later than the input gradient.

pub(crate) mod autograd;
pub(crate) mod graph;
mod saved_memory;
mod sequential;
mod tensor_kind;

pub use saved_memory::SavedMemory;
pub use sequential::Sequential;
pub use tensor_kind::TensorKind;
pub(crate) use tensor_kind::tensor_kind;

use std::any::Any;

use candle_core::{Device, Tensor, TensorId};

use crate::{Activation, ActivationDtype, Error, Precision, Result, Wants};

/// The gradients of parameters, each with the identity of the parameter's tensor in its layer.
///
/// The same parameter may occur more than once (tied weights); its gradients add up in order.
pub type ParameterGradients = Vec<(TensorId, Tensor)>;

/// Training or evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Training: batch statistics and dropout are used, and running statistics are updated.
    Train,
    /// Evaluation: running statistics are used, without dropout; nothing is saved or changed.
    Eval,
}

/// The run, step and micro-batch of a forward pass, and what the pass saves.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Training or evaluation.
    pub mode: Mode,
    /// The run's seed. Dropout draws from the seed, the step, the micro-batch and its own name.
    pub seed: u64,
    /// The step, counted from 0.
    pub step: u64,
    /// The micro-batch within the step, counted from 0.
    pub micro_batch: usize,
    /// Whether running statistics are to be updated: false when a forward pass is recomputed.
    pub track: bool,
    /// Whether a backward pass will use what this forward pass saves. In training it is false where the forward pass will be recomputed.
    pub save: bool,
    /// The dtype in which to save activations. A layer may save them in a wider one.
    pub dtype: ActivationDtype,
    /// The precision in which layers compute.
    pub precision: Precision,
}

impl Pass {
    /// Returns a training pass.
    pub fn train(seed: u64, step: u64, micro_batch: usize) -> Self {
        Self {
            mode: Mode::Train,
            seed,
            step,
            micro_batch,
            track: true,
            save: true,
            dtype: ActivationDtype::F32,
            precision: Precision::F32,
        }
    }

    /// Returns an evaluation pass.
    pub fn eval() -> Self {
        Self {
            mode: Mode::Eval,
            seed: 0,
            step: 0,
            micro_batch: 0,
            track: false,
            save: false,
            dtype: ActivationDtype::F32,
            precision: Precision::F32,
        }
    }

    /// Returns whether this is a training pass.
    pub fn is_train(&self) -> bool {
        self.mode == Mode::Train
    }
}

/// The saved activations of one forward pass, as the backward pass of the same function reads them.
pub struct Saved {
    value: Box<dyn Any + Send>,
    memory: Vec<SavedMemory>,
}

impl Saved {
    /// Saves `value`.
    pub fn new<T: Send + 'static>(value: T) -> Self {
        Self { value: Box::new(value), memory: Vec::new() }
    }

    /// Adds the memory that the value holds, for the memory reports of a stage. Memory of `Saved` values inside it ([`Self::memory`]) must be
    /// added as well; memory that is not added here is not counted.
    #[must_use]
    pub fn with_memory(mut self, memory: impl IntoIterator<Item = SavedMemory>) -> Self {
        self.memory.extend(memory);
        self
    }

    /// Returns the memory that was added by [`Self::with_memory`].
    pub fn memory(&self) -> &[SavedMemory] {
        &self.memory
    }

    /// Returns the bytes of that memory.
    pub fn bytes(&self) -> usize {
        saved_memory::bytes(&self.memory)
    }

    /// Saves nothing (in evaluation, or in a layer whose backward pass needs nothing).
    pub fn nothing() -> Self {
        Self::new(())
    }

    /// Returns the saved value.
    ///
    /// # Errors
    /// If it has another type: another layer or an evaluation pass made this `Saved`.
    pub fn get<T: 'static>(&self) -> Result<&T> {
        self.value.downcast_ref().ok_or_else(|| {
            Error::invalid(
                "backward pass",
                format!("the saved activations are not a {}", std::any::type_name::<T>()),
                "pass what this layer's forward pass saved in training mode",
            )
        })
    }

    /// Consumes `self` and returns the saved value, so that parts of it can be freed early.
    ///
    /// # Errors
    /// If [`Self::get`] would fail.
    pub fn take<T: 'static>(self) -> Result<T> {
        self.get::<T>()?;
        self.value
            .downcast()
            .map(|value| *value)
            .map_err(|_| Error::Internal("saved activations changed their type".to_owned()))
    }
}

/// The value that [`Differentiable::backward_input`] leaves for [`Differentiable::backward_parameters`] of the same loss.
pub struct Pending(Box<dyn Any + Send>);

impl Pending {
    /// Wraps `value`.
    pub fn new<T: Send + 'static>(value: T) -> Self {
        Self(Box::new(value))
    }

    /// Returns the value.
    ///
    /// # Errors
    /// If it has another type: another layer made it.
    pub fn take<T: 'static>(self) -> Result<T> {
        self.0.downcast().map(|b| *b).map_err(|_| {
            Error::invalid(
                "backward pass of parameters",
                format!("the pending value is not a {}", std::any::type_name::<T>()),
                "pass what this layer's backward_input returned",
            )
        })
    }
}

/// The result of a backward pass.
#[derive(Default)]
pub struct Gradients {
    /// The input gradient; present if it was wanted.
    pub input: Option<Activation>,
    /// The parameter gradients; empty unless they were wanted.
    pub parameters: ParameterGradients,
}

/// A differentiable function with parameters: a layer, a unit, a whole stage.
///
/// A layer implements [`forward`] and [`backward`]. By default [`backward_input`] and [`backward_parameters`] call [`backward`]; containers
/// such as [`Sequential`] override them, so that each runs once through their layers.
///
/// ```
/// use interlock::{Activation, Differentiable, Gradients, Pass, Result, Saved, Wants, candle_core::Tensor};
///
/// /// `y = g · x`, on `(B, D)`, with a gain `g` of `(D)`.
/// struct Gain(Tensor);
///
/// impl Differentiable for Gain {
///     fn forward(&self, x: &Activation, _: &Pass) -> Result<(Activation, Saved)> {
///         let x = x.single()?.detach();
///         Ok((x.broadcast_mul(&self.0.detach())?.into(), Saved::new(x)))
///     }
///
///     fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
///         let (x, c): (&Tensor, _) = (saved.get()?, output_gradient.single()?);
///         let input = if wants.input { Some(c.broadcast_mul(&self.0.detach())?.into()) } else { None };
///         let parameters = if wants.parameters { vec![(self.0.id(), (c * x)?.sum(0)?)] } else { Vec::new() };
///         Ok(Gradients { input, parameters })
///     }
/// }
/// # use interlock::candle_core::Device;
/// # let gain = Gain(Tensor::new(&[2f32, 3.0], &Device::Cpu)?);
/// # let x = Tensor::new(&[[1f32, 10.0], [5.0, 7.0]], &Device::Cpu)?;
/// # let (y, saved) = gain.forward(&x.into(), &Pass::train(0, 0, 0))?;
/// # assert_eq!(y.single()?.to_vec2::<f32>()?, [[2.0, 30.0], [10.0, 21.0]]);
/// # let gradients = gain.backward(&saved, &y.single()?.ones_like()?.into(), Wants::BOTH)?;
/// # assert_eq!(gradients.parameters[0].1.to_vec1::<f32>()?, [6.0, 17.0]);
/// # assert_eq!(gradients.into_input()?.single()?.to_vec2::<f32>()?, [[2.0, 3.0], [2.0, 3.0]]);
/// # Ok::<(), interlock::Error>(())
/// ```
///
/// [`forward`]: Self::forward
/// [`backward`]: Self::backward
/// [`backward_input`]: Self::backward_input
/// [`backward_parameters`]: Self::backward_parameters
pub trait Differentiable: Send {
    /// Returns `y = f(x)` and, in training mode, the activations that backward passes need. Where [`Pass::save`] is false, none need be saved.
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)>;

    /// Returns the gradients in `wants` for `output_gradient`, which has the output's shape.
    ///
    /// May be called any number of times for one `Saved`.
    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients>;

    /// Returns whether the function has parameters. If not, no output gradient is saved for [`Self::backward_parameters`]. Default: it has.
    fn has_parameters(&self) -> bool {
        true
    }

    /// Returns the input gradient now; [`Self::backward_parameters`] computes the parameter gradients later.
    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        let gradients = self.backward(saved, output_gradient, Wants::INPUT)?;
        Ok((gradients.into_input()?, Pending::new(self.has_parameters().then(|| output_gradient.clone()))))
    }

    /// Returns the parameter gradients of the loss whose [`Self::backward_input`] returned `pending`.
    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<ParameterGradients> {
        match pending.take()? {
            Some(output_gradient) => Ok(self.backward(saved, &output_gradient, Wants::PARAMETERS)?.parameters),
            None => Ok(Vec::new()),
        }
    }

    /// Runs [`Self::backward`] as the last backward pass of this forward pass. Containers override it, so that each layer frees its saved activations
    /// as soon as it is done.
    fn last_backward(&self, saved: Saved, output_gradient: Activation, wants: Wants) -> Result<Gradients> {
        self.backward(&saved, &output_gradient, wants)
    }

    /// Runs [`Self::backward_parameters`] as the last backward pass of this forward pass.
    fn last_backward_parameters(&self, saved: Saved, pending: Pending) -> Result<ParameterGradients> {
        self.backward_parameters(&saved, pending)
    }

    /// Checks that the gradients fit the forward pass, on random inputs of the shape `input` for one example. It is called while the stage is built.
    /// Default: no check. Only a function whose gradients may be incomplete without an error needs one, such as [`Autograd`](crate::Autograd).
    ///
    /// # Errors
    /// If a gradient is zero or incomplete by construction; the message names it. A function that takes no such input returns no error.
    fn check_gradients(&self, _input: &[usize], _device: &Device) -> Result<()> {
        Ok(())
    }

    /// Returns whether gradients are unchecked that only a backward pass on real inputs checks, since [`Self::check_gradients`] did not. A
    /// trainer then runs one on a few examples before the first step. Default: no. Containers ask the functions in them.
    fn has_unchecked_gradients(&self) -> bool {
        false
    }
}

impl Gradients {
    /// Converts these gradients to the result of [`Differentiable::backward_input`], for layers that compute both at once. The parameter gradients
    /// become the pending value.
    ///
    /// # Errors
    /// If there is no input gradient.
    pub fn into_backward_input(mut self) -> Result<(Activation, Pending)> {
        let parameters = std::mem::take(&mut self.parameters);
        Ok((self.into_input()?, Pending::new::<ParameterGradients>(parameters)))
    }

    /// Returns the input gradient of a backward pass that wanted it.
    ///
    /// # Errors
    /// If there is none: the function is not differentiable in its input (tokens, masks).
    pub fn into_input(self) -> Result<Activation> {
        self.input.ok_or_else(no_input_gradient)
    }
}

pub(crate) fn no_input_gradient() -> Error {
    Error::invalid(
        "backward pass",
        "the unit returned no input gradient",
        "put a unit that is not differentiable in its input (an embedding) first in the model",
    )
}

impl<T: Differentiable + ?Sized> Differentiable for Box<T> {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        (**self).forward(x, pass)
    }
    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        (**self).backward(saved, output_gradient, wants)
    }
    fn has_parameters(&self) -> bool {
        (**self).has_parameters()
    }
    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        (**self).backward_input(saved, output_gradient)
    }
    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<ParameterGradients> {
        (**self).backward_parameters(saved, pending)
    }
    fn last_backward(&self, saved: Saved, output_gradient: Activation, wants: Wants) -> Result<Gradients> {
        (**self).last_backward(saved, output_gradient, wants)
    }
    fn last_backward_parameters(&self, saved: Saved, pending: Pending) -> Result<ParameterGradients> {
        (**self).last_backward_parameters(saved, pending)
    }
    fn check_gradients(&self, input: &[usize], device: &Device) -> Result<()> {
        (**self).check_gradients(input, device)
    }
    fn has_unchecked_gradients(&self) -> bool {
        (**self).has_unchecked_gradients()
    }
}
