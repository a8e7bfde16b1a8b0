//! A block as its layers one after another.

use interlock::{Differentiable, Gradients, ParameterGradients, Result, Sequential};

use super::{ConvBlock, Shortcut};
use crate::layers::{Relu, Residual};

impl ConvBlock {
    /// The layers one after another, of the same parameters: how a block is composed.
    pub(super) fn parts(&self) -> Sequential {
        let mut main = Sequential::default();
        for (at, (conv, norm)) in self.links.iter().enumerate() {
            if at > 0 {
                main.push(Relu);
            }
            main = main.and(conv.clone()).and(norm.clone());
        }
        let shortcut: Option<Box<dyn Differentiable>> = match &self.shortcut {
            Shortcut::None => return main.and(Relu),
            Shortcut::Identity => None,
            Shortcut::Projection(conv, norm) => {
                Some(Box::new(Sequential::default().and(conv.clone()).and(norm.clone())))
            }
        };
        Sequential::default().and(Residual::new(Box::new(main), shortcut)).and(Relu)
    }

    /// ParameterGradients of [`Self::parts`], with those of the convolutions' biases as they are: zero, where norms of rounded values leave a remainder.
    pub(super) fn exact(&self, mut gradients: ParameterGradients) -> Result<ParameterGradients> {
        let projection = match &self.shortcut {
            Shortcut::Projection(conv, _) => Some(conv),
            _ => None,
        };
        for bias in self.links.iter().map(|(conv, _)| conv).chain(projection).filter_map(|conv| conv.bias.as_ref()) {
            for (_, gradient) in gradients.iter_mut().filter(|(id, _)| *id == bias.id()) {
                *gradient = gradient.zeros_like()?;
            }
        }
        Ok(gradients)
    }

    /// [`Self::exact`] of what pull-backs give.
    pub(super) fn exactly(&self, pulled: Gradients) -> Result<Gradients> {
        Ok(Gradients { parameters: self.exact(pulled.parameters)?, ..pulled })
    }
}
