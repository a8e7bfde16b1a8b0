//! A linear layer fused with the cheap layer before it: `y = f(x) Wᵀ + b`, with `f` a layer norm or GELU.
//!
//! The values are those of the two layers one after another. On the CPU the two are fused (`kernels.rs`): the output of `f`, which the linear layer
//! would save for its own gradient, is computed again from the tensors that `f` saves anyway. For its norms this saves an eighth of a Transformer's
//! memory, and for its GELUs a quarter. On other devices the two are computed one after another, and both save their inputs.

mod kernels;

use std::fmt;

use interlock::{Differentiable, Sequential};

use self::kernels::{Inner, LinearKernels};
use super::{
    Gelu, LayerNorm, Linear,
    form::{Form, differentiable_by_form},
};

/// A linear layer fused with a layer norm or GELU: `y = f(x) Wᵀ + b`.
pub struct FusedLinear {
    form: Box<dyn Differentiable>,
    linear: Linear,
}

impl FusedLinear {
    /// Makes a `linear` layer of the output of `norm`.
    pub fn norm(norm: LayerNorm, linear: Linear) -> Self {
        Self::new(Inner::Norm(norm), linear)
    }

    /// Makes a `linear` layer of GELU's output.
    pub fn gelu(linear: Linear) -> Self {
        Self::new(Inner::Gelu, linear)
    }

    fn new(inner: Inner, linear: Linear) -> Self {
        let form: Box<dyn Differentiable> = match (Form::on(linear.weight.device()), inner) {
            (Form::Kernels, inner) => Box::new(LinearKernels { inner, linear: linear.clone() }),
            (Form::CandleOperations, Inner::Norm(norm)) => {
                Box::new(Sequential::default().add(norm).add(linear.clone()))
            }
            (Form::CandleOperations, Inner::Gelu) => Box::new(Sequential::default().add(Gelu).add(linear.clone())),
        };
        Self { form, linear }
    }

    /// Returns the linear layer alone.
    pub(super) fn into_linear(self) -> Linear {
        self.linear
    }
}

impl fmt::Debug for FusedLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FusedLinear").field("linear", &self.linear).finish_non_exhaustive()
    }
}

differentiable_by_form!(FusedLinear);
