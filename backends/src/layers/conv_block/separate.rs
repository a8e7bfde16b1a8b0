//! A block of convolutions, computed layer by layer.

use candle_core::TensorId;
use interlock::{
    Activation, Differentiable, Gradients, ParameterGradients, Pass, Pending, Result, Saved, Sequential, Wants,
};

use super::Shortcut;
use crate::layers::{BatchNorm2d, Conv2d, Relu, Residual};

/// The layers of a block.
pub(super) struct SeparateBlock {
    layers: Sequential,
    /// The biases of the convolutions.
    biases: Vec<TensorId>,
}

impl SeparateBlock {
    pub(super) fn new(links: Vec<(Conv2d, BatchNorm2d)>, shortcut: Shortcut) -> Self {
        let projection = match &shortcut {
            Shortcut::Projection(conv, _) => Some(conv),
            _ => None,
        };
        let convolutions = links.iter().map(|(conv, _)| conv).chain(projection);
        let biases = convolutions.filter_map(|conv| conv.bias.as_ref()).map(|bias| bias.id()).collect();
        Self { layers: layers(links, shortcut), biases }
    }

    /// Sets the gradients of the convolutions' biases to zero, their exact value: norms of rounded values leave a remainder.
    fn without_remainders(&self, mut gradients: ParameterGradients) -> Result<ParameterGradients> {
        for (_, gradient) in gradients.iter_mut().filter(|(id, _)| self.biases.contains(id)) {
            *gradient = gradient.zeros_like()?;
        }
        Ok(gradients)
    }
}

fn layers(links: Vec<(Conv2d, BatchNorm2d)>, shortcut: Shortcut) -> Sequential {
    let mut main = Sequential::default();
    for (at, (conv, norm)) in links.into_iter().enumerate() {
        if at > 0 {
            main.push(Relu);
        }
        main = main.add(conv).add(norm);
    }
    let shortcut: Option<Box<dyn Differentiable>> = match shortcut {
        Shortcut::None => return main.add(Relu),
        Shortcut::Identity => None,
        Shortcut::Projection(conv, norm) => Some(Box::new(Sequential::default().add(conv).add(norm))),
    };
    Sequential::default().add(Residual::new(Box::new(main), shortcut)).add(Relu)
}

impl Differentiable for SeparateBlock {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        self.layers.forward(x, pass)
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        let Gradients { input, parameters } = self.layers.backward(saved, output_gradient, wants)?;
        Ok(Gradients { input, parameters: self.without_remainders(parameters)? })
    }

    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        self.layers.backward_input(saved, output_gradient)
    }

    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<ParameterGradients> {
        self.without_remainders(self.layers.backward_parameters(saved, pending)?)
    }

    fn last_backward(&self, saved: Saved, output_gradient: Activation, wants: Wants) -> Result<Gradients> {
        let Gradients { input, parameters } = self.layers.last_backward(saved, output_gradient, wants)?;
        Ok(Gradients { input, parameters: self.without_remainders(parameters)? })
    }

    fn last_backward_parameters(&self, saved: Saved, pending: Pending) -> Result<ParameterGradients> {
        self.without_remainders(self.layers.last_backward_parameters(saved, pending)?)
    }
}
