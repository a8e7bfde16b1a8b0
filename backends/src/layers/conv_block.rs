//! Convolutions with batch norms, ReLUs between them and a shortcut around them:
//! `y = ReLU(norm_n(conv_n(… ReLU(norm_1(conv_1(x))) …)) + shortcut(x))`.
//!
//! The values are those of [`Conv2d`], [`BatchNorm2d`], [`Relu`](super::Relu) and [`Residual`](super::Residual) one after another. On the CPU they
//! are fused (`fused.rs`), which takes about half of the time and a third of the memory. On other devices they are computed one after another
//! (`separate.rs`), and each saves its own tensors.
//!
//! A norm cancels the bias of its convolution: the bias changes only the running mean, and its gradient is zero.

mod fused;
mod separate;

use interlock::{Differentiable, Error, Result};

use self::{fused::FusedBlock, separate::SeparateBlock};
use super::{
    BatchNorm2d, Conv2d,
    form::{Form, differentiable_by_form},
};

/// The name of the layer in messages.
const NAME: &str = "convolution block";

/// The branch that is added to the last norm's output.
pub enum Shortcut {
    /// None.
    None,
    /// The input; it must have the output's shape.
    Identity,
    /// The input's convolution, normed.
    Projection(Conv2d, BatchNorm2d),
}

/// `ReLU(norm_n(conv_n(… ReLU(norm_1(conv_1(x))) …)) + shortcut(x))`.
pub struct ConvBlock {
    form: Box<dyn Differentiable>,
}

impl ConvBlock {
    /// Makes a block of `links`, each a convolution and its norm.
    ///
    /// # Errors
    /// If there is no link, or if a norm does not have as many channels as its convolution's output.
    pub fn new(links: Vec<(Conv2d, BatchNorm2d)>, shortcut: Shortcut) -> Result<Self> {
        let Some((first, _)) = links.first() else { return Err(no_link()) };
        let projection = match &shortcut {
            Shortcut::Projection(conv, norm) => Some((conv, norm)),
            _ => None,
        };
        for (conv, norm) in links.iter().map(|(conv, norm)| (conv, norm)).chain(projection) {
            if conv.config.outputs != norm.channels {
                return Err(Error::invalid(
                    NAME,
                    format!(
                        "a norm of {} channels after a convolution with {} output channels",
                        norm.channels, conv.config.outputs
                    ),
                    "give both the same",
                ));
            }
        }
        let form: Box<dyn Differentiable> = match Form::on(first.weight.device()) {
            Form::Kernels => Box::new(FusedBlock::new(links, shortcut)),
            Form::CandleOperations => Box::new(SeparateBlock::new(links, shortcut)),
        };
        Ok(Self { form })
    }
}

fn no_link() -> Error {
    Error::invalid(NAME, "no convolution", "give one or more")
}

differentiable_by_form!(ConvBlock);
