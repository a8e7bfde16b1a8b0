//! The seam of differentiation: a forward pass that saves, and a pull-back of a given cotangent.
//!
//! For `y = f(x, w)` and a cotangent `c = ∂l/∂y` of some loss `l`, the input pass gives `∂l/∂x = c·∂f/∂x` and the parameter pass
//! `∂l/∂w = c·∂f/∂w`. Interlocking needs them apart: a stage pulls several losses back to its input, and only one of them into its
//! parameters. So the two passes are asked for apart, and the parameter pass may come later than the input pass.

mod held;

pub use held::Held;

use std::any::Any;

use serde::{Deserialize, Serialize};

use crate::{Activation, ActivationDtype, Error, Precision, Result, parameters::Gradients};

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

/// Which gradients a pull-back is asked for; nothing else is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Wants {
    /// The gradient with respect to the input.
    pub input: bool,
    /// The gradients with respect to the parameters.
    pub parameters: bool,
}

impl Wants {
    /// The input's gradient only.
    pub const INPUT: Self = Self { input: true, parameters: false };
    /// The parameters' gradients only.
    pub const PARAMETERS: Self = Self { input: false, parameters: true };
    /// Both.
    pub const BOTH: Self = Self { input: true, parameters: true };
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
            .map_err(|_| Error::Ended("a saved forward pass changed its type".to_owned()))
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
pub struct Pulled {
    /// The gradient with respect to the input: there iff it was asked for.
    pub input: Option<Activation>,
    /// The gradients of the parameters: empty unless asked for.
    pub parameters: Gradients,
}

/// A differentiable function with parameters: a layer, a unit, a whole stage.
///
/// Implementations compose: [`Sequential`] is `Differentiable` itself. A layer needs [`forward`] and
/// [`pull_back`]; the two halves [`input_pass`] and [`parameter_pass`] follow from them, and containers override them so that the
/// chain through the layers runs once.
///
/// [`forward`]: Self::forward
/// [`pull_back`]: Self::pull_back
/// [`input_pass`]: Self::input_pass
/// [`parameter_pass`]: Self::parameter_pass
pub trait Differentiable: Send {
    /// `y = f(x)` and, in training mode, what its pull-backs need (nothing need be saved where [`Pass::save`] is false).
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)>;

    /// Pulls `cotangent` (shaped as the output) back; gives exactly what `wants` asks for.
    ///
    /// A `Saved` may be pulled back any number of times.
    fn pull_back(&self, saved: &Saved, cotangent: &Activation, wants: Wants) -> Result<Pulled>;

    /// Whether there are parameters, whose gradients a parameter pass gives. Where not, no cotangent is kept for it.
    fn has_parameters(&self) -> bool {
        true
    }

    /// The input's gradient now, the parameters' later by [`Self::parameter_pass`].
    fn input_pass(&self, saved: &Saved, cotangent: &Activation) -> Result<(Activation, Pending)> {
        let pulled = self.pull_back(saved, cotangent, Wants::INPUT)?;
        Ok((input_of(pulled)?, Pending::new(self.has_parameters().then(|| cotangent.clone()))))
    }

    /// The parameters' gradients of the loss whose input pass left `pending`.
    fn parameter_pass(&self, saved: &Saved, pending: Pending) -> Result<Gradients> {
        match pending.take()? {
            Some(cotangent) => Ok(self.pull_back(saved, &cotangent, Wants::PARAMETERS)?.parameters),
            None => Ok(Vec::new()),
        }
    }

    /// [`Self::pull_back`] for the last time: what was saved and the cotangent may be freed on the way. Containers override it, so that
    /// each layer frees its own when it is done.
    fn last_pull_back(&self, saved: Saved, cotangent: Activation, wants: Wants) -> Result<Pulled> {
        self.pull_back(&saved, &cotangent, wants)
    }

    /// [`Self::parameter_pass`] as the last of all pull-backs.
    fn last_parameter_pass(&self, saved: Saved, pending: Pending) -> Result<Gradients> {
        self.parameter_pass(&saved, pending)
    }
}

impl Pulled {
    /// As what [`Differentiable::input_pass`] gives, for layers that compute their parameters' gradients on the way: these are what it leaves.
    ///
    /// # Errors
    /// If there is no gradient of the input.
    pub fn into_input_pass(mut self) -> Result<(Activation, Pending)> {
        let parameters = std::mem::take(&mut self.parameters);
        Ok((input_of(self)?, Pending::new::<Gradients>(parameters)))
    }
}

/// The input's gradient of a pull-back that was asked for it.
///
/// # Errors
/// If there is none: the function is not differentiable in its input (tokens, masks).
pub fn input_of(pulled: Pulled) -> Result<Activation> {
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
    fn pull_back(&self, saved: &Saved, cotangent: &Activation, wants: Wants) -> Result<Pulled> {
        (**self).pull_back(saved, cotangent, wants)
    }
    fn has_parameters(&self) -> bool {
        (**self).has_parameters()
    }
    fn input_pass(&self, saved: &Saved, cotangent: &Activation) -> Result<(Activation, Pending)> {
        (**self).input_pass(saved, cotangent)
    }
    fn parameter_pass(&self, saved: &Saved, pending: Pending) -> Result<Gradients> {
        (**self).parameter_pass(saved, pending)
    }
    fn last_pull_back(&self, saved: Saved, cotangent: Activation, wants: Wants) -> Result<Pulled> {
        (**self).last_pull_back(saved, cotangent, wants)
    }
    fn last_parameter_pass(&self, saved: Saved, pending: Pending) -> Result<Gradients> {
        (**self).last_parameter_pass(saved, pending)
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
    /// Pulls `cotangent` back from layer to layer; `pull` does one of them.
    fn chain<S>(
        &self,
        saved: impl DoubleEndedIterator<Item = S> + ExactSizeIterator,
        mut cotangent: Activation,
        wants: Wants,
        pull: impl Fn(&dyn Differentiable, S, Activation, Wants) -> Result<Pulled>,
    ) -> Result<Pulled> {
        let mut parameters = Vec::new();
        for (at, (layer, saved)) in self.0.iter().zip(saved).enumerate().rev() {
            let layer_wants = Wants { input: wants.input || at > 0, ..wants };
            let pulled = pull(&**layer, saved, cotangent, layer_wants)?;
            parameters.extend(pulled.parameters);
            match pulled.input {
                Some(input) => cotangent = input,
                None if at == 0 && !wants.input => return Ok(Pulled { input: None, parameters }),
                None => return Err(no_input_gradient()),
            }
        }
        Ok(Pulled { input: wants.input.then_some(cotangent), parameters })
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

    fn pull_back(&self, saved: &Saved, cotangent: &Activation, wants: Wants) -> Result<Pulled> {
        let saved: &Vec<Saved> = saved.get()?;
        self.chain(saved.iter(), cotangent.clone(), wants, |layer, saved, c, wants| layer.pull_back(saved, &c, wants))
    }

    fn input_pass(&self, saved: &Saved, cotangent: &Activation) -> Result<(Activation, Pending)> {
        let saved: &Vec<Saved> = saved.get()?;
        let mut cotangent = cotangent.clone();
        let mut left = Vec::with_capacity(self.0.len());
        for (layer, saved) in self.0.iter().zip(saved).rev() {
            let (input, pending) = layer.input_pass(saved, &cotangent)?;
            left.push(pending);
            cotangent = input;
        }
        Ok((cotangent, Pending::new(left)))
    }

    fn parameter_pass(&self, saved: &Saved, pending: Pending) -> Result<Gradients> {
        let saved: &Vec<Saved> = saved.get()?;
        let left: Vec<Pending> = pending.take()?;
        let mut gradients = Vec::new();
        for ((layer, saved), pending) in self.0.iter().zip(saved).rev().zip(left) {
            gradients.extend(layer.parameter_pass(saved, pending)?);
        }
        Ok(gradients)
    }

    fn last_pull_back(&self, saved: Saved, cotangent: Activation, wants: Wants) -> Result<Pulled> {
        let saved: Vec<Saved> = saved.take()?;
        self.chain(saved.into_iter(), cotangent, wants, |layer, saved, c, wants| layer.last_pull_back(saved, c, wants))
    }

    fn last_parameter_pass(&self, saved: Saved, pending: Pending) -> Result<Gradients> {
        let saved: Vec<Saved> = saved.take()?;
        let left: Vec<Pending> = pending.take()?;
        let mut gradients = Vec::new();
        for ((layer, saved), pending) in self.0.iter().zip(saved).rev().zip(left) {
            gradients.extend(layer.last_parameter_pass(saved, pending)?);
        }
        Ok(gradients)
    }
}
