//! Chains of layers.

use super::{Differentiable, Gradients, ParameterGradients, Pass, Pending, Saved, SavedMemory, no_input_gradient};
use crate::{Activation, Result, Wants};

/// A chain of layers: `f_n(… f_1(x))`.
#[derive(Default)]
pub struct Sequential(Vec<Box<dyn Differentiable>>);

impl Sequential {
    /// Chains `layers` in order of application.
    pub fn new(layers: Vec<Box<dyn Differentiable>>) -> Self {
        Self(layers)
    }

    /// Adds a layer at the end.
    pub fn push(&mut self, layer: impl Differentiable + 'static) {
        self.0.push(Box::new(layer));
    }

    /// Adds a layer at the end, as candle's `Sequential::add` does.
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "candle's name; a layer is not a summand")]
    pub fn add(mut self, layer: impl Differentiable + 'static) -> Self {
        self.push(layer);
        self
    }

    /// Runs the backward pass from the last layer to the first; `backward` does it for one layer.
    fn chain<S>(
        &self,
        saved: impl DoubleEndedIterator<Item = S> + ExactSizeIterator,
        mut output_gradient: Activation,
        wants: Wants,
        backward: impl Fn(&dyn Differentiable, S, Activation, Wants) -> Result<Gradients>,
    ) -> Result<Gradients> {
        let mut parameters = Vec::new();
        for (at, (layer, saved)) in self.0.iter().zip(saved).enumerate().rev() {
            let layer_wants = Wants { input: wants.input || at > 0, ..wants };
            let gradients = backward(&**layer, saved, output_gradient, layer_wants)?;
            parameters.extend(gradients.parameters);
            match gradients.input {
                Some(input) => output_gradient = input,
                None if at == 0 && !wants.input => return Ok(Gradients { input: None, parameters }),
                None => return Err(no_input_gradient()),
            }
        }
        Ok(Gradients { input: wants.input.then_some(output_gradient), parameters })
    }
}

impl Differentiable for Sequential {
    fn has_unchecked_gradients(&self) -> bool {
        self.0.iter().any(Differentiable::has_unchecked_gradients)
    }

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
        let memory: Vec<SavedMemory> = all.iter().flat_map(Saved::memory).copied().collect();
        Ok((x, Saved::new(all).with_memory(memory)))
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
