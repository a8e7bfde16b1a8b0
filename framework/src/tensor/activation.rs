//! Activations, which cross boundaries: ordered lists of tensors.

use candle_core::Tensor;

use crate::{Error, Result};

/// The value between two units or stages: an ordered list of tensors of any dtype.
///
/// Most models use one tensor; masks and long skips travel as further ones. A gradient with respect to an activation
/// has the same type, with one tensor for each tensor of floating-point dtype, in the same order.
#[derive(Clone, Debug)]
pub struct Activation(Vec<Tensor>);

impl Activation {
    /// Returns an activation of several tensors.
    pub fn new(tensors: Vec<Tensor>) -> Self {
        Self(tensors)
    }

    /// Returns the only tensor.
    ///
    /// # Errors
    /// If there is not exactly one.
    pub fn single(&self) -> Result<&Tensor> {
        match self.0.as_slice() {
            [tensor] => Ok(tensor),
            other => Err(Error::invalid(
                "activation",
                format!("{} tensors where one is expected", other.len()),
                "use a unit that takes them all, or pass one tensor",
            )),
        }
    }

    /// Returns the tensors in order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.0
    }

    /// Returns the tensors in order, by value.
    pub fn into_tensors(self) -> Vec<Tensor> {
        self.0
    }

    /// Returns the bytes of the tensors' elements.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum()
    }

    /// Returns the same values outside of any graph, without a copy.
    pub fn detach(&self) -> Self {
        Self(self.0.iter().map(Tensor::detach).collect())
    }

    /// Applies `f` to every tensor.
    pub fn try_map(&self, f: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        self.0.iter().map(f).collect::<Result<_>>().map(Self)
    }
}

impl From<&Tensor> for Activation {
    fn from(tensor: &Tensor) -> Self {
        Self(vec![tensor.clone()])
    }
}

impl From<&Activation> for Activation {
    fn from(activation: &Activation) -> Self {
        activation.clone()
    }
}

impl From<Tensor> for Activation {
    fn from(tensor: Tensor) -> Self {
        Self(vec![tensor])
    }
}
