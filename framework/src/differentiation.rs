//! The seam of differentiation: a forward pass that saves, and a pull-back of a given output_gradient.
//!
//! For `y = f(x, w)` and a output_gradient `c = ∂l/∂y` of some loss `l`, the input pass gives `∂l/∂x = c·∂f/∂x` and the parameter pass
//! `∂l/∂w = c·∂f/∂w`. Interlocking needs them apart: a stage pulls several losses back to its input, and only one of them into its
//! parameters. So the two passes are asked for apart, and the parameter pass may come later than the input pass.

pub mod autograd;
pub mod graph;
mod held;

pub use autograd::{Autograd, StageModule};
pub use held::Held;

use std::any::Any;

use crate::{Activation, ActivationDtype, Error, Precision, Result, Wants, model::ParameterGradients};

/// Training or evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics, dropout, running statistics updated.
    Train,
    /// Running statistics, no dropout, nothing saved or changed.
    Eval,
}

/// What a forward pass is part of.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Training or evaluation.
    pub mode: Mode,
    /// The run's seed: dropout draws from it, the step, the micro-batch and its own name.
    pub seed: u64,
    /// The step, counted from 0.
    pub step: u64,
    /// The micro-batch within the step, counted from 0.
    pub micro: usize,
    /// Whether running statistics are to be updated: false when a forward pass is recomputed.
    pub track: bool,
    /// Whether the forward pass will be pulled back: false in training where it will be recomputed before that, so that nothing need be saved.
    pub save: bool,
    /// In which dtype what is saved should be kept. A layer may keep more than that.
    pub dtype: ActivationDtype,
    /// In which precision layers compute; those of the CPU compute in `f32` whatever it is.
    pub precision: Precision,
}

impl Pass {
    /// A training pass.
    pub fn train(seed: u64, step: u64, micro: usize) -> Self {
        Self {
            mode: Mode::Train,
            seed,
            step,
            micro,
            track: true,
            save: true,
            dtype: ActivationDtype::F32,
            precision: Precision::F32,
        }
    }

    /// An evaluation pass.
    pub fn eval() -> Self {
        Self {
            mode: Mode::Eval,
            seed: 0,
            step: 0,
            micro: 0,
            track: false,
            save: false,
            dtype: ActivationDtype::F32,
            precision: Precision::F32,
        }
    }

    /// Whether this is a training pass.
    pub fn is_train(&self) -> bool {
        self.mode == Mode::Train
    }
}

/// What a forward pass keeps for its pull-backs; only the layer that made it can read it.
pub struct Saved {
    value: Box<dyn Any + Send>,
    held: Vec<Held>,
}

impl Saved {
    /// Keeps `value`.
    pub fn new<T: Send + 'static>(value: T) -> Self {
        Self { value: Box::new(value), held: Vec::new() }
    }

    /// Tells which memory the value holds, so that it can be shown how much a stage needs: all of it counts, parts that are `Saved` themselves
    /// ([`Self::held`]) included. What is not told is not counted.
    #[must_use]
    pub fn holding(mut self, held: impl IntoIterator<Item = Held>) -> Self {
        self.held.extend(held);
        self
    }

    /// The memory that it was told to hold.
    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// Bytes of that memory.
    pub fn bytes(&self) -> usize {
        held::bytes(&self.held)
    }

    /// Keeps nothing (evaluation, or layers that need nothing).
    pub fn nothing() -> Self {
        Self::new(())
    }

    /// The value kept.
    ///
    /// # Errors
    /// If it is of another type: this `Saved` came from another layer, or from an evaluation pass.
    pub fn get<T: 'static>(&self) -> Result<&T> {
        self.value.downcast_ref().ok_or_else(|| {
            Error::invalid(
                "pull-back",
                format!("the saved forward pass is not a {}", std::any::type_name::<T>()),
                "pull back what this layer's forward pass in training mode saved",
            )
        })
    }

    /// The value kept, to be freed in pieces.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn take<T: 'static>(self) -> Result<T> {
        self.get::<T>()?;
        self.value
            .downcast()
            .map(|value| *value)
            .map_err(|_| Error::Internal("a saved forward pass changed its type".to_owned()))
    }
}

/// What an input pass leaves for the parameter pass of the same loss.
pub struct Pending(Box<dyn Any + Send>);

impl Pending {
    /// Leaves `value`.
    pub fn new<T: Send + 'static>(value: T) -> Self {
        Self(Box::new(value))
    }

    /// The value left.
    ///
    /// # Errors
    /// If it is of another type: it came from another layer's input pass.
    pub fn take<T: 'static>(self) -> Result<T> {
        self.0.downcast().map(|b| *b).map_err(|_| {
            Error::invalid(
                "parameter pass",
                format!("what the input pass left is not a {}", std::any::type_name::<T>()),
                "finish what this layer's input pass left",
            )
        })
    }
}

/// What a pull-back gives.
#[derive(Default)]
pub struct Gradients {
    /// The gradient with respect to the input: there iff it was asked for.
    pub input: Option<Activation>,
    /// The gradients of the parameters: empty unless asked for.
    pub parameters: ParameterGradients,
}

/// A differentiable function with parameters: a layer, a unit, a whole stage.
///
/// Implementations compose: [`Sequential`] is `Differentiable` itself. A layer needs [`forward`] and
/// [`backward`]; the two halves [`backward_input`] and [`backward_parameters`] follow from them, and containers override them so that the
/// chain through the layers runs once.
///
/// [`forward`]: Self::forward
/// [`backward`]: Self::backward
/// [`backward_input`]: Self::backward_input
/// [`backward_parameters`]: Self::backward_parameters
pub trait Differentiable: Send {
    /// `y = f(x)` and, in training mode, what its pull-backs need (nothing need be saved where [`Pass::save`] is false).
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)>;

    /// Pulls `output_gradient` (shaped as the output) back; gives exactly what `wants` asks for.
    ///
    /// A `Saved` may be pulled back any number of times.
    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients>;

    /// Whether there are parameters, whose gradients a parameter pass gives. Where not, no output_gradient is kept for it.
    fn has_parameters(&self) -> bool {
        true
    }

    /// The input's gradient now, the parameters' later by [`Self::backward_parameters`].
    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        let pulled = self.backward(saved, output_gradient, Wants::INPUT)?;
        Ok((input_of(pulled)?, Pending::new(self.has_parameters().then(|| output_gradient.clone()))))
    }

    /// The parameters' gradients of the loss whose input pass left `pending`.
    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<ParameterGradients> {
        match pending.take()? {
            Some(output_gradient) => Ok(self.backward(saved, &output_gradient, Wants::PARAMETERS)?.parameters),
            None => Ok(Vec::new()),
        }
    }

    /// [`Self::backward`] for the last time: what was saved and the output_gradient may be freed on the way. Containers override it, so that
    /// each layer frees its own when it is done.
    fn last_backward(&self, saved: Saved, output_gradient: Activation, wants: Wants) -> Result<Gradients> {
        self.backward(&saved, &output_gradient, wants)
    }

    /// [`Self::backward_parameters`] as the last of all pull-backs.
    fn last_backward_parameters(&self, saved: Saved, pending: Pending) -> Result<ParameterGradients> {
        self.backward_parameters(&saved, pending)
    }
}

impl Gradients {
    /// As what [`Differentiable::backward_input`] gives, for layers that compute their parameters' gradients on the way: these are what it leaves.
    ///
    /// # Errors
    /// If there is no gradient of the input.
    pub fn into_backward_input(mut self) -> Result<(Activation, Pending)> {
        let parameters = std::mem::take(&mut self.parameters);
        Ok((input_of(self)?, Pending::new::<ParameterGradients>(parameters)))
    }
}

/// The input's gradient of a pull-back that was asked for it.
///
/// # Errors
/// If there is none: the function is not differentiable in its input (tokens, masks).
pub fn input_of(pulled: Gradients) -> Result<Activation> {
    pulled.input.ok_or_else(no_input_gradient)
}

fn no_input_gradient() -> Error {
    Error::invalid(
        "pull-back",
        "the unit gave no gradient for its input",
        "a unit that is not differentiable in its input (an embedding) can only be the first of a model",
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
}

/// Layers one after another: `f_n(… f_1(x))`.
#[derive(Default)]
pub struct Sequential(Vec<Box<dyn Differentiable>>);

impl Sequential {
    /// The layers in order of application.
    pub fn new(layers: Vec<Box<dyn Differentiable>>) -> Self {
        Self(layers)
    }

    /// Adds a layer at the end.
    pub fn push(&mut self, layer: impl Differentiable + 'static) {
        self.0.push(Box::new(layer));
    }

    /// Adds a layer at the end.
    #[must_use]
    pub fn and(mut self, layer: impl Differentiable + 'static) -> Self {
        self.push(layer);
        self
    }
}

impl Sequential {
    /// Pulls `output_gradient` back from layer to layer; `pull` does one of them.
    fn chain<S>(
        &self,
        saved: impl DoubleEndedIterator<Item = S> + ExactSizeIterator,
        mut output_gradient: Activation,
        wants: Wants,
        pull: impl Fn(&dyn Differentiable, S, Activation, Wants) -> Result<Gradients>,
    ) -> Result<Gradients> {
        let mut parameters = Vec::new();
        for (at, (layer, saved)) in self.0.iter().zip(saved).enumerate().rev() {
            let layer_wants = Wants { input: wants.input || at > 0, ..wants };
            let pulled = pull(&**layer, saved, output_gradient, layer_wants)?;
            parameters.extend(pulled.parameters);
            match pulled.input {
                Some(input) => output_gradient = input,
                None if at == 0 && !wants.input => return Ok(Gradients { input: None, parameters }),
                None => return Err(no_input_gradient()),
            }
        }
        Ok(Gradients { input: wants.input.then_some(output_gradient), parameters })
    }
}

impl Differentiable for Sequential {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let mut x = x.clone();
        let mut all = Vec::with_capacity(if pass.save { self.0.len() } else { 0 });
        for layer in &self.0 {
            let (y, saved) = layer.forward(&x, pass)?;
            if pass.save {
                all.push(saved);
            }
            x = y;
        }
        let held: Vec<Held> = all.iter().flat_map(Saved::held).copied().collect();
        Ok((x, Saved::new(all).holding(held)))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        let saved: &Vec<Saved> = saved.get()?;
        self.chain(saved.iter(), output_gradient.clone(), wants, |layer, saved, c, wants| {
            layer.backward(saved, &c, wants)
        })
    }

    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        let saved: &Vec<Saved> = saved.get()?;
        let mut output_gradient = output_gradient.clone();
        let mut left = Vec::with_capacity(self.0.len());
        for (layer, saved) in self.0.iter().zip(saved).rev() {
            let (input, pending) = layer.backward_input(saved, &output_gradient)?;
            left.push(pending);
            output_gradient = input;
        }
        Ok((output_gradient, Pending::new(left)))
    }

    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<ParameterGradients> {
        let saved: &Vec<Saved> = saved.get()?;
        let left: Vec<Pending> = pending.take()?;
        let mut gradients = Vec::new();
        for ((layer, saved), pending) in self.0.iter().zip(saved).rev().zip(left) {
            gradients.extend(layer.backward_parameters(saved, pending)?);
        }
        Ok(gradients)
    }

    fn last_backward(&self, saved: Saved, output_gradient: Activation, wants: Wants) -> Result<Gradients> {
        let saved: Vec<Saved> = saved.take()?;
        self.chain(saved.into_iter(), output_gradient, wants, |layer, saved, c, wants| {
            layer.last_backward(saved, c, wants)
        })
    }

    fn last_backward_parameters(&self, saved: Saved, pending: Pending) -> Result<ParameterGradients> {
        let saved: Vec<Saved> = saved.take()?;
        let left: Vec<Pending> = pending.take()?;
        let mut gradients = Vec::new();
        for ((layer, saved), pending) in self.0.iter().zip(saved).rev().zip(left) {
            gradients.extend(layer.last_backward_parameters(saved, pending)?);
        }
        Ok(gradients)
    }
}
